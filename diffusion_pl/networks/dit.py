"""DiT: a transformer over patches, conditioned through adaLN-Zero.

    x → patches → + position → [ x + gate · attention(modulated norm x),  x + cross-attention(x, sequences),
                                 x + gate · MLP(modulated norm x) ] × depth → F

Registers and in-context tokens are further tokens, before those of the patches, which are no part of F.

shift, scale and gate of every norm are linear in the features of noise level, labels and vectors, with weights 0 at
first; cross-attention is there for sequences only, and adds nothing at first.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ..conditions import Conditions
from .conditioning import Conditioning, LabelEmbedding
from .embeddings import JumpEmbedding, Sinusoidal, check_jump
from .layers import check_sizes, factors
from .transformer import MLP, Block, Norm, make_norm, positions, rotations, sized


class DiT(nn.Module):
    """A diffusion transformer; with its options also that of LightningDiT and JiT.

    Sizes: S (width 384, depth 12, heads 6), B (768, 12, 12), L (1024, 24, 16), XL (1152, 28, 16), H (1280, 32, 16), G
    (1664, 40, 16).  Parameters for (4, 32, 32) with 1,000 classes and patches of 2: S 32,858,896, B 130,303,504, L
    457,824,272, XL 674,816,272.  The paper's round to 33, 130, 458 and 675 million and have some more, for their output
    holds a variance too and their fixed positions are counted.

    LightningDiT is ``norm: RMSNorm, mlp: SwiGLU, rotary: true``; JiT has also ``qk_norm: true, bottleneck: 128,
    in_context: 32``.

    Reference: Peebles & Xie, "Scalable Diffusion Models with Transformers", arXiv 2212.09748; cross-attention in each
    block as in Chen et al., arXiv 2310.00426, Sec. 2.3; Yao et al., arXiv 2501.01423, Table 3 (LightningDiT); Li & He,
    arXiv 2511.13720, Sec. 4 and App. A (JiT); Darcet et al., arXiv 2309.16588 (registers).

    Args:
        shape: Shape of one example, (C, L), (C, H, W) or (C, D, H, W); sizes divisible by ``patch_size``, or 1.
            Data of other sizes so divisible may be given later.
        conditions: Of the data, of any kind (`conditioning`).
        patch_size: Size of a patch along each axis, except an axis of size 1.
        width: Channels of a token; divisible by 4 and by ``heads``, and at least twice the number of axes.  None: that
            of ``size``, or 192.
        depth: Number of blocks.  None: that of ``size``, or 6.
        heads: Attention heads.  None: those of ``size``, or 3.
        mlp_ratio: Width of the hidden layer of a block's MLP, in units of ``width``; of SwiGLU, 2/3 of that.
        time_features: Features of the sinusoidal embedding of the noise level, for which ``noise_input`` must count as
            far as 1000.
        checkpointing: Compute activations again for the gradients: less memory, a third more time.
        flow_map: Whether the network takes the length of a flow map's jump (`JumpEmbedding`), for FlowMapLoss.
        size: Name of a size, S, B, L, XL, H or G; ``width``, ``depth`` and ``heads`` that are given take its place.
        norm: LayerNorm, or RMSNorm with a learned weight.
        mlp: GELU, or SwiGLU.
        rotary: Whether queries and keys are also turned by the position of their patch (`rotations`).
        qk_norm: Whether queries and keys have an RMSNorm, against attention that grows without bound.
        registers: Learned tokens before those of the patches, from the first block on.
        in_context: Tokens of the label and vectors, each with a learned position, before those of the patches.
        in_context_start: Number of the block that the in-context tokens are first given to, from 0 on.
        bottleneck: Width of a linear layer between patches and tokens; None: none.
        learned_variance: Return 2C channels, the second half for the variance of the reverse step.
        max_period: Longest period of the embedding of the noise level, see `Sinusoidal`.
    """

    positions: Tensor
    rotations: Tensor

    def __init__(
        self,
        shape: tuple[int, ...],
        conditions: Conditions | None = None,
        patch_size: int = 2,
        width: int | None = None,
        depth: int | None = None,
        heads: int | None = None,
        mlp_ratio: float = 4.0,
        time_features: int = 256,
        checkpointing: bool = False,
        flow_map: bool = False,
        size: str | None = None,
        norm: Norm = "LayerNorm",
        mlp: MLP = "GELU",
        rotary: bool = False,
        qk_norm: bool = False,
        registers: int = 0,
        in_context: int = 0,
        in_context_start: int = 0,
        bottleneck: int | None = None,
        learned_variance: bool = False,
        max_period: float = 10_000.0,
    ) -> None:
        super().__init__()
        width, depth, heads = sized("DiT", size, width, depth, heads)
        _check(patch_size, width, depth, heads, mlp_ratio, time_features)
        _check_tokens(depth, registers, in_context, in_context_start, bottleneck)
        self.patch_sizes = factors("DiT", shape, patch_size)
        check_sizes("DiT", shape, self.patch_sizes, "give another patch_size")
        axes = len(self.patch_sizes)
        if width < 2 * axes or (rotary and width // heads < 2 * axes):
            whose = "width divided by heads" if width >= 2 * axes else "width"
            raise ValueError(f"DiT: {whose} must be at least twice the number of axes of {tuple(shape)}, got {width}")
        self.channels, self.checkpointing = shape[0] * (1 + learned_variance), checkpointing
        self.registers, self.in_context, self.in_context_start = registers, in_context, in_context_start
        values = math.prod(self.patch_sizes)
        self.embedding = Sinusoidal(1, time_features, max_period)
        self.time = nn.Sequential(nn.Linear(time_features, width), nn.SiLU(), nn.Linear(width, width))
        self.cond = Conditioning("DiT", shape, conditions, width)
        self.label = LabelEmbedding("DiT", self.cond.label, width)
        self.flow_map, self.jump = flow_map, JumpEmbedding(width) if flow_map else None
        inward = (shape[0] + self.cond.channels) * values
        self.patch: nn.Module = nn.Linear(inward, width)
        if bottleneck is not None:
            self.patch = nn.Sequential(nn.Linear(inward, bottleneck, bias=False), nn.Linear(bottleneck, width))
        self.register_buffer("positions", positions(self._counts(shape[1:]), width), persistent=False)
        self.head_width = width // heads if rotary else None
        if self.head_width is not None:
            turns = rotations(self._counts(shape[1:]), self.head_width)
            self.register_buffer("rotations", turns, persistent=False)
        self.blocks = nn.ModuleList(
            Block(width, heads, mlp_ratio, self.cond.attended, norm, mlp, qk_norm) for _ in range(depth)
        )
        self.norm = make_norm(norm, width)
        self.modulation = nn.Linear(width, 2 * width)
        self.output = nn.Linear(width, self.channels * values)
        self.register_tokens = nn.Parameter(torch.zeros(registers, width)) if registers else None
        self.in_context_positions = nn.Parameter(torch.zeros(in_context, width)) if in_context else None
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for layer in (self.time[0], self.time[2]):
            assert isinstance(layer, nn.Linear)
            nn.init.normal_(layer.weight, std=0.02)
        if self.label.table is not None:
            nn.init.normal_(self.label.table.weight, std=0.02)
        for tokens in (self.register_tokens, self.in_context_positions):
            if tokens is not None:
                nn.init.normal_(tokens, std=0.02)
        for module in self.modules():
            if isinstance(module, Block):
                nn.init.zeros_(module.modulation.weight)
                if module.cross is not None:
                    module.cross.silence()
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.output.weight)
        if self.jump is not None:
            self.jump.silence()

    @property
    def extra_tokens(self) -> tuple[int, ...]:
        """How many tokens there can be before those of the patches, in the first and the last block."""
        return self.registers, self.registers + self.in_context

    def _counts(self, sizes: Sequence[int]) -> tuple[int, ...]:
        """Patches along each axis of data of such sizes."""
        return tuple(size // patch for size, patch in zip(sizes, self.patch_sizes, strict=True))

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
            ValueError: a size that patches do not fill, or a condition that the network was not built for.
        """
        check_sizes("DiT", x.shape[1:], self.patch_sizes, "give another patch_size")
        check_jump("DiT", self.jump, jump)
        values = self.cond.check(cond, x)
        counts = self._counts(x.shape[2:])
        time = self.time(self.embedding(c_noise.float().unsqueeze(1)).to(x.dtype))
        features, context = self.cond.add(self.label(time, label), values), self.cond.context(values)
        classes = self.cond.add(self.label(torch.zeros_like(time), label), values) if self.in_context else None
        features = features if self.jump is None else self.jump(features, jump)
        grid, rotation = self._places(counts, x)
        tokens = self.patch(self._patches(self.cond.concatenate(x, values), counts)) + grid.flatten(0, -2).to(x.dtype)
        tokens = self._with_tokens(tokens, self.register_tokens)
        for number, block in enumerate(self.blocks):
            if classes is not None and number == self.in_context_start:
                tokens = self._with_tokens(tokens, self.in_context_positions, classes)
            if self.checkpointing and torch.is_grad_enabled():
                tokens = checkpoint(block, tokens, features, context, rotation, use_reentrant=False)
            else:
                tokens = block(tokens, features, context, rotation)
        tokens = tokens[:, tokens.shape[1] - math.prod(counts) :]
        shift, scale = self.modulation(F.silu(features))[:, None].chunk(2, 2)
        patches = self.output(self.norm(tokens) * (1 + scale) + shift)
        axes = len(counts)
        order = [axes + 1, *(place for axis in range(axes) for place in (1 + axis, axes + 2 + axis))]
        blocks: Tensor = patches.view(-1, *counts, self.channels, *self.patch_sizes).permute(0, *order)
        return blocks.reshape(x.shape[0], self.channels, *x.shape[2:])

    def _places(self, counts: tuple[int, ...], x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Embedding of places, (*counts, width), and their rotations, (2, N, K)."""
        same = self.positions.shape[:-1] == counts
        grid = self.positions if same else positions(counts, self.positions.shape[-1]).to(x.device)
        if self.head_width is None:
            return grid, None
        return grid, self.rotations if same else rotations(counts, self.head_width).to(x.device)

    def _with_tokens(self, tokens: Tensor, more: Tensor | None, features: Tensor | None = None) -> Tensor:
        """More tokens, (M, width), before others, (B, N, width); features: (B, width) are added to them."""
        if more is None:
            return tokens
        first = more.to(tokens.dtype).expand(tokens.shape[0], -1, -1)
        return torch.cat((first if features is None else first + features[:, None], tokens), 1)

    def _patches(self, x: Tensor, counts: tuple[int, ...]) -> Tensor:
        """(B, C, *sizes) -> (B, N, C · values of a patch)."""
        axes = len(counts)
        split = [n for pair in zip(counts, self.patch_sizes, strict=True) for n in pair]
        order = [*range(2, 2 + 2 * axes, 2), 1, *range(3, 3 + 2 * axes, 2)]
        return x.reshape(*x.shape[:2], *split).permute(0, *order).reshape(x.shape[0], math.prod(counts), -1)


def _check(patch_size: int, width: int, depth: int, heads: int, mlp_ratio: float, time_features: int) -> None:
    """Raise ValueError for numbers of which no transformer can be built."""
    for name, value in (("patch_size", patch_size), ("depth", depth), ("heads", heads)):
        if value < 1:
            raise ValueError(f"DiT: {name} must be at least 1, got {value}")
    if width < 4 or width % 4 or width % heads:
        raise ValueError(f"DiT: width must be divisible by 4 and by heads, got width {width} and heads {heads}")
    if not 1 <= mlp_ratio * width < math.inf:
        raise ValueError(f"DiT: mlp_ratio must be positive and finite, at least 1 / width, got {mlp_ratio}")
    if time_features < 2 or time_features % 2:
        raise ValueError(f"DiT: time_features must be an even number from 2 on, got {time_features}")


def _check_tokens(depth: int, registers: int, in_context: int, in_context_start: int, bottleneck: int | None) -> None:
    """Raise ValueError for numbers of further tokens, or a bottleneck, that cannot be."""
    for name, value in (("registers", registers), ("in_context", in_context)):
        if value < 0:
            raise ValueError(f"DiT: {name} must be at least 0, got {value}")
    if not 0 <= in_context_start < depth or (in_context_start and not in_context):
        raise ValueError(
            f"DiT: in_context_start must be from 0 to depth - 1 and needs in_context, got {in_context_start} with "
            f"depth {depth} and in_context {in_context}"
        )
    if bottleneck is not None and bottleneck < 1:
        raise ValueError(f"DiT: bottleneck must be at least 1, got {bottleneck}")
