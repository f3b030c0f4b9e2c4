"""LinearLogSNR: variance preserving, λ linear in t,  α² = sigmoid(λ),  σ² = sigmoid(−λ).

Reference: Kingma et al., "Variational diffusion models", arXiv 2107.00630, Sec. 3.2, γ = −λ: on images the learned
schedule is nearly this one, and the continuous bound depends on its ends alone (Sec. 5.1).
"""

import math

import torch
from torch import Tensor

from .base import Kernel, Schedule, check


class LinearLogSNR(Schedule):
    """Log-SNR that falls at a constant rate.

    Args:
        logsnr_max: λ(0), −γ_min of the paper.
        logsnr_min: λ(1), −γ_max; −5 in the paper, which leaves a trace of the data, counted by the bound.
    """

    def __init__(self, logsnr_max: float = 13.3, logsnr_min: float = -10.0) -> None:
        super().__init__()
        ordered = -math.inf < logsnr_min < logsnr_max < math.inf
        check(ordered, f"need logsnr_min < logsnr_max, both finite, got {logsnr_min} and {logsnr_max}")
        self.logsnr_max, self.speed = logsnr_max, logsnr_max - logsnr_min

    def forward(self, t: Tensor) -> Kernel:
        logsnr = self.logsnr_max - self.speed * t
        alpha, sigma = torch.sigmoid(logsnr).sqrt(), torch.sigmoid(-logsnr).sqrt()
        # dα/dλ = ½ α σ² and dσ/dλ = −½ σ α².
        return Kernel(alpha, sigma, -0.5 * self.speed * alpha * sigma**2, 0.5 * self.speed * sigma * alpha**2)

    def time(self, logsnr: Tensor) -> Tensor:
        return ((self.logsnr_max - logsnr) / self.speed).clamp(0, 1)
