"""Predictor–corrector sampling: any sampler's step to s, then Langevin steps that stay at s.

    x ← x + δ ∇log p_s(x) + √(2δ) ε,     ∇log p_s(x) = −ε̂/σ_s

leaves p_s as it is in the limit of small δ, and so takes back the error of the predictor's step.

Reference: Song et al., arXiv 2011.13456, Alg. 2–5.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..schedules import transition
from ..tensors import Recorded, per_sample
from .base import Run, Sampler
from .grids import Grid
from .reverse_diffusion import ReverseDiffusion


class Corrector(Recorded, ABC):
    """Subclasses define `size`.

    Args:
        snr: r, ratio of the step's signal to its noise; 0.16 is usual for images.
        steps: how many at each time.
    """

    def __init__(self, snr: float = 0.16, steps: int = 1) -> None:
        if not snr > 0:
            raise ValueError(f"snr must be positive, got {snr}")
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}")
        self.snr, self.steps = snr, steps

    @abstractmethod
    def size(self, sigma: Tensor, eps: Tensor, noise: Tensor) -> Tensor:
        """δ for α_ts = 1: () or (B, 1, …, 1).

        Args:
            sigma: σ_s, ().
            eps: ε̂, (B, *).
            noise: the draw ε, (B, *).
        """


class Langevin(Corrector):
    """δ = 2 α²_ts (r ‖ε‖/‖∇log p_s‖)², of each sample by its own norms.

    Meant for many dimensions, where both norms are near their means.  In few ‖∇log p_s‖ can be near 0, so the ratio
    ‖ε‖/‖ε̂‖ is held below 2; for points AnnealedLangevin is the better choice.
    """

    def size(self, sigma: Tensor, eps: Tensor, noise: Tensor) -> Tensor:
        ratio = (noise.flatten(1).norm(dim=1) / eps.flatten(1).norm(dim=1)).clamp(max=2)
        return 2 * (self.snr * sigma * per_sample(ratio, eps)).square()


class AnnealedLangevin(Corrector):
    """δ = 2 α²_ts (r σ_s)²."""

    def size(self, sigma: Tensor, eps: Tensor, noise: Tensor) -> Tensor:
        return 2 * (self.snr * sigma).square()


class PredictorCorrector(Sampler):
    """One step of the predictor, then those of the corrector.

    α²_ts of the step replaces the published 1 − β_i, and is defined for every schedule, sub-VP too.

    Args:
        grid: many points.
        corrector: None: Langevin().
        predictor: makes the sampler whose step is taken from the grid; None: ReverseDiffusion, the paper's.
    """

    def __init__(
        self,
        grid: Grid,
        corrector: Corrector | None = None,
        predictor: Callable[[Grid], Sampler] | None = None,
    ) -> None:
        super().__init__(grid)
        self.predictor = (predictor or ReverseDiffusion)(grid)
        self.corrector = corrector or Langevin()
        self.order, self.evaluations = self.predictor.order, self.predictor.evaluations + self.corrector.steps

    def step(self, run: Run, x_t: Tensor, t: Tensor, s: Tensor, state: Any) -> tuple[Tensor, Any]:
        x, state = self.predictor.step(run, x_t, t, s, state)
        at_s = run.kernel(s)
        alpha = transition(at_s, run.kernel(t)).alpha
        for _ in range(self.corrector.steps):
            eps, noise = run.denoise(x, s).eps, run.noise(x)
            delta = alpha.square() * self.corrector.size(at_s.sigma, eps, noise)
            x = x - delta / at_s.sigma * eps + torch.sqrt(2 * delta) * noise
        return x, state
