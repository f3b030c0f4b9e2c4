"""Heun's second-order method on the probability-flow ODE, with EDM's stochastic churn."""

import math

import torch
from torch import Tensor

from ..schedules import transition
from ..tensors import combine
from .base import Run, Sampler
from .grids import Grid


class Heun(Sampler):
    """Trapezoidal rule for dx = x̂_0 dα + ε̂ dσ after an Euler (DDIM) step:  on EDM's schedule, Algorithm 2.

    Churn first noises x_t from σ̃ = σ/α up to σ̃(1 + γ), γ = min(churn/N, √2 − 1), within [churn_min, churn_max],
    and never beyond t = 1.  N points take 2N − 1 evaluations.

    Reference: Karras et al., arXiv 2206.00364, Alg. 1 and 2.

    Args:
        grid: any; KarrasGrid(18) is EDM's.
        churn: S_churn, 0 is deterministic.
        churn_min, churn_max: S_tmin, S_tmax, range of σ̃ in which noise is added.
        churn_noise: S_noise, standard deviation of that noise.
    """

    order = 2
    evaluations = 2

    def __init__(
        self,
        grid: Grid,
        churn: float = 0.0,
        churn_min: float = 0.0,
        churn_max: float = float("inf"),
        churn_noise: float = 1.0,
    ) -> None:
        super().__init__(grid)
        if not (churn >= 0 and 0 <= churn_noise < math.inf and 0 <= churn_min <= churn_max):
            raise ValueError(
                "need churn >= 0, churn_noise >= 0 and 0 <= churn_min <= churn_max, "
                f"got {churn}, {churn_noise}, {churn_min}, {churn_max}"
            )
        self.churn, self.churn_min, self.churn_max, self.churn_noise = churn, churn_min, churn_max, churn_noise

    def step(self, run: Run, x_t: Tensor, t: Tensor, s: Tensor, state: None) -> tuple[Tensor, None]:
        gamma = min(self.churn / run.points, math.sqrt(2) - 1)
        ratio = math.exp(-run.kernel(t).logsnr.item() / 2)
        if gamma > 0 and self.churn_min <= ratio <= self.churn_max:
            higher = run.schedule.time(run.kernel(t).logsnr - 2 * math.log1p(gamma)).clamp(min=t)
            alpha, sigma_sq = transition(run.kernel(t), run.kernel(higher))
            x_t, t = alpha * x_t + torch.sqrt(sigma_sq) * self.churn_noise * run.noise(x_t), higher
        at_t, at_s = run.kernel(t), run.kernel(s)
        x_0, eps, _ = run.denoise(x_t, t)
        ahead = run.denoise(combine((at_s.alpha, x_0), (at_s.sigma, eps)), s)
        d_alpha, d_sigma = (at_s.alpha - at_t.alpha) / 2, (at_s.sigma - at_t.sigma) / 2
        return x_t + combine((d_alpha, x_0), (d_alpha, ahead.x_0), (d_sigma, eps), (d_sigma, ahead.eps)), None
