"""Beta schedules: DDPM's discrete chain, read as a schedule on the grid t = i/N.

    q(x_i | x_{i−1}) = N(√(1−β_i) x_{i−1}, β_i I)   ⇒   α(i/N) = √ᾱ_i,  ᾱ_i = Π_{j≤i} (1 − β_j),  α(0) = 1

log α is kept in float64 and interpolated linearly between grid points, so that continuous samplers, grids and
likelihood run on a DDPM as well; at the grid points the chain is exact, and β_i = σ²_{t|s} of `transitions.transition`.

Reference: Ho et al., "Denoising diffusion probabilistic models", arXiv 2006.11239.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import Kernel, Schedule, check


class BetaTable(Schedule):
    """The chain with an explicit list of β_1 … β_N; the other tables compute that list.

    Args:
        betas: β_i ∈ (0, 1).
    """

    steps: int

    def __init__(self, betas: Sequence[float]) -> None:
        super().__init__()
        table = torch.as_tensor(betas, dtype=torch.float64)
        check(table.ndim == 1 and len(table) > 0, "a beta schedule needs at least one step, got none")
        outside = table[~((table > 0) & (table < 1))].tolist()
        check(not outside, f"every beta must be in (0, 1), got {outside[:3]}")
        self._set_log_alpha(torch.cat([torch.zeros(1, dtype=torch.float64), 0.5 * torch.log1p(-table).cumsum(0)]))

    def _set_log_alpha(self, log_alpha: Tensor) -> None:
        self.steps = len(log_alpha) - 1
        # Neither a buffer (mixed precision and devices without float64 would round it) nor state (it is configuration).
        self._copies = {(log_alpha.device, log_alpha.dtype): log_alpha}
        self.log_alpha = log_alpha

    def _table(self, like: Tensor) -> Tensor:
        key = (like.device, like.dtype)
        if key not in self._copies:
            self._copies[key] = self.log_alpha.to(like.device, like.dtype)
        return self._copies[key]

    def forward(self, t: Tensor) -> Kernel:
        table, position = self._table(t), t * self.steps
        cell = position.detach().floor().clamp(0, self.steps - 1)
        left, right = table[cell.long()], table[cell.long() + 1]
        log_alpha = left + (position - cell) * (right - left)
        d_log_alpha = (right - left) * self.steps
        alpha = torch.exp(log_alpha)
        sigma = torch.sqrt(-torch.expm1(2 * log_alpha))
        return Kernel(alpha, sigma, alpha * d_log_alpha, -alpha.square() * d_log_alpha / sigma)

    def time(self, logsnr: Tensor) -> Tensor:
        log_alpha = -0.5 * F.softplus(-logsnr)
        table = self._table(logsnr)
        cell = (torch.searchsorted(-table, -log_alpha, right=True) - 1).clamp(0, self.steps - 1)
        left, right = table[cell], table[cell + 1]
        return ((cell + (log_alpha - left) / (right - left)) / self.steps).clamp(0, 1)


class LinearBetas(BetaTable):
    """β linear in i (DDPM).

    Args:
        steps: N.
        beta_min: β_1.
        beta_max: β_N.  At N other than 1000 scale both by 1000/N, or the chain ends before its data are forgotten.
    """

    def __init__(self, steps: int = 1000, beta_min: float = 1e-4, beta_max: float = 0.02) -> None:
        super().__init__(_between(steps, beta_min, beta_max).tolist())


class QuadraticBetas(BetaTable):
    """√β linear in i: "quadratic" in DDIM (arXiv 2010.02502), "scaled linear" in latent diffusion (arXiv 2112.10752).

    Args:
        steps: N.
        beta_min: β_1.
        beta_max: β_N.
    """

    def __init__(self, steps: int = 1000, beta_min: float = 1e-4, beta_max: float = 0.02) -> None:
        _between(steps, beta_min, beta_max)
        super().__init__(_between(steps, beta_min**0.5, beta_max**0.5).square().tolist())


class SigmoidBetas(BetaTable):
    """β a logistic curve in i over [−6, 6].

    Args:
        steps: N.
        beta_min: lower asymptote.
        beta_max: upper asymptote.
    """

    def __init__(self, steps: int = 1000, beta_min: float = 1e-4, beta_max: float = 0.02) -> None:
        _between(steps, beta_min, beta_max)
        curve = torch.sigmoid(torch.linspace(-6, 6, steps, dtype=torch.float64))
        super().__init__((beta_min + (beta_max - beta_min) * curve).tolist())


class CosineBetas(BetaTable):
    """ᾱ_i = f(i/N)/f(0),  f(u) = cos²(½π (u + s)/(1 + s)),  β capped.

    Reference: Nichol & Dhariwal, arXiv 2102.09672, Eq. 17.

    Args:
        steps: N.
        offset: s, which keeps β_1 from vanishing.
        max_beta: the cap, reached at the end only.
    """

    def __init__(self, steps: int = 1000, offset: float = 0.008, max_beta: float = 0.999) -> None:
        _check_steps(steps)
        check(offset >= 0, f"offset must not be negative, got {offset}")
        check(0 < max_beta < 1, f"max_beta must be in (0, 1), got {max_beta}")
        u = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
        alpha_bar = torch.cos(0.5 * math.pi * (u + offset) / (1 + offset)).square()
        super().__init__((1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=max_beta).tolist())


class SigmoidAlphaBars(BetaTable):
    """ᾱ_i a logistic curve in i, rescaled to run from 1 to 0, β capped.

    Reference: Jabri et al., "Scalable adaptive computation for iterative generation", arXiv 2212.11972, Alg. 4.

    Args:
        steps: N.
        start, end: range of the logistic's argument before division by the temperature.
        temperature: τ; larger is closer to linear.
        max_beta: the cap, reached at the end only.
    """

    def __init__(
        self, steps: int = 1000, start: float = -3, end: float = 3, temperature: float = 1.0, max_beta: float = 0.999
    ) -> None:
        _check_steps(steps)
        check(start < end, f"need start < end, got {start} and {end}")
        check(temperature > 0, f"temperature must be positive, got {temperature}")
        check(0 < max_beta < 1, f"max_beta must be in (0, 1), got {max_beta}")
        curve = torch.sigmoid(torch.linspace(start, end, steps + 1, dtype=torch.float64) / temperature)
        alpha_bar = (curve[-1] - curve) / (curve[-1] - curve[0])
        super().__init__((1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=max_beta).tolist())


class ZeroTerminalSNR(BetaTable):
    """Another table with √ᾱ shifted and scaled so that √ᾱ_1 stays and √ᾱ_N vanishes: nothing of the data is left.

    √ᾱ_N is 2⁻²⁰ (SNR 1e-12) instead of 0, which keeps log α finite.  Epsilon divides by it: use V, Data or Velocity.

    Reference: Lin et al., "Common diffusion noise schedules and sample steps are flawed", arXiv 2305.08891, Alg. 1.

    Args:
        table: the table to rescale, of at least two steps.
    """

    def __init__(self, table: BetaTable) -> None:
        Schedule.__init__(self)
        check(table.steps > 1, f"ZeroTerminalSNR needs a table of at least 2 steps, got {table.steps}")
        alpha = torch.exp(table.log_alpha[1:])
        alpha = (alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])
        alpha[-1] = 2.0**-20
        self._set_log_alpha(torch.cat([torch.zeros(1, dtype=torch.float64), torch.log(alpha)]))


def _check_steps(steps: int) -> None:
    check(steps >= 1, f"a beta schedule needs at least one step, got steps={steps}")


def _between(steps: int, beta_min: float, beta_max: float) -> Tensor:
    _check_steps(steps)
    check(0 < beta_min <= beta_max < 1, f"need 0 < beta_min <= beta_max < 1, got {beta_min} and {beta_max}")
    return torch.linspace(beta_min, beta_max, steps, dtype=torch.float64)
