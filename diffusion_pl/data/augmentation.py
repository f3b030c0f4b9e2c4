"""Random augmentation of training images.

A mirror image may be taken for data.  Rotations and the like would leak into the samples; but a network that gets
what was done as an input learns the images as they are, and gets "nothing" when it samples.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from ..tensors import Recorded
from .loader import Batch


class HorizontalFlip(Recorded):
    """Mirrors each image with probability ½, and with it the images that are its conditions."""

    draws = 1
    tells: tuple[str, ...] = ()

    def __call__(self, batch: Batch, u: Tensor) -> Batch:
        """batch: {"x": (B, C, H, W), …}, u: (B, 1)."""
        flipped = (u < 0.5).view(-1, 1, 1, 1)
        images = {name: value for name, value in batch.items() if value.ndim == 4}
        return {**batch, **{name: torch.where(flipped, image.flip(-1), image) for name, image in images.items()}}


class NonLeaky(Recorded):
    """Draws for each image a geometric change and the condition that describes it.

    A mirror image with probability ½, and each with probability p: upside down (one time in two), zoom by 2^{a/5},
    rotation by any angle φ, stretch by 2^{b/5} along and squeeze across a direction θ (0 one time in two), shift by
    (c, d)/8 of width and height; a, b, c, d ~ N(0, 1).  In this order.

    To the batch are added ``augment``: (B, 9), the condition (mirrored, upside down, a, cos φ − 1, sin φ, b cos θ,
    b sin θ, c, d), 0 where nothing was done, and ``warp``: (B, 2, 3), with which `warped` makes the change, on
    the device, where images are no integers any more.

    Reference: Karras et al., arXiv 2206.00364, App. F.2, Table 7; Karras et al., arXiv 2006.06676 (non-leaking).

    Args:
        p: Probability, 0.12 in EDM's CIFAR-10.
    """

    draws = 13
    tells: tuple[str, ...] = ("augment",)

    def __init__(self, p: float) -> None:
        if not 0 < p <= 1:
            raise ValueError(f"NonLeaky: p must be in (0, 1], got {p}")
        self.p = p

    def __call__(self, batch: Batch, u: Tensor) -> Batch:
        """batch: {"x": (B, C, H, W), …}, u: (B, 13)."""
        u = u.double()
        mirrored, down = u[:, 0] < 0.5, u[:, 1] < self.p / 2
        # 2⁻²⁵ is half the spacing of the numbers drawn, of which 0 is one.
        a, b, c, d = torch.special.ndtri(u[:, 2:6].clamp(min=2**-25)).T
        phi, theta = (2 * math.pi * (u[:, 6:8] - 0.5)).T
        theta = torch.where(u[:, 8] < 0.5, theta, 0.0)
        zoomed, turned, stretched, shifted = (u[:, 9:13] < self.p).T.double()
        a, b, c, d, phi = a * zoomed, b * stretched, c * shifted, d * shifted, phi * turned
        changes = (mirrored, down, a, phi.cos() - 1, phi.sin(), b * theta.cos(), b * theta.sin(), c, d)
        augment = torch.stack([part.double() for part in changes], 1)

        # The inverse of the change: each place of the new image has to know where it comes from.  Angles are between
        # pixels; positions are in halves of the width or height.
        height, width = batch["x"].shape[-2:]
        lengths = torch.tensor([width, height], dtype=torch.float64)
        turn = _rotation(theta)
        stretch = turn @ torch.diag_embed(torch.stack((2 ** (-b / 5), 2 ** (b / 5)), 1)) @ turn.mT
        flip = torch.diag_embed(1 - 2 * torch.stack((mirrored, down), 1).double())
        linear = (2 ** (-a / 5))[:, None, None] * (flip @ _rotation(-phi) @ stretch) * lengths / lengths[:, None]
        shift = linear @ torch.stack((c, d), 1)[:, :, None] / -4
        warp = torch.cat((linear, shift), 2)
        return {**batch, "augment": augment.float(), "warp": warp.float()}


def warped(x: Tensor, warp: Tensor) -> Tensor:
    """Images x: (B, C, H, W) whose value at a place r is x's at A r + b; warp: (B, 2, 3) holds (A, b).

    Positions count from the middle, (across, down), in half widths and half heights.  Bicubic between the pixels,
    mirrored at the outermost of them.
    """
    *_, height, width = x.shape
    across = (2 * torch.arange(width, device=x.device) + 1) / width - 1
    down = (2 * torch.arange(height, device=x.device) + 1) / height - 1
    places = torch.stack((across.expand(height, -1), down[:, None].expand(-1, width)), 2)  # (H, W, 2)
    source = torch.einsum("bij,hwj->bhwi", warp[:, :, :2], places) + warp[:, None, None, :, 2]
    # grid_sample is to mirror at the centres of the outermost pixels, its ±1 with align_corners.
    ends = x.new_tensor([1 - 1 / width, 1 - 1 / height])
    return F.grid_sample(x, source / ends, mode="bicubic", padding_mode="reflection", align_corners=True)


def _rotation(angle: Tensor) -> Tensor:
    """(B,) -> (B, 2, 2), from the axis across to the axis down."""
    cos, sin = angle.cos(), angle.sin()
    return torch.stack((torch.stack((cos, -sin), 1), torch.stack((sin, cos), 1)), 1)
