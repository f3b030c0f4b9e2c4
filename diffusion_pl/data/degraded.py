"""Image conditions that are made of the images themselves, for super-resolution and inpainting.

    low = up(down(x) + s ε),   s ~ U[0, largest level],   ε ~ N(0, 1) at the low resolution
    masked = x where m is true, else NaN (not given),   m a random mask

down averages over blocks, up repeats each value over its block.  The network gets s, so that after training it can be
given how far to trust the condition: s = 0 is a clean one.

Reference: Ho et al., "Cascaded diffusion models", arXiv 2106.15282, Sec. 4.2 (noise augmentation of the condition);
Saharia et al., "Palette", arXiv 2111.05826 (inpainting with the known part as a condition).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..conditions import Condition
from ..tensors import Recorded, mix, per_sample
from .decoding import Size, check_size
from .identity import mixed
from .loader import Augmentation, Batch, Source
from .pixels import read_sized
from .units import Levels


class Degradation(Recorded, ABC):
    """What makes conditions of images; the first of them, `name`, is an image itself.

    Attributes:
        name: Of the image condition.
        augmentation: Draws, at each visit of a training image, what the conditions need of chance; None: nothing.
    """

    name: str
    augmentation: Augmentation | None = None

    @abstractmethod
    def conditions(self, name: str, shape: tuple[int, ...]) -> dict[str, Condition]:
        """The conditions of images of a shape (C, H, W); name: of the data, for messages.

        Raises:
            ValueError: they cannot be made of such images.
        """

    def held_out(self, source: Source) -> Source:
        """Images with what conditions need of chance, always the same for an image: those of no augmentation."""
        return source

    @abstractmethod
    def added(self, batch: Batch) -> Batch:
        """The batch with its conditions; what was drawn for them is used up.  batch: {"x": (B, C, H, W), …}."""

    @abstractmethod
    def of(self, x: Tensor, known: Tensor | None = None) -> Batch:
        """The conditions that follow from images of which a part is known, (B, *shape) each; {} if none do.

        Args:
            x: (B, C, H, W), in model units.
            known: (1, 1, H, W), 1 where pixels are known, else 0; None: no pixel is missing.
        """

    @abstractmethod
    def read(self, given: Any, shape: tuple[int, ...], units: Levels) -> Tensor:
        """Values of the image condition, (K, *shape), of what a person gives.

        Raises:
            ValueError: of another size, or no image.
        """


class LowResolution(Degradation):
    """The condition `low` of images: their averages over blocks, at full size; and with noise its level `low_noise`.

    Args:
        size: Height and width of the low resolution.
        noise: Largest standard deviation of noise that training adds to it, in model units; 0: none.
    """

    name = "low"

    def __init__(self, size: tuple[int, int], noise: float = 0.0) -> None:
        self.size, self.noise = size, noise
        self.augmentation = LowNoise(size, noise) if noise else None

    def conditions(self, name: str, shape: tuple[int, ...]) -> dict[str, Condition]:
        (_, *sizes), (height, width) = shape, self.size
        if sizes[0] % height or sizes[1] % width:
            raise ValueError(
                f"{name}: low must divide the height and width, {sizes[0]}x{sizes[1]}, got {height}x{width}"
            )
        return {"low": Condition(shape), **({"low_noise": Condition((1,))} if self.noise else {})}

    def down(self, x: Tensor) -> Tensor:
        """Averages over blocks: (B, C, H, W) -> (B, C, h, w)."""
        return F.adaptive_avg_pool2d(x, self.size)

    def up(self, low: Tensor, size: Sequence[int]) -> Tensor:
        """Each value over its block: (B, C, h, w) -> (B, C, H, W); size: (H, W)."""
        return F.interpolate(low, size=list(size), mode="nearest")

    def added(self, batch: Batch) -> Batch:
        batch = dict(batch)
        x, eps = batch["x"], batch.pop("low_eps", None)
        low = self.down(x)
        if eps is not None:
            low = low + per_sample(batch["low_noise"], x) * eps
        elif self.noise:
            batch["low_noise"] = x.new_zeros(len(x), 1)
        return {**batch, "low": self.up(low, x.shape[2:])}

    def of(self, x: Tensor, known: Tensor | None = None) -> Batch:
        made = self.added({"x": x})
        del made["x"]
        if known is not None:  # a block is known where all of its pixels are
            whole = self.up(-F.adaptive_max_pool2d(-known.to(x), self.size), x.shape[2:]) > 0
            made["low"] = torch.where(whole, made["low"], torch.nan)
        return made

    def read(self, given: Any, shape: tuple[int, ...], units: Levels) -> Tensor:
        channels, *full = shape
        images = read_sized("low", given, channels, (self.size, (full[0], full[1])), units)
        return torch.cat([self.up(self.down(x[None]), full) for x in images])


class Masked(Degradation):
    """The condition `masked` of images: the pixels that a mask shows, and NaN, not given, elsewhere.

    A network gets NaN as 0, with a mask of what is given as one more channel (`networks.conditioning`).
    """

    name = "masked"

    def __init__(self) -> None:
        self.augmentation = RandomMasks()

    def conditions(self, name: str, shape: tuple[int, ...]) -> dict[str, Condition]:
        return {"masked": Condition(shape)}

    def held_out(self, source: Source) -> Source:
        return Numbered(source, RandomMasks())

    def added(self, batch: Batch) -> Batch:
        batch = dict(batch)
        batch["masked"] = torch.where(batch.pop("mask"), batch["x"], torch.nan)
        return batch

    def of(self, x: Tensor, known: Tensor | None = None) -> Batch:
        return {} if known is None else {"masked": torch.where(known.to(x) > 0, x, torch.nan)}

    def read(self, given: Any, shape: tuple[int, ...], units: Levels) -> Tensor:
        paths = list(given) if isinstance(given, (list, tuple)) else [given]
        if len(paths) != 2:
            raise ValueError(
                f"cond.masked: expected an image and its mask, which is white where pixels are known, got {given}. "
                "Fix: --cond.masked '[IMAGE, MASK]'"
            )
        channels, *full = shape
        size = [(full[0], full[1])]
        images = torch.stack(read_sized("masked", paths[0], channels, size, units))
        masks = torch.stack(read_sized("masked", paths[1], 1, size, units))
        if len(masks) not in (1, len(images)):
            raise ValueError(f"cond.masked: {paths[1]}: expected one mask or {len(images)}, got {len(masks)}")
        return torch.where(masks > 0, images, torch.nan)


def degradations(name: str, low: Size, low_noise: float, masked: bool) -> tuple[Degradation, ...]:
    """What makes conditions of images, of the options of a data set.

    Raises:
        ValueError: see `low_resolution`.
    """
    made = low_resolution(name, low, low_noise), Masked() if masked else None
    return tuple(degradation for degradation in made if degradation is not None)


def low_resolution(name: str, low: Size, noise: float) -> LowResolution | None:
    """The condition `low` of the options of a data set, None without one.

    Raises:
        ValueError: a size below 1, or noise of nothing.
    """
    if not 0 <= noise < math.inf or (noise and low is None):
        raise ValueError(f"{name}: low_noise must be at least 0, and needs low, got {noise} and low {low}")
    try:
        size = check_size(name, low)
    except ValueError as error:
        raise ValueError(str(error).replace("size must be", "low must be")) from None
    return None if size is None else LowResolution(size, noise)


class LowNoise(Recorded):
    """Draws for each image the noise of its condition `low`: low_noise: (B, 1), its level, and low_eps: (B, C, h, w).

    Args:
        size: Height and width of the condition.
        most: The largest level; it is uniform in [0, most).
    """

    draws = 3
    tells: tuple[str, ...] = ()

    def __init__(self, size: tuple[int, int], most: float) -> None:
        self.size, self.most = size, most

    def __call__(self, batch: Batch, u: Tensor) -> Batch:
        """batch: {"x": (B, C, H, W), …}, u: (B, 3), a level and a seed for each example."""
        shape = (batch["x"].shape[1], *self.size)
        seeds = (u[:, 1:].double() * 2**24).long().tolist()
        eps = [torch.randn(shape, generator=torch.Generator().manual_seed(mix(*seed))) for seed in seeds]
        return {**batch, "low_noise": self.most * u[:, :1], "low_eps": torch.stack(eps)}


class RandomMasks(Recorded):
    """Draws for each image the mask of its condition `masked`, mask: (B, 1, H, W), true where pixels are known.

    A box of uniform height, width and place; with probability ½ the box is what is missing, else all around it is.
    """

    draws = 5
    tells: tuple[str, ...] = ()

    def __call__(self, batch: Batch, u: Tensor) -> Batch:
        """batch: {"x": (B, C, H, W), …}, u: (B, 5)."""
        height, width = batch["x"].shape[-2:]
        rows, columns = _interval(height, u[:, 0], u[:, 1]), _interval(width, u[:, 2], u[:, 3])
        box = rows[:, None, :, None] & columns[:, None, None, :]
        return {**batch, "mask": box ^ (u[:, 4] < 0.5).view(-1, 1, 1, 1)}


def _interval(n: int, u: Tensor, v: Tensor) -> Tensor:
    """An interval of n places, of uniform length 1 … n and uniform place: (B, n), bool. u, v ~ U[0, 1): (B,)."""
    length = (u * n).long() + 1
    first = (v * (n - length + 1)).long()
    places = torch.arange(n)
    return (places >= first[:, None]) & (places < (first + length)[:, None])


class Numbered:
    """Examples with what an augmentation draws for their numbers: always the same for an example.

    Args:
        source: The examples.
        augmentation: Of them.
    """

    def __init__(self, source: Source, augmentation: Augmentation) -> None:
        self.source, self.augmentation = source, augmentation

    def __len__(self) -> int:
        return len(self.source)

    def __getitems__(self, indices: Tensor) -> Batch:
        draws = self.augmentation.draws
        keys = indices.numpy().astype(np.uint64)[:, None] * np.uint64(draws) + np.arange(draws, dtype=np.uint64)
        u = torch.from_numpy((mixed(keys) >> np.uint64(40)).astype(np.float32) / 2**24)
        return self.augmentation(self.source.__getitems__(indices), u)


class Each(Recorded):
    """Augmentations one after the other, each with random numbers of its own."""

    def __init__(self, *parts: Augmentation) -> None:
        self.parts = parts
        self.draws = sum(part.draws for part in parts)
        self.tells = tuple(name for part in parts for name in part.tells)

    def __call__(self, batch: Batch, u: Tensor) -> Batch:
        """batch of B examples, u: (B, draws)."""
        for part, own in zip(self.parts, torch.split(u, [part.draws for part in self.parts], 1), strict=True):
            batch = part(batch, own)
        return batch
