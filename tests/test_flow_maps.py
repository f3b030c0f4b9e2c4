"""Exact flow maps: closed forms against each other and against the ODE, and what samplers make of them."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from conftest import GaussianFlow, array
from flow_maps import COV, MEAN, exact, gaussian, mixture
from torch import Tensor

from diffusion_pl.denoisers import EDM, Data, ExactMap, Gaussian, GaussianMap, Parameterization, V, Velocity
from diffusion_pl.ode import solve
from diffusion_pl.samplers import DDIM, ExplicitGrid, Grid, MultistepConsistency, Sampler, UniformGrid
from diffusion_pl.schedules import VP, Cosine, Karras, Rectified, Schedule

every_schedule = pytest.mark.parametrize("schedule", [VP(), Cosine(), Karras(), Rectified()])
GRID = [0.9, 0.6, 0.3]


def start(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def marginal(schedule: Schedule, t: Tensor, seed: int = 0) -> Tensor:
    """x_t of N(MEAN, COV), a row for each time."""
    kernel, factor = schedule(t), torch.linalg.cholesky(COV)
    x_t: Tensor = kernel.alpha * (MEAN + start(len(t), seed) @ factor.T) + kernel.sigma * start(len(t), seed + 1)
    return x_t


def times(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None]


# The maps -----------------------------------------------------------------------------------------------------------


@every_schedule
def test_gaussian_map_is_the_monge_map(schedule: Schedule) -> None:
    """x_r = √(C_r/C_t) (x_t − mean_t) + mean_r in numpy, from its two estimates; and α X + σ E = x_t."""
    flow = GaussianFlow(schedule)
    oracle = GaussianMap(schedule, *(torch.from_numpy(part) for part in (flow.mean, flow.cov)))
    t, r = times(0.97, 0.8, 0.5, 0.2), times(0.6, 0.01, 0.0, 0.19)
    x_t = marginal(schedule, t)
    x_0, eps, _ = oracle(x_t, t, r=r)
    at_t, at_r = schedule(t), schedule(r)
    np.testing.assert_allclose(array(at_t.alpha * x_0 + at_t.sigma * eps), array(x_t), rtol=1e-11, atol=1e-12)
    moved = at_r.alpha * x_0 + at_r.sigma * eps
    for k, (one, other) in enumerate(zip(t.flatten().tolist(), r.flatten().tolist(), strict=True)):
        expected = flow.flow(array(x_t[k : k + 1]), one, other)
        np.testing.assert_allclose(array(moved[k : k + 1]), expected, rtol=1e-10, atol=1e-11)


@every_schedule
def test_gaussian_map_is_the_denoiser_at_r_equal_t(schedule: Schedule) -> None:
    t = times(1.0, 0.5, 0.1, 1e-3)
    x_t, oracle = marginal(schedule, t), gaussian(schedule)
    denoised = Gaussian(schedule, MEAN, COV)(x_t, t)
    for prediction in (oracle(x_t, t), oracle(x_t, t, r=t), oracle(x_t, t, r=t - 1e-9)):
        torch.testing.assert_close(prediction.x_0, denoised.x_0, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(prediction.eps, denoised.eps, rtol=1e-6, atol=1e-6)


@every_schedule
def test_exact_map_agrees_with_the_gaussian_one(schedule: Schedule) -> None:
    """Also where r = t in a part of the batch, which is then the denoiser."""
    t, r = times(0.95, 0.7, 0.4, 0.3), times(0.5, 0.05, 0.4, 0.1)
    x_t = marginal(schedule, t)
    solved = ExactMap(Gaussian(schedule, MEAN, COV), 1e-10)(x_t, t, r=r)
    closed = gaussian(schedule)(x_t, t, r=r)
    torch.testing.assert_close(solved.x_0, closed.x_0, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(solved.eps, closed.eps, rtol=1e-7, atol=1e-7)


def test_exact_map_of_a_mixture_composes() -> None:
    """t → r is t → s → r, and the ends are on the ODE's path by another solver of the same equation in λ."""
    schedule = VP()
    oracle, x_t = mixture(schedule), start(5)
    exact_map = ExactMap(oracle, 1e-10)
    t, s, r = (torch.tensor(value, dtype=torch.float64) for value in (0.9, 0.5, 0.1))
    direct = exact_map.end(x_t, t, r)
    torch.testing.assert_close(exact_map.end(exact_map.end(x_t, t, s), s, r), direct, rtol=1e-7, atol=1e-7)

    def field(state: tuple[Tensor, ...], u: Tensor) -> tuple[Tensor, ...]:
        """d(x/α)/d(σ/α) = ε̂."""
        now = schedule.time(-2 * torch.log(u))[:, None]
        return (oracle(schedule(now).alpha * state[0], now).eps,)

    begin, end = (float(schedule(time).sigma / schedule(time).alpha) for time in (t, r))
    y = solve(field, (x_t / schedule(t).alpha,), begin, end, 1e-9, 1e-9, max_steps=10_000).y[0]
    torch.testing.assert_close(schedule(r).alpha * y, direct, rtol=1e-6, atol=1e-6)


def test_a_map_of_single_precision_keeps_its_type() -> None:
    oracle = ExactMap(Gaussian(VP(), MEAN.float(), COV.float()), 1e-5)
    x_0, eps, _ = oracle(start(3).float(), torch.tensor(0.8), r=torch.tensor(0.2))
    assert (x_0.dtype, eps.dtype) == (torch.float32, torch.float32)


# Samplers -----------------------------------------------------------------------------------------------------------


@every_schedule
@pytest.mark.parametrize("parameterization", [V(), Velocity(), EDM(0.5), Data()])
def test_ddim_with_an_exact_map_is_exact_in_one_step(schedule: Schedule, parameterization: Parameterization) -> None:
    """From t = 0.9 to the data: the ODE's solution, with one evaluation or three; not so with the denoiser."""
    x_T, flow = start(6), GaussianFlowMap(schedule)
    for grid in (GRID[:1], GRID):
        drawn = DDIM(ExplicitGrid(grid))(exact(gaussian(schedule), parameterization), x_T)
        assert drawn.nfe == len(grid)
        expected = flow.data(flow(x_T, GRID[0], grid[-1]), grid[-1])
        torch.testing.assert_close(drawn.x_0, expected, rtol=1e-8, atol=1e-8)
        denoised = DDIM(ExplicitGrid(grid))(Gaussian(schedule, MEAN, COV), x_T).x_0
        assert (denoised - expected).abs().max() > 1e-2


class GaussianFlowMap:
    """x_r of x_t by the square roots of covariance matrices, which commute."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule

    def __call__(self, x_t: Tensor, t: float, r: float) -> Tensor:
        (a, s, *_), (b, u, *_) = (self.schedule(torch.tensor(time, dtype=torch.float64)) for time in (t, r))
        at_t, at_r = (alpha**2 * COV + sigma**2 * torch.eye(2).double() for alpha, sigma in ((a, s), (b, u)))
        values, axes = torch.linalg.eigh(at_r @ torch.linalg.inv(at_t))
        gain = axes.real @ torch.diag(values.real.sqrt()) @ torch.linalg.inv(axes.real)
        x_r: Tensor = b * MEAN + (x_t - a * MEAN) @ gain.T
        return x_r

    def data(self, x_t: Tensor, t: float) -> Tensor:
        """X of the jump to t = 0, where some schedules still have noise: x_0 is then not X."""
        (a, s, *_), (b, u, *_) = (self.schedule(torch.tensor(time, dtype=torch.float64)) for time in (t, 0.0))
        return (u * x_t - s * self(x_t, t, 0.0)) / (a * u - s * b)


@every_schedule
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0])
def test_multistep_consistency_keeps_the_distribution(schedule: Schedule, gamma: float) -> None:
    """From the exact marginal at the grid's first time the samples have the data's mean and covariance."""
    n, t = 40_000, torch.full((40_000, 1), GRID[0], dtype=torch.float64)
    generator = torch.Generator().manual_seed(3)
    x_T = marginal(schedule, t, seed=1)
    drawn = MultistepConsistency(ExplicitGrid(GRID), gamma)(gaussian(schedule), x_T, noise_of(generator))
    assert drawn.nfe == len(GRID)
    mean_error = (drawn.x_0.mean(0) - MEAN) / (COV.diag() / n).sqrt()
    assert mean_error.abs().max() < 4
    products = (drawn.x_0 - MEAN)[:, :, None] * (drawn.x_0 - MEAN)[:, None, :]
    assert ((products.mean(0) - COV) / (products.std(0) / n**0.5)).abs().max() < 4


def noise_of(generator: torch.Generator) -> Callable[[Tensor], Tensor]:
    return lambda x: torch.randn(x.shape, dtype=x.dtype, generator=generator)


@every_schedule
def test_multistep_consistency_without_noise_is_the_ode(schedule: Schedule) -> None:
    def refuse(x: Tensor) -> Tensor:
        raise AssertionError("noise was drawn")

    x_T = start(6)
    drawn = MultistepConsistency(ExplicitGrid(GRID), 0.0)(gaussian(schedule), x_T, refuse)
    flow = GaussianFlowMap(schedule)
    expected = flow.data(flow(x_T, GRID[0], GRID[-1]), GRID[-1])
    torch.testing.assert_close(drawn.x_0, expected, rtol=1e-8, atol=1e-8)


def test_multistep_consistency_with_full_noise_is_by_hand() -> None:
    """γ = 1: data by r = 0, noise to the next time."""
    schedule, oracle, x, rest = Rectified(), gaussian(Rectified()), start(4), [start(4, k) for k in (1, 2)]
    noises = iter(rest)
    drawn = MultistepConsistency(ExplicitGrid(GRID), 1.0)(oracle, x, lambda x: next(noises))
    jump = GaussianFlowMap(schedule)
    for t, s, noise in zip(GRID[:-1], GRID[1:], rest, strict=True):
        x = (1 - s) * jump(x, t, 0.0) + s * noise
    torch.testing.assert_close(drawn.x_0, jump(x, GRID[-1], 0.0), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("gamma", [-0.1, 1.5])
def test_gamma_outside_the_unit_interval_is_refused(gamma: float) -> None:
    with pytest.raises(ValueError, match="gamma must be in"):
        MultistepConsistency(UniformGrid(2), gamma)


def test_multistep_consistency_refuses_an_ordinary_denoiser() -> None:
    for grid in ([0.9], GRID):
        with pytest.raises(ValueError, match="flow maps and consistency models"):
            MultistepConsistency(ExplicitGrid(grid))(Gaussian(VP(), MEAN, COV), start(2))


@pytest.mark.parametrize("build", [DDIM, MultistepConsistency])
def test_samplers_start_where_a_schedule_has_no_signal(build: Callable[[Grid], Sampler]) -> None:
    """Rectified has α = 0 at t = 1; the first jump is that of pure noise."""
    drawn = build(UniformGrid(3))(exact(gaussian(Rectified()), V()), start(5), torch.zeros_like)
    assert drawn.x_0.isfinite().all()
    one = build(UniformGrid(1))(exact(gaussian(Rectified()), V()), start(5))
    torch.testing.assert_close(one.x_0, GaussianFlowMap(Rectified())(start(5), 1.0, 0.0), rtol=1e-8, atol=1e-8)


# What is refused ----------------------------------------------------------------------------------------------------


def test_a_later_target_is_refused() -> None:
    denoiser = exact(gaussian(VP()), V())
    with pytest.raises(ValueError, match=r"r must be in \[0, t\]"):
        denoiser(start(2), torch.tensor(0.3).double(), r=torch.tensor(0.4).double())
    with pytest.raises(ValueError, match="shape of t"):
        denoiser(start(2), torch.tensor(0.3).double(), r=times(0.1, 0.2))
