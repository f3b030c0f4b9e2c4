"""Karras: EDM's schedule,  α = 1,  σ(t) = (σ_min^{1/ρ} + t (σ_max^{1/ρ} − σ_min^{1/ρ}))^ρ.

Reference: Karras et al., "Elucidating the design space of diffusion-based generative models", arXiv 2206.00364, Eq. 5.
"""

import torch
from torch import Tensor

from .base import Kernel, Schedule
from .ve import check_sigmas


class Karras(Schedule):
    """EDM's noise levels; equal steps in t are EDM's sampling grid.

    Args:
        sigma_min: σ(0), in the units of the (normalised) data.
        sigma_max: σ(1).
        rho: how much the steps crowd at low noise; 1 = equal steps in σ.
    """

    def __init__(self, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> None:
        super().__init__()
        check_sigmas(sigma_min, sigma_max)
        if not 0.1 <= rho <= 100:  # beyond, the powers overflow
            raise ValueError(f"rho must be in [0.1, 100], got {rho}")
        self.rho = rho
        self.start = float(sigma_min ** (1 / rho))
        self.length = float(sigma_max ** (1 / rho)) - self.start

    def forward(self, t: Tensor) -> Kernel:
        root = self.start + t * self.length
        sigma = root.pow(self.rho)
        return Kernel(torch.ones_like(t), sigma, torch.zeros_like(t), self.rho * self.length * sigma / root)

    def time(self, logsnr: Tensor) -> Tensor:
        root = torch.exp(-logsnr / (2 * self.rho))
        return ((root - self.start) / self.length).clamp(0, 1)
