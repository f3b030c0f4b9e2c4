"""Ordinary differential equations  dy/dt = f(y, t)  with a step size per sample.

An embedded Runge–Kutta pair of orders p and p − 1, a table of numbers:

    k_i = f(y + h Σ_j a_ij k_j, t + c_i h),   y ← y + h Σ_j a_last,j k_j,   error = h Σ_i e_i k_i

The last stage is the first of the next step, so a step of s stages costs s − 1 evaluations.  A sample does not depend
on what else is in its batch: those that have arrived wait for the others.

Reference: Hairer, Nørsett, Wanner, "Solving Ordinary Differential Equations I" (1993), II.4.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .tensors import per_sample

State = tuple[Tensor, ...]
Field = Callable[[State, Tensor], State]
Units = Callable[[Tensor], tuple[Tensor, ...]]
SAFETY = 0.8  # of the step that would just do: a rejected one costs as much as a good one


class Tableau(NamedTuple):
    """order: p;  c: (s,);  a: s rows, the last of which weights the solution;  error: (s,) on the stages."""

    order: int
    c: tuple[float, ...]
    a: tuple[tuple[float, ...], ...]
    error: tuple[float, ...]


#: Dormand & Prince (1980), RK5(4)7M.
DORMAND_PRINCE = Tableau(
    5,
    (0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1, 1),
    (
        (),
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        (35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
    ),
    (71 / 57600, 0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40),
)
#: Cash & Karp (1990), 5(4), with the solution itself as last stage.  No weight is negative, so what is rough in a field
#: is averaged, not magnified: for networks, which ripple in t as fast as their embedding of it.
CASH_KARP = Tableau(
    5,
    (0, 1 / 5, 3 / 10, 3 / 5, 1, 7 / 8, 1),
    (
        (),
        (1 / 5,),
        (3 / 40, 9 / 40),
        (3 / 10, -9 / 10, 6 / 5),
        (-11 / 54, 5 / 2, -70 / 27, 35 / 27),
        (1631 / 55296, 175 / 512, 575 / 13824, 44275 / 110592, 253 / 4096),
        (37 / 378, 0, 250 / 621, 125 / 594, 0, 512 / 1771),
    ),
    (-277 / 64512, 0, 6925 / 370944, -6925 / 202752, -277 / 14336, 277 / 7084, 0),
)
#: Bogacki & Shampine (1989), 3(2): fewer evaluations where the tolerance is loose.
BOGACKI_SHAMPINE = Tableau(
    3,
    (0, 1 / 2, 3 / 4, 1),
    ((), (1 / 2,), (0, 3 / 4), (2 / 9, 1 / 3, 4 / 9)),
    (-5 / 72, 1 / 12, 1 / 9, -1 / 8),
)
TABLEAUS = {table.order: table for table in (BOGACKI_SHAMPINE, DORMAND_PRINCE)}


class Solution(NamedTuple):
    """y: state at the end;  nfe: (B,), int64, evaluations that each sample needed;  calls: of the field in all."""

    y: State
    nfe: Tensor
    calls: int


def solve(
    field: Field,
    y: State,
    begin: float,
    end: float,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    tableau: Tableau = DORMAND_PRINCE,
    max_steps: int = 1000,
    units: Units | None = None,
) -> Solution:
    """Carry y from begin to end, forwards or backwards.

    The error of a step is the root mean square over each part of the state, relative to atol + rtol |y|, and the
    largest of the parts.

    Args:
        field: (y, t: (B,), float64) -> dy/dt, shaped like y.
        y: one or more tensors (B, *).
        begin, end: times.
        rtol, atol: tolerated error of a step.
        tableau: the method.
        max_steps: accepted and rejected ones together.
        units: (B,) -> (B,) for each part of the state: how many times as large an error of it may be there; None: 1.

    Raises:
        ValueError: the tolerance is out of reach, or the field is not finite.
    """
    n, device = len(y[0]), y[0].device
    now = torch.full((n,), begin, dtype=torch.float64, device=device)
    size = torch.full_like(now, (end - begin) / 10)
    nfe = torch.ones(n, dtype=torch.long, device=device)
    slope, calls = field(y, now), 1
    for _ in range(max_steps):
        left = end - now
        size = torch.where(size.abs() < left.abs(), size, left)  # 0 for those that have arrived
        slopes, moved = [slope], y
        for c, row in zip(tableau.c[1:], tableau.a[1:], strict=True):
            moved = _plus(y, size, row, slopes)
            slopes.append(field(moved, torch.where(size == left, end - (1 - c) * size, now + c * size)))
        calls += len(slopes) - 1
        walking = left != 0
        nfe += walking * (len(slopes) - 1)
        norms = _norms(size, tableau.error, slopes, y, moved, rtol, atol)
        norm = (norms if units is None else norms / torch.stack(units(now + size))).amax(0)
        # Where a field blows up the error is not a number: a shorter step is tried.
        good = norm <= 1
        now = torch.where(good, torch.where(size == left, torch.full_like(now, end), now + size), now)
        y, slope = _where(good, moved, y), _where(good, slopes[-1], slope)
        if bool((now == end).all()):
            return Solution(y, nfe, calls)
        factor = SAFETY * norm.clamp(min=1e-10) ** (-1 / tableau.order)
        size = size * torch.where(norm.isfinite(), factor, torch.zeros_like(norm)).clamp(0.2, 5)
    raise ValueError(
        f"{max_steps} steps do not bring the ODE from {begin:g} to {end:g}: loosen rtol and atol "
        f"(now {rtol:g} and {atol:g})"
    )


def check_tolerance(rtol: float, atol: float, pair: int) -> None:
    """Raise ValueError unless both are in (0, 1) and there is such a pair."""
    if not (0 < rtol < 1 and 0 < atol < 1):
        raise ValueError(f"rtol and atol must be in (0, 1), got {rtol} and {atol}")
    if pair not in TABLEAUS:
        raise ValueError(f"pair must be one of {', '.join(map(str, TABLEAUS))}, got {pair}")


def _plus(y: State, size: Tensor, row: Sequence[float], slopes: list[State]) -> State:
    """y + h Σ_j row_j k_j."""
    return tuple(part + per_sample(size, part).to(part) * _sum(row, slopes, m) for m, part in enumerate(y))


def _sum(row: Sequence[float], slopes: list[State], part: int) -> Tensor:
    terms = [(a, k[part]) for a, k in zip(row, slopes, strict=True) if a]
    total = terms[0][0] * terms[0][1]
    for a, k in terms[1:]:
        total.add_(k, alpha=a)
    return total


def _norms(
    size: Tensor, weights: Sequence[float], slopes: list[State], y: State, moved: State, rtol: float, atol: float
) -> Tensor:
    """Error of each part of the state relative to what is tolerated: (parts, B), float64."""
    norms = []
    for part, (old, new) in enumerate(zip(y, moved, strict=True)):
        error = per_sample(size, old).to(old) * _sum(weights, slopes, part)
        scale = atol + rtol * torch.maximum(old.abs(), new.abs())
        norms.append((error / scale).double().reshape(len(old), -1).square().mean(1).sqrt())
    return torch.stack(norms)


def _where(good: Tensor, new: State, old: State) -> State:
    return tuple(torch.where(per_sample(good, b), a, b) for a, b in zip(new, old, strict=True))
