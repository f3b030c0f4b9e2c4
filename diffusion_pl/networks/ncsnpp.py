"""DDPM++ and NCSN++: the U-Net of DDPM with residual blocks that resample, rescaled sums, filters and pyramids.

input pyramid:   x halved again and again, added to the way down        output pyramid: F gathered on the way up
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from ..conditions import Conditions
from . import resnet
from .biggan import BigGANBlock, Direction
from .conditioning import LabelEmbedding
from .embeddings import Embedding
from .fir import FIR, Down, Mean2x2, Resampling, Up
from .layers import image_shape
from .resnet import AttentionBlock, ResBlock, conv, group_norm
from .unet import TimeFeatures, attending, check


class Combine(nn.Module):
    """Joins the input pyramid to the way down: channels brought to `out` by a 1x1 convolution, added or put beside."""

    def __init__(self, channels: int, out: int, method: Literal["sum", "cat"]) -> None:
        super().__init__()
        self.conv, self.method = conv(channels, out, 1), method

    def forward(self, pyramid: Tensor, h: Tensor) -> Tensor:
        y: Tensor = self.conv(pyramid)
        return y + h if self.method == "sum" else torch.cat((y, h), 1)


class NCSNpp(nn.Module):
    """DDPM++ (the defaults) and NCSN++ of Song et al.

    NCSN++ is ``fir: true, progressive_input: residual, scale_by_sigma: true`` with ``time_embedding`` Fourier (features
    2 nf, scale 16) of ln σ, which the noise_input LogSNR with scale −1/2 gives for a variance-exploding process.

    Parameters for (3, 32, 32) with nf 128: DDPM++ 61,804,419, deep (8 blocks) 106,632,579; NCSN++ 62,758,787, deep
    107,586,947.  EDM's DDPM++, ``ch_mult: [2, 2, 2], augment_dim: 9``, 55,733,891.

    Reference: Song et al., "Score-Based Generative Modeling through SDEs", arXiv 2011.13456, App. H; Karras et al.,
    arXiv 2206.00364, App. F (the condition on what was done to a picture).

    Args:
        shape: Shape of one example, (C, H, W); sides divisible by 2 for each level after the first.  Pictures of other
            sides so divisible may be given later.
        conditions: Of the data; a label named ``label`` or none. Row ``classes`` of its table means "any class".
        nf: Channels of the first level.
        ch_mult: Channels of each level, in units of ``nf``.
        num_res_blocks: Residual blocks of a level; 8 in the deep variants.
        attn_resolutions: Heights of the levels that attend, for pictures of ``shape``; the middle always attends.
        dropout: Within the residual blocks.
        resblock_type: biggan resamples within residual blocks, ddpm between them.
        resamp_with_conv: For ddpm blocks, resample with a 3x3 convolution.
        fir: Resample with a filter.
        fir_kernel: Its four taps.
        skip_rescale: Divide every sum of a residual block or pyramid by √2.
        progressive: Gather the output on the way up: as pictures (output_skip), as features (residual), or not.
        progressive_input: Give the halved input to each level: as it is (input_skip), as features (residual), or not.
        progressive_combine: How input_skip joins: by sum or by cat.
        scale_by_sigma: Divide the output by σ = exp(c_noise); c_noise must be ln σ.
        init_scale: Initial scale of the last convolution of every block; 0: blocks begin as nothing.
        activation: Nonlinearity.
        time_embedding: Embedding of the noise level; None: Sinusoidal, for which ``noise_input`` must count as far
            as 1000.
        time_conditional: Whether the network is told the noise level at all.
        augment_dim: Length of the vector that tells how a training picture was changed, 9 for ``augment`` of the data;
            0: the network is not told.
        checkpointing: Compute activations again for the gradients: less memory, a third more time.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        conditions: Conditions | None = None,
        nf: int = 128,
        ch_mult: Sequence[int] = (1, 2, 2, 2),
        num_res_blocks: int = 4,
        attn_resolutions: Sequence[int] = (16,),
        dropout: float = 0.1,
        resblock_type: Literal["biggan", "ddpm"] = "biggan",
        resamp_with_conv: bool = True,
        fir: bool = False,
        fir_kernel: Sequence[float] = (1, 3, 3, 1),
        skip_rescale: bool = True,
        progressive: Literal["none", "output_skip", "residual"] = "none",
        progressive_input: Literal["none", "input_skip", "residual"] = "none",
        progressive_combine: Literal["sum", "cat"] = "sum",
        scale_by_sigma: bool = False,
        init_scale: float = 0.0,
        activation: resnet.Activation = "swish",
        time_embedding: Callable[[int], Embedding] | None = None,
        time_conditional: bool = True,
        augment_dim: int = 0,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        check("NCSNpp", nf, ch_mult, num_res_blocks, dropout)
        if not 0 <= init_scale < math.inf:
            raise ValueError(f"NCSNpp: init_scale must be finite and not negative, got {init_scale}")
        if augment_dim < 0 or (augment_dim and not time_conditional):
            raise ValueError(
                f"NCSNpp: augment_dim must not be negative, and needs time_conditional: true, got {augment_dim}"
            )
        self.factor = 2 ** (len(ch_mult) - 1)
        channels, height, _ = image_shape("NCSNpp", shape, self.factor)
        attends = attending("NCSNpp", height, len(ch_mult), attn_resolutions)
        levels = len(ch_mult)

        width = 4 * nf
        self.act = resnet.ACTIVATIONS[activation]
        self.time = TimeFeatures(nf, time_embedding, activation, augment_dim) if time_conditional else None
        self.label = LabelEmbedding("NCSNpp", conditions, width)
        told = width if time_conditional or self.label.classes is not None else 0
        self.resampling: Resampling = FIR(fir_kernel) if fir else Mean2x2()
        self.gain = math.sqrt(0.5) if skip_rescale else 1.0
        self.progressive, self.progressive_input = progressive, progressive_input
        self.scale_by_sigma = scale_by_sigma

        def block(channels: int, out: int, direction: Direction | None = None) -> nn.Module:
            if resblock_type == "biggan":
                return BigGANBlock(
                    channels, out, told, activation, dropout, skip_rescale, self.resampling, direction, init_scale
                )
            if direction == "down":
                return Down(self.resampling, channels, out, resamp_with_conv)
            if direction == "up":
                return Up(self.resampling, channels, out, resamp_with_conv)
            return ResBlock(channels, out, told, activation, dropout, rescale=skip_rescale, scale=init_scale)

        def attention(channels: int) -> AttentionBlock:
            return AttentionBlock(channels, skip_rescale, init_scale)

        def row(*blocks: nn.Module) -> resnet.Sequence:
            return resnet.Sequence(*blocks, checkpointing=checkpointing)

        self.stem = conv(channels, nf)
        self.down, self.input_pyramid = nn.ModuleList(), nn.ModuleList()  # down and up: a list of rows for each level
        self.shrink = Down(self.resampling, channels, channels, with_conv=False)
        self.enlarge = Up(self.resampling, channels, channels, with_conv=False)

        skips, c, pyramid = [nf], nf, channels
        for level, mult in enumerate(ch_mult):
            blocks = []
            for _ in range(num_res_blocks):
                blocks.append(row(block(c, nf * mult), *([attention(nf * mult)] if attends[level] else [])))
                c = nf * mult
                skips.append(c)
            if level < levels - 1:
                blocks.append(row(block(c, c, "down")))
                if progressive_input == "input_skip":
                    self.input_pyramid.append(Combine(channels, c, progressive_combine))
                    c *= 2 if progressive_combine == "cat" else 1
                elif progressive_input == "residual":
                    self.input_pyramid.append(Down(self.resampling, pyramid, c, with_conv=True))
                    pyramid = c
                skips.append(c)
            self.down.append(nn.ModuleList(blocks))

        self.middle = row(block(c, c), attention(c), block(c, c))

        self.up, self.output_pyramid = nn.ModuleList(), nn.ModuleList()
        for level, mult in reversed(list(enumerate(ch_mult))):
            blocks = []
            for _ in range(num_res_blocks + 1):
                blocks.append(row(block(c + skips.pop(), nf * mult)))
                c = nf * mult
            if attends[level]:
                blocks[-1].append(attention(c))
            self.up.append(nn.ModuleList([*blocks, *([row(block(c, c, "up"))] if level > 0 else [])]))
            top = level == levels - 1
            if progressive == "output_skip" or (progressive == "residual" and top):
                out = channels if progressive == "output_skip" else c
                last = conv(c, out, scale=init_scale if progressive == "output_skip" else 1.0)
                self.output_pyramid.append(nn.ModuleList([group_norm(c), last]))
            elif progressive == "residual":
                self.output_pyramid.append(Up(self.resampling, pyramid, c, with_conv=True))
            pyramid = c

        if progressive != "output_skip":
            self.norm = group_norm(c)
            self.output = conv(c, channels, scale=init_scale)

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None, augment: Tensor | None = None) -> Tensor:
        """The raw network output F.

        Args:
            x: Scaled noisy pictures, (B, C, H, W).
            c_noise: Noise level, (B,).
            label: Classes, int64, (B,); −1 or None means any class.
            augment: How the pictures were changed, (B, augment_dim); None: not at all.

        Raises:
            ValueError: sides that cannot be halved as often as there are levels after the first, or pictures that were
                changed although the network was not built to be told.
        """
        image_shape("NCSNpp", x.shape[1:], self.factor)
        if augment is not None and (self.time is None or self.time.extra is None):
            raise ValueError(f"NCSNpp: got augmented pictures: give the network augment_dim: {augment.shape[1]}")
        time = c_noise.new_zeros(x.shape[0], self.label.width) if self.time is None else self.time(c_noise, augment)
        time = self.label(time, label)
        pyramid, h = x, self.stem(x)
        skips = [h]
        for level, blocks in enumerate(_lists(self.down)):
            for number, row in enumerate(blocks):
                h = row(h, time)
                halved = level < len(self.down) - 1 and number == len(blocks) - 1
                if halved and self.progressive_input == "input_skip":
                    pyramid = self.shrink(pyramid, time)
                    h = self.input_pyramid[level](pyramid, h)
                elif halved and self.progressive_input == "residual":
                    h = pyramid = (self.input_pyramid[level](pyramid, time) + h) * self.gain
                skips.append(h)
        h = self.middle(h, time)

        output: Tensor | None = None
        for level, blocks in enumerate(_lists(self.up)):
            # All blocks but the one that doubles the sides take what the way down has left.
            rises = level < len(self.up) - 1
            for row in blocks[: -1 if rises else None]:
                h = row(torch.cat((h, skips.pop()), 1), time)
            if self.progressive == "output_skip":
                shown = self._head(self.output_pyramid[level], h)
                output = shown if output is None else self.enlarge(output, time) + shown
            elif self.progressive == "residual" and output is None:
                output = self._head(self.output_pyramid[level], h)
            elif self.progressive == "residual":
                h = output = (self.output_pyramid[level](output, time) + h) * self.gain
            if rises:
                h = blocks[-1](h, time)
        if self.progressive != "output_skip":
            output = self.output(self.act(self.norm(h)))
        assert output is not None
        # σ is not rounded to the output's 8 bits under autocast: the quotient is the wider of the two types.
        return output / torch.exp(c_noise).view(-1, 1, 1, 1) if self.scale_by_sigma else output

    def _head(self, layers: nn.Module, h: Tensor) -> Tensor:
        assert isinstance(layers, nn.ModuleList)
        norm, last = layers
        shown: Tensor = last(self.act(norm(h)))
        return shown


def _lists(levels: nn.ModuleList) -> list[nn.ModuleList]:
    return [blocks for blocks in levels if isinstance(blocks, nn.ModuleList)]
