"""sub-VP: VP's mean with a smaller variance,  σ = 1 − α²  (so σ² ≤ VP's 1 − α²).

    dx = −½β(t) x dt + √(β(t)(1 − e^{−2∫β})) dw,      log α = −½∫₀ᵗβ

Reference: Song et al., arXiv 2011.13456, Eq. 14 and 29.
"""

import torch
from torch import Tensor

from .base import Kernel, Schedule
from .vp import check_betas, invert_linear_beta, linear_beta


class SubVP(Schedule):
    """sub-variance-preserving SDE with linear β.

    Args:
        beta_min: β(0), per unit of time.
        beta_max: β(1).
    """

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20.0) -> None:
        super().__init__()
        check_betas(beta_min, beta_max)
        self.beta_min, self.beta_max = beta_min, beta_max

    def forward(self, t: Tensor) -> Kernel:
        log_alpha, d_log_alpha = linear_beta(t, self.beta_min, self.beta_max)
        alpha = torch.exp(log_alpha)
        sigma = -torch.expm1(2 * log_alpha)
        return Kernel(alpha, sigma, alpha * d_log_alpha, -2 * alpha.square() * d_log_alpha)

    def time(self, logsnr: Tensor) -> Tensor:
        # α = e^{λ/2} σ with α² = 1 − σ gives e^λ σ² + σ − 1 = 0; its positive root, free of cancellation:
        sigma = 2 / (1 + torch.sqrt(1 + 4 * torch.exp(logsnr)))
        # ∫β = −log(1 − σ) = log(1 + σ/α²) with α² = e^λ σ²: the digits of 1 − σ are gone where σ is near 1.
        return invert_linear_beta(torch.log1p(torch.exp(-logsnr) / sigma), self.beta_min, self.beta_max)
