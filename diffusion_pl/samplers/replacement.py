"""Sampling with a part of x_0 known: at every time that part is replaced by the known one, noised to that time."""

from typing import Any

import torch
from torch import Tensor

from ..denoisers import Operator
from ..schedules import transition
from .base import Run, Sampler


class Replacement(Sampler):
    """x_s ← the nearest to x_s of all with A x_s = α_s y + σ_s A ε;  then, repeats − 1 times, back to t and again.

    The replaced part knows nothing of the rest; going back and forth lets both agree.

    Reference: Song et al., arXiv 2011.13456, App. I.2–I.3 (repeats = 1); Lugmayr et al., "RePaint", arXiv 2201.09865,
    Alg. 1.

    Args:
        sampler: whose steps are taken.
        operator: A, what is known of a sample.
        y: its value, for each sample of the batch, or with a batch axis of 1.
        repeats: how often each step is taken.
    """

    def __init__(self, sampler: Sampler, operator: Operator, y: Tensor, repeats: int = 1) -> None:
        super().__init__(sampler.grid)
        if repeats < 1:
            raise ValueError(f"repeats must be at least 1, got {repeats}")
        self.sampler, self.operator, self.y, self.repeats = sampler, operator, y, repeats
        self.order, self.evaluations = sampler.order, sampler.evaluations * repeats

    def step(self, run: Run, x_t: Tensor, t: Tensor, s: Tensor, state: Any) -> tuple[Tensor, Any]:
        at_t, at_s = run.kernel(t), run.kernel(s)
        alpha, sigma_sq = transition(at_s, at_t)
        for k in range(self.repeats):
            x_s, new = self.sampler.step(run, x_t, t, s, state if k == 0 else None)
            known = at_s.alpha * self.y + at_s.sigma * self.operator(run.noise(x_s))
            x_s = self.operator.consistent(x_s, known)
            if k < self.repeats - 1:
                x_t = alpha * x_s + torch.sqrt(sigma_sq) * run.noise(x_s)
        return x_s, new
