"""The number of steps of a beta schedule is written once: whatever counts steps takes it from the schedule."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import array, weigh
from torch import Tensor

from diffusion_pl.denoisers import GaussianMixture, Prediction, StepIndex
from diffusion_pl.likelihood import ChainBound
from diffusion_pl.losses import ChainELBO, GridTimes, VarianceBound
from diffusion_pl.samplers import LeadingGrid, RespacedGrid, TrailingGrid
from diffusion_pl.schedules import (
    VP,
    BetaTable,
    CosineBetas,
    LinearBetas,
    QuadraticBetas,
    Schedule,
    SigmoidAlphaBars,
    SigmoidBetas,
    ZeroTerminalSNR,
)
from diffusion_pl.tensors import SampleNoise

X = torch.tensor([[0.3, -0.2], [0.1, 0.4], [-0.5, 0.0]], dtype=torch.float64)


def variance_bound(bound: VarianceBound, schedule: Schedule) -> Tensor:
    t = torch.tensor([1 / 40, 0.5, 1.0], dtype=torch.float64)[:, None]
    return bound(schedule, X, 0.9 * X + 0.1, t, Prediction(X / 2, X / 3, torch.full_like(X, 0.4)))


def chain_bound(bound: ChainBound, schedule: Schedule) -> Tensor:
    return bound(GaussianMixture(schedule, X), X, SampleNoise(0, range(3))).total


def grid_times(times: GridTimes, schedule: Schedule) -> Tensor:
    return times.draw(schedule, 64, torch.device("cpu"), torch.Generator().manual_seed(0)).t


def index(noise_input: StepIndex, schedule: Schedule) -> Tensor:
    t = torch.linspace(0.025, 1, 40, dtype=torch.float64)
    return noise_input(schedule, t, schedule(t))


def elbo(weighting: ChainELBO, schedule: Schedule) -> Tensor:
    return weigh(weighting, schedule, torch.linspace(0.1, 1, 10, dtype=torch.float64))


COUNTERS: dict[str, tuple[Any, Any, Callable[..., Tensor]]] = {
    "GridTimes": (GridTimes(), GridTimes(40), grid_times),
    "RespacedGrid": (RespacedGrid(7), RespacedGrid(7, length=40), lambda grid, schedule: grid(schedule)),
    "TrailingGrid": (TrailingGrid(7), TrailingGrid(7, length=40), lambda grid, schedule: grid(schedule)),
    "LeadingGrid": (LeadingGrid(7, offset=1), LeadingGrid(7, offset=1, length=40), lambda grid, s: grid(s)),
    "ChainELBO": (ChainELBO(), ChainELBO(40), elbo),
    "VarianceBound": (VarianceBound(), VarianceBound(40), variance_bound),
    "ChainBound": (ChainBound(), ChainBound(40), chain_bound),
    "StepIndex": (StepIndex(), StepIndex(40), index),
}


@pytest.mark.parametrize(
    "table",
    [
        LinearBetas(40, 0.0025, 0.5),
        QuadraticBetas(40),
        SigmoidBetas(40),
        CosineBetas(40),
        SigmoidAlphaBars(40),
        BetaTable([0.1] * 40),
        ZeroTerminalSNR(LinearBetas(40)),
    ],
    ids=lambda table: type(table).__name__,
)
def test_every_beta_schedule_knows_its_steps(table: Schedule) -> None:
    assert table.steps == 40
    assert array(TrailingGrid(8)(table)) == pytest.approx(array(TrailingGrid(8, length=40)(table)))


@pytest.mark.parametrize("name", COUNTERS)
def test_steps_default_to_those_of_the_schedule(name: str) -> None:
    own, given, call = COUNTERS[name]
    table = LinearBetas(40, 0.0025, 0.5)
    assert torch.equal(call(own, table), call(given, table))
    assert not torch.equal(call(own, LinearBetas(80, 0.00125, 0.25)), call(given, LinearBetas(80, 0.00125, 0.25)))


@pytest.mark.parametrize("name", COUNTERS)
def test_a_given_number_of_steps_needs_no_table(name: str) -> None:
    _, given, call = COUNTERS[name]
    assert call(given, VP()).isfinite().all()


#: Since 0.1 these have 1,000 steps where nobody gives a number.
THOUSAND = {"GridTimes": GridTimes, "ChainELBO": ChainELBO, "VarianceBound": VarianceBound}


@pytest.mark.parametrize("name", THOUSAND)
def test_a_thousand_steps_are_the_last_default(name: str) -> None:
    own, _, call = COUNTERS[name]
    assert torch.equal(call(own, VP()), call(THOUSAND[name](1000), VP()))


@pytest.mark.parametrize("name", [name for name in COUNTERS if name not in THOUSAND])
def test_steps_that_nobody_gives_are_named(name: str) -> None:
    own, _, call = COUNTERS[name]
    option = "length" if name.endswith("Grid") else "steps"
    expected = rf"^{name}: {option} is missing: VP has no steps of its own\. Fix: set {option}$"
    with pytest.raises(ValueError, match=expected):
        call(own, VP())


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda: TrailingGrid(50)(LinearBetas(40)), "cannot keep 50 points of a table of 40"),
        (lambda: LeadingGrid(8, offset=5)(LinearBetas(40)), "offset .*got 5"),
        (lambda: chain_bound(ChainBound(times=50), LinearBetas(40)), "times must be in 2 … 40 .* got 50"),
    ],
    ids=["grid", "offset", "bound"],
)
def test_what_does_not_fit_the_table_is_refused(call: Callable[[], Tensor], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        call()


def test_a_bound_is_noted_with_the_steps_of_its_schedule() -> None:
    noted = ChainBound(variance=1.0).on(LinearBetas(40), 1000)
    assert (noted.steps, noted.variance, noted.times) == (40, 1.0, None)
    assert ChainBound(25).on(LinearBetas(40), 1000).steps == 25
    assert ChainBound().on(VP(), 1000).steps == 1000
    with pytest.raises(ValueError, match="steps is missing"):
        ChainBound().on(VP())
    with pytest.raises(ValueError, match="times must be in 2 … 40"):
        ChainBound(times=50).on(LinearBetas(40))


@pytest.mark.parametrize("steps", [10, 50, 1000])
def test_the_step_index_is_ddpms(steps: int) -> None:
    """0 … N − 1, as integers; in single precision as ScaledTime(N, -1), which 0.1 had for it."""
    table = LinearBetas(steps)
    t = torch.arange(1, steps + 1) / steps
    result = StepIndex()(table, t, table(t))
    torch.testing.assert_close(result, torch.arange(float(steps)), rtol=0, atol=1e-4)
    assert torch.equal(result, float(steps) * t - 1.0)
