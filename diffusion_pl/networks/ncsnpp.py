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
from .conditioning import Conditioning, LabelEmbedding
from .cross_attention import Context
from .embeddings import Embedding, JumpEmbedding, check_jump
from .fir import FIR, Down, Mean, Resampling, Up
from .layers import along, attending, check_options, check_sizes, factors
from .ncsnpp_parts import Combine, Parts
from .resnet import conv, group_norm
from .unet import TimeFeatures


class NCSNpp(nn.Module):
    """DDPM++ (the defaults) and NCSN++ of Song et al.

    NCSN++ is ``fir: true, progressive_input: residual, scale_by_sigma: true`` with ``time_embedding`` Fourier (features
    2 nf, scale 16) of ln σ, which the noise_input LogSNR with scale −1/2 gives for a variance-exploding schedule.

    Parameters for (3, 32, 32) with nf 128: DDPM++ 61,804,419, deep (8 blocks) 106,632,579; NCSN++ 62,758,787, deep
    107,586,947.  EDM's DDPM++, ``ch_mult: [2, 2, 2], augment_dim: 9``, 55,733,891.

    Reference: Song et al., "Score-Based Generative Modeling through SDEs", arXiv 2011.13456, App. H; Karras et al.,
    arXiv 2206.00364, App. F (the condition on what was done to an image).

    Args:
        shape: Shape of one example, (C, L), (C, H, W) or (C, D, H, W); sizes divisible by 2 for each level after the
            first, or 1, of an axis that is never halved.  Data of other sizes so divisible may be given later.
        conditions: Of the data, of any kind (`conditioning`); sequences are attended to where the network attends, and
            images are not part of the input pyramid.
        nf: Channels of the first level.
        ch_mult: Channels of each level, in units of ``nf``.
        num_res_blocks: Residual blocks of a level; 8 in the deep variants.
        attn_resolutions: Heights of the levels that attend, for images of ``shape``; the middle always attends.
        dropout: Within the residual blocks.
        resblock_type: biggan resamples within residual blocks, ddpm between them.
        resamp_with_conv: For ddpm blocks, resample with a 3x3 convolution.
        fir: Resample with a filter.
        fir_kernel: Its four taps.
        skip_rescale: Divide every sum of a residual block or pyramid by √2.
        progressive: Gather the output on the way up: as images (output_skip), as features (residual), or not.
        progressive_input: Give the halved input to each level: as it is (input_skip), as features (residual), or not.
        progressive_combine: How input_skip joins: by sum or by cat.
        scale_by_sigma: Divide the output by σ = exp(c_noise); c_noise must be ln σ.
        init_scale: Initial scale of the last convolution of every block; 0: blocks begin as nothing.
        activation: Nonlinearity.
        time_embedding: Embedding of the noise level; None: Sinusoidal, for which ``noise_input`` must count as far
            as 1000.
        time_conditional: Whether the network gets the noise level at all.
        augment_dim: Length of the vector that says how a training image was changed, 9 for ``augment`` of the data;
            0: the network does not get it.
        checkpointing: Compute activations again for the gradients: less memory, a third more time.
        flow_map: Whether the network takes the length of a flow map's jump (`JumpEmbedding`), for FlowMapLoss.
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
        flow_map: bool = False,
    ) -> None:
        super().__init__()
        check_options("NCSNpp", nf, ch_mult, num_res_blocks, dropout)
        if not 0 <= init_scale < math.inf:
            raise ValueError(f"NCSNpp: init_scale must be finite and not negative, got {init_scale}")
        if augment_dim < 0 or (augment_dim and not time_conditional):
            raise ValueError(
                f"NCSNpp: augment_dim must not be negative, and needs time_conditional: true, got {augment_dim}"
            )
        strides = factors("NCSNpp", shape, 2)
        self.factors = tuple(stride ** (len(ch_mult) - 1) for stride in strides)
        check_sizes("NCSNpp", shape, self.factors)
        attends = attending("NCSNpp", shape, strides, len(ch_mult), attn_resolutions)
        channels, axes = shape[0], len(strides)
        if fir and 1 in strides:
            raise ValueError(
                f"NCSNpp: fir needs every size above 1, got data of shape {tuple(shape)}: set fir to false"
            )

        width = 4 * nf
        self.act = resnet.ACTIVATIONS[activation]
        self.time = TimeFeatures(nf, time_embedding, activation, augment_dim) if time_conditional else None
        self.cond = Conditioning("NCSNpp", shape, conditions, width)
        self.label = LabelEmbedding("NCSNpp", self.cond.label, width)
        self.flow_map, self.jump = flow_map, JumpEmbedding(width) if flow_map else None
        added = flow_map or self.label.classes is not None or self.cond.added
        self.resampling: Resampling = FIR(fir_kernel, axes) if fir else Mean(strides)
        self.gain = math.sqrt(0.5) if skip_rescale else 1.0
        self.progressive, self.progressive_input = progressive, progressive_input
        self.scale_by_sigma = scale_by_sigma
        parts = Parts(
            resblock_type,
            time_width=width if time_conditional or added else 0,
            activation=activation,
            dropout=dropout,
            rescale=skip_rescale,
            scale=init_scale,
            resampling=self.resampling,
            resamp_with_conv=resamp_with_conv,
            checkpointing=checkpointing,
            context_width=width if self.cond.attended else 0,
        )

        self.stem = conv(channels + self.cond.channels, nf, axes=axes)
        self.down, self.input_pyramid = nn.ModuleList(), nn.ModuleList()  # down and up: a list of rows for each level
        self.shrink = Down(self.resampling, channels, channels, with_conv=False)
        self.enlarge = Up(self.resampling, channels, channels, with_conv=False)
        widths = [nf * mult for mult in ch_mult]
        skips = self._build_down(parts, channels, nf, widths, num_res_blocks, attends, progressive_combine)
        c = skips[-1]
        self.middle = parts.row(parts.block(c, c), *parts.attention(c), parts.block(c, c))
        self.up, self.output_pyramid = nn.ModuleList(), nn.ModuleList()
        self._build_up(parts, channels, skips, widths, num_res_blocks, attends)
        if progressive != "output_skip":
            self.norm = group_norm(widths[0])
            self.output = conv(widths[0], channels, scale=init_scale, axes=axes)

    def _build_down(
        self,
        parts: Parts,
        channels: int,
        nf: int,
        widths: Sequence[int],
        num_res_blocks: int,
        attends: Sequence[bool],
        progressive_combine: Literal["sum", "cat"],
    ) -> list[int]:
        """Append the levels of the way down and of the input pyramid.

        Args:
            parts: Makes the blocks.
            channels: Of an image.
            nf: Channels of the stem.
            widths: Channels of each level.
            num_res_blocks, attends, progressive_combine: See the class; whether each level attends.

        Returns:
            The channels of every skip connection, in the order of the way down.
        """
        skips, c, pyramid = [nf], nf, channels
        for level, out in enumerate(widths):
            blocks = []
            for _ in range(num_res_blocks):
                blocks.append(parts.row(parts.block(c, out), *(parts.attention(out) if attends[level] else [])))
                c = out
                skips.append(c)
            if level < len(widths) - 1:
                blocks.append(parts.row(parts.block(c, c, "down")))
                if self.progressive_input == "input_skip":
                    self.input_pyramid.append(Combine(channels, c, progressive_combine, self.resampling.axes))
                    c *= 2 if progressive_combine == "cat" else 1
                elif self.progressive_input == "residual":
                    self.input_pyramid.append(Down(self.resampling, pyramid, c, with_conv=True))
                    pyramid = c
                skips.append(c)
            self.down.append(nn.ModuleList(blocks))
        return skips

    def _build_up(
        self,
        parts: Parts,
        channels: int,
        skips: list[int],
        widths: Sequence[int],
        num_res_blocks: int,
        attends: Sequence[bool],
    ) -> None:
        """Append the levels of the way up and of the output pyramid.

        Args:
            parts: Makes the blocks.
            channels: Of an image.
            skips: Channels of the skip connections, which are used up; those of the middle are the last's.
            widths: Channels of each level.
            num_res_blocks, attends: See the class; whether each level attends.
        """
        c, pyramid, progressive, axes = skips[-1], channels, self.progressive, self.resampling.axes
        for level, out in reversed(list(enumerate(widths))):
            blocks = []
            for _ in range(num_res_blocks + 1):
                blocks.append(parts.row(parts.block(c + skips.pop(), out)))
                c = out
            if attends[level]:
                blocks[-1].extend(parts.attention(c))
            self.up.append(nn.ModuleList([*blocks, *([parts.row(parts.block(c, c, "up"))] if level > 0 else [])]))
            top = level == len(widths) - 1
            if progressive == "output_skip":
                self.output_pyramid.append(
                    nn.ModuleList([group_norm(c), conv(c, channels, scale=parts.scale, axes=axes)])
                )
            elif progressive == "residual" and top:
                self.output_pyramid.append(nn.ModuleList([group_norm(c), conv(c, c, axes=axes)]))
            elif progressive == "residual":
                self.output_pyramid.append(Up(self.resampling, pyramid, c, with_conv=True))
            pyramid = c

    def forward(
        self,
        x: Tensor,
        c_noise: Tensor,
        label: Tensor | None = None,
        augment: Tensor | None = None,
        jump: Tensor | None = None,
        **cond: Tensor,
    ) -> Tensor:
        """The raw network output F.

        Args:
            x: Scaled noisy data, (B, C, *sizes).
            c_noise: Noise level, (B,).
            label: Classes, int64, (B,); −1 or None means any class.
            jump: Length of a flow map's jump, t − r, (B,); None means 0.
            augment: How the images were changed, (B, augment_dim); None: not at all.
            cond: Other conditions by name, (B, *shape) each; NaN or none means not given.

        Raises:
            ValueError: a size that cannot be halved as often as there are levels after the first, images that were
                changed although the network was built without augment_dim, or a condition that it was not built for.
        """
        check_sizes("NCSNpp", x.shape[1:], self.factors)
        check_jump("NCSNpp", self.jump, jump)
        values = self.cond.check(cond, x)
        if augment is not None and (self.time is None or self.time.extra is None):
            raise ValueError(f"NCSNpp: got augmented images: give the network augment_dim: {augment.shape[1]}")
        time = c_noise.new_zeros(x.shape[0], self.label.width) if self.time is None else self.time(c_noise, augment)
        time, context = self.cond.add(self.label(time, label), values), self.cond.context(values)
        time = time if self.jump is None else self.jump(time, jump)
        skips = self._down(x, self.stem(self.cond.concatenate(x, values)), time, context)
        output = self._up(skips, time, context)
        # σ is not rounded to the output's 8 bits under autocast: the quotient is the wider of the two types.
        return output / along(torch.exp(c_noise)[:, None], output) if self.scale_by_sigma else output

    def _down(self, x: Tensor, h: Tensor, time: Tensor, context: Context | None) -> list[Tensor]:
        """What the way down leaves for the way up, from the image and the features of the stem."""
        pyramid, skips = x, [h]
        for level, blocks in enumerate(_lists(self.down)):
            for number, row in enumerate(blocks):
                h = row(h, time, context)
                halved = level < len(self.down) - 1 and number == len(blocks) - 1
                if halved and self.progressive_input == "input_skip":
                    pyramid = self.shrink(pyramid, time)
                    h = self.input_pyramid[level](pyramid, h)
                elif halved and self.progressive_input == "residual":
                    h = pyramid = (self.input_pyramid[level](pyramid, time) + h) * self.gain
                skips.append(h)
        return skips

    def _up(self, skips: list[Tensor], time: Tensor, context: Context | None) -> Tensor:
        """The output, from what the way down has left, which is used up."""
        h = self.middle(skips[-1], time, context)
        output: Tensor | None = None
        for level, blocks in enumerate(_lists(self.up)):
            # All blocks but the one that doubles every size take what the way down has left.
            rises = level < len(self.up) - 1
            for row in blocks[: -1 if rises else None]:
                h = row(torch.cat((h, skips.pop()), 1), time, context)
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
        return output

    def _head(self, layers: nn.Module, h: Tensor) -> Tensor:
        assert isinstance(layers, nn.ModuleList)
        norm, last = layers
        shown: Tensor = last(self.act(norm(h)))
        return shown


def _lists(levels: nn.ModuleList) -> list[nn.ModuleList]:
    return [blocks for blocks in levels if isinstance(blocks, nn.ModuleList)]
