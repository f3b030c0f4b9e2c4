"""Sampling grids: the N times t_1 > … > t_N ≥ 0 that a sampler visits.

N points are N − 1 transitions and one last denoising at t_N.  On DDPM's grid i/N that is its last step (posterior
variance 0), on EDM's grid its last Euler step (to σ = 0): no step is special, and σ > 0 at every point.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from ..schedules import Schedule
from ..tensors import Recorded

MOST_STEPS = 1_000_000


class Grid(Recorded, ABC):
    """Subclasses define `times`."""

    @abstractmethod
    def times(self, schedule: Schedule) -> Tensor:
        """(N,) decreasing times in float64 on the CPU."""

    def with_steps(self, steps: int) -> "Grid":
        """The same range with another number of points.

        Raises:
            ValueError: a grid cannot have so many, or its points are given one by one.
        """
        raise ValueError(f"{type(self).__name__} has a fixed number of points: choose another grid to set steps")

    def __call__(self, schedule: Schedule) -> Tensor:
        t = self.times(schedule)
        if not (bool((t[1:] < t[:-1]).all()) and t[-1] >= 0 and t[0] <= 1):
            raise ValueError(f"{type(self).__name__}: times must fall strictly within [0, 1], got {t.tolist()}")
        if t[-1] == 0 and not schedule(t[-1]).sigma > 0:  # EDM's schedule has σ(0) = σ_min, most have none
            raise ValueError(f"{type(self).__name__}: σ must be positive at the last time, got t=0 with σ=0")
        return t


class UniformGrid(Grid):
    """N times, equally spaced: i/N for i = N … 1, or from t_max down to t_min where these are given.

    Args:
        steps: N, the number of network evaluations of a first-order sampler.
        t_max: first time.
        t_min: last time; 0 for schedules with σ(0) > 0; None: t_max/N, also with another number of points.
    """

    def __init__(self, steps: int, t_max: float = 1.0, t_min: float | None = None) -> None:
        _check_steps(steps)
        _check_range(t_max, t_min, zero=True)
        self.steps, self.t_max, self.t_min = steps, t_max, t_max / steps if t_min is None else t_min
        self._open = t_min is None

    def with_steps(self, steps: int) -> "UniformGrid":
        return UniformGrid(steps, self.t_max, None if self._open or steps == 1 else self.t_min)

    def times(self, schedule: Schedule) -> Tensor:
        return torch.linspace(self.t_max, self.t_min, self.steps, dtype=torch.float64)


def few_steps(grid: Grid, schedule: Schedule, steps: int, evaluations: int) -> UniformGrid:
    """The grid that suits any schedule and sampler when steps are few.

    Every evaluation, the last denoising included, has an equal share of t: t_n = t_1/(1 + (n − 1) evaluations), that is
    i/n for one evaluation a step ("trailing").  benchmarks/RESULTS.md compares it with equal steps in λ and in σ^{1/7}.

    Args:
        grid: its first time is kept, but where λ = −∞, with which multistep samplers can do little: there 0.999 of it.
        schedule: of the denoiser.
        steps: n, number of grid points.
        evaluations: of the sampler in one step.
    """
    first = grid(schedule)[0]
    start = float(first if schedule(first).logsnr.isfinite() else 0.999 * first)
    return UniformGrid(steps, start, start / (1 + (steps - 1) * evaluations) if steps > 1 else None)


def jump_grid(grid: Grid, schedule: Schedule, steps: int) -> UniformGrid:
    """`steps` jumps of a flow map, each over an equal share of t, from the first time of another grid.

    An exact flow map needs no special times, a learned one adds an error in each jump.  The first time is kept
    even where λ = −∞: the prior is exact there, and a jump needs no λ.
    """
    return UniformGrid(steps, float(grid(schedule)[0]))


def same_ends(grid: Grid, schedule: Schedule, steps: int) -> UniformGrid:
    """`steps` equally spaced times between the first and the last of another grid; a grid of one time, such as that of
    a flow map, has no other end, and 0.001 of it is taken."""
    first, last = grid(schedule)[[0, -1]].tolist()
    return UniformGrid(steps, first, (last if last < first else first / 1000) if steps > 1 else None)


class LogSNRGrid(Grid):
    """N times equally spaced in λ.

    Reference: Lu et al., "DPM-Solver", arXiv 2206.00927, Sec. 3.4.

    Args:
        steps: N.
        t_max: first time.  Schedules with α(1) = 0 need t_max < 1, since λ(1) = −∞.
        t_min: last time.
    """

    def __init__(self, steps: int, t_max: float = 1.0, t_min: float = 1e-3) -> None:
        _check_steps(steps)
        _check_range(t_max, t_min)
        self.steps, self.t_max, self.t_min = steps, t_max, t_min

    def with_steps(self, steps: int) -> "LogSNRGrid":
        return LogSNRGrid(steps, self.t_max, self.t_min)

    def times(self, schedule: Schedule) -> Tensor:
        start, end = schedule(torch.tensor([self.t_max, self.t_min], dtype=torch.float64)).logsnr.tolist()
        if not start > -float("inf"):
            raise ValueError(f"LogSNRGrid: the log-SNR at t_max={self.t_max} is -inf; choose t_max < 1")
        t = schedule.time(torch.linspace(start, end, self.steps, dtype=torch.float64))
        t[0] = self.t_max  # exact ends
        if self.steps > 1:
            t[-1] = self.t_min
        return t


class KarrasGrid(Grid):
    """N times at which (σ/α)^{1/ρ} is equally spaced from sigma_max to sigma_min.

    Reference: Karras et al., arXiv 2206.00364, Eq. 5.

    Args:
        steps: N.
        sigma_min: last σ/α.
        sigma_max: first σ/α.
        rho: how much the steps crowd at low noise.
    """

    def __init__(self, steps: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> None:
        _check_steps(steps)
        if not 0 < sigma_min < sigma_max < math.inf:
            raise ValueError(f"need 0 < sigma_min < sigma_max, got sigma_min={sigma_min}, sigma_max={sigma_max}")
        if not 0.1 <= rho <= 100:  # beyond, the powers overflow
            raise ValueError(f"rho must be in [0.1, 100], got {rho}")
        self.steps, self.sigma_min, self.sigma_max, self.rho = steps, sigma_min, sigma_max, rho

    def with_steps(self, steps: int) -> "KarrasGrid":
        return KarrasGrid(steps, self.sigma_min, self.sigma_max, self.rho)

    def times(self, schedule: Schedule) -> Tensor:
        ends = self.sigma_max ** (1 / self.rho), self.sigma_min ** (1 / self.rho)
        root = torch.linspace(*ends, self.steps, dtype=torch.float64)
        return schedule.time(-2 * self.rho * torch.log(root))


class RespacedGrid(Grid):
    """A subset of a table's N points, both ends kept: i = 1 + round((N − 1) u^power) at equally spaced u.

    Reference: Nichol & Dhariwal, arXiv 2102.09672, Sec. 4 (power 1); Song et al., arXiv 2010.02502, App. D.2 (power 2).

    Args:
        steps: points kept.
        power: 1 spaces them evenly, 2 quadratically (more at low noise).
        length: N, steps of the table; None: the schedule's.
    """

    def __init__(self, steps: int, *, power: float = 1.0, length: int | None = None) -> None:
        _check_subset(length, steps)
        if not 1 <= power < math.inf:
            raise ValueError(f"power must be at least 1, got {power}")
        self.steps, self.power, self.length = steps, power, length

    def with_steps(self, steps: int) -> "RespacedGrid":
        return RespacedGrid(steps, power=self.power, length=self.length)

    def times(self, schedule: Schedule) -> Tensor:
        length = _table_length(self, self.length, self.steps, schedule)
        u = torch.linspace(1, 0, self.steps, dtype=torch.float64)
        index = 1 + torch.round((length - 1) * u**self.power)
        for k in reversed(range(self.steps - 1)):  # rounding may merge the low end: push the earlier points up
            index[k] = torch.maximum(index[k], index[k + 1] + 1)
        return index / length


class TrailingGrid(Grid):
    """A subset of a table's N points: i = round(N k/n), k = n … 1.  Ends at N, as zero-terminal-SNR models need.

    Reference: Lin et al., arXiv 2305.08891, Table 2.

    Args:
        steps: n, points kept.
        length: N, steps of the table; None: the schedule's.
    """

    def __init__(self, steps: int, *, length: int | None = None) -> None:
        _check_subset(length, steps)
        self.steps, self.length = steps, length

    def with_steps(self, steps: int) -> "TrailingGrid":
        return TrailingGrid(steps, length=self.length)

    def times(self, schedule: Schedule) -> Tensor:
        length = _table_length(self, self.length, self.steps, schedule)
        k = torch.arange(self.steps, 0, -1, dtype=torch.float64)
        return torch.round(length * k / self.steps) / length


class LeadingGrid(Grid):
    """A subset of a table's N points: i = ⌊N/n⌋ k + offset + 1, k = n − 1 … 0.  Begins below N unless n = N.

    Reference: Lin et al., arXiv 2305.08891, Table 2 ("leading"), the default of diffusers.

    Args:
        steps: n, points kept.
        offset: added to every index, `steps_offset` of diffusers.
        length: N, steps of the table; None: the schedule's.
    """

    def __init__(self, steps: int, *, offset: int = 0, length: int | None = None) -> None:
        _check_subset(length, steps)
        if length is not None:
            _check_offset(length, steps, offset)
        self.steps, self.offset, self.length = steps, offset, length

    def with_steps(self, steps: int) -> "LeadingGrid":
        return LeadingGrid(steps, offset=self.offset, length=self.length)

    def times(self, schedule: Schedule) -> Tensor:
        length = _table_length(self, self.length, self.steps, schedule)
        _check_offset(length, self.steps, self.offset)
        k = torch.arange(self.steps - 1, -1, -1, dtype=torch.float64)
        return (length // self.steps * k + self.offset + 1) / length


class ShiftedGrid(Grid):
    """t' = s t/(1 + (s − 1) t) of the times of another grid: more of them at high noise for s > 1.

    Reference: Esser et al., arXiv 2403.03206, Eq. 23; s of the number of values: Zheng et al., arXiv 2510.11690.

    Args:
        grid: gives t.
        shift: s, from 0.001 to 1000; None: √(values/4096).
        values: of an example, such as 196608 for latents of 768 x 16 x 16; in place of shift.
    """

    def __init__(self, grid: Grid, shift: float | None = None, values: int | None = None) -> None:
        self.grid, self.shift = grid, shift_of("ShiftedGrid", shift, values)

    def with_steps(self, steps: int) -> "ShiftedGrid":
        return ShiftedGrid(self.grid.with_steps(steps), self.shift)

    def times(self, schedule: Schedule) -> Tensor:
        return shift_time(self.grid.times(schedule), self.shift)


def shift_time(t: Tensor, shift: float) -> Tensor:
    """s t/(1 + (s − 1) t)."""
    return shift * t / (1 + (shift - 1) * t)


def shift_of(owner: str, shift: float | None, values: int | None) -> float:
    """s as it is given, or √(values/4096) of examples of so many values.

    Raises:
        ValueError: not one of them is given, or s is not from 0.001 to 1000.
    """
    if (shift is None) == (values is None):
        raise ValueError(f"{owner}: expected one of shift and values")
    s = math.sqrt(max(0, values) / 4096) if values is not None else float(shift or 0)
    if not 1e-3 <= s <= 1e3:
        given = f"got {shift}" if values is None else f"{values} values have {s:.3g}"
        raise ValueError(f"{owner}: shift must be from 0.001 to 1000, {given}")
    return s


class ExplicitGrid(Grid):
    """The given times.

    Args:
        t: decreasing, within (0, 1].
    """

    def __init__(self, t: Sequence[float]) -> None:
        if len(t) == 0:
            raise ValueError("ExplicitGrid needs at least one time, got none")
        self.t = list(t)

    def times(self, schedule: Schedule) -> Tensor:
        return torch.tensor(self.t, dtype=torch.float64)


def _check_steps(steps: int) -> None:
    if steps < 1:
        raise ValueError(f"a sampling grid needs at least one step, got steps={steps}")
    if steps > MOST_STEPS:
        raise ValueError(f"a sampling grid can have at most {MOST_STEPS:,} steps, got steps={steps}")


def _check_range(t_max: float, t_min: float | None, zero: bool = False) -> None:
    if not 0 < t_max <= 1 or (t_min is not None and not (0 < t_min < t_max or (zero and t_min == 0))):
        raise ValueError(f"need 0 {'<=' if zero else '<'} t_min < t_max <= 1, got t_min={t_min}, t_max={t_max}")


def _table_length(grid: Grid, length: int | None, steps: int, schedule: Schedule) -> int:
    """N of the table that a grid keeps so many points of."""
    number = schedule.chain_steps(length, type(grid).__name__, "length")
    _check_subset(number, steps)
    return number


def _check_subset(length: int | None, steps: int) -> None:
    _check_steps(steps)
    if length is not None and steps > length:
        raise ValueError(f"cannot keep {steps} points of a table of {length}")


def _check_offset(length: int, steps: int, offset: int) -> None:
    if not 0 <= offset <= length - 1 - length // steps * (steps - 1):
        raise ValueError(f"offset must leave {steps} points within a table of {length}, got {offset}")
