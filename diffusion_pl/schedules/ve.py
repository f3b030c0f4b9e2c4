"""VE: the variance-exploding SDE,  α = 1,  σ(t) = σ_min (σ_max/σ_min)^t,  g² = 2σ² log(σ_max/σ_min).

Reference: Song et al., arXiv 2011.13456, Eq. 30–31.
"""

import math

import torch
from torch import Tensor

from .base import Kernel, Schedule, check


class VE(Schedule):
    """Variance-exploding SDE with geometric σ.

    Args:
        sigma_min: σ(0), in the units of the (normalised) data.
        sigma_max: σ(1); the largest distance between two examples is a good choice (arXiv 2006.09011).
    """

    def __init__(self, sigma_min: float = 0.01, sigma_max: float = 50.0) -> None:
        super().__init__()
        check_sigmas(sigma_min, sigma_max)
        self.sigma_min, self.log_ratio = sigma_min, math.log(sigma_max / sigma_min)

    def forward(self, t: Tensor) -> Kernel:
        sigma = self.sigma_min * torch.exp(self.log_ratio * t)
        return Kernel(torch.ones_like(t), sigma, torch.zeros_like(t), self.log_ratio * sigma)

    def time(self, logsnr: Tensor) -> Tensor:
        return ((-logsnr / 2 - math.log(self.sigma_min)) / self.log_ratio).clamp(0, 1)


def check_sigmas(sigma_min: float, sigma_max: float) -> None:
    """Raise ValueError unless 0 < sigma_min < sigma_max < inf."""
    message = f"need 0 < sigma_min < sigma_max < inf, got sigma_min={sigma_min}, sigma_max={sigma_max}"
    check(0 < sigma_min < sigma_max < math.inf, message)
