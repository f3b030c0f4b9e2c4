"""The sampling loop.

A sampler integrates the reverse process along a grid t_1 > … > t_N and ends with the denoised x̂_0 at t_N:

    x_{t_1} → x_{t_2} → … → x_{t_N} → x̂_0(x_{t_N}, t_N)

t is a float64 scalar on the CPU throughout, so kernel arithmetic is exact and never waits for an accelerator.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..denoisers import Denoiser, Prediction
from ..schedules import Kernel, Schedule
from ..tensors import Recorded
from .grids import Grid

#: Standard normal noise shaped like its argument; `tensors.SampleNoise` makes it independent of the batch.
Noise = Callable[[Tensor], Tensor]
Pairs = Iterable[tuple[Tensor, Tensor]]


class Path(NamedTuple):
    """The way from noise to data (t = 0): t: (N + 1,); x and the estimates x̂_0 made there: (N + 1, B, *) each."""

    t: Tensor
    x: Tensor
    x_0: Tensor


class Samples(NamedTuple):
    """x_0: (B, *); nfe: evaluations of the denoiser that each sample took; path: None unless requested."""

    x_0: Tensor
    nfe: int
    path: Path | None


class Estimate(NamedTuple):
    """What multistep samplers keep of an evaluation: x̂_0 or ε̂, (B, *), and half = ½λ = log(α/σ) there, ()."""

    value: Tensor
    half: Tensor


def within_reach(past: list[Estimate], end: Tensor) -> list[Estimate]:
    """The estimates, newest first, that a polynomial may be extrapolated from to `end`: (), in half.

    Over a step longer than 1.2 (α/σ grows more than threefold) a parabola overshoots, and a line too if the step is
    longer than twice the way back to the second estimate.  Shorter steps keep all: the order of convergence stays.
    """
    length = (end - past[0].half).abs()
    if length <= 1.2:
        return past
    return past[:2] if length <= 2 * (past[0].half - past[:2][-1].half).abs() else past[:1]


class Run:
    """One sampling run: the denoiser bound to its conditions, the noise, and the count of evaluations."""

    def __init__(self, denoiser: Denoiser, noise: Noise, cond: dict[str, Tensor], times: Tensor) -> None:
        self._denoiser, self._cond = denoiser, cond
        self.noise, self.points, self.nfe = noise, len(times), 0  # points: N of the grid
        self.estimate: Tensor | None = None  # the first x̂_0 of the present step
        self._latest: Tensor | None = None  # x̂_0 of the last evaluation, for self-conditioning
        # All at once: a schedule costs as much for one time as for a thousand.
        kernels = zip(*denoiser.schedule(times), strict=True)
        self._kernels = {t: Kernel(*kernel) for t, kernel in zip(times.tolist(), kernels, strict=True)}

    def denoise(self, x_t: Tensor, t: Tensor, r: Tensor | None = None) -> Prediction:
        """The denoiser's prediction at x_t: (B, *), t: () or (B, 1, …, 1).

        Args:
            x_t, t: see there.
            r: where the sampler goes next by x_r = α_r x̂_0 + σ_r ε̂, at most t, shaped like t.  A flow map takes it; to
                other denoisers it does not matter.  None: the sampler uses the prediction otherwise.
        """
        self.nfe += 1
        extra = {}
        if self._denoiser.self_conditioned and self._latest is not None:
            extra["x_0_hat"] = self._latest
        if r is not None and self._denoiser.flow_map:
            extra["r"] = r
        prediction: Prediction = self._denoiser(x_t, t, **extra, **self._cond)
        self._latest = prediction.x_0
        if self.estimate is None:
            self.estimate = prediction.x_0
        return prediction

    @property
    def flow_map(self) -> bool:
        """Whether the denoiser takes the target time r."""
        return self._denoiser.flow_map

    @property
    def schedule(self) -> Schedule:
        """The noise schedule."""
        return self._denoiser.schedule

    def kernel(self, t: Tensor) -> Kernel:
        """The schedule's kernel at t: ()."""
        return self._kernels.get(t.item()) or self._denoiser.schedule(t)


class Sampler(Recorded, ABC):
    """Subclasses define `order` and `step`.

    Args:
        grid: where the samples stop on their way.
    """

    #: Order of convergence in the step size: of the solution for deterministic samplers, of mean and covariance for
    #: others.  Multistep samplers have it after a start in short steps.  0: the error does not depend on the grid.
    order: int
    #: Evaluations of the denoiser in one step from one grid time to the next; one more follows the last.
    evaluations: int = 1
    #: Time of the samples: 0 is the denoised x̂_0; at a later time one more step of the sampler leads there.
    end: float = 0.0
    #: Whether it hands the time it goes to to a flow map, whose jumps then have any length; others use a flow map as an
    #: ordinary denoiser.
    jumps: bool = False
    #: Whether all of these jumps go to the data, r = 0, as consistency models need.
    to_data: bool = False

    def __init__(self, grid: Grid) -> None:
        self.grid = grid

    @abstractmethod
    def step(self, run: Run, x_t: Tensor, t: Tensor, s: Tensor, state: Any) -> tuple[Tensor, Any]:
        """One transition.

        Args:
            run: gives denoise, kernel and noise.
            x_t: (B, *).
            t, s: (), s < t.
            state: what the last step returned, None at the first.

        Returns:
            x_s: (B, *), and the state for the next step.
        """

    def last(self, run: Run, x_t: Tensor, t: Tensor) -> Tensor:
        """x̂_0: (B, *) at the grid's last time t: ()."""
        return run.denoise(x_t, t).x_0

    def prior(self, schedule: Schedule, eps: Tensor) -> Tensor:
        """x at the grid's first time from standard normal eps: (B, *)."""
        return eps * schedule.prior_std(float(self.grid(schedule)[0]))

    @torch.no_grad()
    def __call__(
        self,
        denoiser: Denoiser,
        x_T: Tensor,
        noise: Noise = torch.randn_like,
        path: bool = False,
        progress: Callable[[Sequence[tuple[Tensor, Tensor]]], Pairs] = iter,
        **cond: Tensor,
    ) -> Samples:
        """Samples from x_T.

        Args:
            denoiser: any.
            x_T: (B, *) at the grid's first time, see `prior`.
            noise: source of the noise of stochastic samplers.
            path: keep x and x̂_0 at every grid time.
            progress: wraps the sequence of steps, for a progress bar.
            cond: handed to the denoiser.
        """
        times = self.grid(denoiser.schedule)
        if self.end > times[-1]:
            raise ValueError(f"end must not be later than the grid's last time {times[-1]:.4g}, got {self.end}")
        run, x_t, state = Run(denoiser, noise, cond, times), x_T, None
        kept: list[tuple[Tensor, Tensor]] = []
        for t, s in progress(list(pairwise(times.unbind()))):
            run.estimate = None
            x_s, state = self.step(run, x_t, t, s, state)
            if path:
                assert run.estimate is not None
                kept.append((x_t, run.estimate))
            x_t = x_s
        run.estimate = None
        if self.end > 0:
            x_0, _ = self.step(run, x_t, times[-1], times.new_tensor(self.end), state)
        else:
            x_0 = self.last(run, x_t, times[-1])
        if not path:
            return Samples(x_0, run.nfe, None)
        assert run.estimate is not None
        x, estimates = zip(*kept, (x_t, run.estimate), (x_0, run.estimate), strict=True)
        t = torch.cat([times, times.new_full((1,), self.end)])
        return Samples(x_0, run.nfe, Path(t, torch.stack(x), torch.stack(estimates)))

    @torch.no_grad()
    def encode(self, denoiser: Denoiser, x_0: Tensor, **cond: Tensor) -> Tensor:
        """The x_T: (B, *) whose sample is x_0: (B, *), by the same sampler taken from data to noise.

        The error is of the sampler's order in the step size, since the backward steps are not the exact inverse.

        Raises:
            ValueError: the sampler draws noise.
        """

        def refuse(x: Tensor) -> Tensor:
            raise ValueError(f"{type(self).__name__} draws noise: encoding needs a deterministic sampler")

        times = self.grid(denoiser.schedule).flip(0)
        if 0 < self.end < times[0]:
            times = torch.cat([times.new_full((1,), self.end), times])
        run, state = Run(denoiser, refuse, cond, times), None
        x = x_0
        if self.end == 0:
            kernel = run.kernel(times[0])
            for _ in range(3):  # until x̂_0(x) is x_0, nearly
                x = kernel.alpha * x_0 + kernel.sigma * run.denoise(x, times[0]).eps
        for s, t in pairwise(times.unbind()):
            x, state = self.step(run, x, s, t, state)
        return x
