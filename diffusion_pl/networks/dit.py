"""DiT: a transformer over patches, conditioned through adaLN-Zero.

    x → patches → + position → [ x + gate · attention(modulated norm x),  x + gate · MLP(modulated norm x) ] × depth → F

shift, scale and gate of every norm are linear in the features of noise level and class, with weights 0 at first.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..conditions import Conditions
from .conditioning import LabelEmbedding
from .embeddings import Sinusoidal
from .layers import image_shape


class Block(nn.Module):
    """One transformer block, adaLN-zero.  tokens: (B, N, width), features: (B, width)."""

    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = (nn.LayerNorm(width, elementwise_affine=False, eps=1e-6) for _ in range(2))
        self.qkv, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        hidden = int(mlp_ratio * width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, width))
        self.modulation = nn.Linear(width, 6 * width)

    def forward(self, tokens: Tensor, features: Tensor) -> Tensor:
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = self.modulation(F.silu(features))[:, None].chunk(6, 2)
        b, n, width = tokens.shape
        h = self.norm_1(tokens) * (1 + scale_1) + shift_1
        q, k, v = self.qkv(h).view(b, n, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, width)
        tokens = tokens + gate_1 * self.project(attended)
        y: Tensor = tokens + gate_2 * self.mlp(self.norm_2(tokens) * (1 + scale_2) + shift_2)
        return y


class DiT(nn.Module):
    """A diffusion transformer.

    Parameters for (4, 32, 32) with 1,000 classes and patches of 2: S (width 384, depth 12, heads 6) 32,858,896, B (768,
    12, 12) 130,303,504, L (1024, 24, 16) 457,824,272, XL (1152, 28, 16) 674,816,272.  The paper's round to 33, 130, 458
    and 675 million and have some more, for their output holds a variance too and their fixed positions are counted.

    Reference: Peebles & Xie, "Scalable Diffusion Models with Transformers", arXiv 2212.09748.

    Args:
        shape: Shape of one example, (C, H, W); height and width divisible by ``patch_size``.  Images of other
            sizes so divisible may be given later.
        conditions: Of the data; a label named ``label`` or none. Row ``classes`` of its table means "any class".
        patch_size: Height and width of a patch.
        width: Channels of a token; divisible by 4 and by ``heads``.
        depth: Number of blocks.
        heads: Attention heads.
        mlp_ratio: Width of the hidden layer of a block's MLP, in units of ``width``.
        time_features: Features of the sinusoidal embedding of the noise level, for which ``noise_input`` must count as
            far as 1000.
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
        channels, height, across = image_shape("DiT", shape, patch_size, "give another patch_size")
        self.patch_size, self.channels = patch_size, channels
        self.embedding = Sinusoidal(1, time_features)
        self.time = nn.Sequential(nn.Linear(time_features, width), nn.SiLU(), nn.Linear(width, width))
        self.label = LabelEmbedding("DiT", conditions, width)
        self.patch = nn.Linear(channels * patch_size**2, width)
        grid = positions(height // patch_size, across // patch_size, width)
        self.register_buffer("positions", grid, persistent=False)
        self.blocks = nn.ModuleList(Block(width, heads, mlp_ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.modulation = nn.Linear(width, 2 * width)
        self.output = nn.Linear(width, channels * patch_size**2)
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
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.output.weight)

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None) -> Tensor:
        """The raw network output F.

        Args:
            x: Scaled noisy images, (B, C, H, W).
            c_noise: Noise level, (B,).
            label: Classes, int64, (B,); −1 or None means any class.

        Raises:
            ValueError: a height or width that patches do not fill, or labels for a network without conditions.
        """
        image_shape("DiT", x.shape[1:], self.patch_size, "give another patch_size")
        p = self.patch_size
        b, _, height, across = x.shape
        rows, columns = height // p, across // p
        features = self.time(self.embedding(c_noise.float().unsqueeze(1)).to(x.dtype))
        features = self.label(features, label)
        patches = x.reshape(b, self.channels, rows, p, columns, p).permute(0, 2, 4, 1, 3, 5)
        grid = self.positions
        if grid.shape[:2] != (rows, columns):
            grid = positions(rows, columns, grid.shape[2]).to(x.device)
        tokens = self.patch(patches.reshape(b, rows * columns, -1)) + grid.flatten(0, 1).to(x.dtype)
        for block in self.blocks:
            tokens = block(tokens, features)
        shift, scale = self.modulation(F.silu(features))[:, None].chunk(2, 2)
        patches = self.output(self.norm(tokens) * (1 + scale) + shift)
        images: Tensor = patches.view(b, rows, columns, self.channels, p, p).permute(0, 3, 1, 4, 2, 5)
        return images.reshape(b, self.channels, height, across)


def positions(rows: int, columns: int, width: int) -> Tensor:
    """Fixed embedding of places: (rows, columns, width), half of it sines and cosines of the row, half of the column.

    Reference: Vaswani et al., arXiv 1706.03762, Sec. 3.5, in each direction.
    """
    quarter = width // 4
    frequency = 10_000.0 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)

    def line(n: int) -> Tensor:
        phase = torch.arange(n, dtype=torch.float64)[:, None] * frequency
        return torch.cat((phase.sin(), phase.cos()), 1).float()

    down = line(rows)[:, None].expand(rows, columns, -1)
    along = line(columns)[None].expand(rows, columns, -1)
    return torch.cat((down, along), 2)
