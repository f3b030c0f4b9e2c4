"""The probability-flow ODE with an adaptive step size per sample."""

from torch import Tensor

from ..ode import TABLEAUS, State, check_tolerance, solve
from ..tensors import per_sample
from .base import Run, Sampler
from .grids import Grid


class AdaptiveODE(Sampler):
    """An embedded Runge–Kutta pair on dx/dt = α' x̂_0 + σ' ε̂ from one grid time to the next.

    Every sample has its own steps, so it does not depend on what else is in its batch; the evaluations that are counted
    are those of the slowest.

    Reference: Song et al., arXiv 2011.13456, App. D.4 (there one step size for the batch).

    Args:
        grid: its first and last time are what counts; between two of its times a sample makes at least one step.
        rtol, atol: tolerated error of a step, root mean square over the sample, relative and absolute.
        pair: 5 (Dormand–Prince) or 3 (Bogacki–Shampine), the order of the pair.
        max_steps: between two grid times; beyond it the tolerance is out of reach.
    """

    order = 0
    evaluations = 7

    def __init__(
        self, grid: Grid, rtol: float = 1e-5, atol: float = 1e-5, pair: int = 5, max_steps: int = 1000
    ) -> None:
        super().__init__(grid)
        check_tolerance(rtol, atol, pair)
        if max_steps < 1:
            raise ValueError(f"max_steps must be at least 1, got {max_steps}")
        self.rtol, self.atol, self.pair, self.max_steps = rtol, atol, pair, max_steps

    def step(self, run: Run, x_t: Tensor, t: Tensor, s: Tensor, state: None) -> tuple[Tensor, None]:
        def field(y: State, at: Tensor) -> State:
            (x,) = y
            at = per_sample(at, x).to(x.dtype)
            kernel = run.schedule(at)
            x_0, eps, _ = run.denoise(x, at)
            return (kernel.d_alpha * x_0 + kernel.d_sigma * eps,)

        tableau = TABLEAUS[self.pair]
        solution = solve(field, (x_t,), t.item(), s.item(), self.rtol, self.atol, tableau, self.max_steps)
        return solution.y[0], None
