"""DPM-Solver++: the exact solution in λ, with x̂_0 expanded in λ around each step, from earlier or inner evaluations.

With l = ½λ = log(α/σ), h = l_s − l_t and x̂_0 as a function of l along the path, the reverse process of noise η has

    x_s = σ_s/σ_t e^{−η²h} x_t + α_s ∫_0^h k e^{−k(h−u)} x̂_0(l_t + u) du + σ_s √(1 − e^{−2η²h}) ε,     k = 1 + η²

and with x̂_0(l_t + u) = m + D₁ u/h + D₂ (u/h)² the integral is  φ₁ m + φ₂ D₁ + 2φ₃ D₂,  H = kh:

    φ₁ = −expm1(−H)     φ₂ = 1 − φ₁/H     φ₃ = ½ − φ₂/H

Reference: Lu et al., "DPM-Solver++", arXiv 2211.01095, Eq. 8–14 and Alg. 1–2 (η = 0); Sec. 5 (η = 1).
"""

import torch
from torch import Tensor

from ..tensors import combine
from .base import Estimate, Run, Sampler, within_reach
from .grids import Grid


class DPMpp(Sampler):
    """DPM-Solver++ multistep: one evaluation a step, D₁ and D₂ from the steps before.

    Order 2 has φ₁/2 in place of φ₂, as published.  In order 3 the published code halves the term of D₂, which leaves it
    at second order; here it is whole.  The first steps are of lower order, and long ones (`within_reach`).

    Args:
        grid: any.
        order: 1 (DDIM), 2 or 3.
        eta: η, 0 for the ODE, 1 for the reverse SDE ("SDE-DPM-Solver++").
    """

    def __init__(self, grid: Grid, order: int = 2, eta: float = 0.0) -> None:
        super().__init__(grid)
        if order not in (1, 2, 3):
            raise ValueError(f"order must be 1, 2 or 3, got {order}")
        if not 0 <= eta <= 1:
            raise ValueError(f"eta must be in [0, 1], got {eta}")
        if order == 3 and eta:
            raise ValueError(f"order 3 needs eta 0, got {eta}: second differences of noisy estimates are mostly noise")
        self.terms, self.eta = order, eta
        self.order = 1 if eta else order  # the estimates' differences know nothing of the noise between them

    def step(
        self, run: Run, x_t: Tensor, t: Tensor, s: Tensor, state: list[Estimate] | None
    ) -> tuple[Tensor, list[Estimate]]:
        at_t, at_s = run.kernel(t), run.kernel(s)
        half, h = at_t.logsnr / 2, (at_s.logsnr - at_t.logsnr) / 2
        kept = [Estimate(run.denoise(x_t, t).x_0, half), *(state or [])][: self.terms]
        past = within_reach(kept, at_s.logsnr / 2)
        phi_1, phi_2, phi_3 = phi((1 + self.eta**2) * h)
        weights = [phi_1]  # of the estimates, newest first
        if len(past) == 2:
            slope = phi_1 / 2 * h / (half - past[1].half)
            weights = [phi_1 + slope, -slope]
        elif len(past) == 3:
            # Newton's divided differences [01] and [012], read at l_t; the second is for 2φ₃.
            first, second, both = half - past[1].half, past[1].half - past[2].half, half - past[2].half
            bend = h * (phi_2 * first + 2 * phi_3 * h) / both
            slope = (phi_2 * h + bend) / first
            weights = [phi_1 + slope, -slope - bend / second, bend / second]
        shrink = torch.exp(-(self.eta**2) * h) if self.eta else torch.ones_like(h)
        terms = [(shrink * at_s.sigma / at_t.sigma, x_t)]
        terms += [(at_s.alpha * weight, estimate.value) for weight, estimate in zip(weights, past, strict=True)]
        if self.eta:
            terms.append((at_s.sigma * torch.sqrt(1 - shrink**2), run.noise(x_t)))
        return combine(*terms), kept


class DPMppSingle(Sampler):
    """DPM-Solver++ singlestep: `order` evaluations a step, at equally spaced times from t on.

    Published are inner times equally spaced in l: in the limit of short steps the same, but in a long first step from
    pure noise they are nearly all pure noise.  Where α = 0 the newest estimate alone counts.

    Args:
        grid: any.
        order: 2 or 3.
    """

    def __init__(self, grid: Grid, order: int = 2) -> None:
        super().__init__(grid)
        if order not in (2, 3):
            raise ValueError(f"order must be 2 or 3, got {order}; order 1 is DDIM")
        self.order = self.evaluations = order

    def step(self, run: Run, x_t: Tensor, t: Tensor, s: Tensor, state: None) -> tuple[Tensor, None]:
        at_t, start = run.kernel(t), run.denoise(x_t, t).x_0
        newest, reach = start, torch.ones_like(t)  # the last estimate, and how far in l from t it was made
        for i in range(1, self.order + 1):
            inner = t + (s - t) * (i / self.order) if i < self.order else s
            at = run.kernel(inner)
            length = (at.logsnr - at_t.logsnr) / 2
            phi_1, phi_2, _ = phi(length)
            # φ₁ start + φ₂ length · slope, of the line through both estimates; only `newest` where λ_t = −∞.
            # On the way φ₁/2 as in `DPMpp`: the order stays, and long steps overshoot less.
            share = length / reach * (phi_1 / 2 if i < self.order else phi_2) if length.isfinite() else phi_1
            terms = (at.sigma / at_t.sigma, x_t), (at.alpha * (phi_1 - share), start), (at.alpha * share, newest)
            x = combine(*terms)
            if i < self.order:
                newest, reach = run.denoise(x, inner).x_0, length
        return x, None


def phi(h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(φ₁, φ₂, φ₃) of H: (), positive, maybe infinite."""
    phi_1 = -torch.expm1(-h)
    if h.abs() < 1e-2:  # the differences below would cancel
        return phi_1, h / 2 - h**2 / 6 + h**3 / 24 - h**4 / 120, h / 6 - h**2 / 24 + h**3 / 120 - h**4 / 720
    phi_2 = 1 - phi_1 / h
    return phi_1, phi_2, 0.5 - phi_2 / h
