"""Resampling by finite impulse response filters: no aliases on the way down, no blocks on the way up.

    down:  filter, then keep every second value        up:  zeros between the values, then filter, gain 2 an axis

Reference: Zhang, "Making Convolutional Networks Shift-Invariant Again", arXiv 1904.11486; used in NCSN++ (2011.13456).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .layers import CONVOLVE, TRANSPOSED, along, enlarge, margins, shrink
from .resnet import conv


class FIR(nn.Module):
    """A separable filter of four taps, usually (1, 3, 3, 1)/8, on each channel.

    Args:
        taps: Four numbers; they are scaled to sum 1.
        axes: Number of spatial axes, 1 to 3, all of which it halves or doubles.
    """

    kernel: Tensor

    def __init__(self, taps: Sequence[float] = (1, 3, 3, 1), axes: int = 2) -> None:
        super().__init__()
        if len(taps) != 4 or not sum(taps) > 0:
            raise ValueError(f"FIR: needs four taps of positive sum, got {list(taps)}")
        self.axes, self.strides = axes, (2,) * axes
        line = torch.tensor(taps, dtype=torch.float32)
        kernel = line
        for _ in range(axes - 1):
            kernel = kernel[..., None] * line
        # Correlation, which torch computes, with the reversed filter is convolution with the filter.
        self.register_buffer("kernel", kernel.flip(*range(axes)) / line.sum() ** axes, persistent=False)

    def filter(self, x: Tensor, padding: int, stride: int = 1, gain: float = 1.0) -> Tensor:
        """x: (B, C, *sizes), zeros around it, filtered; every stride-th value."""
        channels = x.shape[1]
        kernel = (gain * self.kernel).to(x.dtype).expand(channels, 1, *self.kernel.shape)
        y: Tensor = CONVOLVE[self.axes](x, kernel, stride=stride, padding=padding, groups=channels)
        return y

    def down(self, x: Tensor) -> Tensor:
        """(B, C, *sizes) -> (B, C, *sizes/2)."""
        return self.filter(x, padding=1, stride=2)

    def up(self, x: Tensor) -> Tensor:
        """(B, C, *sizes) -> (B, C, *2 sizes)."""
        channels = x.shape[1]
        flipped = self.kernel.flip(*range(self.axes))
        kernel = (2**self.axes * flipped).to(x.dtype).expand(channels, 1, *flipped.shape)
        y: Tensor = TRANSPOSED[self.axes](x, kernel, stride=2, padding=1, groups=channels)
        return y


class Mean(nn.Module):
    """The mean of each 2x2 on the way down, each value four times on the way up: resampling without a filter.

    Args:
        strides: 2 for each spatial axis that is halved or doubled, 1 for one that is not.
    """

    def __init__(self, strides: tuple[int, ...] = (2, 2)) -> None:
        super().__init__()
        self.strides, self.axes = strides, len(strides)

    def down(self, x: Tensor) -> Tensor:
        """(B, C, *sizes) -> (B, C, *sizes/2)."""
        return shrink(x, self.strides)

    def up(self, x: Tensor) -> Tensor:
        """(B, C, *sizes) -> (B, C, *2 sizes)."""
        return enlarge(x, self.strides)


Resampling = FIR | Mean


class Down(nn.Module):
    """Half of every size, by the resampling alone or with a convolution of size 3 to `out` channels."""

    def __init__(self, resampling: Resampling, channels: int, out: int, with_conv: bool) -> None:
        super().__init__()
        if not with_conv and channels != out:
            raise ValueError(f"Down: {channels} -> {out} channels need a convolution")
        self.resampling = resampling
        strides, axes = resampling.strides, resampling.axes
        self.margins = margins(strides, 0)
        self.conv = conv(channels, out, stride=strides, padding=0, axes=axes) if with_conv else None

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        if self.conv is None:
            return self.resampling.down(x)
        # The strided convolution follows the filter at full resolution.
        full = self.resampling.filter(x, padding=2) if isinstance(self.resampling, FIR) else F.pad(x, self.margins)
        y: Tensor = self.conv(full)
        return y


class Up(nn.Module):
    """Twice every size, by the resampling alone or with a convolution of size 3 to `out` channels."""

    def __init__(self, resampling: Resampling, channels: int, out: int, with_conv: bool) -> None:
        super().__init__()
        if not with_conv and channels != out:
            raise ValueError(f"Up: {channels} -> {out} channels need a convolution")
        self.resampling = resampling
        self.conv = conv(channels, out, axes=resampling.axes) if with_conv else None

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        if self.conv is None:
            return self.resampling.up(x)
        if isinstance(self.resampling, FIR):
            # Zeros between the values, the convolution, and the filter last.
            axes, bias = self.resampling.axes, self.conv.bias
            flipped = self.conv.weight.flip(*range(2, 2 + axes)).transpose(0, 1)
            spread = TRANSPOSED[axes](x, flipped, stride=2)
            assert bias is not None
            return self.resampling.filter(spread, padding=1, gain=2.0**axes) + along(bias, spread)
        y: Tensor = self.conv(self.resampling.up(x))
        return y
