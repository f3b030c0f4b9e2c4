"""A learned weight of the loss by noise level:  L(t)/e^u(t) + u(t),  whose optimum is u = log E[L(t)].

All noise levels then matter alike, whatever the size of their loss.

Reference: Karras et al., "Analyzing and improving the training dynamics of diffusion models", arXiv 2312.02696, Eq. 15.
"""

import torch
from torch import Tensor, nn

from ..tensors import Recorded


class Uncertainty(Recorded, nn.Module):
    """u(t): a linear function of random Fourier features of t, 0 at first.

    Args:
        features: their number.
        scale: standard deviation of their frequencies, in cycles per unit of t.
    """

    frequencies: Tensor
    phases: Tensor

    def __init__(self, features: int = 128, scale: float = 2.0) -> None:
        super().__init__()
        if features < 1 or not 0 < scale < float("inf"):
            raise ValueError(f"Uncertainty: features must be at least 1 and scale positive, got {features}, {scale}")
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("frequencies", scale * torch.randn(features, generator=generator))
        self.register_buffer("phases", torch.rand(features, generator=generator))
        self.output = nn.Linear(features, 1)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, t: Tensor) -> Tensor:
        """u: (B,) of t: (B,)."""
        waves = torch.cos(2 * torch.pi * (t[:, None] * self.frequencies + self.phases))
        u: Tensor = self.output(waves.to(self.output.weight.dtype))
        return u[:, 0].to(t)
