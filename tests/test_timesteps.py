"""Distributions of the training times by Kolmogorov–Smirnov; importance sampling against quadrature."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from conftest import array, instances, weigh
from scipy import stats

from diffusion_pl.losses import (
    GridTimes,
    Likelihood,
    LikelihoodTimes,
    LogitNormalTimes,
    LogNormalTimes,
    LossSecondMoment,
    ShiftedTimes,
    StratifiedTimes,
    TimeSampler,
    UniformTimes,
)
from diffusion_pl.schedules import VE, VP, Cosine, Karras, LinearBetas, Rectified, Schedule, SubVP

N = 20_000
every_time_sampler = pytest.mark.parametrize("time_sampler", instances(TimeSampler))


def draw(time_sampler: TimeSampler, schedule: Schedule, n: int = N, seed: int = 0) -> np.ndarray:
    return array(time_sampler(schedule, torch.empty(n, 2), torch.Generator().manual_seed(seed)).t.flatten())


def same_distribution(sample: np.ndarray, name: str, args: tuple[float, ...] = ()) -> None:
    assert stats.kstest(sample, getattr(stats, name)(*args).cdf).pvalue > 1e-3


# Every distribution ---------------------------------------------------------------------------------------------------


@every_time_sampler
@pytest.mark.parametrize("shape", [(64,), (64, 2), (64, 3, 8, 8)], ids=str)
def test_shapes(
    time_sampler: TimeSampler, shape: tuple[int, ...], device: torch.device, generator: torch.Generator
) -> None:
    t, importance = time_sampler(VP(), torch.empty(shape, device=device), generator)
    importance = torch.as_tensor(importance, device=device).expand_as(
        t
    )  # one number where the distribution is part of the objective
    for value in (t, importance):
        assert value.shape == (64, *[1] * (len(shape) - 1))
        assert value.dtype == torch.float32
        assert value.device.type == device.type
    assert ((t > 0) & (t <= 1)).all()
    assert (importance > 0).all()


@every_time_sampler
def test_randomness_comes_from_the_generator_alone(time_sampler: TimeSampler) -> None:
    x_0 = torch.empty(32, 2)
    before = torch.get_rng_state()
    one = time_sampler(VP(), x_0, torch.Generator().manual_seed(7)).t
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(time_sampler(VP(), x_0, torch.Generator().manual_seed(7)).t, one)
    assert not torch.equal(time_sampler(VP(), x_0, torch.Generator().manual_seed(8)).t, one)
    torch.manual_seed(1)
    first = time_sampler(VP(), x_0).t
    torch.manual_seed(1)
    assert torch.equal(time_sampler(VP(), x_0).t, first)
    assert not torch.equal(time_sampler(VP(), x_0).t, first)


@every_time_sampler
def test_importance_weights_average_to_one(time_sampler: TimeSampler) -> None:
    """E[1/p(t)] over the interval is its length, whatever p; and 1 for a distribution that is part of the objective."""
    drawn = time_sampler(Cosine(), torch.empty(N, 2), torch.Generator().manual_seed(0))
    importance = array(torch.as_tensor(drawn.importance).expand_as(drawn.t))
    error = importance.std() / math.sqrt(N)
    assert abs(importance.mean() - 1) <= 4 * error


# One by one -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("t_min", [1e-5, 0.3])
def test_uniform(t_min: float) -> None:
    same_distribution(draw(UniformTimes(t_min), VP()), "uniform", (t_min, 1 - t_min))


@pytest.mark.parametrize("t_min", [1e-5, 0.3])
def test_stratified_is_uniform_with_one_time_in_each_slice(t_min: float) -> None:
    for n in (1, 7, 64):
        for seed in range(20):
            u = (draw(StratifiedTimes(t_min), VP(), n, seed) - t_min) / (1 - t_min)
            assert sorted(np.floor(u * n).astype(int)) == list(range(n))
    single = np.array([draw(StratifiedTimes(t_min), VP(), 5, seed)[3] for seed in range(1000)])
    same_distribution(single, "uniform", (t_min, 1 - t_min))


def test_shifted_times_have_their_logit_moved() -> None:
    """logit t' = logit t + ln s: a logit-normal distribution stays one (Esser et al., Eq. 23)."""
    t = draw(ShiftedTimes(LogitNormalTimes(0.3, 0.7), 3.0), Rectified())
    same_distribution(np.log(t / (1 - t)), "norm", (0.3 + math.log(3), 0.7))
    scaled = draw(ShiftedTimes(LogitNormalTimes(0.3, 0.7), values=768 * 16 * 16), Rectified())
    same_distribution(np.log(scaled / (1 - scaled)), "norm", (0.3 + 0.5 * math.log(48), 0.7))


def test_shifted_importance_estimates_the_same_mean() -> None:
    """∫ f(t) dt of an importance sampler, before and after the shift."""
    estimates = []
    for time_sampler in (LikelihoodTimes(0.01), ShiftedTimes(LikelihoodTimes(0.01), 4.0)):
        t, importance = time_sampler(VP(), torch.empty(200_000, 2), torch.Generator().manual_seed(0))
        estimates.append(float((importance * t.square()).mean()) * 0.99)
    assert estimates[0] == pytest.approx(1 / 3, abs=0.01)
    low = 4 * 0.01 / (1 + 3 * 0.01)  # the shift moves the smallest time
    assert estimates[1] == pytest.approx((1 - low**3) / 3, abs=0.01)


def test_what_cannot_be_shifted_is_refused() -> None:
    with pytest.raises(ValueError, match="ShiftedTimes: LossSecondMoment adapts"):
        ShiftedTimes(LossSecondMoment(10), 2.0)
    with pytest.raises(ValueError, match="ShiftedTimes: expected one of shift and values"):
        ShiftedTimes(UniformTimes())


def test_stratified_batches_have_a_quieter_mean() -> None:
    spread = {
        kind: np.std([np.mean(draw(kind(), VP(), 64, seed) ** 2) for seed in range(200)])
        for kind in (UniformTimes, StratifiedTimes)
    }
    assert spread[StratifiedTimes] < 0.2 * spread[UniformTimes]


def test_grid_times_are_uniform_on_the_steps() -> None:
    t = draw(GridTimes(10), VP())
    steps, counts = np.unique(np.round(t * 10, 5), return_counts=True)
    assert steps.tolist() == list(range(1, 11))
    assert stats.chisquare(counts).pvalue > 1e-3
    assert draw(GridTimes(1), VP(), 5).tolist() == [1.0] * 5


@pytest.mark.parametrize(
    "schedule", [VP(), Karras(1e-4, 500), Rectified(), LinearBetas()], ids=lambda s: type(s).__name__
)
@pytest.mark.parametrize(("mean", "std"), [(-1.2, 1.2), (0.4, 0.3)])
def test_log_normal_times_give_log_normal_noise_levels(schedule: Schedule, mean: float, std: float) -> None:
    kernel = schedule(torch.from_numpy(draw(LogNormalTimes(mean, std), schedule)))
    same_distribution(array(torch.log(kernel.sigma / kernel.alpha)), "norm", (mean, std))


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (-0.5, 0.7)])
def test_logit_normal(mean: float, std: float) -> None:
    t = draw(LogitNormalTimes(mean, std), Rectified())
    same_distribution(np.log(t / (1 - t)), "norm", (mean, std))
    assert draw(LogitNormalTimes(mean, std, t_min=0.4), Rectified()).min() == pytest.approx(0.4)


LIKELY = [VP(), SubVP(), VE(), Cosine(), Karras(), LinearBetas()]
likely = pytest.mark.parametrize("schedule", LIKELY, ids=lambda s: type(s).__name__)


@likely
@pytest.mark.parametrize("t_min", [1e-5, 0.01])
def test_likelihood_times_are_uniform_in_logsnr(schedule: Schedule, t_min: float) -> None:
    t = torch.from_numpy(draw(LikelihoodTimes(t_min), schedule))
    assert t.min() >= np.float32(t_min)
    low, high = (float(schedule(torch.tensor(v, dtype=torch.float64)).logsnr) for v in (1.0, t_min))
    same_distribution(array(schedule(t).logsnr), "uniform", (low, high - low))


def integrand(schedule: Schedule, t: torch.Tensor) -> torch.Tensor:
    """The likelihood loss of the best denoiser for N(0, ½) data: w(t) Var[x_0 | x_t]."""
    alpha, sigma, *_ = schedule(t)
    return weigh(Likelihood(), schedule, t) * 0.5 * sigma**2 / (0.5 * alpha**2 + sigma**2)


@likely
@pytest.mark.parametrize("t_min", [1e-3, 0.4])
def test_likelihood_times_are_unbiased_with_less_variance(schedule: Schedule, t_min: float) -> None:
    n = 50_000

    t = torch.logspace(math.log10(t_min), 0, 200_001, dtype=torch.float64)
    exact = np.trapezoid(array(integrand(schedule, t)), array(t)) / (1 - t_min)

    def estimates(time_sampler: TimeSampler) -> np.ndarray:
        t, importance = time_sampler(schedule, torch.empty(n, 1), torch.Generator().manual_seed(3))
        return array(torch.as_tensor(importance).double() * integrand(schedule, t.double())).flatten()

    drawn, plain = estimates(LikelihoodTimes(t_min)), estimates(UniformTimes(t_min))
    assert abs(drawn.mean() - exact) < 4 * drawn.std() / math.sqrt(n)
    assert abs(plain.mean() - exact) < 4 * plain.std() / math.sqrt(n)
    assert drawn.std() / math.sqrt(n) < 0.02 * exact  # the comparison above means something
    if t_min < 0.1 and not isinstance(schedule, VE):  # whose −λ' is constant: there both distributions are one
        assert drawn.var() < 0.7 * plain.var()


def test_likelihood_times_need_a_finite_logsnr() -> None:
    with pytest.raises(ValueError, match=r"Rectified has .*-inf"):
        LikelihoodTimes()(Rectified(), torch.empty(4, 2))


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (lambda: UniformTimes(0), "t_min must be in (0, 1), got 0"),
        (lambda: UniformTimes(1.5), "1.5"),
        (lambda: UniformTimes(math.nan), "nan"),
        (lambda: StratifiedTimes(-0.1), "-0.1"),
        (lambda: GridTimes(0), "steps=0"),
        (lambda: LogNormalTimes(std=0), "std a positive one, got -1.2 and 0"),
        (lambda: LogNormalTimes(std=-1), "-1"),
        (lambda: LogitNormalTimes(std=math.nan), "nan"),
        (lambda: LogitNormalTimes(t_min=1), "got 1"),
        (lambda: LikelihoodTimes(2), "got 2"),
    ],
)
def test_bad_numbers_are_refused_by_name(build: Callable[[], TimeSampler], named: str) -> None:
    with pytest.raises(ValueError) as caught:
        build()
    assert named in str(caught.value)
