"""Ancestral sampling: the chain's posterior with x̂_0 in place of x_0."""

import torch
from torch import Tensor

from ..schedules import interpolate_variance, posterior, transition
from ..tensors import combine
from .base import Run, Sampler
from .grids import Grid


class Ancestral(Sampler):
    """x_s ~ N(posterior mean of (x_t, x̂_0), var),  var = β̃^{1−v} β^v  between its two bounds.

    Reference: Ho et al., arXiv 2006.11239, Alg. 2 and Sec. 3.2; Nichol & Dhariwal, arXiv 2102.09672, Eq. 15.

    Args:
        grid: DDPM's own: UniformGrid(N).
        variance: v; 0 is β̃ ("fixed small", right for point-mass data), 1 is β ("fixed large", right for N(0, I) data);
            None: as the network learned it, for each number its own.
    """

    order = 1

    def __init__(self, grid: Grid, variance: float | None = 0.0) -> None:
        super().__init__(grid)
        if variance is not None and not 0 <= variance <= 1:
            raise ValueError(f"variance must be in [0, 1], got {variance}")
        self.variance = variance

    def step(self, run: Run, x_t: Tensor, t: Tensor, s: Tensor, state: None) -> tuple[Tensor, None]:
        at_s, at_t = run.kernel(s), run.kernel(t)
        from_t, from_0, small = posterior(at_s, at_t)
        large = transition(at_s, at_t).sigma_sq
        prediction = run.denoise(x_t, t)
        mean = (from_t, x_t), (from_0, prediction.x_0)
        if self.variance is not None:
            std = torch.sqrt(small ** (1 - self.variance) * large**self.variance)
            return combine(*mean, (std, run.noise(x_t))), None
        if prediction.v is None:
            raise ValueError("Ancestral: the network predicts no variance. Fix: set variance to 0 (β̃) or 1 (β)")
        return combine(*mean) + torch.sqrt(interpolate_variance(prediction.v, small, large)) * run.noise(x_t), None
