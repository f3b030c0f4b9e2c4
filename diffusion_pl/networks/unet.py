"""The U-Net of DDPM.

    stem → levels down, each halving every size → middle → levels up, outputs of the way down concatenated → F

A level has `num_res_blocks` residual blocks on the way down and one more on the way up.  Levels whose height is among
`attn_resolutions` attend.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from ..conditions import Conditions
from . import resnet
from .conditioning import Conditioning, LabelEmbedding
from .cross_attention import CrossAttentionBlock
from .embeddings import Embedding, JumpEmbedding, Sinusoidal, check_jump
from .layers import attending, check_options, check_sizes, enlarge, factors, shrink
from .resnet import AttentionBlock, Downsample, ResBlock, Upsample, conv, group_norm, linear


class UNet(nn.Module):
    """The U-Net of DDPM, also as the VP-SDE seminar, score_sde, Improved DDPM and VDM wire it.

    Parameters for (3, 32, 32) with the defaults: 35,746,307; with ``up_attention: once_per_level`` 35,218,947.  For
    (3, 16, 16) with four blocks and attention once per level: 56,646,147.

    Improved DDPM's is ``num_res_blocks: 3, attn_resolutions: [16, 8], heads: 4, time_scales: true, learned_variance:
    true``, 52,546,438.  ADM's has ``resample_blocks: true, head_channels: 64`` besides; for ImageNet 64x64 with ``nf:
    192, ch_mult: [1, 2, 3, 4], attn_resolutions: [32, 16, 8]`` and 1,000 classes 295.9 million.  VDM's never
    resamples: ``ch_mult: [1], num_res_blocks: 32, attn_resolutions: [], fourier: [7, 8]``.

    Reference: Ho et al., "Denoising Diffusion Probabilistic Models", arXiv 2006.11239, App. B; Nichol & Dhariwal, arXiv
    2102.09672, App. A; Dhariwal & Nichol, arXiv 2105.05233, Sec. 3; Kingma et al., "Variational Diffusion Models",
    arXiv 2107.00630, App. B and C.

    Args:
        shape: Shape of one example, (C, L), (C, H, W) or (C, D, H, W); sizes divisible by 2 for each level after the
            first, or 1, of an axis that is never halved.  Data of other sizes so divisible may be given later.
        conditions: Of the data, of any kind (`conditioning`); sequences are attended to where the network attends.
        nf: Channels of the first level.
        ch_mult: Channels of each level, in units of ``nf``.
        num_res_blocks: Residual blocks of a level.
        attn_resolutions: Heights (of 1-D data, lengths) of the levels that attend, for data of ``shape``; the middle
            always attends.
        dropout: Within the residual blocks.
        resamp_with_conv: Resample with a convolution of size 3; else by mean and repetition.
        activation: Nonlinearity.
        conv_shortcut: Convolution of size 3 instead of 1 as shortcut where the number of channels changes.
        up_attention: On the way up, attend after every block (Ho et al.) or once per level (the VP-SDE seminar,
            score_sde).
        heads: Attention heads.
        head_channels: Channels of a head, in place of ``heads``, so that wider levels have more of them.
        up_heads: Attention heads on the way up; None: as ``heads``.
        time_scales: Let the noise level scale and shift the second norm of a block instead of being added before it.
        learned_variance: Return 2C channels, the second half for the variance of the reverse step.
        fourier: Exponents n of features sin(2ⁿ π x) and cos(2ⁿ π x) of the input, as extra channels, so that the
            network sees the last bits of the images.
        groups: Of every norm; None: 32, or fewer for few channels.
        norm_eps: Added to the variance in every norm.
        padding: Where data are padded before they are halved: after the last values ("corner"), or around.
        time_embedding: Embedding of the noise level; None: Sinusoidal, for which ``noise_input`` must count as far
            as 1000.
        time_conditional: Whether the network gets the noise level at all.
        checkpointing: Compute activations again for the gradients: less memory, a third more time.
        flow_map: Whether the network takes the length of a flow map's jump (`JumpEmbedding`), for FlowMapLoss.
        resample_blocks: Resample within residual blocks, by mean and repetition, as BigGAN and ADM do.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        conditions: Conditions | None = None,
        nf: int = 128,
        ch_mult: Sequence[int] = (1, 2, 2, 2),
        num_res_blocks: int = 2,
        attn_resolutions: Sequence[int] = (16,),
        dropout: float = 0.1,
        resamp_with_conv: bool = True,
        activation: resnet.Activation = "swish",
        conv_shortcut: bool = False,
        up_attention: Literal["every_block", "once_per_level"] = "every_block",
        heads: int = 1,
        head_channels: int | None = None,
        up_heads: int | None = None,
        time_scales: bool = False,
        learned_variance: bool = False,
        fourier: Sequence[int] = (),
        groups: int | None = None,
        norm_eps: float = 1e-6,
        padding: resnet.Padding = "corner",
        time_embedding: Callable[[int], Embedding] | None = None,
        time_conditional: bool = True,
        checkpointing: bool = False,
        flow_map: bool = False,
        resample_blocks: bool = False,
    ) -> None:
        super().__init__()
        check_options("UNet", nf, ch_mult, num_res_blocks, dropout)
        strides = factors("UNet", shape, 2)
        self.factors = tuple(stride ** (len(ch_mult) - 1) for stride in strides)
        check_sizes("UNet", shape, self.factors)
        attends = attending("UNet", shape, strides, len(ch_mult), attn_resolutions)
        channels, axes = shape[0], len(strides)
        if head_channels is not None and (head_channels < 1 or heads != 1 or up_heads is not None):
            raise ValueError(f"UNet: head_channels must be at least 1 and without heads, got {head_channels}")
        if not 0 < norm_eps < 1:
            raise ValueError(f"UNet: norm_eps must be in (0, 1), got {norm_eps}")
        if any(not 0 <= n <= 12 for n in fourier):
            raise ValueError(f"UNet: fourier must be exponents from 0 to 12, got {list(fourier)}")
        self.fourier = list(fourier)

        width = 4 * nf
        self.act = resnet.ACTIVATIONS[activation]
        self.time = TimeFeatures(nf, time_embedding, activation) if time_conditional else None
        self.cond = Conditioning("UNet", shape, conditions, width)
        self.label = LabelEmbedding("UNet", self.cond.label, width)
        self.flow_map, self.jump = flow_map, JumpEmbedding(width) if flow_map else None
        added = flow_map or self.label.classes is not None or self.cond.added
        time_width = width if time_conditional or added else 0

        norm = partial(group_norm, groups=groups, eps=norm_eps)

        def block(channels: int, out: int, resample: Callable[[Tensor], Tensor] | None = None) -> ResBlock:
            return ResBlock(
                *(channels, out, time_width, activation, dropout, conv_shortcut, False, 0.0, time_scales, norm, axes),
                resample=resample,
            )

        def smaller(c: int) -> nn.Module:
            if resample_blocks:
                return block(c, c, partial(shrink, strides=strides))
            return Downsample(c, resamp_with_conv, padding, strides)

        def larger(c: int) -> nn.Module:
            if resample_blocks:
                return block(c, c, partial(enlarge, strides=strides))
            return Upsample(c, resamp_with_conv, strides)

        def attention(channels: int, up: bool = False) -> list[nn.Module]:
            number = up_heads if up and up_heads is not None else heads
            if head_channels is not None:
                if channels % head_channels:
                    raise ValueError(f"UNet: head_channels {head_channels} must divide {channels}, a level's channels")
                number = channels // head_channels
            block = AttentionBlock(channels, heads=number, norm=norm, axes=axes)
            return [block, *([CrossAttentionBlock(channels, width, number)] if self.cond.attended else [])]

        def row(*blocks: nn.Module) -> resnet.Sequence:
            return resnet.Sequence(*blocks, checkpointing=checkpointing)

        self.stem = conv(channels * (1 + 2 * len(self.fourier)) + self.cond.channels, nf, axes=axes)
        self.down = nn.ModuleList()
        skips, c = [nf], nf
        for level, mult in enumerate(ch_mult):
            for _ in range(num_res_blocks):
                self.down.append(row(block(c, nf * mult), *(attention(nf * mult) if attends[level] else [])))
                c = nf * mult
                skips.append(c)
            if level < len(ch_mult) - 1:
                self.down.append(row(smaller(c)))
                skips.append(c)

        self.middle = row(block(c, c), *attention(c), block(c, c))

        self.up = nn.ModuleList()
        for level, mult in reversed(list(enumerate(ch_mult))):
            for number in range(num_res_blocks + 1):
                last = number == num_res_blocks
                blocks: list[nn.Module] = [block(c + skips.pop(), nf * mult)]
                c = nf * mult
                if attends[level] and (last or up_attention == "every_block"):
                    blocks += attention(c, up=True)
                if last and level > 0:
                    blocks.append(larger(c))
                self.up.append(row(*blocks))

        self.norm = norm(c)
        self.output = conv(c, channels * (1 + learned_variance), scale=0.0, axes=axes)

    def forward(
        self, x: Tensor, c_noise: Tensor, label: Tensor | None = None, jump: Tensor | None = None, **cond: Tensor
    ) -> Tensor:
        """The raw network output F.

        Args:
            x: Scaled noisy data, (B, C, *sizes).
            c_noise: Noise level, (B,).
            label: Classes, int64, (B,); −1 or None means any class.
            jump: Length of a flow map's jump, t − r, (B,); None means 0.
            cond: Other conditions by name, (B, *shape) each; NaN or none means not given.

        Raises:
            ValueError: a size that cannot be halved as often as there are levels after the first, or a condition that
                the network was not built for.
        """
        check_sizes("UNet", x.shape[1:], self.factors)
        check_jump("UNet", self.jump, jump)
        values = self.cond.check(cond, x)
        time = c_noise.new_zeros(x.shape[0], self.label.width) if self.time is None else self.time(c_noise)
        time, context = self.cond.add(self.label(time, label), values), self.cond.context(values)
        time = time if self.jump is None else self.jump(time, jump)
        h = self.stem(self.cond.concatenate(_with_waves(x, self.fourier), values))
        skips = [h]
        for row in self.down:
            h = row(h, time, context)
            skips.append(h)
        h = self.middle(h, time, context)
        for row in self.up:
            h = row(torch.cat((h, skips.pop()), 1), time, context)
        output: Tensor = self.output(self.act(self.norm(h)))
        return output


def _with_waves(x: Tensor, exponents: Sequence[int]) -> Tensor:
    """x, concatenated with sin(2ⁿ π x) and cos(2ⁿ π x) for each n: (B, C, *sizes) -> (B, C (1 + 2K), *sizes)."""
    if not exponents:
        return x
    phases = [2**n * math.pi * x.float() for n in exponents]  # 16 bits would lose the phase
    return torch.cat([x, *(f(phase).to(x.dtype) for phase in phases for f in (torch.sin, torch.cos))], 1)


class TimeFeatures(nn.Module):
    """c_noise: (B,) -> features (B, 4 nf), through an embedding and two dense layers.

    Args:
        nf: Channels of the network's first level.
        embedding: See `UNet`.
        activation: Nonlinearity.
        extra: Length of vectors that are added to the embedding through a linear map; 0: there are none.
    """

    def __init__(
        self,
        nf: int,
        embedding: Callable[[int], Embedding] | None,
        activation: resnet.Activation,
        extra: int = 0,
    ) -> None:
        super().__init__()
        self.embedding = Sinusoidal(1, nf) if embedding is None else embedding(1)
        self.extra = nn.Linear(extra, self.embedding.width, bias=False) if extra else None
        if self.extra is not None:
            resnet.variance_scaling_(self.extra.weight)
        self.act = resnet.ACTIVATIONS[activation]
        self.dense_1 = linear(self.embedding.width, 4 * nf)
        self.dense_2 = linear(4 * nf, 4 * nf)

    def forward(self, c_noise: Tensor, extra: Tensor | None = None) -> Tensor:
        """c_noise: (B,), extra: (B, K), None stands for 0."""
        features = self.embedding(c_noise.float().unsqueeze(1)).to(self.dense_1.weight.dtype)
        if self.extra is not None and extra is not None:
            features = features + self.extra(extra)
        y: Tensor = self.dense_2(self.act(self.dense_1(features)))
        return y
