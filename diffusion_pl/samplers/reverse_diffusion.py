"""The reverse-diffusion predictor: the reverse SDE discretized as the forward chain is."""

import torch
from torch import Tensor

from ..schedules import transition
from ..tensors import combine
from .base import Run, Sampler


class ReverseDiffusion(Sampler):
    """x_s = (2 − α_ts) x_t − σ²_ts ε̂/σ_t + σ_ts ε,  where x_t = α_ts x_s + σ_ts ε is the forward transition.

    Reference: Song et al., arXiv 2011.13456, App. E, Eq. 46; their discretized drift and noise are α_ts x − x and σ_ts.

    Args:
        grid: many points; α > 0 at the first of them unless the schedule is variance-preserving.
    """

    order = 1

    def step(self, run: Run, x_t: Tensor, t: Tensor, s: Tensor, state: None) -> tuple[Tensor, None]:
        at_t = run.kernel(t)
        alpha, sigma_sq = transition(run.kernel(s), at_t)
        eps = run.denoise(x_t, t).eps
        terms = (2 - alpha, x_t), (-sigma_sq / at_t.sigma, eps), (torch.sqrt(sigma_sq), run.noise(x_t))
        return combine(*terms), None
