"""Stationary Gaussian random fields on a periodic grid, in any number of axes: a denoiser in closed form.

x_0 ~ N(μ, C) with independent Fourier modes of variance P(k):

    x̂_0 = μ + F⁻¹[ αP/(α²P + σ²) F(x_t − αμ) ],    ε̂ = F⁻¹[ σ/(α²P + σ²) F(x_t − αμ) ],    F the orthonormal FFT
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..schedules import Schedule
from .base import Denoiser, check_time
from .parameterizations import Prediction


class GaussianField(Denoiser):
    """A field of C independent channels with known power spectra, to verify samplers and metrics of fields.

    Reference: Wiener, "Extrapolation, Interpolation, and Smoothing of Stationary Time Series" (1949), the filter.

    Args:
        schedule: the noise schedule.
        power: P, (C, *sizes), at the frequencies of torch.fft.fftfreq, such as `radial` makes; P(k) = P(−k) ≥ 0; the
            variance of a value is the mean of P.
        mean: μ, broadcasts against (C, *sizes).

    Raises:
        ValueError: P is negative somewhere, or not symmetric.
    """

    def __init__(self, schedule: Schedule, power: Tensor, mean: Tensor | float = 0.0) -> None:
        super().__init__()
        if power.ndim < 2 or not (power >= 0).all():
            raise ValueError(f"power must be (C, *sizes) and at least 0, got {tuple(power.shape)}, {power.min():.3g}")
        axes = tuple(range(1, power.ndim))
        if not torch.allclose(power, power.flip(axes).roll([1] * len(axes), axes)):
            raise ValueError("power must be symmetric, P(k) = P(-k), or the fields would not be real")
        self.schedule, self.power, self.mean = schedule, power, torch.as_tensor(mean, dtype=power.dtype)
        self.axes = tuple(range(-len(axes), 0))

    def forward(self, x_t: Tensor, t: Tensor, **cond: Tensor) -> Prediction:
        check_time(x_t, t)
        alpha, sigma, *_ = self.schedule(t)
        var_t = alpha.square() * self.power + sigma.square()  # of each mode of x_t
        modes = torch.fft.fftn(x_t - alpha * self.mean, dim=self.axes)
        x_0 = self.mean + torch.fft.ifftn(alpha * self.power / var_t * modes, dim=self.axes).real
        return Prediction(x_0.to(x_t), torch.fft.ifftn(sigma / var_t * modes, dim=self.axes).real.to(x_t))

    def draw(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Exact samples: (n, C, *sizes)."""
        white = torch.randn(n, *self.power.shape, dtype=self.power.dtype, generator=generator)
        modes = self.power.sqrt() * torch.fft.fftn(white, dim=self.axes)
        x: Tensor = torch.fft.ifftn(modes, dim=self.axes).real
        return self.mean + x


def radial(sizes: Sequence[int], power: Callable[[Tensor], Tensor]) -> Tensor:
    """P(|k|) of one channel: (1, *sizes), float64; k in cycles per the longest axis.

    Args:
        sizes: of the spatial axes.
        power: k: (*sizes) -> P: (*sizes), such as lambda k: 1 / (1 + k**2).
    """
    axes = [torch.fft.fftfreq(size, dtype=torch.float64) * max(sizes) for size in sizes]
    grid = torch.meshgrid(*axes, indexing="ij")
    return power(torch.stack(grid).square().sum(0).sqrt())[None]
