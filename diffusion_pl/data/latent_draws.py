"""How latents are drawn:  z = mean + std · ε  of the image or its mirror image, in training at random."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from ..tensors import Recorded, mix, per_sample
from .loader import Batch


class LatentSource(ABC):
    """The examples of a split, as moments that are stored or as images that are encoded in training.

    Attributes:
        views: 1, the image, or 2, its mirror image as well.
    """

    views: int

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitems__(self, indices: Tensor) -> Batch:
        """The examples at these indices as they are stored."""

    @abstractmethod
    def seen(self, batch: Batch, view: Tensor) -> Batch:
        """One view of each example, with its conditions. view: (B,), 0 the image, 1 its mirror image."""

    @abstractmethod
    def with_noise(self, batch: Batch, seeds: Sequence[int]) -> Batch:
        """What `seen` gives, with the noise ε of each example from a seed of its own."""

    @abstractmethod
    def conditioned(self, batch: Batch) -> Batch:
        """The conditions in model units of what `with_noise` gives, among other things. On the device of the batch."""

    @abstractmethod
    def latents(self, batch: Batch) -> Batch:
        """{"x": latents (B, c, h, w), not scaled, and the conditions} of what `with_noise` gives. Likewise."""


def noise(seeds: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Standard normal numbers, each row a function of its seed: (B, *shape)."""
    eps, generator = torch.empty(len(seeds), *shape), torch.Generator()
    for row, seed in zip(eps, seeds, strict=True):
        row.normal_(generator=generator.manual_seed(seed))
    return eps


def mirrored(batch: Batch, names: Iterable[str], view: Tensor) -> Batch:
    """A batch in which these values, (B, …, width), are mirrored where view: (B,) is 1."""
    where = {name: per_sample(view == 1, batch[name]) for name in names}
    return {**batch, **{name: torch.where(flip, batch[name].flip(-1), batch[name]) for name, flip in where.items()}}


class Drawn(Recorded):
    """Draws what training sees of each example: the image or its mirror image, with probability ½ each where both are
    asked for, and ε.

    Args:
        source: of the examples.
    """

    draws = 3
    tells: tuple[str, ...] = ()

    def __init__(self, source: LatentSource) -> None:
        self.source = source

    def __call__(self, batch: Batch, u: Tensor) -> Batch:
        """batch: as the source gives it, u: (B, 3)."""
        view = (u[:, 0] * self.source.views).long()
        numbers = (u[:, 1:].double() * 2**24).long()  # the uniform numbers have 24 bits
        seeds = (numbers[:, 0] * 2**24 + numbers[:, 1]).tolist()
        return self.source.with_noise(self.source.seen(batch, view), seeds)


class Fixed:
    """What validation sees of each example, always the same: the image itself, its ε a function of (seed, number).

    Args:
        source: of the examples.
        seed: of the noise.
    """

    def __init__(self, source: LatentSource, seed: int) -> None:
        self.source, self.seed = source, seed

    def __len__(self) -> int:
        return len(self.source)

    def __getitems__(self, indices: Tensor) -> Batch:
        batch = self.source.seen(self.source.__getitems__(indices), torch.zeros_like(indices))
        return self.source.with_noise(batch, [mix(self.seed, i) for i in indices.tolist()])
