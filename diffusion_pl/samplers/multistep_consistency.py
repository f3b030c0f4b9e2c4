"""Multistep sampling with a consistency model or flow map: jumps, with fresh noise between them."""

import math

import torch
from torch import Tensor

from ..tensors import combine
from .base import Run, Sampler
from .grids import Grid


class MultistepConsistency(Sampler):
    """A jump to a lower noise level u, and noise to come back to s:

        σ_u/α_u = √(1 − γ²) σ_s/α_s,     x_s = (α_s/α_u) x_u + γ σ_s ε

    With γ = 1 each jump goes to the data (r = 0), as consistency models need, which know no other jump.  Each following
    jump corrects what the one before got wrong, at the price of its own error.  With γ = 0 it is `DDIM`.

    Reference: Song et al., "Consistency models", arXiv 2303.01469, Alg. 1 (γ = 1); Kim et al., "Consistency trajectory
    models", arXiv 2310.02279, Alg. 3.

    Args:
        grid: times between the jumps, such as KarrasGrid.
        gamma: γ, the part of fresh noise, from 0 to 1.
    """

    order = 0
    jumps = True

    def __init__(self, grid: Grid, gamma: float = 1.0) -> None:
        super().__init__(grid)
        if not 0 <= gamma <= 1:
            raise ValueError(f"MultistepConsistency: gamma must be in [0, 1], got {gamma}")
        self.gamma, self.to_data = gamma, gamma == 1

    def step(self, run: Run, x_t: Tensor, t: Tensor, s: Tensor, state: None) -> tuple[Tensor, None]:
        _check(run)
        at_s = run.kernel(s)
        kept = 1 - self.gamma**2
        u = run.schedule.time(at_s.logsnr - math.log(kept)).to(s) if kept > 0 else torch.zeros_like(s)
        at_u = run.schedule(u)
        x_0, eps, _ = run.denoise(x_t, t, u)
        x_u = x_0 if kept == 0 else combine((at_u.alpha, x_0), (at_u.sigma, eps)) / at_u.alpha.item()
        if self.gamma == 0:
            return at_s.alpha.item() * x_u, None
        return combine((at_s.alpha, x_u), (self.gamma * at_s.sigma, run.noise(x_t))), None

    def last(self, run: Run, x_t: Tensor, t: Tensor) -> Tensor:
        _check(run)  # a grid of one time has no other step
        return run.denoise(x_t, t, torch.zeros_like(t)).x_0


def _check(run: Run) -> None:
    if not run.flow_map:
        raise ValueError("MultistepConsistency is for flow maps and consistency models. Fix: take another sampler")
