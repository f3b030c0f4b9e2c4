"""Every sampler on every schedule: the right distribution, exactly, and the declared order of convergence.

On Gaussian data every sampler is affine in its start and its noises.  One batch gives its distribution without Monte
Carlo: row 0 starts at 0 without noise, two rows start at unit vectors, two more per draw of noise get a unit vector
there.  The mean and covariance that follow are compared with the exact ones.
"""

import math
from collections.abc import Callable, Collection
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from conftest import SCHEDULES, GaussianFlow, array, classes, samplers
from scipy.integrate import solve_ivp
from torch import Tensor

from diffusion_pl.denoisers import Denoiser, Gaussian, GaussianMixture, Prediction
from diffusion_pl.samplers import (
    DDIM,
    Ancestral,
    EulerMaruyama,
    ExplicitGrid,
    Grid,
    Heun,
    KarrasGrid,
    LogSNRGrid,
    RespacedGrid,
    Sampler,
    TrailingGrid,
    UniformGrid,
)
from diffusion_pl.schedules import VE, VP, BetaTable, Karras, LinearBetas, Rectified, Schedule
from diffusion_pl.tensors import SampleNoise

Build = Callable[[Grid], Sampler]
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES)
every_sampler = pytest.mark.parametrize("build", samplers())
#: Those whose error depends on the grid, and whose samples are affine in their start and noises.
WITH_ORDER = [p for p in samplers() if p.values[0](UniformGrid(2)).order > 0]
#: A schedule of each kind: bounded drift, no signal at t = 1, exploding variance, a table.
KINDS = {"VP", "Rectified", "Karras", "LinearBetas"}


def crossed(builds: list[Any], kinds: Collection[str] = KINDS) -> pytest.MarkDecorator:
    """Each sampler on a schedule of each kind, DDIM and DPMpp on all of them; the other pairs are slow tests, as is the
    adaptive one on a table: it takes small steps at each of the thousand bends."""

    def ordinary(build: Any, schedule: Any) -> bool:
        costly = str(build).startswith("AdaptiveODE") and schedule == "LinearBetas"
        return not costly and (schedule in kinds or build in ("DDIM-0", "DPMpp-2"))

    return pytest.mark.parametrize(
        ("build", "schedule"),
        [
            pytest.param(
                *build.values,
                *schedule.values,
                id=f"{build.id}-{schedule.id}",
                marks=() if ordinary(build.id, schedule.id) else pytest.mark.slow,
            )
            for build in builds
            for schedule in SCHEDULES
        ],
    )


class Moments(NamedTuple):
    mean: np.ndarray
    cov: np.ndarray


class Count:
    """Noise that is 0 and counts how often it was asked for."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, x: Tensor) -> Tensor:
        self.calls += 1
        return torch.zeros_like(x)


def deterministic(build: Build) -> bool:
    count = Count()
    grid = UniformGrid(4, 0.9, 0.1)
    build(grid)(GaussianFlow(VP()).oracle, torch.zeros(1, 2, dtype=torch.float64), count)
    return count.calls == 0


DETERMINISTIC = [p for p in samplers() if deterministic(p.values[0])]
STOCHASTIC = [p for p in WITH_ORDER if not deterministic(p.values[0])]


class Unit:
    """Draw k: unit vectors in rows first + 2k and first + 2k + 1, standard normal in the last row, 0 elsewhere."""

    def __init__(self, first: int) -> None:
        self.first, self.k = first, 0
        self.rng = torch.Generator().manual_seed(1)
        self.last: list[np.ndarray] = []

    def __call__(self, x: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        row = self.first + 2 * self.k
        out[row : row + 2] = torch.eye(2, dtype=x.dtype)
        out[-1] = torch.randn(2, dtype=x.dtype, generator=self.rng)
        self.k += 1
        self.last.append(array(out[-1]))
        return out


class Zero(Denoiser):
    """x̂_0 = ε̂ = 0, with a gradient."""

    def __init__(self, schedule: Schedule) -> None:
        super().__init__()
        self.schedule = schedule

    def forward(self, x_t: Tensor, t: Tensor, **cond: Tensor) -> Prediction:
        return Prediction(0 * x_t, torch.zeros_like(x_t))


def exact_moments(sampler: Sampler, denoiser: Denoiser, mean: np.ndarray, cov: np.ndarray) -> Moments:
    """Distribution of the samples when x_T ~ N(mean, cov)."""
    count = Count()
    sampler(Zero(denoiser.schedule), torch.zeros(1, 2, dtype=torch.float64), count)
    x_T = torch.zeros(3 + 2 * count.calls + 1, 2, dtype=torch.float64)
    x_T[1:3] = torch.eye(2, dtype=torch.float64)
    x_T[-1] = torch.tensor([0.6, -1.1], dtype=torch.float64)
    noise = Unit(3)
    out = array(sampler(denoiser, x_T, noise).x_0)
    assert noise.k == count.calls
    maps = (out[1:-1] - out[0]).reshape(-1, 2, 2)  # (1 + draws, input axis, output axis)
    guess = out[0] + sum(v @ m for v, m in zip([array(x_T[-1]), *noise.last], maps, strict=True))
    np.testing.assert_allclose(
        out[-1], guess, rtol=1e-7, atol=1e-7, err_msg="not affine: its distribution needs another test"
    )
    total = maps[0].T @ cov @ maps[0] + sum(m.T @ m for m in maps[1:])
    return Moments(out[0] + mean @ maps[0], total)


def middle(schedule: Schedule, steps: int, width: float = 4.0) -> ExplicitGrid:
    """The grid of equal steps in λ between λ = −width and λ = width.

    On a coarse table, whose α' jumps by as much as itself, equal steps within its cells instead: which step holds a
    jump is chance, and would hide the order of samplers that read α'.
    """
    if isinstance(schedule, BetaTable) and schedule.steps < 100:
        cells = schedule.steps - 2
        per_cell = 2 * steps // (cells + 1)
        t = UniformGrid(cells * per_cell + 1, 1 - 1 / schedule.steps, 1 / schedule.steps)(schedule)
        short = 0.5 / steps**2
        return ExplicitGrid([*t[:1].tolist(), t[0].item() - short, t[0].item() - 2 * short, *t[1:].tolist()])
    # The first two steps are short, O(h²), or only the low order of the start of multistep methods would be seen.
    equal = torch.linspace(-width, width, steps + 1, dtype=torch.float64)
    short = (2 * width / steps) ** 2 / 8
    t = schedule.time(torch.cat([equal[:1], equal[:1] + short, equal[:1] + 2 * short, equal[1:]]))
    return ExplicitGrid(t.tolist())


def orders(errors: list[float]) -> np.ndarray:
    return np.log2(np.divide(errors[:-1], errors[1:]))


def test_all_samplers_are_found() -> None:
    assert {Ancestral, DDIM, EulerMaruyama, Heun} <= set(classes(Sampler))


# The distribution -----------------------------------------------------------------------------------------------------


@crossed(STOCHASTIC)
def test_distribution_converges_at_the_declared_order(build: Build, schedule: Schedule) -> None:
    """From the exact marginal at the first time to that at the last, denoised.

    Without noise the whole map converges: `test_paths_converge_to_the_probability_flow`.
    """
    flow, errors = GaussianFlow(schedule), []
    for steps in (64, 128):
        grid = middle(schedule, steps)
        result = exact_moments(build(grid), flow.oracle, *flow.marginal(grid.t[0]))
        mean, cov = flow.denoised(grid.t[-1])
        errors.append(max(abs(result.mean - mean).max(), abs(result.cov - cov).max()))
    order = build(grid).order
    assert errors[-1] < {1: 0.1, 2: 5e-3}.get(order, 1e-3)
    if errors[0] > 1e-8:  # else exact already
        assert orders(errors)[-1] >= 0.93 * order - 0.08, (errors, orders(errors))


@crossed(WITH_ORDER, KINDS - {"LinearBetas"})
def test_samples_have_the_distribution_of_the_data(build: Build, schedule: Schedule) -> None:
    """The whole way from the sampler's own prior: mean and covariance of the data, in the limit of small steps."""
    flow = GaussianFlow(schedule)

    def moments(steps: int) -> Moments:
        t_min = schedule.time(torch.tensor(7.0, dtype=torch.float64)).item()  # noise of 3 % of the data
        sampler = build(LogSNRGrid(steps + 1, t_max=0.999, t_min=t_min))
        start = array(sampler.prior(schedule, torch.eye(2, dtype=torch.float64)))
        return exact_moments(sampler, flow.oracle, np.zeros(2), start @ start.T)

    coarse, fine, gain = moments(75), moments(150), 2 ** build(UniformGrid(2)).order
    # Signal left at the schedule's first time is not an error of the sampler.
    alpha, sigma = flow.scales(0.999)
    loose = 0.02 + 2 * alpha / sigma
    for at_75, at_150, exact in zip(coarse, fine, (flow.mean, flow.cov), strict=True):
        np.testing.assert_allclose((gain * at_150 - at_75) / (gain - 1), exact, atol=loose)  # Richardson's limit


@every_sampler
def test_one_point_is_one_denoising(build: Build) -> None:
    flow = GaussianFlow(VP())
    x_T = torch.randn(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    samples = build(ExplicitGrid([0.3]))(flow.oracle, x_T)
    assert samples.nfe == 1
    assert torch.equal(samples.x_0, flow.oracle(x_T, torch.tensor(0.3, dtype=torch.float64)).x_0)


# The path ---------------------------------------------------------------------------------------------------------


def test_deterministic_samplers_differ() -> None:
    names = {p.id for p in DETERMINISTIC}
    assert {"DDIM-0", "EulerMaruyama-0", "Heun"} <= names
    assert not names & {"DDIM-1", "Ancestral-0", "EulerMaruyama-1", "Heun-4"}


@crossed(DETERMINISTIC)
def test_paths_converge_to_the_probability_flow(build: Build, schedule: Schedule) -> None:
    """x at the last time against the closed-form flow of Gaussian data."""
    flow, errors = GaussianFlow(schedule), []
    unit = np.random.default_rng(0).normal(size=(8, 2))
    for steps in (64, 128)[: 2 if build(UniformGrid(2)).order else 1]:
        grid = middle(schedule, steps)
        mean, cov = flow.marginal(grid.t[0])
        x_T = mean + unit @ np.linalg.cholesky(cov).T
        path = build(grid)(flow.oracle, torch.from_numpy(x_T), path=True).path
        assert path is not None
        expected = flow.flow(x_T, grid.t[0], grid.t[-1])
        errors.append(abs(array(path.x[-2]) - expected).max())
    assert errors[-1] < {1: 0.15, 2: 5e-3}.get(build(grid).order, 1e-3)
    if build(grid).order and errors[0] > 1e-8:
        assert orders(errors)[-1] >= 0.93 * build(grid).order - 0.08, (errors, orders(errors))


POINTS = np.array([[1.5, 0.2], [-0.8, 1.1], [0.1, -1.4]])
STDS = np.array([0.3, 0.6, 0.2])
SHARES = np.array([0.5, 0.3, 0.2])


def mixture(schedule: Schedule) -> GaussianMixture:
    return GaussianMixture(schedule, torch.from_numpy(POINTS), torch.from_numpy(STDS), SHARES.tolist())


def mixture_mean(x_t: np.ndarray, alpha: float, sigma: float) -> np.ndarray:
    """E[x_0 | x_t] of that mixture: (B, 2), component by component in numpy."""
    widths = alpha**2 * STDS**2 + sigma**2
    log_r = [
        np.log(SHARES[k]) - np.log(widths[k]) - ((x_t - alpha * POINTS[k]) ** 2).sum(1) / (2 * widths[k])
        for k in range(3)
    ]
    r = np.exp(np.array(log_r) - np.max(log_r, axis=0))
    r /= r.sum(0)
    means = [POINTS[k] + alpha * STDS[k] ** 2 / widths[k] * (x_t - alpha * POINTS[k]) for k in range(3)]
    mean: np.ndarray = sum(r[k][:, None] * means[k] for k in range(3))
    return mean


@pytest.mark.parametrize("schedule", [VP(), Rectified()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("build", DETERMINISTIC)
def test_paths_converge_on_a_mixture(build: Build, schedule: Schedule) -> None:
    """A curved field, against scipy's eighth-order integrator of dx/dt = f x − ½g²∇log p with the score in numpy."""
    x_T, exact = mixture_path(schedule)
    errors = []
    for steps in (64, 128)[: 2 if build(UniformGrid(2)).order else 1]:
        grid = middle(schedule, steps, width=3.0)
        path = build(grid)(mixture(schedule), torch.from_numpy(x_T), path=True).path
        assert path is not None
        errors.append(abs(array(path.x[-2]).ravel() - exact).max())
    assert errors[-1] < {1: 0.1, 2: 5e-3}.get(build(grid).order, 1e-3)
    if build(grid).order and errors[0] > 1e-7:
        assert orders(errors)[-1] >= 0.93 * build(grid).order - 0.1, (errors, orders(errors))


@cache
def mixture_path(schedule: Schedule) -> tuple[np.ndarray, np.ndarray]:
    """Points of a mixture at the first time of `middle(schedule, …, 3)` and where the exact flow takes them."""
    grid = middle(schedule, 64, width=3.0)
    unit = np.random.default_rng(1).normal(size=(6, 2))
    alpha, sigma, *_ = schedule(torch.tensor(grid.t[0], dtype=torch.float64))
    x_T = unit * math.sqrt(alpha.item() ** 2 + sigma.item() ** 2)

    def field(t: float, flat: np.ndarray) -> np.ndarray:
        kernel = schedule(torch.tensor(t, dtype=torch.float64))
        x = flat.reshape(-1, 2)
        score = (
            kernel.alpha.item() * mixture_mean(x, kernel.alpha.item(), kernel.sigma.item()) - x
        ) / kernel.sigma.item() ** 2
        slope: np.ndarray = kernel.drift.item() * x - 0.5 * kernel.diffusion_sq.item() * score
        return slope.ravel()

    end = solve_ivp(field, (grid.t[0], grid.t[-1]), x_T.ravel(), method="DOP853", rtol=1e-9, atol=1e-11).y[:, -1]
    return x_T, end


# DDPM, DDIM -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variance", [0.0, 1.0])
@pytest.mark.parametrize(
    "grid",
    [UniformGrid(40), RespacedGrid(9, length=40), RespacedGrid(9, power=2.0, length=40), TrailingGrid(8, length=40)],
    ids=["all", "respaced", "quadratic", "trailing"],
)
def test_ancestral_is_ddpm(grid: Grid, variance: float) -> None:
    """Ho et al., Algorithm 2, on the table's β or those of the kept steps (Nichol & Dhariwal, Eq. 19), in numpy."""
    all_bars = np.cumprod(1 - np.linspace(5e-3, 0.3, 40))
    table = LinearBetas(40, 5e-3, 0.3)
    kept = np.round(array(grid(table)) * 40).astype(int)[::-1]  # increasing, 1-based
    alpha_bar = all_bars[kept - 1]
    beta = 1 - alpha_bar / np.concatenate([[1.0], alpha_bar[:-1]])
    rng = np.random.default_rng(0)
    start, draws = rng.normal(size=(5, 2)), rng.normal(size=(len(beta), 5, 2))

    x = start
    for step, i in enumerate(reversed(range(len(beta)))):
        mean_0 = mixture_mean(x, math.sqrt(alpha_bar[i]), math.sqrt(1 - alpha_bar[i]))
        eps = (x - math.sqrt(alpha_bar[i]) * mean_0) / math.sqrt(1 - alpha_bar[i])
        x = (x - beta[i] / math.sqrt(1 - alpha_bar[i]) * eps) / math.sqrt(1 - beta[i])
        if i > 0:
            tilde = beta[i] * (1 - alpha_bar[i - 1]) / (1 - alpha_bar[i])
            x = x + math.sqrt(beta[i] if variance else tilde) * draws[step]

    queue = iter(torch.from_numpy(draws))
    result = Ancestral(grid, variance)(mixture(table), torch.from_numpy(start), lambda _: next(queue))
    assert result.nfe == len(beta)
    np.testing.assert_allclose(array(result.x_0), x, rtol=1e-8, atol=1e-10)


@every_schedule
def test_ddim_with_full_noise_is_ancestral(schedule: Schedule) -> None:
    grid = middle(schedule, 20, width=6.0)
    scale = schedule.prior_std(grid.t[0])
    x_T = scale * torch.randn(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def noise() -> SampleNoise:
        return SampleNoise(0, range(6))

    ddim = DDIM(grid, eta=1.0)(mixture(schedule), x_T, noise(), path=True).path
    chain = Ancestral(grid)(mixture(schedule), x_T, noise(), path=True).path
    assert ddim is not None and chain is not None
    np.testing.assert_allclose(array(ddim.x), array(chain.x), rtol=1e-11, atol=1e-11 * scale)


@every_schedule
def test_ancestral_is_exact_where_its_variance_is_right(schedule: Schedule) -> None:
    """β̃ for a point mass, after any number of steps; and for a variance-preserving schedule β for N(0, I) data."""
    grid = middle(schedule, 5)
    point = np.array([0.7, -0.4])
    alpha, sigma = GaussianFlow(schedule).scales(grid.t[0])
    oracle = Gaussian(schedule, torch.from_numpy(point), torch.zeros(2, 2, dtype=torch.float64))
    before = ExplicitGrid([*grid.t, grid.t[-1] * 0.9])

    class Stop(Denoiser):
        """At the last time, x itself: shows the distribution of x there."""

        def __init__(self) -> None:
            super().__init__()
            self.schedule = schedule

        def forward(self, x_t: Tensor, t: Tensor, **cond: Tensor) -> Prediction:
            result = oracle(x_t, t)
            return Prediction(x_t, result.eps) if t.item() == before.t[-1] else result

    for build in (lambda g: Ancestral(g, 0.0), lambda g: DDIM(g, 1.0), lambda g: DDIM(g, 0.5), lambda g: DDIM(g)):
        result = exact_moments(build(before), Stop(), alpha * point, sigma**2 * np.eye(2))
        alpha_s, sigma_s = GaussianFlow(schedule).scales(before.t[-1])
        np.testing.assert_allclose(result.mean, alpha_s * point, rtol=1e-9)
        np.testing.assert_allclose(result.cov, sigma_s**2 * np.eye(2), rtol=1e-8, atol=1e-12 * sigma**2)


# Anderson ---------------------------------------------------------------------------------------------------------


def test_reverse_sde_of_unit_data_ends_at_variance_one() -> None:
    """N(0, 1) under VP keeps variance 1.  With ½g² in place of g² and the noise kept, it would end near 11."""
    grid = UniformGrid(1000, 1.0, 1e-3)
    times = grid(VP())

    class Identity(Denoiser):
        """x̂_0 = x_t at the last time only, so that the samples are x there."""

        schedule = VP()

        def forward(self, x_t: Tensor, t: Tensor, **cond: Tensor) -> Prediction:
            alpha, sigma, *_ = VP()(t)
            return Prediction(x_t if t == times[-1] else alpha * x_t, sigma * x_t)

    result = exact_moments(EulerMaruyama(grid), Identity(), np.zeros(2), np.eye(2))
    np.testing.assert_allclose(result.cov, np.eye(2), atol=0.01)

    def end(factor: float) -> float:
        """Variance of dx = [f x − factor g² score] dt + g dw̄ backwards, score = −x/V_t with V_t = 1."""

        def slope(t: float, v: np.ndarray) -> np.ndarray:
            beta = 0.1 + 19.9 * t
            return 2 * (-beta / 2 + factor * beta) * v - beta

        last: float = solve_ivp(slope, (1.0, 1e-3), [1.0], rtol=1e-9).y[0, -1]
        return last

    assert end(1.0) == pytest.approx(1, abs=1e-6)
    assert end(0.5) == pytest.approx(11.05, abs=0.01)
    assert result.cov[0, 0] == pytest.approx(end(1.0), abs=0.01)


def test_euler_maruyama_is_eulers_method_on_the_published_sde() -> None:
    """x + (s − t)[f x − ½(1 + λ²) g² ∇log p] + λ g √(t − s) z, the score by autograd of the marginal."""
    schedule, flow = VP(), GaussianFlow(VP())
    t, s = 0.6, 0.55
    x_t = torch.tensor([[0.3, -1.2], [2.0, 0.4]], dtype=torch.float64, requires_grad=True)
    z = torch.tensor([[1.1, -0.2], [0.5, 0.9]], dtype=torch.float64)
    mean, cov = (torch.from_numpy(v) for v in flow.marginal(t))
    (score,) = torch.autograd.grad(torch.distributions.MultivariateNormal(mean, cov).log_prob(x_t).sum(), x_t)
    beta = 0.1 + 19.9 * t
    for level in (0.0, 0.7, 1.0):
        path = EulerMaruyama(ExplicitGrid([t, s]), level)(flow.oracle, x_t, lambda _: z, path=True).path
        assert path is not None
        drift = -0.5 * beta * x_t - 0.5 * (1 + level**2) * beta * score
        expected = x_t + (s - t) * drift + level * math.sqrt(beta * (t - s)) * z
        np.testing.assert_allclose(array(path.x[1]), array(expected), rtol=1e-10)
    assert schedule.prior_std() == pytest.approx(1)


def test_euler_maruyama_says_where_the_noise_is_infinite() -> None:
    flow, x_T = GaussianFlow(Rectified()), start()
    plain = EulerMaruyama(UniformGrid(10), noise=0.0)(flow.oracle, x_T).x_0  # the ODE has no noise to be infinite
    np.testing.assert_allclose(array(plain), array(DDIM(UniformGrid(10))(flow.oracle, x_T).x_0), rtol=1e-10)
    with pytest.raises(ValueError, match=r"g² of Rectified is infinite at t=1.0; start the grid at t_max < 1"):
        EulerMaruyama(UniformGrid(10))(GaussianFlow(Rectified()).oracle, torch.zeros(1, 2, dtype=torch.float64))


# EDM --------------------------------------------------------------------------------------------------------------


def edm_algorithm_2(
    x: np.ndarray, sigmas: np.ndarray, churn: float, low: float, high: float, noise_std: float, draws: np.ndarray
) -> list[np.ndarray]:
    """Karras et al., Algorithm 2, with σ(t) = t and s(t) = 1; sigmas ends with 0.  Every x_i."""
    n, visited, drawn = len(sigmas) - 1, [x], 0
    for i in range(n):
        gamma = min(churn / n, math.sqrt(2) - 1) if low <= sigmas[i] <= high else 0.0
        sigma_hat, x_hat = sigmas[i] * (1 + gamma), x
        if gamma > 0:
            x_hat = x + math.sqrt(sigma_hat**2 - sigmas[i] ** 2) * noise_std * draws[drawn]
            drawn += 1
        slope = (x_hat - mixture_mean(x_hat, 1.0, sigma_hat)) / sigma_hat
        x = x_hat + (sigmas[i + 1] - sigma_hat) * slope
        if sigmas[i + 1] != 0:
            corrected = (x - mixture_mean(x, 1.0, sigmas[i + 1])) / sigmas[i + 1]
            x = x_hat + (sigmas[i + 1] - sigma_hat) * (slope + corrected) / 2
        visited.append(x)
    return visited


@pytest.mark.parametrize(
    ("churn", "low", "high", "noise_std"),
    [(0.0, 0.0, math.inf, 1.0), (40.0, 0.05, 50.0, 1.003), (5.0, 0.01, 1.0, 1.0)],
    ids=["deterministic", "ImageNet", "CIFAR"],
)
def test_heun_is_edms_algorithm_step_for_step(churn: float, low: float, high: float, noise_std: float) -> None:
    schedule, steps = Karras(), 18
    levels = [(80 ** (1 / 7) + i / (steps - 1) * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7 for i in range(steps)]
    rng = np.random.default_rng(0)
    x_T, draws = 80 * rng.normal(size=(5, 2)), rng.normal(size=(steps, 5, 2))
    expected = edm_algorithm_2(x_T, np.array([*levels, 0.0]), churn, low, high, noise_std, draws)
    queue = iter(torch.from_numpy(draws))
    sampler = Heun(KarrasGrid(steps), churn, low, high, noise_std)
    samples = sampler(mixture(schedule), torch.from_numpy(x_T), lambda _: next(queue), path=True)
    assert samples.nfe == 35
    assert samples.path is not None
    assert samples.path.x.shape == (19, 5, 2)
    for i, x in enumerate(expected):
        np.testing.assert_allclose(array(samples.path.x[i]), x, rtol=1e-7, atol=1e-7 * abs(x).max(), err_msg=str(i))


@pytest.mark.parametrize("churn", [0.0, 4.0])
def test_edm_converges_on_its_own_grid(churn: float) -> None:
    flow, errors = GaussianFlow(Karras()), []
    for steps in (18, 36, 72):
        sampler = Heun(KarrasGrid(steps), churn, 0.05, 50.0)
        result = exact_moments(sampler, flow.oracle, *flow.marginal(1.0))
        errors.append(max(abs(result.mean - flow.mean).max(), abs(result.cov - flow.cov).max()))
    assert errors[0] < 0.15
    assert errors[-1] < 0.01
    assert orders(errors)[-1] > 1.85


def test_edm_ends_at_the_least_noise_level() -> None:
    """σ_min is visited: the samples of 18 steps are D(x; 0.002)."""
    asked = []

    class Asked(Denoiser):
        schedule = Karras()

        def forward(self, x_t: Tensor, t: Tensor, **cond: Tensor) -> Prediction:
            asked.append(self.schedule(t).sigma.item())
            prediction: Prediction = mixture(self.schedule)(x_t, t)
            return prediction

    Heun(KarrasGrid(18))(Asked(), 80 * start())
    assert [asked[0], asked[-1]] == pytest.approx([80, 0.002])


def test_churn_stops_at_the_end_of_the_schedule() -> None:
    """Noise beyond t = 1 would leave the process: at the first time none is added, whatever the churn."""
    flow = GaussianFlow(VP())
    noisy = Heun(ExplicitGrid([1.0, 0.5]), churn=100.0)
    moments = exact_moments(noisy, flow.oracle, *flow.marginal(1.0))
    plain = exact_moments(Heun(ExplicitGrid([1.0, 0.5])), flow.oracle, *flow.marginal(1.0))
    np.testing.assert_allclose(moments.cov, plain.cov, rtol=1e-10)


def test_churn_range_is_in_units_of_the_data() -> None:
    """churn_min ≤ σ/α ≤ churn_max on any schedule; σ/α of VP at these times is 0.05, 0.5 and 5."""
    times = VP().time(-2 * torch.log(torch.tensor([5.0, 0.5, 0.05], dtype=torch.float64))).tolist()
    grid = ExplicitGrid([*times, times[-1] / 2])
    for low, high, draws in ((0.0, math.inf, 3), (0.1, 1.0, 1), (0.1, 10.0, 2), (6.0, 10.0, 0)):
        count = Count()
        Heun(grid, 2.0, low, high)(GaussianFlow(VP()).oracle, torch.zeros(1, 2, dtype=torch.float64), count)
        assert count.calls == draws


# The loop ---------------------------------------------------------------------------------------------------------


def start(n: int = 6) -> Tensor:
    return torch.randn(n, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@every_sampler
def test_path_holds_every_time(build: Build) -> None:
    grid, flow, x_T = UniformGrid(7, 0.95, 0.05), GaussianFlow(VP()), start()
    plain = build(grid)(flow.oracle, x_T, SampleNoise(3, range(6)))
    kept = build(grid)(flow.oracle, x_T, SampleNoise(3, range(6)), path=True)
    assert plain.path is None
    assert torch.equal(plain.x_0, kept.x_0)
    assert kept.path is not None
    assert kept.path.t.tolist() == [*grid(VP()).tolist(), 0.0]
    assert kept.path.x.shape == (8, 6, 2)
    assert torch.equal(kept.path.x[0], x_T)
    assert torch.equal(kept.path.x[-1], kept.x_0)
    # Each kept x leads to the next: the run cut in two gives the same samples.
    first = build(ExplicitGrid(grid(VP())[:4].tolist()))(flow.oracle, x_T, SampleNoise(3, range(6)), path=True).path
    assert first is not None
    if "churn" not in vars(build(grid)):  # whose noise depends on the number of points
        assert torch.equal(first.x[:4], kept.path.x[:4])


@every_sampler
def test_nfe_is_what_the_denoiser_was_asked(build: Build) -> None:
    calls = []

    class Counted(Denoiser):
        schedule = VP()

        def forward(self, x_t: Tensor, t: Tensor, **cond: Tensor) -> Prediction:
            calls.append((t.max().item(), cond))
            prediction: Prediction = GaussianFlow(VP()).oracle(x_t, t)
            return prediction

    label = torch.arange(6)
    sampler = build(UniformGrid(10))
    assert sampler(Counted(), start(), label=label).nfe == len(calls)
    assert all(cond == {"label": label} for _, cond in calls)  # conditions reach every evaluation
    assert calls[-1][0] == pytest.approx(0.1)
    if type(sampler) in (Ancestral, DDIM, EulerMaruyama):
        assert len(calls) == 10
    if type(sampler) is Heun:
        assert len(calls) == 19


@every_sampler
def test_a_sample_does_not_depend_on_its_batch(build: Build) -> None:
    grid, oracle, x_T = UniformGrid(40, 0.99, 0.01), mixture(VP()), start()  # noise is drawn 32 steps ahead

    def run(rows: list[int]) -> np.ndarray:
        return array(build(grid)(oracle, x_T[rows], SampleNoise(11, rows)).x_0)

    whole = run(list(range(6)))
    np.testing.assert_allclose(np.concatenate([run([0, 1, 2, 3]), run([4]), run([5])]), whole, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(run([5, 2]), whole[[5, 2]], rtol=1e-9, atol=1e-12)


@every_sampler
def test_progress_wraps_the_steps(build: Build) -> None:
    seen: list[Any] = []

    def bar(steps: Any) -> Any:
        seen.append(len(steps))
        for step in steps:
            yield step
            seen.append(step)

    with_bar = build(UniformGrid(5))(GaussianFlow(VP()).oracle, start(), SampleNoise(0, range(6)), progress=bar)
    assert seen[0] == 4
    assert [t.item() for t, _ in seen[1:]] == pytest.approx([1, 0.8, 0.6, 0.4])
    assert [s.item() for _, s in seen[1:]] == pytest.approx([0.8, 0.6, 0.4, 0.2])
    plain = build(UniformGrid(5))(GaussianFlow(VP()).oracle, start(), SampleNoise(0, range(6)))
    assert torch.equal(with_bar.x_0, plain.x_0)


@every_sampler
def test_dtype_and_device_are_those_of_x(build: Build, device: torch.device) -> None:
    double = build(UniformGrid(30, 0.99, 0.01))(GaussianFlow(VP()).oracle, start(), SampleNoise(0, range(6))).x_0
    flow = GaussianFlow(VP(), torch.float32, device)
    queue: list[Tensor] = []

    def keep(x: Tensor) -> Tensor:
        queue.append(torch.randn(x.shape, generator=torch.Generator().manual_seed(len(queue)), dtype=torch.float64))
        return queue[-1].to(x.device, x.dtype)

    single = build(UniformGrid(30, 0.99, 0.01))(flow.oracle, start().to(device, torch.float32), keep).x_0
    assert single.dtype == torch.float32
    assert single.device.type == device.type
    replay = iter(list(queue))
    double = build(UniformGrid(30, 0.99, 0.01))(
        GaussianFlow(VP()).oracle, start().float().double(), lambda _: next(replay).float().double()
    ).x_0
    np.testing.assert_allclose(array(single), array(double), rtol=1e-3, atol=1e-4)
    assert not single.requires_grad


@pytest.mark.parametrize(
    ("schedule", "grid", "expected"),
    [
        (VP(), UniformGrid(5), 1.0),
        (Karras(), KarrasGrid(5), math.sqrt(1 + 80**2)),
        (VE(0.01, 50), UniformGrid(5), math.sqrt(1 + 50**2)),
        (Karras(), KarrasGrid(5, sigma_max=10.0), math.sqrt(1 + 10**2)),
        (Rectified(), UniformGrid(5), 1.0),
        (Rectified(), UniformGrid(5, 0.5), math.sqrt(0.5)),
        (BetaTable([0.5, 0.5]), UniformGrid(2), 1.0),
    ],
    ids=lambda value: type(value).__name__ if " object at 0x" in repr(value) else str(value),
)
def test_prior_is_the_noise_at_the_first_time(schedule: Schedule, grid: Grid, expected: float) -> None:
    eps = start()
    np.testing.assert_allclose(array(DDIM(grid).prior(schedule, eps)), expected * array(eps), rtol=1e-9)


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (lambda g: Ancestral(g, -0.1), "variance must be in [0, 1], got -0.1"),
        (lambda g: Ancestral(g, math.nan), "nan"),
        (lambda g: DDIM(g, 1.5), "eta must be in [0, 1], got 1.5"),
        (lambda g: DDIM(g, math.nan), "nan"),
        (lambda g: EulerMaruyama(g, -1), "noise must be at least 0, got -1"),
        (lambda g: EulerMaruyama(g, math.nan), "nan"),
        (lambda g: Heun(g, -1), "-1"),
        (lambda g: Heun(g, churn=math.nan), "nan"),
        (lambda g: Heun(g, churn_min=2, churn_max=1), "2, 1"),
        (lambda g: Heun(g, churn_noise=-0.5), "-0.5"),
    ],
)
def test_bad_numbers_are_refused_by_name(build: Callable[[Grid], Sampler], named: str) -> None:
    with pytest.raises(ValueError) as caught:
        build(UniformGrid(5))
    assert named in str(caught.value)


def test_the_path_keeps_the_estimates_made_on_the_way() -> None:
    """x̂_0 at a grid time is the oracle's at the x kept for that time; the last two are the sample itself."""
    grid = UniformGrid(6)
    schedule = VP()
    oracle = mixture(schedule)
    x_T = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for sampler in (DDIM(grid), Heun(grid), Ancestral(grid)):
        samples = sampler(oracle, x_T, path=True)
        path = samples.path
        assert path is not None
        assert path.x.shape == path.x_0.shape == (7, 5, 2)
        for t, x, x_0 in zip(path.t[:-1], path.x[:-1], path.x_0[:-1], strict=True):
            torch.testing.assert_close(x_0, oracle(x, t).x_0)
        assert torch.equal(path.x_0[-1], samples.x_0)
        assert torch.equal(path.x_0[-2], samples.x_0)
        assert torch.equal(path.x[-1], samples.x_0)
