"""Rectified: the straight line between data and noise,  α = 1 − t,  σ = t.

Reference: Liu et al., "Flow straight and fast", arXiv 2209.03003; Lipman et al., "Flow matching", arXiv 2210.02747.
"""

import torch
from torch import Tensor

from .base import Kernel, Schedule


class Rectified(Schedule):
    """Rectified flow.  α(1) = 0 exactly: at t = 1 use a parameterization that allows it (Velocity, V, Data, EDM)."""

    def forward(self, t: Tensor) -> Kernel:
        return Kernel(1 - t, t, -torch.ones_like(t), torch.ones_like(t))

    def time(self, logsnr: Tensor) -> Tensor:
        return torch.sigmoid(-logsnr / 2)
