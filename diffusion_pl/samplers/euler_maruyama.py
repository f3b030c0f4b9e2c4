"""Euler–Maruyama on the reverse SDE, and on the whole family with the same marginals."""

import math

import torch
from torch import Tensor

from ..tensors import combine
from .base import Run, Sampler
from .grids import Grid


class EulerMaruyama(Sampler):
    """dx = [f x − ½(1 + λ²) g² ∇log p] dt + λ g dw̄,  here with f x − ½g²∇log p = α'x̂_0 + σ'ε̂ and ∇log p = −ε̂/σ.

    λ = 1 is Anderson's reverse SDE (the full g², not ½g²: with ½ the variance of N(0, 1) would end at 11), λ = 0 the
    probability-flow ODE.

    Reference: Anderson (1982); Song et al., arXiv 2011.13456, Eq. 6 and App. D.1.

    Args:
        grid: many points; unless λ = 0, finite g² at the first of them (t_max < 1 where α(1) = 0).
        noise: λ.
    """

    order = 1

    def __init__(self, grid: Grid, noise: float = 1.0) -> None:
        super().__init__(grid)
        if not 0 <= noise < math.inf:
            raise ValueError(f"noise must be at least 0, got {noise}")
        self.noise = noise

    def step(self, run: Run, x_t: Tensor, t: Tensor, s: Tensor, state: None) -> tuple[Tensor, None]:
        kernel = run.kernel(t)
        if self.noise == 0:  # the ODE needs no g², which is infinite where α = 0, and draws no noise
            x_0, eps, _ = run.denoise(x_t, t)
            return x_t + combine(((s - t) * kernel.d_alpha, x_0), ((s - t) * kernel.d_sigma, eps)), None
        g_sq = self.noise**2 * kernel.diffusion_sq
        if not g_sq.isfinite():
            name = type(run.schedule).__name__
            raise ValueError(f"EulerMaruyama: g² of {name} is infinite at t={t.item()}; start the grid at t_max < 1")
        x_0, eps, _ = run.denoise(x_t, t)
        d_sigma = kernel.d_sigma + 0.5 * g_sq / kernel.sigma
        terms = ((s - t) * kernel.d_alpha, x_0), ((s - t) * d_sigma, eps), (torch.sqrt(g_sq * (t - s)), run.noise(x_t))
        return x_t + combine(*terms), None
