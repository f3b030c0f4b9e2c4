"""A U-Net that attends at every resolution: linear attention on each level, full attention in the middle.

Linear attention costs O(n) in the number of positions n, where full attention costs O(n²):

    softmax(q kᵀ) v   becomes   softmax_d(q) (softmax_n(k)ᵀ v)
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..conditions import Conditions
from .conditioning import LabelEmbedding
from .embeddings import Embedding, Sinusoidal
from .layers import image_shape


class LearnedFourier(Embedding):
    """One number and its sines and cosines at learned frequencies: x, sin(2π w x), cos(2π w x), w ~ N(0, 1) at first.

    Args:
        dim: Number of coordinates, one (given by the network).
        features: Sines and cosines together, an even number.
        trained: False: the frequencies stay as drawn; unlike those of `Fourier` they come with x itself.
    """

    def __init__(self, dim: int = 1, features: int = 16, trained: bool = True) -> None:
        super().__init__()
        if dim != 1:
            raise ValueError(f"LearnedFourier: embeds one number, got {dim} coordinates")
        if features < 2 or features % 2:
            raise ValueError(f"LearnedFourier: features must be an even number from 2 on, got {features}")
        self.width = features + 1
        self.frequencies = nn.Parameter(torch.randn(features // 2), requires_grad=trained)

    def forward(self, x: Tensor) -> Tensor:
        phase = 2 * math.pi * x * self.frequencies
        return torch.cat((x, phase.sin(), phase.cos()), 1)


class ChannelNorm(nn.Module):
    """Each position's channels scaled to unit mean square, times a learned gain."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=1) * self.gain * math.sqrt(x.shape[1])


class LinearAttention(nn.Module):
    """x + linear attention of all positions.  x: (B, C, H, W).

    Reference: Shen et al., "Efficient Attention", arXiv 1812.01243.
    """

    def __init__(self, channels: int, heads: int, dim_head: int, memory: int = 0) -> None:
        super().__init__()
        self.heads, self.dim_head = heads, dim_head
        self.norm = ChannelNorm(channels)
        self.memory = nn.Parameter(torch.randn(2, heads, dim_head, memory)) if memory else None
        self.qkv = nn.Conv2d(channels, 3 * heads * dim_head, 1, bias=False)
        self.output = nn.Sequential(nn.Conv2d(heads * dim_head, channels, 1), ChannelNorm(channels))

    def forward(self, x: Tensor) -> Tensor:
        b, _, height, width = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(b, 3, self.heads, self.dim_head, height * width).unbind(1)
        if self.memory is not None:
            k, v = (torch.cat((m.expand(b, -1, -1, -1), z), 3) for m, z in zip(self.memory, (k, v), strict=True))
        # The keys sum to 1 over the positions, so the result does not shrink with their number.
        k = k.softmax(-1, dtype=torch.promote_types(k.dtype, torch.float32)).to(v.dtype)
        context = torch.einsum("bhdn,bhen->bhde", k, v)
        attended = torch.einsum("bhde,bhdn->bhen", context, q.softmax(2) * self.dim_head**-0.5)
        y: Tensor = x + self.output(attended.reshape(b, -1, height, width))
        return y


class FullAttention(nn.Module):
    """x + scaled dot-product attention of all positions.  x: (B, C, H, W)."""

    def __init__(self, channels: int, heads: int, dim_head: int, memory: int = 0) -> None:
        super().__init__()
        self.heads, self.dim_head = heads, dim_head
        self.norm = ChannelNorm(channels)
        self.memory = nn.Parameter(torch.randn(2, heads, memory, dim_head)) if memory else None
        self.qkv = nn.Conv2d(channels, 3 * heads * dim_head, 1, bias=False)
        self.output = nn.Conv2d(heads * dim_head, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, _, height, width = x.shape
        qkv = self.qkv(self.norm(x)).reshape(b, 3, self.heads, self.dim_head, height * width)
        q, k, v = qkv.transpose(3, 4).unbind(1)
        if self.memory is not None:
            k, v = (torch.cat((m.expand(b, -1, -1, -1), z), 2) for m, z in zip(self.memory, (k, v), strict=True))
        attended = F.scaled_dot_product_attention(q, k, v).transpose(2, 3)
        y: Tensor = x + self.output(attended.reshape(b, -1, height, width))
        return y


class Block(nn.Module):
    """Two convolutions, each normalised and activated; the time scales and shifts what is between.

    Args:
        channels, out: channels of input and output.
        time_width: Length of the time features.
        groups: Of the group norm; None: a channel norm.
    """

    def __init__(self, channels: int, out: int, time_width: int, groups: int | None) -> None:
        super().__init__()
        self.time = nn.Linear(time_width, 2 * out)
        norm_1, norm_2 = (ChannelNorm(out) if groups is None else nn.GroupNorm(groups, out) for _ in range(2))
        self.conv_1, self.norm_1 = nn.Conv2d(channels, out, 3, padding=1), norm_1
        self.conv_2, self.norm_2 = nn.Conv2d(out, out, 3, padding=1), norm_2
        self.shortcut = nn.Conv2d(channels, out, 1) if channels != out else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        scale, shift = self.time(F.silu(time))[:, :, None, None].chunk(2, 1)
        h = F.silu(self.norm_1(self.conv_1(x)) * (1 + scale) + shift)
        y: Tensor = self.shortcut(x) + F.silu(self.norm_2(self.conv_2(h)))
        return y


class LinearAttentionUNet(nn.Module):
    """The U-Net of the Korean notes: two blocks and linear attention a level, full attention in the middle, long skip.

    Parameters for (3, 32, 32) with the defaults: 35,711,107.

    Reference: the Korean notes, after the public `denoising-diffusion-pytorch`; without its division of the values by
    the number of positions, and with channel norms where the notes leave the kind of norm open.  So it is the `Unet` of
    release 1.8.15 with ``full_attn`` false on all levels: same tensors, same output.  Release 2.3 (35,711,491) is
    ``groups: null, memory: 4, full_attention: [false, false, false, true]``.

    Args:
        shape: Shape of one example, (C, H, W); height and width divisible by 2 for each level after the first.
            Images of other sizes so divisible may be given later.
        conditions: Of the data; a label named ``label`` or none. Row ``classes`` of its table means "any class".
        dim: Channels of the first level.
        dim_mults: Channels of each level, in units of ``dim``.
        heads: Heads of every attention.
        dim_head: Channels of a head.
        groups: Of the group norms, must divide ``dim``; None: channel norms in their place.
        memory: Learned keys and values in addition to those of the image, in every attention.
        full_attention: Which levels attend fully, linearly the others; None: none, only the middle.
        self_condition: Also take an estimate of x_0, the network's own from before.
        learned_variance: Return 2C channels, the second half for the variance of the reverse step.
        time_embedding: Embedding of the noise level, such as Fourier or LearnedFourier; None: Sinusoidal, for which
            ``noise_input`` must count as far as 1000.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        conditions: Conditions | None = None,
        dim: int = 64,
        dim_mults: Sequence[int] = (1, 2, 4, 8),
        heads: int = 4,
        dim_head: int = 32,
        groups: int | None = 8,
        memory: int = 0,
        full_attention: Sequence[bool] | None = None,
        self_condition: bool = False,
        learned_variance: bool = False,
        time_embedding: Callable[[int], Embedding] | None = None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        if not dim_mults or min(dim_mults) < 1:
            raise ValueError(f"{name}: dim_mults must be one or more positive numbers, got {list(dim_mults)}")
        if dim < 1 or (groups is not None and (groups < 1 or dim % groups)):
            raise ValueError(f"{name}: groups must divide dim, got dim {dim} and groups {groups}")
        if time_embedding is None and dim % 2:
            raise ValueError(f"{name}: dim must be even for half sines, half cosines of the noise level, got {dim}")
        if heads < 1 or dim_head < 1:
            raise ValueError(f"{name}: heads and dim_head must be at least 1, got {heads} and {dim_head}")
        full = [False] * len(dim_mults) if full_attention is None else list(full_attention)
        if memory < 0 or len(full) != len(dim_mults):
            raise ValueError(
                f"{name}: memory must not be negative and full_attention name each of {len(dim_mults)} levels, got "
                f"{memory} and {full}"
            )
        self.factor = 2 ** (len(dim_mults) - 1)
        channels, _, _ = image_shape(name, shape, self.factor)
        self.self_condition = self_condition

        width = 4 * dim
        self.embedding = Sinusoidal(1, dim) if time_embedding is None else time_embedding(1)
        self.time = nn.Sequential(nn.Linear(self.embedding.width, width), nn.GELU(), nn.Linear(width, width))
        self.label = LabelEmbedding(name, conditions, width)
        self.stem = nn.Conv2d(channels * (1 + self_condition), dim, 7, padding=3)

        def attention(level: int, c: int) -> nn.Module:
            return (FullAttention if full[level] else LinearAttention)(c, heads, dim_head, memory)

        widths = [dim, *(dim * mult for mult in dim_mults)]
        last = len(dim_mults) - 1
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for level in range(len(dim_mults)):
            c, out = widths[level], widths[level + 1]
            # Each 2x2 becomes one position of 4C channels: nothing is lost but by choice of the convolution.
            smaller = nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(4 * c, out, 1))
            row = [*(Block(c, c, width, groups) for _ in range(2)), attention(level, c)]
            self.down.append(nn.ModuleList((*row, smaller if level < last else nn.Conv2d(c, out, 3, padding=1))))
        middle = widths[-1]
        self.middle_1, self.middle_2 = Block(middle, middle, width, groups), Block(middle, middle, width, groups)
        self.attention = FullAttention(middle, heads, dim_head, memory)
        for level in reversed(range(len(dim_mults))):
            c, out = widths[level + 1], widths[level]
            larger = nn.Sequential(nn.Upsample(scale_factor=2, mode="nearest"), nn.Conv2d(c, out, 3, padding=1))
            row = [*(Block(c + out, c, width, groups) for _ in range(2)), attention(level, c)]
            self.up.append(nn.ModuleList((*row, larger if level > 0 else nn.Conv2d(c, out, 3, padding=1))))
        self.final = Block(2 * dim, dim, width, groups)
        self.output = nn.Conv2d(dim, channels * (1 + learned_variance), 1)

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None, x_0_hat: Tensor | None = None) -> Tensor:
        """The raw network output F, and as many channels for the variance if that is learned.

        Args:
            x: Scaled noisy images, (B, C, H, W).
            c_noise: Noise level, (B,).
            label: Classes, int64, (B,); −1 or None means any class.
            x_0_hat: Estimate of x_0 for self-conditioning, (B, C, H, W); None: none yet, zeros.

        Raises:
            ValueError: a height or width that cannot be halved as often as needed, labels or an estimate that it was
                not built for.
        """
        image_shape("LinearAttentionUNet", x.shape[1:], self.factor)
        if x_0_hat is not None and not self.self_condition:
            raise ValueError("LinearAttentionUNet: got x_0_hat but was built without self_condition: set it to true")
        if x_0_hat is not None and x_0_hat.shape != x.shape:
            raise ValueError(
                f"LinearAttentionUNet: x_0_hat must be like x, {tuple(x.shape)}, got {tuple(x_0_hat.shape)}"
            )
        if self.self_condition:
            x = torch.cat((torch.zeros_like(x) if x_0_hat is None else x_0_hat, x), 1)
        time = self.label(self.time(self.embedding(c_noise.float().unsqueeze(1)).to(x.dtype)), label)
        h = stem = self.stem(x)
        skips = []
        for block_1, block_2, attention, resample in _levels(self.down):
            h = block_1(h, time)
            skips.append(h)
            h = attention(block_2(h, time))
            skips.append(h)
            h = resample(h)
        h = self.middle_2(self.attention(self.middle_1(h, time)), time)
        for block_1, block_2, attention, resample in _levels(self.up):
            h = block_1(torch.cat((h, skips.pop()), 1), time)
            h = attention(block_2(torch.cat((h, skips.pop()), 1), time))
            h = resample(h)
        output: Tensor = self.output(self.final(torch.cat((h, stem), 1), time))
        return output


def _levels(levels: nn.ModuleList) -> list[nn.ModuleList]:
    return [level for level in levels if isinstance(level, nn.ModuleList)]
