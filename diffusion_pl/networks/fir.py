"""Resampling by finite impulse response filters: no aliases on the way down, no blocks on the way up.

    down:  filter, then keep every second value        up:  zeros between the values, then filter with gain 4

Reference: Zhang, "Making Convolutional Networks Shift-Invariant Again", arXiv 1904.11486; used in NCSN++ (2011.13456).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .resnet import conv


class FIR(nn.Module):
    """A separable filter of four taps, usually (1, 3, 3, 1)/8, on each channel.

    Args:
        taps: Four numbers; they are scaled to sum 1.
    """

    kernel: Tensor

    def __init__(self, taps: Sequence[float] = (1, 3, 3, 1)) -> None:
        super().__init__()
        if len(taps) != 4 or not sum(taps) > 0:
            raise ValueError(f"FIR: needs four taps of positive sum, got {list(taps)}")
        line = torch.tensor(taps, dtype=torch.float32)
        # Correlation, which torch computes, with the reversed filter is convolution with the filter.
        self.register_buffer("kernel", torch.outer(line, line).flip(0, 1) / line.sum() ** 2, persistent=False)

    def filter(self, x: Tensor, padding: int, stride: int = 1, gain: float = 1.0) -> Tensor:
        """x: (B, C, H, W), zeros around it, filtered; every stride-th value."""
        channels = x.shape[1]
        kernel = (gain * self.kernel).to(x.dtype).expand(channels, 1, 4, 4)
        return F.conv2d(x, kernel, stride=stride, padding=padding, groups=channels)

    def down(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H/2, W/2)."""
        return self.filter(x, padding=1, stride=2)

    def up(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, 2H, 2W)."""
        channels = x.shape[1]
        kernel = (4 * self.kernel.flip(0, 1)).to(x.dtype).expand(channels, 1, 4, 4)
        return F.conv_transpose2d(x, kernel, stride=2, padding=1, groups=channels)


class Mean2x2(nn.Module):
    """The mean of each 2x2 on the way down, each value four times on the way up: resampling without a filter."""

    def down(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H/2, W/2)."""
        return F.avg_pool2d(x, 2)

    def up(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, 2H, 2W)."""
        return F.interpolate(x, scale_factor=2.0, mode="nearest")


Resampling = FIR | Mean2x2


class Down(nn.Module):
    """Half the height and width, by the resampling alone or with a 3x3 convolution to `out` channels."""

    def __init__(self, resampling: Resampling, channels: int, out: int, with_conv: bool) -> None:
        super().__init__()
        if not with_conv and channels != out:
            raise ValueError(f"Down: {channels} -> {out} channels need a convolution")
        self.resampling = resampling
        self.conv = conv(channels, out, stride=2, padding=0) if with_conv else None

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        if self.conv is None:
            return self.resampling.down(x)
        # The strided convolution follows the filter at full resolution.
        full = self.resampling.filter(x, padding=2) if isinstance(self.resampling, FIR) else F.pad(x, (0, 1, 0, 1))
        y: Tensor = self.conv(full)
        return y


class Up(nn.Module):
    """Twice the height and width, by the resampling alone or with a 3x3 convolution to `out` channels."""

    def __init__(self, resampling: Resampling, channels: int, out: int, with_conv: bool) -> None:
        super().__init__()
        if not with_conv and channels != out:
            raise ValueError(f"Up: {channels} -> {out} channels need a convolution")
        self.resampling = resampling
        self.conv = conv(channels, out) if with_conv else None

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        if self.conv is None:
            return self.resampling.up(x)
        if isinstance(self.resampling, FIR):
            # Zeros between the values, the convolution, and the filter last.
            spread = F.conv_transpose2d(x, self.conv.weight.flip(2, 3).transpose(0, 1), stride=2)
            assert self.conv.bias is not None
            return self.resampling.filter(spread, padding=1, gain=4.0) + self.conv.bias[:, None, None]
        y: Tensor = self.conv(self.resampling.up(x))
        return y
