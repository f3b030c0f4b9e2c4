"""UniPC: a multistep predictor, and a corrector that costs nothing, for it reuses the next step's evaluation."""

from typing import NamedTuple

import torch
from torch import Tensor

from ..tensors import combine
from .base import Estimate, Run, Sampler, within_reach
from .grids import Grid


class Last(NamedTuple):
    """The corrected x at the last time, its σ, and the estimates x̂_0, newest first."""

    x: Tensor
    sigma: Tensor
    past: list[Estimate]


class UniPC(Sampler):
    """x_s = σ_s/σ_t x_t + α_s φ₁ m + α_s B(h) Σ_k a_k D_k,   D_k = (m_k − m)/r_k,   r_k = (l_k − l_t)/h

    with l = log(α/σ), h = l_s − l_t, φ₁ = 1 − e^{−h}; a solves Σ_k r_k^{n−1} a_k = n! φ_{n+1}(h)/B(h).  The predictor
    takes the estimates m_k before t; the corrector also the one at s, made at the predicted x_s, and so has one order
    more.  The first steps are of lower order, and long ones (`within_reach`).

    Reference: Zhao et al., "UniPC", arXiv 2302.04867, Sec. 3.1–3.3, data prediction.

    Args:
        grid: any.
        order: of the predictor, 1, 2 or 3.
        variant: B(h) = h is 1 (at most 2, beyond which a single D_k would weigh more than 1), e^h − 1 is 2 (of the
            negative h, data prediction).
    """

    def __init__(self, grid: Grid, order: int = 2, variant: int = 2) -> None:
        super().__init__(grid)
        if order not in (1, 2, 3):
            raise ValueError(f"order must be 1, 2 or 3, got {order}")
        if variant not in (1, 2):
            raise ValueError(f"variant must be 1 or 2, got {variant}")
        self.terms, self.variant = order, variant
        self.order = order

    def step(self, run: Run, x_t: Tensor, t: Tensor, s: Tensor, state: Last | None) -> tuple[Tensor, Last]:
        at_t, at_s = run.kernel(t), run.kernel(s)
        new = Estimate(run.denoise(x_t, t).x_0, at_t.logsnr / 2)
        past: list[Estimate] = []
        if state is not None:
            past = state.past
            first, *others = within_reach(past, new.half)
            x_t = self._solve(state.x, state.sigma, at_t.alpha, at_t.sigma, [first, new, *others], new.half)
        # Of an estimate where α = 0, infinitely far away in l, only the newest is of use.
        past = [new, *(p for p in past if p.half.isfinite())][: self.terms]
        end = at_s.logsnr / 2
        x_s = self._solve(x_t, at_t.sigma, at_s.alpha, at_s.sigma, within_reach(past, end), end)
        return x_s, Last(x_t, at_t.sigma, past)

    def _solve(
        self, x: Tensor, sigma: Tensor, alpha_s: Tensor, sigma_s: Tensor, nodes: list[Estimate], end: Tensor
    ) -> Tensor:
        """x at `end` from x at nodes[0]."""
        first, *others = nodes
        h = end - first.half
        terms = [(sigma_s / sigma, x), (-alpha_s * torch.expm1(-h), first.value)]
        if not others or not h.isfinite():
            return combine(*terms)
        r = torch.stack([(node.half - first.half) / h for node in others])
        scale = h.clamp(max=2) if self.variant == 1 else -torch.expm1(-h)
        a = coefficients(r, h, scale)
        weights = alpha_s * scale * a / r
        terms[1] = (terms[1][0] - weights.sum(), first.value)
        return combine(*terms, *((weight, node.value) for weight, node in zip(weights, others, strict=True)))


def coefficients(r: Tensor, h: Tensor, scale: Tensor) -> Tensor:
    """a: (K,) for r: (K,), h and B(h): ()."""
    if len(r) == 1:  # as published, for both the predictor of order 2 and the corrector of order 1
        return torch.full_like(r, 0.5)
    # ∫_0^1 h e^{−h(1−u)} uⁿ du = n! φ_{n+1}(h) in the notation of the paper; Horner's recursion from above is stable.
    moments = [_moment(h, n) for n in range(1, len(r) + 1)]
    powers = torch.stack([r**n for n in range(len(r))])
    a: Tensor = torch.linalg.solve(powers, torch.stack(moments) / scale)
    return a


def _moment(h: Tensor, n: int) -> Tensor:
    """∫_0^1 h e^{−h(1−u)} uⁿ du."""
    if h.abs() < 0.5:  # h n! Σ_j (−h)^j/(n+1+j)!
        total, term = torch.zeros_like(h), h / (n + 1)
        for j in range(20):
            total = total + term
            term = -term * h / (n + 2 + j)
        return total
    value = -torch.expm1(-h)
    for k in range(1, n + 1):
        value = 1 - k / h * value
    return value
