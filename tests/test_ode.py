"""Runge–Kutta pairs: their order, their tolerance, and samples that know nothing of each other."""

import math

import numpy as np
import pytest
import torch
from conftest import array
from torch import Tensor

from diffusion_pl.ode import CASH_KARP, TABLEAUS, State, Tableau, check_tolerance, solve

tableaus = pytest.mark.parametrize("table", [*TABLEAUS.values(), CASH_KARP], ids=["3", "5", "5, no negative weight"])


def rotation(y: State, t: Tensor) -> State:
    """y'' = −y as a system; and t', to see the times."""
    x, clock = y
    return torch.stack((x[:, 1], -x[:, 0]), 1), torch.ones_like(clock)


@tableaus
@pytest.mark.parametrize("span", [(0.0, 3.0), (2.0, -1.0)])
def test_the_error_follows_the_tolerance(table: Tableau, span: tuple[float, float]) -> None:
    errors, costs = [], []
    for tolerance in (1e-4, 1e-6, 1e-8):
        start = (torch.tensor([[1.0, 0.0]], dtype=torch.float64), torch.zeros(1, dtype=torch.float64))
        result = solve(rotation, start, *span, tolerance, tolerance, table)
        turned = span[1] - span[0]
        np.testing.assert_allclose(array(result.y[1]), [turned], rtol=1e-12)
        errors.append(np.abs(array(result.y[0])[0] - [math.cos(turned), -math.sin(turned)]).max())
        costs.append(int(result.nfe))
        assert errors[-1] < 20 * tolerance
    # Of a method of order p the evaluations grow like tolerance^(−1/p).
    assert math.log(costs[2] / costs[1]) / math.log(100) == pytest.approx(1 / table.order, abs=0.07)


@tableaus
def test_a_pair_satisfies_the_conditions_of_its_order(table: Tableau) -> None:
    order = table.order
    c, weights, error = (np.array(part) for part in (table.c, (*table.a[-1], 0.0), table.error))
    for power in range(order):  # Σ b_i c_i^k = 1/(k + 1)
        assert weights @ c**power == pytest.approx(1 / (power + 1), rel=1e-12)
    for power in range(order - 1):
        assert error @ c**power == pytest.approx(0, abs=1e-15)
    assert abs(error @ c ** (order - 1)) > 1e-5  # the other one is of lower order
    np.testing.assert_allclose([sum(row) for row in table.a], c, atol=1e-14)


def test_a_sample_keeps_its_own_steps() -> None:
    rates = torch.tensor([[0.1], [30.0], [1.0]], dtype=torch.float64)

    def decay(y: State, t: Tensor) -> State:
        return (-rates[: len(y[0])] * y[0],)

    start = torch.ones(3, 1, dtype=torch.float64)
    together = solve(decay, (start,), 0.0, 1.0)
    alone = solve(decay, (start[:1],), 0.0, 1.0)
    assert torch.equal(together.y[0][:1], alone.y[0])
    assert together.nfe[0] == alone.nfe[0] == alone.calls
    assert together.nfe[1] > 3 * together.nfe[0]
    np.testing.assert_allclose(array(together.y[0]), np.exp(-array(rates)), atol=1e-4)


def test_cash_and_karps_averages_what_is_rough() -> None:
    """Of a ripple much faster than the steps, as networks have in t, it keeps less than Dormand and Prince's."""
    assert min(CASH_KARP.a[-1]) >= 0 > min(TABLEAUS[5].a[-1])

    def error(table: Tableau) -> float:
        # Phases at random: the errors of 400 ripples, at a tolerance that takes no notice of them.
        phase = 6.3 * torch.rand(400, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

        def ripple(y: State, t: Tensor) -> State:
            return (torch.cos(997 * t[:, None] + phase),)

        result = solve(ripple, (torch.zeros(400, 1, dtype=torch.float64),), 0.0, 1.0, 1.0, 1.0, table)
        return float(result.y[0].square().mean().sqrt())

    assert error(CASH_KARP) < 0.8 * error(TABLEAUS[5])


def test_units_say_what_error_of_a_part_counts() -> None:
    """Two equal parts of which one may be off a hundred times as far; the strict one decides, whichever it is."""

    def decay(y: State, t: Tensor) -> State:
        return (-3 * y[0], torch.cos(20 * t)[:, None])

    start = (torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64))
    one = torch.ones(1, dtype=torch.float64)

    def steps(first: float, second: float) -> int:
        return int(solve(decay, start, 0.0, 1.0, units=lambda t: (first * one, second * one)).nfe)

    plain = int(solve(decay, start, 0.0, 1.0).nfe)
    assert steps(1, 1) == plain
    assert steps(100, 1) == plain  # the second decides
    assert steps(1, 100) < 0.8 * plain
    assert steps(100, 100) < steps(1, 100)
    # As a function of the time: strict late only.
    late = solve(decay, start, 0.0, 1.0, units=lambda t: (one, torch.where(t > 0.5, 1.0, 1e4)))
    assert steps(1, 1e4) < int(late.nfe) < plain


def test_a_field_without_numbers_is_refused() -> None:
    with pytest.raises(ValueError, match="loosen rtol and atol"):
        solve(lambda y, t: (y[0] * math.nan,), (torch.ones(1, 1),), 0.0, 1.0, max_steps=20)


@pytest.mark.parametrize(
    ("arguments", "message"), [((0, 1e-5, 5), "rtol and atol must be in"), ((1e-5, 1e-5, 4), "pair must be one")]
)
def test_bad_tolerances_are_refused(arguments: tuple[float, float, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_tolerance(*arguments)
