"""Parameterization of the network's output:  F = p x_0 + q ε,  two scalars p, q at each noise level.

With x_t = α x_0 + σ ε this is a 2×2 system, solved once for all:

    x̂_0 = (q x_t − σF)/d      ε̂ = (αF − p x_t)/d      d = αq − σp      c_out = ∂x̂_0/∂F = −σ/d

Reference: Salimans & Ho, arXiv 2202.00512 (ε, x_0, v); Karras et al., arXiv 2206.00364, Table 1 (EDM); Lipman et al.,
arXiv 2210.02747 (velocity).
"""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from ..schedules import Kernel
from ..tensors import Recorded


class Prediction(NamedTuple):
    """A denoiser's estimate of the clean data and of the noise, both (B, *), with α x_0 + σ eps = x_t.

    A network that learned the variance of the reverse step also gives v: (B, *), where log variance is between its
    two bounds: (1 − v) log β̃ + v log β (Nichol & Dhariwal, arXiv 2102.09672, Eq. 15).
    """

    x_0: Tensor
    eps: Tensor
    v: Tensor | None = None


class Parameterization(Recorded, ABC):
    """Subclasses define `coefficients`."""

    #: Standard deviation of the data that the network's input scaling c_in = 1/√(α²σ_d² + σ²) assumes.
    sigma_data: float = 1.0
    #: Whether the network's input is scaled so at all; if not, c_in = 1.
    scaled_input: bool = True

    @abstractmethod
    def coefficients(self, kernel: Kernel) -> tuple[Tensor, Tensor]:
        """(p, q), shaped like t."""

    def target(self, kernel: Kernel, x_0: Tensor, eps: Tensor) -> Tensor:
        """F* = p x_0 + q ε: (B, *)."""
        p, q = self.coefficients(kernel)
        return p * x_0 + q * eps

    def predict(self, kernel: Kernel, x_t: Tensor, output: Tensor) -> Prediction:
        """(x̂_0, ε̂) from the network's output F at x_t, both (B, *)."""
        p, q = self.coefficients(kernel)
        d = kernel.alpha * q - kernel.sigma * p
        return Prediction((q / d) * x_t - (kernel.sigma / d) * output, (kernel.alpha / d) * output - (p / d) * x_t)

    def jump(self, at_t: Kernel, at_r: Kernel) -> tuple[Tensor, Tensor]:
        """(A, B), shaped like t: a flow map's jump is x_r = α_r X + σ_r E = A x_t + B F."""
        p, q = self.coefficients(at_t)
        d = at_t.alpha * q - at_t.sigma * p
        a = (at_r.alpha * q - at_r.sigma * p) / d
        return a, (at_r.sigma * at_t.alpha - at_r.alpha * at_t.sigma) / d

    def c_in(self, kernel: Kernel) -> Tensor:
        """What x_t is multiplied by before the network sees it, shaped like t."""
        if not self.scaled_input:
            return torch.ones_like(kernel.sigma)
        return torch.rsqrt((kernel.alpha * self.sigma_data).square() + kernel.sigma.square())

    def c_out(self, kernel: Kernel) -> Tensor:
        """∂x̂_0/∂F, shaped like t."""
        p, q = self.coefficients(kernel)
        return -kernel.sigma / (kernel.alpha * q - kernel.sigma * p)


class Epsilon(Parameterization):
    """F = ε.  Undefined where α = 0.

    Args:
        scaled_input: Whether the network sees x_t at unit variance, which for variance-preserving schedules it has;
            false: as it is (Song et al., arXiv 2011.13456).
    """

    def __init__(self, scaled_input: bool = True) -> None:
        self.scaled_input = scaled_input

    def coefficients(self, kernel: Kernel) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(kernel.alpha), torch.ones_like(kernel.alpha)


class Data(Parameterization):
    """F = x_0.

    Args:
        scaled_input: Whether the network sees x_t at unit variance; false: as it is (Li & He, arXiv 2511.13720).
    """

    def __init__(self, scaled_input: bool = True) -> None:
        self.scaled_input = scaled_input

    def coefficients(self, kernel: Kernel) -> tuple[Tensor, Tensor]:
        return torch.ones_like(kernel.alpha), torch.zeros_like(kernel.alpha)


class V(Parameterization):
    """F = v = α ε − σ x_0."""

    def coefficients(self, kernel: Kernel) -> tuple[Tensor, Tensor]:
        return -kernel.sigma, kernel.alpha


class Velocity(Parameterization):
    """F = dx_t/dt along the pair, α' x_0 + σ' ε.

    Args:
        scaled_input: Whether the network sees x_t at unit variance; false: as it is (Ma et al., arXiv 2401.08740).
    """

    def __init__(self, scaled_input: bool = True) -> None:
        self.scaled_input = scaled_input

    def coefficients(self, kernel: Kernel) -> tuple[Tensor, Tensor]:
        return kernel.d_alpha, kernel.d_sigma


class Score(Parameterization):
    """F = ∇ log q(x_t | x_0) = −ε/σ.  Undefined where α = 0.

    Args:
        unit: Length in which the network measures x: F = unit · (−ε/σ).  A network of images in [0, 1] has unit 2
            for images in [−1, 1].
        scaled_input: Whether the network sees x_t at unit variance; false: as it is (Song et al., arXiv 2011.13456).
    """

    def __init__(self, unit: float = 1.0, scaled_input: bool = True) -> None:
        if not 0 < unit < float("inf"):
            raise ValueError(f"unit must be positive and finite, got {unit}")
        self.unit, self.scaled_input = unit, scaled_input

    def coefficients(self, kernel: Kernel) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(kernel.alpha), -self.unit / kernel.sigma


class EDM(Parameterization):
    """F of unit variance with skip scaling:  F = (σ/σ_d x_0 − α σ_d ε)/√(α²σ_d² + σ²).

    Args:
        sigma_data: σ_d, standard deviation of the data as the network sees them.
    """

    def __init__(self, sigma_data: float = 0.5) -> None:
        if not 0 < sigma_data < float("inf"):
            raise ValueError(f"sigma_data must be positive and finite, got {sigma_data}")
        self.sigma_data = sigma_data

    def coefficients(self, kernel: Kernel) -> tuple[Tensor, Tensor]:
        norm = torch.sqrt((kernel.alpha * self.sigma_data).square() + kernel.sigma.square())
        return kernel.sigma / (self.sigma_data * norm), -kernel.alpha * self.sigma_data / norm
