"""Parts of DDPM++ and NCSN++: blocks, made from the options that they share, and the join of the input pyramid."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from . import resnet
from .biggan import BigGANBlock, Direction
from .cross_attention import CrossAttentionBlock
from .fir import Down, Resampling, Up
from .resnet import AttentionBlock, ResBlock, conv


class Combine(nn.Module):
    """Joins the input pyramid to the encoder: a convolution of size 1 to `out` channels, then added or concatenated."""

    def __init__(self, channels: int, out: int, method: Literal["sum", "cat"], axes: int = 2) -> None:
        super().__init__()
        self.conv, self.method = conv(channels, out, 1, axes=axes), method

    def forward(self, pyramid: Tensor, h: Tensor) -> Tensor:
        y: Tensor = self.conv(pyramid)
        return y + h if self.method == "sum" else torch.cat((y, h), 1)


class Parts(NamedTuple):
    """Makes the blocks of a network from the options that all of them share; see `NCSNpp`.

    time_width: length of the time features, 0: blocks take none;  rescale: skip_rescale;  scale: init_scale;
    context_width: length of the tokens of sequences, 0: there are none.
    """

    resblock_type: Literal["biggan", "ddpm"]
    time_width: int
    activation: resnet.Activation
    dropout: float
    rescale: bool
    scale: float
    resampling: Resampling
    resamp_with_conv: bool
    checkpointing: bool
    context_width: int

    def block(self, channels: int, out: int, direction: Direction | None = None) -> nn.Module:
        """A residual block, or what resamples between ddpm's."""
        if self.resblock_type == "biggan":
            return BigGANBlock(
                channels,
                out,
                self.time_width,
                self.activation,
                self.dropout,
                self.rescale,
                self.resampling,
                direction,
                self.scale,
            )
        if direction == "down":
            return Down(self.resampling, channels, out, self.resamp_with_conv)
        if direction == "up":
            return Up(self.resampling, channels, out, self.resamp_with_conv)
        return ResBlock(
            channels,
            out,
            self.time_width,
            self.activation,
            self.dropout,
            rescale=self.rescale,
            scale=self.scale,
            axes=self.resampling.axes,
        )

    def attention(self, channels: int) -> list[nn.Module]:
        """An attention block, and one that attends to sequences."""
        block = AttentionBlock(channels, self.rescale, self.scale, axes=self.resampling.axes)
        return [block, *([CrossAttentionBlock(channels, self.context_width)] if self.context_width else [])]

    def row(self, *blocks: nn.Module) -> resnet.Sequence:
        """Blocks that run one after the other."""
        return resnet.Sequence(*blocks, checkpointing=self.checkpointing)
