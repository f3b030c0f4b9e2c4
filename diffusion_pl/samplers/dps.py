"""Diffusion posterior sampling: ancestral steps, each followed by a step towards what is known of x_0."""

from collections.abc import Callable

import torch
from torch import Tensor

from ..tensors import check_finite, per_sample
from .ancestral import Ancestral
from .base import Run
from .grids import Grid


class DPS(Ancestral):
    """x_s ← x_s − ζ ∇_{x_t} ‖r‖² / ‖r‖,  r = y − A(x̂_0(x_t)),  after each ancestral step, for any differentiable A.

    The step size is not derived from a posterior: samples agree with y but have not its exact distribution, which
    `MomentMatched` has for Gaussian data.  The denoiser is differentiated.

    Reference: Chung et al., arXiv 2209.14687, Alg. 1; the step size is that of App. D.

    Args:
        grid: of many steps, such as UniformGrid(1000).
        operator: A, a function or a module: (B, *) -> (B, …).
        y: what is known, for each sample of the batch, or with a batch axis of 1.
        scale: ζ, at least 0.
        variance: of the ancestral steps, see Ancestral.
    """

    def __init__(
        self,
        grid: Grid,
        operator: Callable[[Tensor], Tensor],
        y: Tensor,
        scale: float = 1.0,
        variance: float | None = 0.0,
    ) -> None:
        super().__init__(grid, variance)
        check_finite(scale=scale)
        if scale < 0:
            raise ValueError(f"scale must be at least 0, got {scale}")
        self.operator, self.y, self.scale = operator, y, scale

    def step(self, run: Run, x_t: Tensor, t: Tensor, s: Tensor, state: None) -> tuple[Tensor, None]:
        with torch.enable_grad():
            x = x_t.detach().requires_grad_()
            x_s, state = super().step(run, x, t, s, state)
            assert run.estimate is not None
            square = (self.y - self.operator(run.estimate)).square().flatten(1).sum(1)
            gradient = torch.autograd.grad(square.sum(), x)[0]
        run.estimate = run.estimate.detach()
        norm = per_sample(square.detach().sqrt().clamp(min=torch.finfo(x.dtype).tiny), x)
        return x_s.detach() - self.scale * gradient / norm, state
