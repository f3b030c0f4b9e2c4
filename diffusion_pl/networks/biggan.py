"""BigGAN's residual block."""

import math
from typing import Literal

from torch import Tensor, nn

from . import resnet
from .fir import Resampling
from .layers import along
from .resnet import conv, group_norm, linear

Direction = Literal["down", "up"]


class BigGANBlock(nn.Module):
    """BigGAN's residual block, which may resample both the block and its shortcut.

    Args:
        channels, out: channels of input and output.
        time_width: Length of the time features; 0: the block does not know the time.
        activation: See `resnet.ACTIVATIONS`.
        dropout: Probability.
        rescale: Divide the sum by √2.
        resampling: What resamples.
        direction: Whether it halves or doubles all sizes; None: neither.
        scale: Initial scale of the second convolution.

    Reference: Brock et al., arXiv 1809.11096, App. B; Song et al., arXiv 2011.13456, App. H.
    """

    def __init__(
        self,
        channels: int,
        out: int,
        time_width: int,
        activation: resnet.Activation,
        dropout: float,
        rescale: bool,
        resampling: Resampling,
        direction: Direction | None = None,
        scale: float = 0.0,
    ) -> None:
        super().__init__()
        self.act = resnet.ACTIVATIONS[activation]
        self.gain = math.sqrt(0.5) if rescale else 1.0
        self.resampling, self.direction = resampling, direction
        self.norm_1 = group_norm(channels)
        axes = resampling.axes
        self.conv_1 = conv(channels, out, axes=axes)
        self.time = linear(time_width, out) if time_width else None
        self.norm_2 = group_norm(out)
        self.dropout = nn.Dropout(dropout)
        self.conv_2 = conv(out, out, scale=scale, axes=axes)
        self.shortcut = conv(channels, out, 1, axes=axes) if channels != out or direction else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = self.act(self.norm_1(x))
        if self.direction == "down":
            h, x = self.resampling.down(h), self.resampling.down(x)
        elif self.direction == "up":
            h, x = self.resampling.up(h), self.resampling.up(x)
        h = self.conv_1(h)
        if self.time is not None:
            h = h + along(self.time(self.act(time)), h)
        h = self.conv_2(self.dropout(self.act(self.norm_2(h))))
        y: Tensor = self.shortcut(x) + h
        return y if self.gain == 1 else y * self.gain
