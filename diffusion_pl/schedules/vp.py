"""VP: the variance-preserving SDE  dx = −½β(t) x dt + √β(t) dw,  β(t) = β_min + t (β_max − β_min).

    log α = −¼ t² (β_max − β_min) − ½ t β_min        σ² = 1 − α²

Reference: Song et al., arXiv 2011.13456, Eq. 32–33; the limit of DDPM's table β_i = β(t_i)/N (App. B).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import Kernel, Schedule, check


class VP(Schedule):
    """Variance-preserving SDE with linear β.

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
        sigma = torch.sqrt(-torch.expm1(2 * log_alpha))
        d_alpha = alpha * d_log_alpha
        return Kernel(alpha, sigma, d_alpha, -alpha * d_alpha / sigma)  # σ² = 1 − α²

    def time(self, logsnr: Tensor) -> Tensor:
        # α² = sigmoid(λ), so ∫β = −2 log α = softplus(−λ).
        return invert_linear_beta(F.softplus(-logsnr), self.beta_min, self.beta_max)


def linear_beta(t: Tensor, beta_min: float, beta_max: float) -> tuple[Tensor, Tensor]:
    """log α = −½∫₀ᵗβ and its derivative −½β(t)."""
    half = -0.5 * (beta_max - beta_min) * t
    return t * (0.5 * half - 0.5 * beta_min), half - 0.5 * beta_min


def invert_linear_beta(integral: Tensor, beta_min: float, beta_max: float) -> Tensor:
    """The t ∈ [0, 1] with ∫₀ᵗβ = integral: the root of ½Δt² + β_min t, written so that nothing cancels."""
    delta = beta_max - beta_min
    root = 2 * integral / (beta_min + torch.sqrt(beta_min**2 + 2 * delta * integral))
    return root.clamp(0, 1)


def check_betas(beta_min: float, beta_max: float) -> None:
    """Raise ValueError unless 0 < beta_min < beta_max < inf."""
    message = f"need 0 < beta_min < beta_max < inf, got beta_min={beta_min}, beta_max={beta_max}"
    check(0 < beta_min < beta_max < math.inf, message)
