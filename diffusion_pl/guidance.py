"""Guidance: wrappers that take a denoiser and are one, so that any sampler runs with any of them."""

import torch
from torch import Tensor

from .denoiser import Denoiser
from .parameterizations import Prediction
from .tensors import per_sample


class Thresholded(Denoiser):
    """Keeps x̂_0 inside the range of the data; ε̂ follows from α x̂_0 + σ ε̂ = x_t.

    Static: clip to [low, high] (DDPM).  Dynamic, when a quantile is given: let r be that quantile of the distance from
    the middle of the range in units of its half-width, at least 1; clip to the range widened r times, then shrink by r.

    Reference: Ho et al., arXiv 2006.11239 (clipping); Saharia et al., arXiv 2205.11487, Sec. 2.3 (dynamic).

    Args:
        denoiser: what is wrapped.
        low, high: range of the data in model units.
        quantile: of |x̂_0| over each example, 0.995 is usual; None clips statically.
    """

    def __init__(self, denoiser: Denoiser, low: float = -1.0, high: float = 1.0, quantile: float | None = None) -> None:
        super().__init__()
        if not low < high:
            raise ValueError(f"need low < high, got {low} and {high}")
        if quantile is not None and not 0 < quantile <= 1:
            raise ValueError(f"quantile must lie in (0, 1], got {quantile}")
        self.denoiser, self.schedule = denoiser, denoiser.schedule
        self.low, self.high, self.quantile = low, high, quantile

    def forward(self, x_t: Tensor, t: Tensor, **cond: Tensor) -> Prediction:
        middle, half = (self.low + self.high) / 2, (self.high - self.low) / 2
        unit = (self.denoiser(x_t, t, **cond).x_0 - middle) / half
        if self.quantile is None:
            unit = unit.clamp(-1, 1)
        else:
            reach = per_sample(torch.quantile(unit.abs().flatten(1), self.quantile, dim=1).clamp(min=1), x_t)
            unit = torch.maximum(torch.minimum(unit, reach), -reach) / reach
        kernel = self.schedule(t)
        x_0 = middle + half * unit
        return Prediction(x_0, (x_t - kernel.alpha * x_0) / kernel.sigma)
