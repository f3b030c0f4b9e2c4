"""EDM2's U-Net: no biases, no group norms, and magnitudes that neither layers nor training change.

    stem → levels down → two blocks → levels up, outputs of the way down concatenated → F · gain

Pixel norms on the way down are the only norms of activations; gains, 0 at first, are the only scales that are learned.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ..conditions import Conditions
from .conditioning import Conditioning, label_classes
from .embeddings import JumpEmbedding, check_jump
from .layers import along, attending, check_options, check_sizes, enlarge, factors, shrink
from .magnitude import Layer, Waves, mp_cat, mp_silu, mp_sum, normalized

RESIDUAL = 0.3  # share of a residual branch, and of attention
HALF = 0.5  # share of the class, and of what comes up from below
LIMIT = 256.0  # of the output of a block, for 16-bit arithmetic

Resample = Callable[[Tensor], Tensor]


class Block(nn.Module):
    """One block of either way, Fig. 21: resampling, residual branch, self-attention.

    Args:
        channels, out: Channels of input and output.
        width: Length of the features of the noise level.
        up: Whether it is on the way up, where the shortcut comes last and there is no pixel norm.
        heads: Of attention; 0: none.
        dropout: Probability.
        axes: Number of spatial axes.
        resample: What halves or doubles the sizes of its input; None: nothing.
    """

    def __init__(
        self,
        channels: int,
        out: int,
        width: int,
        up: bool,
        heads: int,
        dropout: float,
        axes: int,
        resample: Resample | None = None,
    ) -> None:
        super().__init__()
        self.up, self.heads, self.resample = up, heads, resample
        self.conv_1 = Layer(channels if up else out, out, 3, axes)
        self.time, self.time_gain = Layer(width, out), nn.Parameter(torch.zeros(()))
        self.dropout = nn.Dropout(dropout)
        self.conv_2 = Layer(out, out, 3, axes)
        self.shortcut = Layer(channels, out, 1, axes) if channels != out else nn.Identity()
        self.qkv = Layer(out, 3 * out, 1, axes) if heads else None
        self.project = Layer(out, out, 1, axes) if heads else None

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        x = x if self.resample is None else self.resample(x)
        if not self.up:
            x = normalized(self.shortcut(x), 1)
        h = self.conv_1(mp_silu(x))
        h = mp_silu(h * along(1 + self.time(time, self.time_gain), h).to(h.dtype))
        h = self.conv_2(self.dropout(h))
        x = mp_sum(self.shortcut(x) if self.up else x, h, RESIDUAL)
        if self.qkv is not None and self.project is not None:
            x = mp_sum(x, self.project(self._attended(self.qkv(x)).reshape(x.shape)), RESIDUAL)
        return x.clamp(-LIMIT, LIMIT)

    def _attended(self, qkv: Tensor) -> Tensor:
        """Cosine attention: queries, keys and values have magnitude 1 in each head. (B, 3C, *sizes) -> (B, C, N)."""
        q, k, v = normalized(qkv.flatten(2).unflatten(1, (3, self.heads, -1)), 3).transpose(3, 4).unbind(1)
        return F.scaled_dot_product_attention(q, k, v).transpose(2, 3).flatten(1, 2)


class EDM2UNet(nn.Module):
    """The magnitude-preserving U-Net of EDM2, configuration G.

    ``nf`` of the published sizes, with the parameters for latents (4, 64, 64) of 1,000 classes: XS 128 (124.7 million),
    S 192 (280.2), M 256 (497.8), L 320 (777.5), XL 384 (1,119.3), XXL 448 (1,523.2).

    Its weights are set back to magnitude 1 after each step of the optimizer (`magnitude.Layer.after_step`), which the
    published code does at the next forward pass instead: EMA weights differ from the published ones by the square of
    the length of a step.  Noise levels reach it as ¼ ln σ: ``noise_input`` LogSNR.  Vectors and labels of other names
    than ``label``, and jumps, have the embeddings of the other networks, which keep no magnitudes; a label that is not
    given adds nothing.

    Reference: Karras et al., "Analyzing and improving the training dynamics of diffusion models", arXiv 2312.02696,
    Fig. 21, Table 6.

    Args:
        shape: Shape of one example, (C, L), (C, H, W) or (C, D, H, W); sizes divisible by 2 for each level after the
            first, or 1, of an axis that is never halved.  Data of other sizes so divisible may be given later.
        conditions: Of the data: labels, vectors and images (`conditioning`).
        nf: Channels of the first level.
        ch_mult: Channels of each level, in units of ``nf``.
        num_res_blocks: Residual blocks of a level.
        attn_resolutions: Heights (of 1-D data, lengths) of the levels that attend, for data of ``shape``; the first
            block after the way down always attends.
        dropout: Within the residual blocks.
        head_channels: Channels of an attention head.
        checkpointing: Compute activations again for the gradients: less memory, a third more time.
        flow_map: Whether the network takes the length of a flow map's jump (`JumpEmbedding`), for FlowMapLoss.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        conditions: Conditions | None = None,
        nf: int = 192,
        ch_mult: Sequence[int] = (1, 2, 3, 4),
        num_res_blocks: int = 3,
        attn_resolutions: Sequence[int] = (16, 8),
        dropout: float = 0.0,
        head_channels: int = 64,
        checkpointing: bool = False,
        flow_map: bool = False,
    ) -> None:
        super().__init__()
        check_options("EDM2UNet", nf, ch_mult, num_res_blocks, dropout)
        strides = factors("EDM2UNet", shape, 2)
        self.factors = tuple(stride ** (len(ch_mult) - 1) for stride in strides)
        check_sizes("EDM2UNet", shape, self.factors)
        attends = attending("EDM2UNet", shape, strides, len(ch_mult), attn_resolutions)
        axes, width = len(strides), nf * max(ch_mult)

        self.waves = Waves(nf * ch_mult[0])
        self.noise = Layer(nf * ch_mult[0], width)
        self.cond = Conditioning("EDM2UNet", shape, conditions, width, ("label", "vector", "image"))
        self.classes = label_classes("EDM2UNet", self.cond.label)
        self.label = None if self.classes is None else Layer(self.classes, width)
        self.flow_map, self.jump = flow_map, JumpEmbedding(width) if flow_map else None
        self.checkpointing = checkpointing

        def block(
            channels: int, out: int, up: bool, attention: bool = False, resample: Resample | None = None
        ) -> Block:
            if attention and (head_channels < 1 or out % head_channels):
                raise ValueError(f"EDM2UNet: head_channels {head_channels} must divide {out}, a level's channels")
            return Block(channels, out, width, up, out // head_channels * attention, dropout, axes, resample)

        c = nf * ch_mult[0]
        self.stem = Layer(shape[0] + self.cond.channels + 1, c, 3, axes)
        self.down, skips = nn.ModuleList(), [c]
        for level, mult in enumerate(ch_mult):
            if level > 0:
                self.down.append(block(c, c, False, resample=partial(shrink, strides=strides)))
                skips.append(c)
            for _ in range(num_res_blocks):
                self.down.append(block(c, nf * mult, False, attends[level]))
                c = nf * mult
                skips.append(c)
        self.middle = nn.ModuleList([block(c, c, True, True), block(c, c, True)])
        self.up, self.skips = nn.ModuleList(), []
        for level, mult in reversed(list(enumerate(ch_mult))):
            if level < len(ch_mult) - 1:
                self.up.append(block(c, c, True, resample=partial(enlarge, strides=strides)))
                self.skips.append(False)
            for _ in range(num_res_blocks + 1):
                self.up.append(block(c + skips.pop(), nf * mult, True, attends[level]))
                self.skips.append(True)
                c = nf * mult
        self.output, self.gain = Layer(c, shape[0], 3, axes), nn.Parameter(torch.zeros(()))

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
        check_sizes("EDM2UNet", x.shape[1:], self.factors)
        check_jump("EDM2UNet", self.jump, jump)
        values = self.cond.check(cond, x)
        features = self.noise(self.waves(c_noise))
        features = self.cond.add(self._labelled(features, label), values)
        time = mp_silu(features if self.jump is None else self.jump(features, jump))
        x = self.cond.concatenate(x, values)
        h = self.stem(torch.cat((x, torch.ones_like(x[:, :1])), 1))  # in place of biases
        skips = [h]
        for block in self.down:
            h = self._run(block, h, time)
            skips.append(h)
        for block in self.middle:
            h = self._run(block, h, time)
        for block, takes in zip(self.up, self.skips, strict=True):
            h = self._run(block, mp_cat(h, skips.pop(), HALF) if takes else h, time)
        output: Tensor = self.output(h, self.gain)
        return output

    def _labelled(self, features: Tensor, label: Tensor | None) -> Tensor:
        """The features, and those of the classes, in equal shares; of no class: 0. features: (B, width)."""
        if self.label is None or self.classes is None:
            if label is not None:
                raise ValueError("EDM2UNet: got labels but was built without conditions: give it the data's")
            return features
        if label is None:
            label = torch.full((len(features),), -1, device=features.device)
        # One row for any class, which is cut off; √n gives the vector of a class magnitude 1.
        hot = F.one_hot(torch.where(label < 0, self.classes, label), self.classes + 1)[:, :-1]
        return mp_sum(features, self.label(hot.to(features.dtype) * self.classes**0.5), HALF)

    def _run(self, block: nn.Module, x: Tensor, time: Tensor) -> Tensor:
        if self.checkpointing and torch.is_grad_enabled():
            y: Tensor = checkpoint(block, x, time, use_reentrant=False)
            return y
        y = block(x, time)
        return y
