"""DEIS: the exact solution in ρ = σ/α, with ε̂ a polynomial in log ρ through the last evaluations."""

from functools import cache

import torch
from torch import Tensor

from ..tensors import combine
from .base import Estimate, Run, Sampler, within_reach
from .grids import Grid


class DEIS(Sampler):
    """x_s/α_s = x_t/α_t + ∫ ε̂ dρ from ρ_t to ρ_s: exponential Adams–Bashforth.

    The first steps are of lower order, and long ones (`within_reach`).

    Reference: Zhang & Chen, "Fast sampling of diffusion models with exponential integrator", arXiv 2204.13902, Eq. 14;
    the polynomial in log ρ, whose integral needs no more than a quadrature of smooth functions.

    Args:
        grid: any.
        order: 1 (DDIM), 2 or 3, number of evaluations that the polynomial goes through.
    """

    def __init__(self, grid: Grid, order: int = 3) -> None:
        super().__init__(grid)
        if order not in (1, 2, 3):
            raise ValueError(f"order must be 1, 2 or 3, got {order}")
        self.order = order

    def step(
        self, run: Run, x_t: Tensor, t: Tensor, s: Tensor, state: list[Estimate] | None
    ) -> tuple[Tensor, list[Estimate]]:
        at_t, at_s = run.kernel(t), run.kernel(s)
        x_0, eps, _ = run.denoise(x_t, t)
        past = [Estimate(eps, at_t.logsnr / 2), *(state or [])][: self.order]
        if not past[-1].half.isfinite():  # α = 0 there
            past.pop()
        if not past:
            return combine((at_s.alpha, x_0), (at_s.sigma, eps)), past
        used = within_reach(past, at_s.logsnr / 2)
        nodes = torch.stack([p.half for p in used])
        weights = adams(nodes, nodes[0], at_s.logsnr / 2)
        values = [estimate.value for estimate in used]
        return combine((at_s.alpha / at_t.alpha, x_t), *zip(at_s.alpha * weights, values, strict=True)), past


def adams(nodes: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """∫ −e^{−l} L_k(l) dl from start to end, L_k Lagrange's polynomial of node k: (K,) for nodes (K,)."""
    points, weights = _legendre()
    half = (end - start) / 2
    l = start + half * (points + 1)  # noqa: E741
    basis = [
        torch.stack([(l - other) / (node - other) for j, other in enumerate(nodes) if j != k] or [torch.ones_like(l)])
        for k, node in enumerate(nodes)
    ]
    return torch.stack([-half * (weights * torch.exp(-l) * b.prod(0)).sum() for b in basis])


@cache
def _legendre() -> tuple[Tensor, Tensor]:
    """Nodes and weights of Gauss and Legendre on [−1, 1], by Golub and Welsch's eigenvalues."""
    k = torch.arange(1, 24, dtype=torch.float64)
    off_diagonal = torch.diag(k / torch.sqrt(4 * k**2 - 1), 1)
    points, vectors = torch.linalg.eigh(off_diagonal + off_diagonal.T)
    return points, 2 * vectors[0].square()
