"""An image condition that is made of the image itself: the image at a lower resolution, for super-resolution.

    low = up(down(x) + s ε),   s ~ U[0, largest level],   ε ~ N(0, 1) at the low resolution

down averages over blocks, up repeats each value over its block.  The network gets s, so that after training it can be
given how far to trust the condition: s = 0 is a clean one.

Reference: Ho et al., "Cascaded diffusion models", arXiv 2106.15282, Sec. 4.2 (noise augmentation of the condition).
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..conditions import Condition
from ..tensors import Recorded, mix, per_sample
from .decoding import Size, check_size
from .loader import Augmentation, Batch


class LowResolution(Recorded):
    """The condition `low` of images: their averages over blocks, at full size; and with noise its level `low_noise`.

    Args:
        size: Height and width of the low resolution.
        noise: Largest standard deviation of noise that training adds to it, in model units; 0: none.
    """

    def __init__(self, size: tuple[int, int], noise: float = 0.0) -> None:
        self.size, self.noise = size, noise

    def conditions(self, name: str, shape: tuple[int, ...]) -> dict[str, Condition]:
        """The conditions of images of a shape (C, H, W).

        Raises:
            ValueError: the low resolution does not divide the height and width.
        """
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
        """The batch with its conditions; the noise that `LowNoise` drew, low_eps, is used up.

        Args:
            batch: {"x": (B, C, H, W), in model units, …}.
        """
        batch = dict(batch)
        x, eps = batch["x"], batch.pop("low_eps", None)
        low = self.down(x)
        if eps is not None:
            low = low + per_sample(batch["low_noise"], x) * eps
        elif self.noise:
            batch["low_noise"] = x.new_zeros(len(x), 1)
        return {**batch, "low": self.up(low, x.shape[2:])}


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
