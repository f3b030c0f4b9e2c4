"""The probability-flow ODE with a step size that each sample chooses for itself."""

import torch
from torch import Tensor

from ..grids import Grid
from ..tensors import per_sample
from .base import Run, Sampler

# Dormand and Prince (1980), RK5(4)7M: c, rows of a, and the difference of the weights of orders 5 and 4.
_C = (0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1, 1)
_A = (
    (),
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
_ERROR = (71 / 57600, 0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)


class AdaptiveODE(Sampler):
    """Dormand–Prince 5(4) on dx/dt = α' x̂_0 + σ' ε̂ from one grid time to the next.

    Every sample has its own steps, so it does not depend on what else is in its batch; the evaluations that are counted
    are those of the slowest.

    Reference: Song et al., arXiv 2011.13456, App. D.4 (there one step size for the batch).

    Args:
        grid: its first and last time are what counts; between two of its times a sample makes at least one step.
        rtol, atol: tolerated error of a step, root mean square over the sample, relative and absolute.
        max_steps: between two grid times; beyond it the tolerance is out of reach.
    """

    order = 0
    evaluations = 7

    def __init__(self, grid: Grid, rtol: float = 1e-5, atol: float = 1e-5, max_steps: int = 1000) -> None:
        super().__init__(grid)
        if not (rtol > 0 and atol > 0):
            raise ValueError(f"need rtol > 0 and atol > 0, got {rtol} and {atol}")
        if max_steps < 1:
            raise ValueError(f"max_steps must be at least 1, got {max_steps}")
        self.rtol, self.atol, self.max_steps = rtol, atol, max_steps

    def step(self, run: Run, x_t: Tensor, t: Tensor, s: Tensor, state: None) -> tuple[Tensor, None]:
        if s > t:
            raise ValueError("AdaptiveODE steps from noise to data only: encode with Heun or DPMpp")
        now = torch.full((len(x_t),), t.item(), dtype=torch.float64, device=x_t.device)
        size = (now - s) / 10
        x, end = x_t, s.item()

        def field(x: Tensor, at: Tensor) -> Tensor:
            at = per_sample(at, x).to(x.dtype)
            kernel = run.schedule(at)
            x_0, eps, _ = run.denoise(x, at)
            return kernel.d_alpha * x_0 + kernel.d_sigma * eps

        for _ in range(self.max_steps):
            size = torch.minimum(size, now - end)  # 0 for those that have arrived
            h = per_sample(size, x).to(x.dtype)
            slopes: list[Tensor] = []
            moved = x
            for c, row in zip(_C, _A, strict=True):
                moved = x - h * sum((a * k for a, k in zip(row, slopes, strict=True)), torch.zeros_like(x))
                slopes.append(field(moved, now - c * size))
            error = h * sum((e * k for e, k in zip(_ERROR, slopes, strict=True)), torch.zeros_like(x))
            scale = self.atol + self.rtol * torch.maximum(x.abs(), moved.abs())
            norm = (error / scale).double().flatten(1).square().mean(1).sqrt()
            good = norm <= 1
            x = torch.where(per_sample(good, x), moved, x)
            now = torch.where(good, now - size, now)
            if not bool((now > end).any()):
                return x, None
            grown = size * (0.9 * norm.clamp(min=1e-10) ** -0.2).clamp(0.2, 5)
            size = torch.where(now > end, grown, torch.zeros_like(size))
        raise ValueError(f"AdaptiveODE: {self.max_steps} steps do not reach t={end}; loosen rtol and atol")
