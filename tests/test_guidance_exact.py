"""Guided scores against the known posterior scores of a mixture; correctors, inverse problems, encoding on oracles."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from conftest import GaussianFlow, array
from torch import Tensor

from diffusion_pl.denoisers import (
    AutoGuided,
    ClassifierFree,
    ClassifierGuided,
    Coarse,
    Denoiser,
    Gaussian,
    GaussianMixture,
    Gray,
    Masked,
    Operator,
    Prediction,
    Reconstructing,
)
from diffusion_pl.samplers import (
    DDIM,
    AdaptiveODE,
    Ancestral,
    AnnealedLangevin,
    DPMpp,
    ExplicitGrid,
    Grid,
    Heun,
    Langevin,
    LogSNRGrid,
    PredictorCorrector,
    Replacement,
    ReverseDiffusion,
    Sampler,
    UniformGrid,
)
from diffusion_pl.schedules import VE, VP, Cosine, Schedule, SubVP
from diffusion_pl.tensors import SampleNoise

MEANS, STDS = np.array([[1.2, -0.3], [-0.9, 0.8]]), np.array([0.5, 0.3])
SCHEDULES = [VP(), SubVP(), VE(), Cosine()]
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
TIMES = [0.05, 0.3, 0.7]


class Labelled(Denoiser):
    """The mixture of two Gaussians, or with label k the k-th alone; counts its calls and the rows of each."""

    def __init__(self, schedule: Schedule) -> None:
        super().__init__()
        self.schedule = schedule
        means, stds = torch.from_numpy(MEANS), torch.from_numpy(STDS)
        self.whole = GaussianMixture(schedule, means, stds)
        self.each = [GaussianMixture(schedule, means[k : k + 1], stds[k : k + 1]) for k in range(2)]
        self.rows: list[int] = []

    def forward(self, x_t: Tensor, t: Tensor, **cond: Tensor) -> Prediction:
        self.rows.append(len(x_t))
        parts = [oracle(x_t, t) for oracle in (*self.each, self.whole)]
        label = cond["label"][:, None]
        pick = [
            torch.where(label == 0, a, torch.where(label == 1, b, c))
            for a, b, c in zip(*(p[:2] for p in parts), strict=True)
        ]
        return Prediction(*pick)


def scores(x: np.ndarray, schedule: Schedule, t: float) -> tuple[np.ndarray, np.ndarray]:
    """∇log p(x_t) of the mixture: (B, 2), and ∇log p(x_t | k): (2, B, 2), by finite differences of log densities."""
    alpha, sigma, *_ = (float(v) for v in schedule(torch.tensor(t, dtype=torch.float64)))
    var = alpha**2 * STDS**2 + sigma**2

    def log_p(x: np.ndarray) -> np.ndarray:
        return np.stack([-((x - alpha * MEANS[k]) ** 2).sum(1) / (2 * var[k]) - np.log(var[k]) for k in range(2)])

    def gradient(f: Any) -> np.ndarray:
        h = 1e-5 * max(1.0, sigma)
        return np.stack([(f(x + h * e) - f(x - h * e)) / (2 * h) for e in np.eye(2)], -1)

    each = np.stack([gradient(lambda x, k=k: log_p(x)[k]) for k in range(2)])
    return gradient(lambda x: np.logaddexp(*log_p(x))), each


def points(schedule: Schedule, t: float) -> Tensor:
    x = torch.randn(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    alpha, sigma, *_ = schedule(torch.tensor(t, dtype=torch.float64))
    return x * torch.sqrt(alpha**2 + sigma**2)


def check_score(actual: Prediction, x: Tensor, schedule: Schedule, t: float, expected: np.ndarray) -> None:
    alpha, sigma, *_ = schedule(torch.tensor(t, dtype=torch.float64))
    score = -array(actual.eps) / float(sigma)
    np.testing.assert_allclose(score, expected, rtol=1e-5, atol=1e-6 * abs(expected).max())
    np.testing.assert_allclose(array(alpha * actual.x_0 + sigma * actual.eps), array(x), rtol=1e-9, atol=1e-9)


LABEL = torch.tensor([0, 1, 0, 1, 0, 1])


@every_schedule
@pytest.mark.parametrize("t", TIMES)
@pytest.mark.parametrize("scale", [0.0, 0.5, 2.0, 4.0])
def test_classifier_free_guidance_is_the_geometric_mixture(schedule: Schedule, t: float, scale: float) -> None:
    """∇log p(x)^{1−w} p(x | y)^w."""
    model, x = Labelled(schedule), points(schedule, t)
    whole, each = scores(array(x), schedule, t)
    mine = np.where(array(LABEL)[:, None] == 0, each[0], each[1])
    for time in (torch.tensor(t, dtype=torch.float64), torch.full((6, 1), t, dtype=torch.float64)):
        result = ClassifierFree(model, scale)(x, time, label=LABEL)
        check_score(result, x, schedule, t, (1 - scale) * whole + scale * mine)
    assert model.rows == [12, 12]  # one call for both


def test_guidance_outside_interval_or_at_scale_1_is_the_model() -> None:
    schedule, t = VP(), torch.tensor(0.3, dtype=torch.float64)
    ratio = float(schedule(t).sigma / schedule(t).alpha)
    model, x = Labelled(schedule), points(schedule, 0.3)
    plain = model(x, t, label=LABEL)
    for guided in (
        ClassifierFree(model, 1.0),
        ClassifierFree(model, 3.0, sigma_max=0.9 * ratio),
        ClassifierFree(model, 3.0, sigma_min=1.1 * ratio),
        AutoGuided(model, model, 5.0, sigma_max=0.9 * ratio),
    ):
        model.rows.clear()
        assert torch.equal(guided(x, t, label=LABEL).x_0, plain.x_0)
        assert model.rows == [6]
    inside = ClassifierFree(model, 3.0, 0.9 * ratio, 1.1 * ratio)(x, t, label=LABEL)
    assert float((inside.x_0 - plain.x_0).abs().max()) > 0.05


def test_rescaling_restores_the_deviation_of_the_estimate() -> None:
    schedule, t = VP(), torch.tensor(0.4, dtype=torch.float64)
    model, x = Labelled(schedule), points(schedule, 0.4)
    plain, wild = model(x, t, label=LABEL), ClassifierFree(model, 6.0)(x, t, label=LABEL)
    full, half = (ClassifierFree(model, 6.0, rescale=r)(x, t, label=LABEL) for r in (1.0, 0.5))
    np.testing.assert_allclose(array(full.x_0.std(1)), array(plain.x_0.std(1)), rtol=1e-9)
    np.testing.assert_allclose(array(half.x_0), array(full.x_0 + wild.x_0) / 2, rtol=1e-9)
    kernel = schedule(t)
    np.testing.assert_allclose(array(kernel.alpha * half.x_0 + kernel.sigma * half.eps), array(x), rtol=1e-9)


def test_autoguidance_extrapolates_away_from_the_weaker_model() -> None:
    schedule, t = VP(), torch.tensor(0.4, dtype=torch.float64)
    x = points(schedule, 0.4)
    good, bad = (
        Gaussian(schedule, torch.zeros(2, dtype=torch.float64), v * torch.eye(2, dtype=torch.float64))
        for v in (0.2, 0.5)
    )
    result = AutoGuided(good, bad, 2.5)(x, t)
    np.testing.assert_allclose(
        array(result.x_0), array(bad(x, t).x_0 + 2.5 * (good(x, t).x_0 - bad(x, t).x_0)), rtol=1e-9
    )
    with pytest.raises(ValueError, match="must have the schedule of the model"):
        AutoGuided(good, Gaussian(VE(), good.mean, torch.eye(2, dtype=torch.float64)))


@every_schedule
@pytest.mark.parametrize("t", TIMES)
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_classifier_guidance_is_the_posterior_score(schedule: Schedule, t: float, scale: float) -> None:
    """With the exact p(y | x_t): ∇log p(x_t | y) at w = 1, ∇log p(x_t) + w ∇log p(y | x_t) in general."""
    x = points(schedule, t)
    whole, each = scores(array(x), schedule, t)
    mine = np.where(array(LABEL)[:, None] == 0, each[0], each[1])

    def classifier(x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma, *_ = schedule(t)
        var = alpha**2 * torch.from_numpy(STDS) ** 2 + sigma**2
        apart = (
            (
                x[:, None]
                - (alpha * torch.from_numpy(MEANS) if t.ndim == 0 else alpha[:, :, None] * torch.from_numpy(MEANS))
            )
            .square()
            .sum(-1)
        )
        return -apart / (2 * var) - torch.log(var)

    means, stds = torch.from_numpy(MEANS), torch.from_numpy(STDS)
    guided = ClassifierGuided(GaussianMixture(schedule, means, stds), classifier, scale)
    for time in (torch.tensor(t, dtype=torch.float64), torch.full((6, 1), t, dtype=torch.float64)):
        with torch.no_grad():
            result = guided(x, time, label=LABEL)
        check_score(result, x, schedule, t, whole + scale * (mine - whole))


def test_classifier_guidance_vanishes_at_zero_signal() -> None:
    schedule, t = Cosine(), torch.tensor(1.0, dtype=torch.float64)
    model = GaussianMixture(schedule, torch.from_numpy(MEANS), torch.from_numpy(STDS))
    x = points(schedule, 0.9)
    guided = ClassifierGuided(model, lambda x, t: x * 100, 5.0)(x, t, label=LABEL)
    if float(schedule(t).alpha) == 0:
        assert torch.equal(guided.x_0, model(x, t).x_0)
    assert guided.x_0.isfinite().all()


@pytest.mark.parametrize("wrap", [lambda m: ClassifierFree(m, 2.0), lambda m: ClassifierGuided(m, lambda x, t: x, 2.0)])
def test_guidance_by_label_needs_labels(wrap: Any) -> None:
    with pytest.raises(ValueError, match=r"needs (labels|conditions), and got none"):
        wrap(Labelled(VP()))(torch.zeros(2, 2), torch.tensor(0.5))


@pytest.mark.parametrize(
    "bad", [{"scale": -1.0}, {"scale": math.nan}, {"sigma_min": 2.0, "sigma_max": 1.0}, {"rescale": 2.0}]
)
def test_bad_numbers_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="got"):
        ClassifierFree(Labelled(VP()), **bad)


# Correctors -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", [VP(), SubVP(), VE(0.01, 20)], ids=lambda s: type(s).__name__)
def test_a_corrector_reduces_the_error_of_a_coarse_predictor(schedule: Schedule) -> None:
    """The covariance of 20,000 samples of Gaussian data: nearer with the corrector than without, on every process."""
    flow = GaussianFlow(schedule)
    ends = schedule.time(torch.tensor([-4.0, 5.0], dtype=torch.float64)).tolist()
    grid = LogSNRGrid(12, *ends)
    rng = torch.Generator().manual_seed(0)

    def error(sampler: Sampler) -> float:
        mean, cov = flow.marginal(float(grid(schedule)[0]))
        unit = torch.randn(20_000, 2, dtype=torch.float64, generator=rng)
        x_T = torch.from_numpy(mean) + unit @ torch.from_numpy(np.linalg.cholesky(cov)).T

        def noise(x: Tensor) -> Tensor:
            return torch.randn(x.shape, dtype=x.dtype, generator=rng)

        result = array(sampler(flow.oracle, x_T, noise).x_0)
        mean, cov = flow.denoised(float(grid(schedule)[-1]))
        return float(abs(np.cov(result.T) - cov).max())

    plain = error(ReverseDiffusion(grid))
    assert error(PredictorCorrector(grid, AnnealedLangevin(0.2, 30))) < 0.5 * plain
    assert plain > 0.05


def test_annealed_langevin_has_its_known_bias() -> None:
    """For N(0, v): x ← (1 − δ/v)x + √(2δ)ε has variance 2δ/(1 − (1 − δ/v)²), which is v(1 + O(δ/v))."""
    schedule, s = VP(), torch.tensor(0.5, dtype=torch.float64)
    oracle = Gaussian(schedule, torch.zeros(1, dtype=torch.float64), torch.eye(1, dtype=torch.float64))
    sampler = PredictorCorrector(ExplicitGrid([0.5 + 1e-9, 0.5]), AnnealedLangevin(0.3, 400), DDIM)
    rng = torch.Generator().manual_seed(0)
    seen: list[Tensor] = []

    class Last(Denoiser):
        def __init__(self) -> None:
            super().__init__()
            self.schedule = schedule

        def forward(self, x_t: Tensor, t: Tensor, **cond: Tensor) -> Prediction:
            seen.append(x_t)
            prediction: Prediction = oracle(x_t, t)
            return prediction

    x_T = torch.randn(40_000, 1, dtype=torch.float64, generator=rng)
    sampler(Last(), x_T, lambda x: torch.randn(x.shape, dtype=x.dtype, generator=rng))
    delta = 2 * 0.3**2 * float(schedule(s).sigma) ** 2
    assert float(seen[-1].var()) == pytest.approx(2 * delta / (1 - (1 - delta) ** 2), rel=0.03)
    assert 2 * delta / (1 - (1 - delta) ** 2) > 1.06  # the bias is there to be seen


@pytest.mark.parametrize("schedule", [VP(), SubVP(), VE(0.01, 20)], ids=lambda s: type(s).__name__)
def test_langevin_mends_in_many_dimensions(schedule: Schedule) -> None:
    """N(0, ½²) in 128 dimensions: the variance at the end of a coarse predictor, and with Langevin steps after each."""
    oracle = Gaussian(schedule, torch.zeros(128, dtype=torch.float64), 0.25 * torch.eye(128, dtype=torch.float64))
    grid = LogSNRGrid(12, *schedule.time(torch.tensor([-4.0, 5.0], dtype=torch.float64)).tolist())
    rng = torch.Generator().manual_seed(0)

    def error(sampler: Sampler) -> float:
        at, end = (schedule(grid(schedule)[k]) for k in (0, -1))
        x_T = torch.randn(400, 128, dtype=torch.float64, generator=rng) * torch.sqrt(0.25 * at.alpha**2 + at.sigma**2)
        result = sampler(oracle, x_T, lambda x: torch.randn(x.shape, dtype=x.dtype, generator=rng)).x_0
        exact = (0.25 * end.alpha) ** 2 / (0.25 * end.alpha**2 + end.sigma**2)
        return abs(float(result.var() / exact) - 1)

    plain = error(ReverseDiffusion(grid))
    assert plain > 0.1
    assert error(PredictorCorrector(grid, Langevin(0.2, 30))) < 0.5 * plain


def test_langevin_steps_are_of_each_sample_alone() -> None:
    flow, x = GaussianFlow(VP()), torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    sampler = PredictorCorrector(UniformGrid(6, 0.9, 0.1))
    whole = sampler(flow.oracle, x, SampleNoise(0, range(5))).x_0
    alone = sampler(flow.oracle, x[3:4], SampleNoise(0, [3])).x_0
    np.testing.assert_allclose(array(alone), array(whole[3:4]), rtol=1e-10)


# What is known ----------------------------------------------------------------------------------------------------

MASK = (torch.arange(48).reshape(1, 3, 4, 4) % 3 == 0).double()


@pytest.mark.parametrize("operator", [Masked(MASK), Gray(3), Coarse(2)], ids=lambda o: type(o).__name__)
def test_operators_are_what_they_say(operator: Operator) -> None:
    x, other = torch.randn(2, 5, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = operator(other)
    assert float((operator(x) * y).sum()) == pytest.approx(float((x * operator.transpose(y)).sum()))
    np.testing.assert_allclose(array(operator(operator.transpose(y))), operator.gram * array(y), rtol=1e-12, atol=1e-12)
    near = operator.consistent(x, y)
    np.testing.assert_allclose(array(operator(near)), array(y), rtol=1e-9, atol=1e-12)
    assert float((near - x).norm()) <= float((other - x).norm())  # the nearest of all with A x = y


def test_reconstruction_is_exact_for_white_gaussian_data() -> None:
    """x_0 ~ N(0, d²), y = A x_0 + s ε: the posterior mean of x_0 given x_t and y, by the normal equations in numpy."""
    schedule, d, s, t = VP(), 0.7, 0.2, torch.tensor(0.4, dtype=torch.float64)
    prior = Gaussian(schedule, torch.zeros(4, dtype=torch.float64), d**2 * torch.eye(4, dtype=torch.float64))
    mask = torch.tensor([[1.0, 0.0, 1.0, 0.0]], dtype=torch.float64)
    rng = torch.Generator().manual_seed(0)
    x_t, y = (
        torch.randn(3, 4, dtype=torch.float64, generator=rng),
        mask * torch.randn(3, 4, dtype=torch.float64, generator=rng),
    )
    actual = Reconstructing(prior, Masked(mask), y, noise=s, data_std=d)(x_t, t).x_0
    alpha, sigma, *_ = (float(v) for v in schedule(t))
    precision = np.diag(1 / d**2 + alpha**2 / sigma**2 + array(mask)[0] / s**2)
    expected = np.linalg.solve(precision, (alpha / sigma**2 * array(x_t) + array(y) / s**2).T).T
    np.testing.assert_allclose(array(actual), expected, rtol=1e-9)


def test_repeats_move_the_unknown_part_to_its_posterior() -> None:
    """Correlated Gaussian, first axis known: E[x₂ | x₁]; replacement alone falls short of it, RePaint does not."""
    schedule, mean, cov = VP(), np.zeros(2), np.array([[1.0, 0.9], [0.9, 1.0]])
    oracle = Gaussian(schedule, torch.from_numpy(mean), torch.from_numpy(cov))
    known = torch.tensor([[1.5, 0.0]], dtype=torch.float64)
    rng = torch.Generator().manual_seed(0)

    def unknown(repeats: int) -> tuple[float, float]:
        sampler = Replacement(
            Ancestral(UniformGrid(60, 1.0, 1e-3)),
            Masked(torch.tensor([[1.0, 0.0]], dtype=torch.float64)),
            known,
            repeats,
        )
        x_T = torch.randn(4000, 2, dtype=torch.float64, generator=rng)
        x = sampler(oracle, x_T, lambda x: torch.randn(x.shape, dtype=x.dtype, generator=rng)).x_0
        assert float((x[:, 0] - 1.5).abs().max()) < 0.25
        return float(x[:, 1].mean()), float(x[:, 1].std())

    exact = 0.9 * 1.5
    once, often = unknown(1), unknown(20)
    assert abs(once[0] - exact) > 0.1
    assert abs(often[0] - exact) < 0.06
    assert often[1] == pytest.approx(math.sqrt(1 - 0.9**2), abs=0.13)


# Encoding ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("build", "order"), [(DDIM, 1), (Heun, 2), (DPMpp, 2)])
def test_encode_decode_error_has_the_order_of_the_solver(build: Any, order: int) -> None:
    mixture = GaussianMixture(VP(), torch.from_numpy(MEANS), torch.from_numpy(STDS))
    x_0 = torch.tensor([[0.9, 0.1], [-0.6, 0.7], [1.4, -0.8]], dtype=torch.float64)

    def error(steps: int) -> float:
        sampler = build(LogSNRGrid(steps, 0.99, 1e-3))
        back = sampler(mixture, sampler.encode(mixture, x_0)).x_0
        return float((back - x_0).abs().max())

    errors = [error(n) for n in (40, 80, 160)]
    assert errors[-1] < 0.05
    assert np.log2(errors[1] / errors[2]) > order - 0.3


def test_a_latent_is_that_of_the_probability_flow() -> None:
    flow, grid = GaussianFlow(VP()), LogSNRGrid(200, 0.99, 1e-4)
    x_0 = np.array([[0.4, 0.2], [1.1, -0.9]])
    latent = Heun(grid).encode(flow.oracle, torch.from_numpy(x_0))
    np.testing.assert_allclose(array(latent), flow.flow(x_0, 0.0, 0.99), atol=0.01)


@pytest.mark.parametrize("build", [Ancestral, lambda grid: DDIM(grid, 1.0), PredictorCorrector])
def test_noise_cannot_be_encoded(build: Any) -> None:
    grid: Grid = UniformGrid(5, 0.9, 0.1)
    with pytest.raises(ValueError, match="encoding needs a deterministic sampler"):
        build(grid).encode(GaussianFlow(VP()).oracle, torch.zeros(1, 2, dtype=torch.float64))


def test_the_adaptive_solver_encodes_to_its_tolerance() -> None:
    flow, sampler = GaussianFlow(VP()), AdaptiveODE(UniformGrid(2, 0.99, 1e-4), 1e-8, 1e-8)
    x_0 = np.array([[0.4, 0.2], [1.1, -0.9]])
    latent = sampler.encode(flow.oracle, torch.from_numpy(x_0))
    np.testing.assert_allclose(array(latent), flow.flow(x_0, 0.0, 0.99), atol=1e-3)
    np.testing.assert_allclose(array(sampler(flow.oracle, latent).x_0), x_0, atol=1e-3)
