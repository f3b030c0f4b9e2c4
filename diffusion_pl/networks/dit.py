"""DiT: a transformer over patches, conditioned through adaLN-Zero.

    x → patches → + position → [ x + gate · attention(modulated norm x),  x + cross-attention(x, sequences),
                                 x + gate · MLP(modulated norm x) ] × depth → F

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
from .cross_attention import Context, CrossAttention
from .embeddings import JumpEmbedding, Sinusoidal, check_jump
from .layers import check_sizes, factors


class Block(nn.Module):
    """One transformer block, adaLN-zero.  tokens: (B, N, width), features: (B, width).

    Args:
        width: Of a token.
        heads: Their number, a divisor of the width.
        mlp_ratio: See `DiT`.
        attends: Whether it attends to sequences, of tokens as wide.
    """

    def __init__(self, width: int, heads: int, mlp_ratio: float, attends: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = (nn.LayerNorm(width, elementwise_affine=False, eps=1e-6) for _ in range(2))
        self.qkv, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        hidden = int(mlp_ratio * width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, width))
        self.modulation = nn.Linear(width, 6 * width)
        self.cross = CrossAttention(width, width, heads) if attends else None

    def forward(self, tokens: Tensor, features: Tensor, context: Context | None = None) -> Tensor:
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = self.modulation(F.silu(features))[:, None].chunk(6, 2)
        b, n, width = tokens.shape
        h = self.norm_1(tokens) * (1 + scale_1) + shift_1
        q, k, v = self.qkv(h).view(b, n, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, width)
        tokens = tokens + gate_1 * self.project(attended)
        if self.cross is not None and context is not None:
            tokens = tokens + self.cross(tokens, context)
        y: Tensor = tokens + gate_2 * self.mlp(self.norm_2(tokens) * (1 + scale_2) + shift_2)
        return y


class DiT(nn.Module):
    """A diffusion transformer.

    Parameters for (4, 32, 32) with 1,000 classes and patches of 2: S (width 384, depth 12, heads 6) 32,858,896, B (768,
    12, 12) 130,303,504, L (1024, 24, 16) 457,824,272, XL (1152, 28, 16) 674,816,272.  The paper's round to 33, 130, 458
    and 675 million and have some more, for their output holds a variance too and their fixed positions are counted.

    Reference: Peebles & Xie, "Scalable Diffusion Models with Transformers", arXiv 2212.09748; cross-attention in each
    block as in Chen et al., arXiv 2310.00426, Sec. 2.3.

    Args:
        shape: Shape of one example, (C, L), (C, H, W) or (C, D, H, W); sizes divisible by ``patch_size``, or 1.
            Data of other sizes so divisible may be given later.
        conditions: Of the data, of any kind (`conditioning`).
        patch_size: Size of a patch along each axis, except an axis of size 1.
        width: Channels of a token; divisible by 4 and by ``heads``, and at least twice the number of axes.
        depth: Number of blocks.
        heads: Attention heads.
        mlp_ratio: Width of the hidden layer of a block's MLP, in units of ``width``.
        time_features: Features of the sinusoidal embedding of the noise level, for which ``noise_input`` must count as
            far as 1000.
        checkpointing: Compute activations again for the gradients: less memory, a third more time.
        flow_map: Whether the network takes the length of a flow map's jump (`JumpEmbedding`), for FlowMapLoss.
    """

    positions: Tensor

    def __init__(
        self,
        shape: tuple[int, ...],
        conditions: Conditions | None = None,
        patch_size: int = 2,
        width: int = 192,
        depth: int = 6,
        heads: int = 3,
        mlp_ratio: float = 4.0,
        time_features: int = 256,
        checkpointing: bool = False,
        flow_map: bool = False,
    ) -> None:
        super().__init__()
        for name, value in (("patch_size", patch_size), ("depth", depth), ("heads", heads)):
            if value < 1:
                raise ValueError(f"DiT: {name} must be at least 1, got {value}")
        if width < 4 or width % 4 or width % heads:
            raise ValueError(f"DiT: width must be divisible by 4 and by heads, got width {width} and heads {heads}")
        if not 1 <= mlp_ratio * width < math.inf:
            raise ValueError(f"DiT: mlp_ratio must be positive and finite, at least 1 / width, got {mlp_ratio}")
        if time_features < 2 or time_features % 2:
            raise ValueError(f"DiT: time_features must be an even number from 2 on, got {time_features}")
        self.patch_sizes = factors("DiT", shape, patch_size)
        check_sizes("DiT", shape, self.patch_sizes, "give another patch_size")
        if width < 2 * len(self.patch_sizes):
            raise ValueError(f"DiT: width must be at least twice the number of axes of {tuple(shape)}, got {width}")
        self.channels, self.checkpointing = shape[0], checkpointing
        values = math.prod(self.patch_sizes)
        self.embedding = Sinusoidal(1, time_features)
        self.time = nn.Sequential(nn.Linear(time_features, width), nn.SiLU(), nn.Linear(width, width))
        self.cond = Conditioning("DiT", shape, conditions, width)
        self.label = LabelEmbedding("DiT", self.cond.label, width)
        self.flow_map, self.jump = flow_map, JumpEmbedding(width) if flow_map else None
        self.patch = nn.Linear((shape[0] + self.cond.channels) * values, width)
        self.register_buffer("positions", positions(self._counts(shape[1:]), width), persistent=False)
        self.blocks = nn.ModuleList(Block(width, heads, mlp_ratio, self.cond.attended) for _ in range(depth))
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.modulation = nn.Linear(width, 2 * width)
        self.output = nn.Linear(width, shape[0] * values)
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for layer in (self.time[0], self.time[2]):
            assert isinstance(layer, nn.Linear)
            nn.init.normal_(layer.weight, std=0.02)
        if self.label.table is not None:
            nn.init.normal_(self.label.table.weight, std=0.02)
        for module in self.modules():
            if isinstance(module, Block):
                nn.init.zeros_(module.modulation.weight)
                if module.cross is not None:
                    module.cross.silence()
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.output.weight)
        if self.jump is not None:
            self.jump.silence()

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
        features = self.time(self.embedding(c_noise.float().unsqueeze(1)).to(x.dtype))
        features, context = self.cond.add(self.label(features, label), values), self.cond.context(values)
        features = features if self.jump is None else self.jump(features, jump)
        grid = self.positions
        if grid.shape[:-1] != counts:
            grid = positions(counts, grid.shape[-1]).to(x.device)
        tokens = self.patch(self._patches(self.cond.concatenate(x, values), counts)) + grid.flatten(0, -2).to(x.dtype)
        for block in self.blocks:
            if self.checkpointing and torch.is_grad_enabled():
                tokens = checkpoint(block, tokens, features, context, use_reentrant=False)
            else:
                tokens = block(tokens, features, context)
        shift, scale = self.modulation(F.silu(features))[:, None].chunk(2, 2)
        patches = self.output(self.norm(tokens) * (1 + scale) + shift)
        axes = len(counts)
        order = [axes + 1, *(place for axis in range(axes) for place in (1 + axis, axes + 2 + axis))]
        blocks: Tensor = patches.view(-1, *counts, self.channels, *self.patch_sizes).permute(0, *order)
        return blocks.reshape(x.shape)

    def _patches(self, x: Tensor, counts: tuple[int, ...]) -> Tensor:
        """(B, C, *sizes) -> (B, N, C · values of a patch)."""
        axes = len(counts)
        split = [n for pair in zip(counts, self.patch_sizes, strict=True) for n in pair]
        order = [*range(2, 2 + 2 * axes, 2), 1, *range(3, 3 + 2 * axes, 2)]
        return x.reshape(*x.shape[:2], *split).permute(0, *order).reshape(x.shape[0], math.prod(counts), -1)


def positions(counts: tuple[int, ...], width: int) -> Tensor:
    """Fixed embedding of places: (*counts, width), an equal part of it sines and cosines of the place along each axis.

    The rest of the width, if it is no multiple of twice the number of axes, is 0.

    Reference: Vaswani et al., arXiv 1706.03762, Sec. 3.5, in each direction.
    """
    axes = len(counts)
    half = width // (2 * axes)
    frequency = 10_000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
    grid = torch.zeros(*counts, width)
    for axis, count in enumerate(counts):
        phase = torch.arange(count, dtype=torch.float64)[:, None] * frequency
        line = torch.cat((phase.sin(), phase.cos()), 1).float()
        part = grid[..., 2 * half * axis : 2 * half * (axis + 1)]
        part.copy_(line.view(count, *(1,) * (axes - 1 - axis), 2 * half).expand_as(part))
    return grid
