"""DDIM: x̂_0 noised again to the next level, partly with the noise just estimated, partly with fresh noise."""

import torch
from torch import Tensor

from ..schedules import posterior
from ..tensors import combine
from .base import Run, Sampler
from .grids import Grid


class DDIM(Sampler):
    """x_s = α_s x̂_0 + √(σ_s² − η²β̃) ε̂ + η√β̃ ε.

    η = 1 is `Ancestral(variance=0)`; η = 0 is Euler's method for the probability-flow ODE dx = x̂_0 dα + ε̂ dσ, and with
    a flow map, which takes s, exact in steps of any size.

    Reference: Song et al., "Denoising diffusion implicit models", arXiv 2010.02502, Eq. 12 and 16.

    Args:
        grid: any.
        eta: η.
        end: time of the samples: 0 is x̂_0; 1/N of a table of N, where some of the noise is left, is what diffusers
            calls `set_alpha_to_one: false`.
    """

    order = 1

    def __init__(self, grid: Grid, eta: float = 0.0, end: float = 0.0) -> None:
        super().__init__(grid)
        if not 0 <= eta <= 1:
            raise ValueError(f"eta must be in [0, 1], got {eta}")
        if not 0 <= end < 1:
            raise ValueError(f"end must be in [0, 1), got {end}")
        self.eta, self.end, self.jumps = eta, end, eta == 0

    def step(self, run: Run, x_t: Tensor, t: Tensor, s: Tensor, state: None) -> tuple[Tensor, None]:
        at_s = run.kernel(s)
        x_0, eps, _ = run.denoise(x_t, t, s if self.eta == 0 and s <= t else None)
        if self.eta == 0:  # no noise is drawn: the sampler is deterministic
            return combine((at_s.alpha, x_0), (at_s.sigma, eps)), None
        var = self.eta**2 * posterior(at_s, run.kernel(t)).var
        kept = torch.sqrt(at_s.sigma.square() - var)
        return combine((at_s.alpha, x_0), (kept, eps), (torch.sqrt(var), run.noise(x_t))), None

    def last(self, run: Run, x_t: Tensor, t: Tensor) -> Tensor:
        return run.denoise(x_t, t, torch.zeros_like(t) if self.eta == 0 else None).x_0
