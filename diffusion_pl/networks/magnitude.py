"""Layers that keep the magnitude (root mean square) of what passes through them, and of their weights.

    ŵ = w / (ε + rms(w)),  y = ŵ * x / √(fan in)      a layer: no bias, every output has a weight vector of magnitude 1
    silu(x) / 0.596,   (1−t) a + t b over √((1−t)² + t²),   √2 cos(2π(f c + φ))

For independent inputs of magnitude 1 each of them gives magnitude 1, without norms that depend on the data.

The gradient of a normalized weight is orthogonal to it, so every step of the optimizer makes it longer and the next
steps smaller.  `Layer.after_step` therefore sets it back to magnitude 1, and the learning rate alone says how fast the
layer turns.  The trainer calls it after each step of the optimizer, and not the forward pass: that has no side effects,
so it can be compiled, checkpointed, differentiated in forward mode, and run twice before a backward pass.

Reference: Karras et al., "Analyzing and improving the training dynamics of diffusion models", arXiv 2312.02696, Sec. 2
and App. B; the equations named below are there.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .layers import CONVOLVE

EPS = 1e-4  # added to the magnitude that something is divided by
SILU = 0.596  # root mean square of silu(x) for standard normal x


def normalized(x: Tensor, *dims: int) -> Tensor:
    """x / (ε + rms of x over the given dimensions), the norm in float32 at least (Eq. 30, 66)."""
    precise = torch.promote_types(x.dtype, torch.float32)
    norm: Tensor = torch.linalg.vector_norm(x, dim=dims, keepdim=True, dtype=precise)
    count = math.prod(x.shape[dim] for dim in dims)
    return x / (EPS + norm / math.sqrt(count)).to(x.dtype)


def mp_silu(x: Tensor) -> Tensor:
    """silu(x)/0.596 (Eq. 81)."""
    return F.silu(x) / SILU


def mp_sum(a: Tensor, b: Tensor, balance: float) -> Tensor:
    """The sum of a and b with weights 1 − balance and balance, scaled to keep the magnitude (Eq. 88)."""
    return torch.lerp(a, b, balance) / math.hypot(1 - balance, balance)


def mp_cat(a: Tensor, b: Tensor, balance: float) -> Tensor:
    """a and b along dimension 1, in shares 1 − balance and balance whatever their widths (Eq. 103).

    Args:
        a, b: (B, C_a, *), (B, C_b, *).
        balance: Share of b, in (0, 1).
    """
    n_a, n_b = a.shape[1], b.shape[1]
    scale = math.sqrt(n_a + n_b) / math.hypot(1 - balance, balance)
    return torch.cat((a * (scale * (1 - balance) / math.sqrt(n_a)), b * (scale * balance / math.sqrt(n_b))), 1)


class Waves(nn.Module):
    """Random Fourier features √2 cos(2π(f c + φ)) of a number, f ~ N(0, 1), φ uniform (Eq. 75).

    Frequencies and phases are fixed: drawn from a generator of their own, and kept in buffers.

    Args:
        features: Their number.
    """

    frequencies: Tensor
    phases: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("frequencies", torch.randn(features, generator=generator))
        self.register_buffer("phases", torch.rand(features, generator=generator))

    def forward(self, c: Tensor) -> Tensor:
        """c: (B,) -> (B, features)."""
        precise = torch.promote_types(c.dtype, torch.float32)  # 16 bits would lose the phase
        phase = c.to(precise)[:, None] * self.frequencies.to(precise) + self.phases.to(precise)
        return (math.sqrt(2) * torch.cos(2 * math.pi * phase)).to(c.dtype)


class Layer(nn.Module):
    """A linear layer or a convolution without bias, whose weights have magnitude 1 (Eq. 47, 66).

    Args:
        channels, out: Channels of input and output.
        size: Of the kernel along each axis, an odd number.
        axes: Number of spatial axes of a convolution; 0: a linear layer.
    """

    def __init__(self, channels: int, out: int, size: int = 1, axes: int = 0) -> None:
        super().__init__()
        self.axes, self.padding = axes, size // 2
        self.weight = nn.Parameter(torch.randn(out, channels, *(size,) * axes))
        self.after_step()

    @property
    def _inputs(self) -> tuple[int, ...]:
        return tuple(range(1, self.weight.ndim))

    def forward(self, x: Tensor, gain: Tensor | float = 1.0) -> Tensor:
        """x: (B, C) or (B, C, *sizes), and a factor of the output."""
        weight = normalized(self.weight, *self._inputs) * (gain / math.sqrt(self.weight[0].numel()))
        if self.axes == 0:
            return F.linear(x, weight)
        y: Tensor = CONVOLVE[self.axes](x, weight, padding=self.padding)
        return y

    @torch.no_grad()
    def after_step(self) -> None:
        """Set the weights back to magnitude 1, in place."""
        self.weight.copy_(normalized(self.weight, *self._inputs))
