"""Cosine: variance preserving,  α = cos φ,  σ = sin φ,  the angle φ linear in t between the ends given as log-SNR.

Reference: Nichol & Dhariwal, arXiv 2102.09672 (α = cos πt/2); truncated in log-SNR as in Hoogeboom et al., "Simple
diffusion", arXiv 2301.11093, so that 0 < α, σ < 1 everywhere.
"""

import math

import torch
from torch import Tensor

from .base import Kernel, Schedule, check


class Cosine(Schedule):
    """Cosine schedule.

    Args:
        logsnr_max: λ(0).
        logsnr_min: λ(1).
    """

    def __init__(self, logsnr_max: float = 20.0, logsnr_min: float = -20.0) -> None:
        super().__init__()
        check(logsnr_min < logsnr_max, f"need logsnr_min < logsnr_max, got {logsnr_min} and {logsnr_max}")
        self.start = math.atan(math.exp(-logsnr_max / 2))  # φ(0), from tan φ = σ/α = e^{−λ/2}
        self.gap = math.atan(math.exp(logsnr_min / 2))  # π/2 − φ(1)
        self.speed = math.pi / 2 - self.gap - self.start

    def forward(self, t: Tensor) -> Kernel:
        sigma = torch.sin(self.start + self.speed * t)
        alpha = torch.sin(self.gap + self.speed * (1 - t))  # = cos φ without losing the digits of a small α
        return Kernel(alpha, sigma, -self.speed * sigma, self.speed * alpha)

    def time(self, logsnr: Tensor) -> Tensor:
        return ((torch.atan(torch.exp(-logsnr / 2)) - self.start) / self.speed).clamp(0, 1)
