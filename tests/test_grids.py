"""Sampling grids: where they say they are, on every schedule they fit."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from conftest import SCHEDULES, array, instances
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion_pl.samplers import (
    ExplicitGrid,
    Grid,
    KarrasGrid,
    LeadingGrid,
    LogSNRGrid,
    RespacedGrid,
    ShiftedGrid,
    TrailingGrid,
    UniformGrid,
)
from diffusion_pl.schedules import VE, VP, Cosine, Karras, LinearBetas, Rectified, Schedule, ZeroTerminalSNR

every_schedule = pytest.mark.parametrize("schedule", SCHEDULES)
every_grid = pytest.mark.parametrize("grid", instances(Grid))


def ratio(schedule: Schedule, t: torch.Tensor) -> np.ndarray:
    kernel = schedule(t)
    return array(kernel.sigma / kernel.alpha)


@every_schedule
@every_grid
def test_grids_decrease_within_the_schedule(schedule: Schedule, grid: Grid) -> None:
    t = grid(schedule)
    assert t.shape == (8,)
    assert t.dtype == torch.float64
    assert t.device.type == "cpu"
    assert (t.diff() < 0).all()
    assert 0 <= t[-1] < t[0] <= 1
    assert (schedule(t).sigma > 0).all()


def test_uniform_grid_is_the_tables_own() -> None:
    np.testing.assert_allclose(array(UniformGrid(5)(VP())), [1, 0.8, 0.6, 0.4, 0.2], rtol=1e-14)
    np.testing.assert_allclose(array(UniformGrid(4, 0.8)(VP())), [0.8, 0.6, 0.4, 0.2], rtol=1e-14)
    np.testing.assert_allclose(array(UniformGrid(3, 0.9, 0.1)(VP())), [0.9, 0.5, 0.1], rtol=1e-14)
    assert UniformGrid(1)(VP()).tolist() == [1.0]
    assert UniformGrid(2, t_min=0)(Karras()).tolist() == [1.0, 0.0]
    i = torch.arange(1000, 0, -1, dtype=torch.float64)
    np.testing.assert_allclose(array(UniformGrid(1000)(VP())), array(i / 1000), rtol=1e-13)


def test_a_shifted_grid_keeps_its_ends_and_moves_the_odds() -> None:
    """t/(1 − t) is multiplied by s, at every time."""
    t = array(UniformGrid(20)(VP()))[1:]
    moved = array(ShiftedGrid(UniformGrid(20), 3.0)(VP()))
    np.testing.assert_allclose(moved[1:] / (1 - moved[1:]), 3 * t / (1 - t), rtol=1e-10)
    assert moved[0] == 1
    # Zheng et al.: latents of 768 x 16 x 16 have 6.93, those of 4 x 32 x 32 stay.
    assert ShiftedGrid(UniformGrid(5), values=768 * 16 * 16).shift == pytest.approx(6.93, abs=2e-3)
    assert torch.equal(ShiftedGrid(UniformGrid(5), values=4 * 32 * 32)(VP()), UniformGrid(5)(VP()))
    assert len(ShiftedGrid(UniformGrid(5), values=1024).with_steps(7)(VP())) == 7
    for options in ({}, {"shift": 1.0, "values": 4}, {"shift": 0.0}, {"values": 0}, {"shift": math.inf}):
        with pytest.raises(ValueError, match=r"ShiftedGrid: (expected one of|shift must be)"):
            ShiftedGrid(UniformGrid(5), **options)


@every_schedule
def test_logsnr_grid_is_even_in_logsnr(schedule: Schedule) -> None:
    t = LogSNRGrid(9, t_max=0.98, t_min=2e-3)(schedule)
    assert (t[0].item(), t[-1].item()) == (0.98, 2e-3)
    steps = array(schedule(t).logsnr.diff())
    np.testing.assert_allclose(steps, steps.mean(), rtol=1e-6)
    assert steps.mean() > 0


@every_schedule
def test_karras_grid_is_even_in_the_root_of_the_noise_level(schedule: Schedule) -> None:
    root = ratio(schedule, KarrasGrid(12, 0.05, 20.0, rho=5)(schedule)) ** 0.2
    np.testing.assert_allclose(root, np.linspace(20**0.2, 0.05**0.2, 12), rtol=1e-9)


def test_karras_grid_on_its_own_schedule_is_edms_discretization() -> None:
    """Karras et al., Eq. 5 with its values for 18 steps; the last σ is σ_min, at t = 0 of this process."""
    t = KarrasGrid(18)(Karras())
    expected = [(80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7 for i in range(18)]
    np.testing.assert_allclose(ratio(Karras(), t), expected, rtol=1e-12)
    np.testing.assert_allclose(array(t), np.linspace(1, 0, 18), atol=1e-12)
    for steps in (2, 5, 40, 256, 1000):
        np.testing.assert_allclose(ratio(Karras(), KarrasGrid(steps)(Karras()))[[0, -1]], [80, 0.002], rtol=1e-9)


def test_karras_grid_outside_the_schedule_is_refused() -> None:
    with pytest.raises(ValueError, match="KarrasGrid"):
        KarrasGrid(18)(VE(0.01, 50))


def test_respaced_grids_keep_points_of_the_table() -> None:
    t = array(RespacedGrid(5, length=1000)(VP()))
    np.testing.assert_allclose(t * 1000, [1000, 750.25, 500.5, 250.75, 1], atol=0.51)  # 1 + 999 k/4, rounded either way
    quadratic = array(RespacedGrid(5, power=2.0, length=1000)(VP())) * 1000
    np.testing.assert_allclose(quadratic, [1000, 563, 251, 63, 1], atol=0.51)
    # Crowded ends stay distinct: 100 points, 40 of them with index below 1 + 99 (39/39)² …
    crowded = array(RespacedGrid(40, power=4.0, length=100)(VP())) * 100
    assert np.allclose(crowded, crowded.round())
    assert len(set(crowded.round())) == 40
    assert (crowded.max(), crowded.min()) == (100, 1)
    everything = array(RespacedGrid(30, power=3.0, length=30)(VP())) * 30
    np.testing.assert_allclose(everything, np.arange(30, 0, -1), rtol=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.data(), st.floats(1, 6))
def test_any_respacing_is_a_subset_of_the_table(length: int, data: st.DataObject, power: float) -> None:
    steps = data.draw(st.integers(1, length))
    for grid in (RespacedGrid(steps, power=power, length=length), TrailingGrid(steps, length=length)):
        index = array(grid(VP())) * length
        np.testing.assert_allclose(index, index.round(), atol=1e-9)
        assert len(set(index.round())) == steps
        assert index.max() == pytest.approx(length)
        assert index.min() > 0.5
    if steps > 1:
        assert array(RespacedGrid(steps, power=power, length=length)(VP())).min() == pytest.approx(1 / length)


@pytest.mark.parametrize(("length", "steps"), [(1000, 10), (1000, 50), (1000, 999), (100, 7), (6, 6)])
def test_trailing_grid_is_lins(length: int, steps: int) -> None:
    """Lin et al., Table 2: round(arange(T, 0, −T/S)), 1-based."""
    expected = np.round(np.arange(length, 0, -length / steps))[:steps]
    np.testing.assert_allclose(array(TrailingGrid(steps, length=length)(VP())) * length, expected, atol=1e-9)


def test_trailing_grid_starts_at_zero_signal() -> None:
    table = ZeroTerminalSNR(LinearBetas())
    assert table(TrailingGrid(10, length=1000)(table)[0]).snr < 1e-11


def test_explicit_grid() -> None:
    assert ExplicitGrid([0.9, 0.5, 0.1])(VP()).tolist() == [0.9, 0.5, 0.1]


@pytest.mark.parametrize(
    "t", [[0.5, 0.6], [0.5, 0.5], [1.2, 0.5], [0.5, -0.1], [math.nan], [0.5, math.nan], [0.5, 0.0]], ids=str
)
def test_times_must_decrease_within_the_schedule(t: list[float]) -> None:
    with pytest.raises(ValueError, match=r"ExplicitGrid: "):
        ExplicitGrid(t)(VP())


def test_zero_is_a_time_where_there_is_noise() -> None:
    assert ExplicitGrid([0.5, 0.0])(Karras()).tolist() == [0.5, 0.0]
    assert ExplicitGrid([0.5, 0.0])(Cosine()).tolist() == [0.5, 0.0]


def test_logsnr_grid_says_what_to_do_at_infinity() -> None:
    with pytest.raises(ValueError, match=r"t_max=1.0 is -inf; choose t_max < 1"):
        LogSNRGrid(5)(Rectified())


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (lambda: UniformGrid(0), "steps=0"),
        (lambda: UniformGrid(5, t_max=1.5), "t_max=1.5"),
        (lambda: UniformGrid(5, t_max=0.5, t_min=0.6), "t_min=0.6"),
        (lambda: UniformGrid(5, t_min=-1), "t_min=-1"),
        (lambda: UniformGrid(5, t_max=math.nan), "nan"),
        (lambda: LogSNRGrid(-2), "steps=-2"),
        (lambda: LogSNRGrid(5, t_min=0), "t_min=0"),
        (lambda: LogSNRGrid(5, t_min=math.nan), "nan"),
        (lambda: KarrasGrid(0), "steps=0"),
        (lambda: KarrasGrid(5, 1, 0.5), "sigma_min=1, sigma_max=0.5"),
        (lambda: KarrasGrid(5, 0, 1), "sigma_min=0"),
        (lambda: KarrasGrid(5, math.nan, 1), "nan"),
        (lambda: KarrasGrid(5, rho=-7), "-7"),
        (lambda: RespacedGrid(0, length=10), "steps=0"),
        (lambda: RespacedGrid(11, length=10), "11 points of a table of 10"),
        (lambda: RespacedGrid(5, power=0.5, length=10), "0.5"),
        (lambda: TrailingGrid(20, length=10), "20 points of a table of 10"),
        (lambda: TrailingGrid(-1, length=10), "steps=-1"),
        (lambda: ExplicitGrid([]), "at least one time"),
    ],
)
def test_bad_numbers_are_refused_by_name(build: Callable[[], Grid], named: str) -> None:
    with pytest.raises(ValueError) as caught:
        build()
    assert named in str(caught.value)


@pytest.mark.parametrize("grid", instances(Grid))
def test_another_number_of_points_keeps_the_range(grid: Grid) -> None:
    schedule = VP()
    if isinstance(grid, ExplicitGrid):
        with pytest.raises(ValueError, match="ExplicitGrid has a fixed number of points"):
            grid.with_steps(5)
        return
    before, after = grid(schedule), grid.with_steps(5)(schedule)
    assert len(after) == 5
    assert len(before) == 8  # itself unchanged
    if not isinstance(grid, LeadingGrid):  # which begins at N only with all N points
        np.testing.assert_allclose(after[0], before[0], rtol=1e-12)
    if isinstance(grid, TrailingGrid) or (isinstance(grid, UniformGrid) and grid.t_max == 1):  # i/n stays i/n
        np.testing.assert_allclose(after[-1], 1 / 5, rtol=1e-12)
    else:
        np.testing.assert_allclose(after[-1], before[-1], rtol=1e-12)
    assert len(grid.with_steps(1)(schedule)) == 1
    with pytest.raises(ValueError, match="0"):
        grid.with_steps(0)
