"""Parts of diffusion transformers: blocks, norms, MLPs, and positions of patches on a grid of 1 to 3 axes.

    tokens + gate · attention(modulated norm tokens),   tokens + gate · MLP(modulated norm tokens)

Two kinds of positions: an embedding added to the tokens, and a rotation of queries and keys, by which attention depends
on differences of positions.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .cross_attention import Context, CrossAttention

Norm = Literal["LayerNorm", "RMSNorm"]
MLP = Literal["GELU", "SwiGLU"]
EPS = 1e-6  # of every norm


class Size(NamedTuple):
    """Width, number of blocks and heads of a transformer."""

    width: int
    depth: int
    heads: int


#: S to XL: Peebles & Xie, arXiv 2212.09748, Table 1; H and G: Li & He, arXiv 2511.13720, Table 9.
SIZES = {
    "S": Size(384, 12, 6),
    "B": Size(768, 12, 12),
    "L": Size(1024, 24, 16),
    "XL": Size(1152, 28, 16),
    "H": Size(1280, 32, 16),
    "G": Size(1664, 40, 16),
}
#: Without a name.
SMALL = Size(192, 6, 3)


def sized(network: str, size: str | None, width: int | None, depth: int | None, heads: int | None) -> Size:
    """The size of a name, with what is given in its place.

    Raises:
        ValueError: there is no such name.
    """
    if size is not None and size not in SIZES:
        raise ValueError(f"{network}: size must be one of {', '.join(SIZES)}, got {size!r}")
    base = SMALL if size is None else SIZES[size]
    given = {"width": width, "depth": depth, "heads": heads}
    return base._replace(**{name: value for name, value in given.items() if value is not None})


def make_norm(kind: Norm, width: int) -> nn.Module:
    """LayerNorm without parameters, as DiT's; or RMSNorm with a weight, as LightningDiT's and JiT's."""
    return RMSNorm(width) if kind == "RMSNorm" else nn.LayerNorm(width, elementwise_affine=False, eps=EPS)


class RMSNorm(nn.Module):
    """x / √(mean x² + 1e-6) · weight, over the last axis, in float32.

    Reference: Zhang & Sennrich, "Root mean square layer normalization", arXiv 1910.07467, Eq. 4.

    Args:
        width: Of that axis.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """x: (…, width) -> (…, width)."""
        # Not torch's own, whose fused kernel has no forward-mode derivative.
        wide = x.double() if x.dtype == torch.float64 else x.float()
        normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + EPS)
        y: Tensor = normed.to(x.dtype) * self.weight.to(x.dtype)
        return y


class SwiGLU(nn.Module):
    """W_3 (SiLU(W_1 x) ⊙ W_2 x): an MLP whose hidden layer is a product.

    Reference: Shazeer, "GLU variants improve transformer", arXiv 2002.05202, Eq. 6.

    Args:
        width: Of x.
        hidden: Of the hidden layer.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.input, self.output = nn.Linear(width, 2 * hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """x: (…, width) -> (…, width)."""
        gate, value = self.input(x).chunk(2, -1)
        y: Tensor = self.output(F.silu(gate) * value)
        return y


def make_mlp(kind: MLP, width: int, mlp_ratio: float) -> nn.Module:
    """The MLP of a block.  A SwiGLU has 2/3 of the hidden width, and so as many parameters."""
    hidden = int(mlp_ratio * width)
    if kind == "SwiGLU":
        return SwiGLU(width, 2 * hidden // 3)
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, width))


class Block(nn.Module):
    """One transformer block, adaLN-zero.  tokens: (B, N, width), features: (B, width).

    Reference: Peebles & Xie, arXiv 2212.09748, Sec. 3.2; norm of queries and keys: Dehghani et al., arXiv 2302.05442,
    Sec. 2 (here RMSNorm, as Esser et al., arXiv 2403.03206, Sec. 5.3.2).

    Args:
        width: Of a token.
        heads: Their number, a divisor of the width.
        mlp_ratio: See `DiT`.
        attends: Whether it attends to sequences, of tokens as wide.
        norm, mlp, qk_norm: See `DiT`.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        mlp_ratio: float,
        attends: bool = False,
        norm: Norm = "LayerNorm",
        mlp: MLP = "GELU",
        qk_norm: bool = False,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = (make_norm(norm, width) for _ in range(2))
        self.qkv, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = make_mlp(mlp, width, mlp_ratio)
        self.modulation = nn.Linear(width, 6 * width)
        self.cross = CrossAttention(width, width, heads) if attends else None
        self.norm_q, self.norm_k = (RMSNorm(width // heads) if qk_norm else None for _ in range(2))

    def forward(
        self, tokens: Tensor, features: Tensor, context: Context | None = None, rotation: Tensor | None = None
    ) -> Tensor:
        """tokens of the next block.

        Args:
            tokens: (B, N, width).
            features: (B, width).
            context: Tokens of sequences.
            rotation: Of queries and keys, (2, N, K), see `rotate`; None: none.
        """
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = self.modulation(F.silu(features))[:, None].chunk(6, 2)
        b, n, width = tokens.shape
        h = self.norm_1(tokens) * (1 + scale_1) + shift_1
        q, k, v = self.qkv(h).view(b, n, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        if self.norm_q is not None and self.norm_k is not None:
            q, k = self.norm_q(q), self.norm_k(k)
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, width)
        tokens = tokens + gate_1 * self.project(attended)
        if self.cross is not None and context is not None:
            tokens = tokens + self.cross(tokens, context)
        y: Tensor = tokens + gate_2 * self.mlp(self.norm_2(tokens) * (1 + scale_2) + shift_2)
        return y


def positions(counts: Sequence[int], width: int) -> Tensor:
    """Fixed embedding of places: (*counts, width), an equal part of it sines and cosines of the place along each axis.

    The rest of the width, if it is no multiple of twice the number of axes, is 0.

    Reference: Vaswani et al., arXiv 1706.03762, Sec. 3.5, in each direction.
    """
    axes = len(counts)
    half = width // (2 * axes)
    frequency = _frequencies(half)
    grid = torch.zeros(*counts, width)
    for axis, count in enumerate(counts):
        phase = torch.arange(count, dtype=torch.float64)[:, None] * frequency
        line = torch.cat((phase.sin(), phase.cos()), 1).float()
        part = grid[..., 2 * half * axis : 2 * half * (axis + 1)]
        part.copy_(line.view(count, *(1,) * (axes - 1 - axis), 2 * half).expand_as(part))
    return grid


def rotations(counts: Sequence[int], head_width: int) -> Tensor:
    """cos and sin of the angles by which places turn queries and keys: (2, N, K), K = axes · ⌊head_width / (2 axes)⌋.

    Every axis turns an equal part of the pairs of numbers of a head, at the frequencies of `positions`; numbers beyond
    2K are not turned.

    Reference: Su et al., "RoFormer", arXiv 2104.09864, Eq. 15, along each axis; as in LightningDiT, arXiv 2501.01423.

    Args:
        counts: Patches along each axis.
        head_width: Width of an attention head.
    """
    axes = len(counts)
    frequency = _frequencies(head_width // (2 * axes))
    lines = [torch.arange(count, dtype=torch.float64) for count in counts]
    places = torch.stack(torch.meshgrid(*lines, indexing="ij"), -1).flatten(0, -2)
    angle = (places[:, :, None] * frequency).flatten(1)
    return torch.stack((angle.cos(), angle.sin())).float()


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Turn the pairs (x_0, x_1), (x_2, x_3), … of each token.

    Args:
        x: (…, M + N, head_width); the first M tokens, which have no place, and numbers beyond 2K stay as they are.
        rotation: cos and sin, (2, N, K).
    """
    cos, sin = rotation.to(x.dtype)
    first, turned = x[..., : x.shape[-2] - len(cos), :], x[..., x.shape[-2] - len(cos) :, :]
    rest = turned[..., 2 * cos.shape[1] :]
    a, b = turned[..., : 2 * cos.shape[1]].unflatten(-1, (-1, 2)).unbind(-1)
    pairs = torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2)
    return torch.cat((first, torch.cat((pairs, rest), -1)), -2)


def _frequencies(half: int) -> Tensor:
    """10⁴^(−i/half): (half,) in float64."""
    return 10_000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
