"""Building blocks of the residual U-Nets: initialisation, attention, residual blocks, resampling.

Every block maps (x: (B, C, *sizes), time features: (B, width)) to data of the same sizes along 1 to 3 spatial axes, or
of half or twice these sizes.
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from .cross_attention import Context, CrossAttentionBlock
from .layers import CONV, along, enlarge, margins, shrink

Activation = Literal["swish", "relu", "lrelu", "elu"]
Padding = Literal["corner", "around"]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "swish": F.silu,
    "relu": F.relu,
    "lrelu": lambda x: F.leaky_relu(x, 0.2),
    "elu": F.elu,
}


def variance_scaling_(weight: Tensor, scale: float = 1.0) -> None:
    """Uniform with variance scale / fan_avg, in place; scale 0 stands for 1e-10, so that a block begins as nothing.

    Reference: Ho et al.'s initialisation of DDPM (arXiv 2006.11239).
    """
    fan_in, fan_out = weight[0].numel(), weight[:, 0].numel()
    bound = math.sqrt(3 * (scale or 1e-10) / ((fan_in + fan_out) / 2))
    nn.init.uniform_(weight, -bound, bound)


def conv(
    channels: int,
    out: int,
    size: int = 3,
    scale: float = 1.0,
    stride: int | tuple[int, ...] = 1,
    padding: int | None = None,
    axes: int = 2,
) -> nn.Conv1d | nn.Conv2d | nn.Conv3d:
    """A convolution that keeps all sizes, with variance scaling and no bias at first.

    Args:
        channels, out: channels of input and output.
        size: Of the kernel along each axis.
        scale: See `variance_scaling_`.
        stride: Along all axes, or along each.
        padding: Zeros around x; None: as many as keep the sizes.
        axes: Number of spatial axes, 1 to 3.
    """
    layer = CONV[axes](channels, out, size, stride, size // 2 if padding is None else padding)  # type: ignore[arg-type]
    variance_scaling_(layer.weight, scale)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer


def linear(features: int, out: int) -> nn.Linear:
    """A dense layer with variance scaling and no bias at first."""
    layer = nn.Linear(features, out)
    variance_scaling_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def group_norm(channels: int, groups: int | None = None, eps: float = 1e-6) -> nn.GroupNorm:
    """So many groups; None: 32, or fewer for few channels, the largest divisor of them up to min(32, channels / 4)."""
    if groups is None:
        most = max(1, min(32, channels // 4))
        groups = max(g for g in range(1, most + 1) if channels % g == 0)
    if groups < 1 or channels % groups:
        raise ValueError(f"{channels} channels cannot be shared by {groups} groups of a norm: give a divisor")
    return nn.GroupNorm(groups, channels, eps)


class AttentionBlock(nn.Module):
    """x + self-attention of all positions, gain / √2 if rescaled.

    Args:
        channels: C.
        rescale: Divide the sum by √2 (Song et al., arXiv 2011.13456, App. H).
        scale: Initial scale of the output projection.
        heads: Their number, a divisor of C.
        norm: Makes the norm of so many channels.
        axes: Number of spatial axes.
    """

    def __init__(
        self,
        channels: int,
        rescale: bool = False,
        scale: float = 0.0,
        heads: int = 1,
        norm: Callable[[int], nn.GroupNorm] = group_norm,
        axes: int = 2,
    ) -> None:
        super().__init__()
        if heads < 1 or channels % heads:
            raise ValueError(f"AttentionBlock: {channels} channels cannot be shared by {heads} heads: give a divisor")
        self.heads = heads
        self.norm = norm(channels)
        self.query, self.key, self.value = (conv(channels, channels, 1, 0.1, axes=axes) for _ in range(3))
        self.output = conv(channels, channels, 1, scale, axes=axes)
        self.gain = math.sqrt(0.5) if rescale else 1.0

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = self.norm(x)
        # (B, C, *sizes) -> (B, heads, places, C/heads): no copy where the channels are already together.
        q, k, v = (
            layer(h).flatten(2).transpose(1, 2).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        y: Tensor = x + self.output(attended.transpose(1, 2).reshape(x.shape))
        return y if self.gain == 1 else y * self.gain


class ResBlock(nn.Module):
    """DDPM's residual block: norm, activation, convolution, plus time, norm, activation, dropout, convolution.

    Args:
        channels, out: channels of input and output.
        time_width: Length of the time features; 0: the block does not know the time.
        activation: See `ACTIVATIONS`.
        dropout: Probability.
        conv_shortcut: Convolution of size 3 instead of 1 where the number of channels changes.
        rescale: Divide the sum by √2 (Song et al., arXiv 2011.13456, App. H).
        scale: Initial scale of the second convolution.
        time_scales: Let the time features scale and shift what the second norm makes, h (1 + a) + b, instead of being
            added before it (Nichol & Dhariwal, arXiv 2102.09672, App. A).
        norm: Makes the norm of so many channels.
        axes: Number of spatial axes.
        resample: Halves or doubles the sizes of both branches, after the first activation (BigGAN's block, as in
            Dhariwal & Nichol, arXiv 2105.05233, Sec. 3); None: it keeps them.
    """

    def __init__(
        self,
        channels: int,
        out: int,
        time_width: int,
        activation: Activation,
        dropout: float,
        conv_shortcut: bool = False,
        rescale: bool = False,
        scale: float = 0.0,
        time_scales: bool = False,
        norm: Callable[[int], nn.GroupNorm] = group_norm,
        axes: int = 2,
        resample: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.gain = math.sqrt(0.5) if rescale else 1.0
        self.act = ACTIVATIONS[activation]
        self.resample = resample
        self.norm_1 = norm(channels)
        self.conv_1 = conv(channels, out, axes=axes)
        self.time_scales = time_scales
        self.time = linear(time_width, out * (1 + time_scales)) if time_width else None
        self.norm_2 = norm(out)
        self.dropout = nn.Dropout(dropout)
        self.conv_2 = conv(out, out, scale=scale, axes=axes)
        self.shortcut: nn.Module = nn.Identity()
        if channels != out:
            size, small = (3, 1.0) if conv_shortcut else (1, 0.1)
            self.shortcut = conv(channels, out, size, small, axes=axes)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = self.act(self.norm_1(x))
        if self.resample is not None:
            h, x = self.resample(h), self.resample(x)
        h = self.conv_1(h)
        time_features = None if self.time is None else along(self.time(self.act(time)), h)
        if time_features is not None and not self.time_scales:
            h = h + time_features
        h = self.norm_2(h)
        if time_features is not None and self.time_scales:
            scale, shift = time_features.chunk(2, 1)
            h = h * (1 + scale) + shift
        h = self.conv_2(self.dropout(self.act(h)))
        y: Tensor = self.shortcut(x) + h
        return y if self.gain == 1 else y * self.gain


class Downsample(nn.Module):
    """Half of every size: a strided convolution, or the mean of each 2x2.

    Args:
        channels: C.
        with_conv: Which of them.
        padding: Of the convolution: after the last values only ("corner"), or all around.
        strides: 2 for each spatial axis that is halved, 1 for one that is not.
    """

    def __init__(
        self, channels: int, with_conv: bool, padding: Padding = "corner", strides: tuple[int, ...] = (2, 2)
    ) -> None:
        super().__init__()
        self.strides, self.margins = strides, margins(strides, 1 if padding == "around" else 0)
        axes = len(strides)
        self.conv = conv(channels, channels, stride=strides, padding=0, axes=axes) if with_conv else None

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        if self.conv is None:
            return shrink(x, self.strides)
        y: Tensor = self.conv(F.pad(x, self.margins))
        return y


class Upsample(nn.Module):
    """Twice every size: each value repeated, then a convolution that hides the blocks, if asked for.

    Args:
        channels: C.
        with_conv: Whether it is.
        strides: 2 for each spatial axis that is doubled, 1 for one that is not.
    """

    def __init__(self, channels: int, with_conv: bool, strides: tuple[int, ...] = (2, 2)) -> None:
        super().__init__()
        self.strides = strides
        self.conv = conv(channels, channels, axes=len(strides)) if with_conv else None

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        y = enlarge(x, self.strides)
        return y if self.conv is None else self.conv(y)


class Sequence(nn.ModuleList):
    """Blocks one after the other, each given the time features, and the context where it attends to it.

    Args:
        blocks: Modules (x, time) -> x, or `CrossAttentionBlock`.
        checkpointing: Forget what is within a block and compute it again for the gradients: less memory, a third
            more time.
    """

    def __init__(self, *blocks: nn.Module, checkpointing: bool = False) -> None:
        super().__init__(blocks)
        self.checkpointing = checkpointing

    def forward(self, x: Tensor, time: Tensor, context: Context | None = None) -> Tensor:
        for block in self:
            inputs = (x, time, context) if isinstance(block, CrossAttentionBlock) else (x, time)
            if self.checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, *inputs, use_reentrant=False)
            else:
                x = block(*inputs)
        return x
