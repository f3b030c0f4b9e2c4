"""The forward process  q(x_t | x_0) = N(α x_0, σ² I),  t ∈ [0, 1],  0 = data, 1 = noise.

A schedule is one function  t ↦ (α, σ, α', σ')  with the log-SNR  λ = 2 log(α/σ)  strictly decreasing.  Everything else
follows from those four numbers:

    drift f = α'/α     noise g² = 2σ(σ' − fσ) = −σ²λ'      of the SDE  dx = f x dt + g dw
    velocity  E[dx/dt | x_t] = α' x̂_0 + σ' ε̂               of the probability-flow ODE

Reference: Song et al., "Score-based generative modeling through SDEs", arXiv 2011.13456; Kingma et al., "Variational
diffusion models", arXiv 2107.00630, App. A (f and g² from α and σ).
"""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..tensors import Recorded


class Kernel(NamedTuple):
    """α, σ and their time derivatives at t, all shaped like t."""

    alpha: Tensor
    sigma: Tensor
    d_alpha: Tensor
    d_sigma: Tensor

    @property
    def logsnr(self) -> Tensor:
        """λ = log α²/σ²."""
        return 2 * torch.log(self.alpha / self.sigma)

    @property
    def snr(self) -> Tensor:
        """α²/σ²."""
        return (self.alpha / self.sigma).square()

    @property
    def d_logsnr(self) -> Tensor:
        """λ' = 2(α'/α − σ'/σ), negative."""
        return 2 * (self.d_alpha / self.alpha - self.d_sigma / self.sigma)

    @property
    def drift(self) -> Tensor:
        """f = α'/α."""
        return self.d_alpha / self.alpha

    @property
    def diffusion_sq(self) -> Tensor:
        """g² = 2σ(σ' − fσ)."""
        return 2 * self.sigma * (self.d_sigma - self.drift * self.sigma)


class Schedule(Recorded, nn.Module, ABC):
    """A noise schedule: the forward process.  Subclasses define `forward`; a closed form of `time` is welcome."""

    #: N of a chain on the grid t = i/N, from which grids, times, weightings and noise inputs take it; None: continuous.
    steps: int | None = None

    @abstractmethod
    def forward(self, t: Tensor) -> Kernel:
        """Kernel at t ∈ [0, 1] of any shape, elementwise."""

    def __call__(self, t: Tensor) -> Kernel:
        return self.forward(t)  # skips nn.Module's hook machinery: this is called in every inner loop

    def time(self, logsnr: Tensor) -> Tensor:
        """The t at which λ(t) = logsnr, clamped to [0, 1]; inverts `forward` by bisection in float64."""
        target = logsnr.double()
        low, high = torch.zeros_like(target), torch.ones_like(target)
        for _ in range(60):
            middle = (low + high) / 2
            early = self(middle).logsnr > target  # λ still too large: the answer is later
            low, high = torch.where(early, middle, low), torch.where(early, high, middle)
        return ((low + high) / 2).to(logsnr.dtype)

    def chain_steps(self, steps: int | None, owner: str, name: str = "steps", default: int | None = None) -> int:
        """Number of steps of the chain: the given one, or else the schedule's own.

        Args:
            steps: as given to the owner; None: not given.
            owner: class that needs it, for the message.
            name: its option, for the message.
            default: where neither is there; None: that is an error.

        Raises:
            ValueError: neither is there.
        """
        number = (default if self.steps is None else self.steps) if steps is None else steps
        if number is None:
            raise ValueError(
                f"{owner}: {name} is missing: {type(self).__name__} has no steps of its own. Fix: set {name}"
            )
        return number

    def prior_std(self, t: float = 1.0) -> float:
        """Standard deviation of the noise that sampling starts from at t: that of unit-variance data there, √(α² + σ²).

        Exactly 1 for variance-preserving schedules, σ_max (to 1e-4) for the exploding ones.
        """
        start = self(torch.tensor(t, dtype=torch.float64))
        return (start.alpha.square() + start.sigma.square()).sqrt().item()


def check(condition: bool, message: str) -> None:
    """Raise ValueError(message) unless the condition holds (NaN fails any comparison, so it is refused too)."""
    if not condition:
        raise ValueError(message)
