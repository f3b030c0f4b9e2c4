"""Oracles against autograd of the marginals' log densities, quadrature, and brute force over the data."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from conftest import INNER, SCHEDULES, array
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from diffusion_pl.denoisers import Denoiser, Gaussian, GaussianMixture, empirical
from diffusion_pl.schedules import VE, VP, Karras, Rectified, Schedule

every_schedule = pytest.mark.parametrize("schedule", SCHEDULES)

MEAN = torch.tensor([0.7, -0.4], dtype=torch.float64)
COV = torch.tensor([[0.9, 0.35], [0.35, 0.4]], dtype=torch.float64)
MEANS = torch.tensor([[2.0, 0.0], [-1.0, 1.5], [0.0, -2.0]], dtype=torch.float64)
STDS = torch.tensor([0.3, 0.8, 0.1], dtype=torch.float64)
WEIGHTS = [0.5, 0.2, 0.3]


def gaussian(schedule: Schedule, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu") -> Gaussian:
    return Gaussian(schedule, MEAN.to(device, dtype), COV.to(device, dtype))


def mixture(
    schedule: Schedule, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu"
) -> GaussianMixture:
    return GaussianMixture(schedule, MEANS.to(device, dtype), STDS.to(device, dtype), WEIGHTS)


def marginal(kind: Callable[..., Denoiser], alpha: Tensor, sigma: Tensor) -> torch.distributions.Distribution:
    """q(x_t), built by torch.distributions."""
    eye = torch.eye(2, dtype=torch.float64)
    if kind is gaussian:
        return MultivariateNormal(alpha * MEAN, alpha**2 * COV + sigma**2 * eye)
    covs = (alpha**2 * STDS**2 + sigma**2)[:, None, None] * eye
    return MixtureSameFamily(
        Categorical(torch.tensor(WEIGHTS, dtype=torch.float64)), MultivariateNormal(alpha * MEANS, covs)
    )


@every_schedule
@pytest.mark.parametrize("kind", [gaussian, mixture])
def test_noise_is_the_score_of_the_marginal(
    schedule: Schedule,
    kind: Callable[..., Denoiser],
    near: Callable[..., None],
    device: torch.device,
    dtype: torch.dtype,
) -> None:
    """∇ log q(x_t) = −ε̂/σ, and x̂_0 by Tweedie's formula."""
    rng = torch.Generator().manual_seed(0)
    for value in INNER:
        t = torch.tensor(value, dtype=torch.float64)
        alpha, sigma, *_ = schedule(t)
        distribution = marginal(kind, alpha, sigma)
        x_t = (alpha * MEANS[:1] + 2 * sigma * torch.randn(7, 2, dtype=torch.float64, generator=rng)).requires_grad_()
        (score,) = torch.autograd.grad(distribution.log_prob(x_t).sum(), x_t)
        result = kind(schedule, dtype, device)(x_t.detach().to(device, dtype), t)
        near(result.eps, -score * sigma, rel=1e-7, abs=1e-8)
        scale = float(1 + sigma / alpha)
        near(result.x_0, (x_t + sigma**2 * score) / alpha, rel=1e-7, abs=1e-8 * scale)
        split = alpha.item() * array(result.x_0) + sigma.item() * array(result.eps)
        near(split, x_t, rel=1e-9, abs=1e-9)


@every_schedule
def test_mixture_is_the_posterior_mean_by_quadrature(schedule: Schedule) -> None:
    """E[x_0 | x_t] = ∫ x_0 q(x_t | x_0) p(x_0) / ∫ q(x_t | x_0) p(x_0) on a line, p a density of two bumps."""
    x_0 = np.linspace(-6, 6, 100_001)
    density = (
        0.7 * np.exp(-((x_0 - 1) ** 2) / (2 * 0.3**2)) / 0.3 + 0.3 * np.exp(-((x_0 + 2) ** 2) / (2 * 0.5**2)) / 0.5
    )
    oracle = GaussianMixture(
        schedule,
        torch.tensor([[1.0], [-2.0]], dtype=torch.float64),
        torch.tensor([0.3, 0.5], dtype=torch.float64),
        [7.0, 3.0],
    )
    for value in (0.1057, 0.5071, 0.9137):
        t = torch.tensor(value, dtype=torch.float64)
        alpha, sigma = (v.item() for v in schedule(t)[:2])
        for data, noise in ((-2.0, 0.4), (0.1, -1.2), (1.4, 1.7)):
            x_t = alpha * data + sigma * noise
            log_weight = np.log(density + 1e-300) - (x_t - alpha * x_0) ** 2 / (2 * sigma**2)
            weight = np.exp(log_weight - log_weight.max())
            expected = (weight * x_0).sum() / weight.sum()
            assert oracle(torch.tensor([[x_t]], dtype=torch.float64), t).x_0.item() == pytest.approx(expected, abs=1e-6)


@every_schedule
def test_empirical_is_the_weighted_mean_of_the_points(schedule: Schedule) -> None:
    rng = np.random.default_rng(0)
    points = rng.normal(size=(50, 3))
    for value in INNER:
        t = torch.tensor(value, dtype=torch.float64)
        alpha, sigma = (v.item() for v in schedule(t)[:2])
        x_t = alpha * points[:5] + sigma * rng.normal(size=(5, 3))
        actual = empirical(schedule, torch.from_numpy(points))(torch.from_numpy(x_t), t)
        for i in range(5):
            exponent = [-sum((x_t[i] - alpha * p) ** 2) / (2 * sigma**2) for p in points]
            weight = np.exp(np.array(exponent) - max(exponent))
            expected = (weight[:, None] * points).sum(0) / weight.sum()
            np.testing.assert_allclose(array(actual.x_0[i]), expected, rtol=1e-8, atol=1e-10)
            np.testing.assert_allclose(array(actual.eps[i]) * sigma, x_t[i] - alpha * expected, atol=1e-8 * (1 + sigma))


@every_schedule
@pytest.mark.parametrize("kind", [gaussian, mixture])
def test_a_time_per_sample_is_the_same_as_one_for_all(schedule: Schedule, kind: Callable[..., Denoiser]) -> None:
    oracle = kind(schedule)
    x_t = torch.randn(len(INNER), 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    each = oracle(x_t, torch.tensor(INNER, dtype=torch.float64)[:, None])
    for i, value in enumerate(INNER):
        alone = oracle(x_t[i : i + 1], torch.tensor(value, dtype=torch.float64))
        np.testing.assert_allclose(array(each.x_0[i]), array(alone.x_0[0]), rtol=1e-11, atol=1e-13)
        np.testing.assert_allclose(array(each.eps[i]), array(alone.eps[0]), rtol=1e-11, atol=1e-13)


def test_single_precision_at_tiny_noise() -> None:
    """At σ = 1e-4 the points are found exactly, and the noise to the rounding of x_t."""
    schedule = Karras(1e-4, 80.0)
    points = torch.randn(300, 2, generator=torch.Generator().manual_seed(0)) * 3
    eps = torch.randn(300, 2, generator=torch.Generator().manual_seed(1))
    x_t, t = points + 1e-4 * eps, torch.tensor(0.0, dtype=torch.float64)
    exact = (x_t.double() - points.double()) / 1e-4
    for oracle in (empirical(schedule, points), GaussianMixture(schedule, points, 1e-9)):
        result = oracle(x_t, t)
        assert result.x_0.dtype == result.eps.dtype == torch.float32
        np.testing.assert_allclose(array(result.x_0), array(points), atol=1e-5)
        np.testing.assert_allclose(array(result.eps), array(exact), rtol=1e-5, atol=1e-5)
    wide = Gaussian(schedule, torch.zeros(2), torch.eye(2))(x_t, t)
    np.testing.assert_allclose(array(wide.x_0), array(x_t), rtol=1e-6)
    np.testing.assert_allclose(array(wide.eps), 1e-4 * array(x_t), rtol=1e-5)


@pytest.mark.parametrize("schedule", [VP(), VE(), Rectified()], ids=lambda s: type(s).__name__)
def test_far_from_all_data_nothing_overflows(schedule: Schedule) -> None:
    points = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 5.0]])
    result = empirical(schedule, points)(torch.tensor([[1e4, 0.0]]), torch.tensor(0.02, dtype=torch.float64))
    assert result.x_0.tolist() == [[1.0, 0.0]]
    assert result.eps.isfinite().all()


def test_degenerate_gaussians() -> None:
    """A covariance without full rank: the point stays on its line, and a point mass is always found."""
    t, x_t = torch.tensor(0.5, dtype=torch.float64), torch.tensor([[3.0, -1.0]], dtype=torch.float64)
    line = Gaussian(VP(), torch.zeros(2, dtype=torch.float64), torch.ones(2, 2, dtype=torch.float64))(x_t, t).x_0
    assert line[0, 0].item() == pytest.approx(line[0, 1].item(), rel=1e-12)
    point = Gaussian(VP(), MEAN, torch.zeros(2, 2, dtype=torch.float64))(x_t, t)
    np.testing.assert_allclose(array(point.x_0[0]), array(MEAN), rtol=1e-14)


def test_pure_noise_says_the_mean() -> None:
    t, x_t = torch.tensor(1.0, dtype=torch.float64), torch.tensor([[3.0, -1.0]], dtype=torch.float64)
    np.testing.assert_allclose(array(gaussian(Rectified())(x_t, t).x_0[0]), array(MEAN), rtol=1e-12)
    expected = (torch.tensor(WEIGHTS, dtype=torch.float64)[:, None] * MEANS).sum(0)
    np.testing.assert_allclose(array(mixture(Rectified())(x_t, t).x_0[0]), array(expected), rtol=1e-12)
    np.testing.assert_allclose(array(mixture(Rectified())(x_t, t).eps), array(x_t), rtol=1e-12)


def test_one_std_for_all_and_equal_weights_by_default() -> None:
    t, x_t = torch.tensor(0.3, dtype=torch.float64), torch.tensor([[0.2, 0.1]], dtype=torch.float64)
    plain = GaussianMixture(VP(), MEANS, 0.4)(x_t, t).x_0
    spelled = GaussianMixture(VP(), MEANS, torch.full((3,), 0.4, dtype=torch.float64), [2.0, 2.0, 2.0])(x_t, t).x_0
    np.testing.assert_allclose(array(plain), array(spelled), rtol=1e-12)


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (lambda: Gaussian(VP(), MEAN, torch.eye(3)), "2x2 covariance, got (3, 3)"),
        (lambda: Gaussian(VP(), MEAN, -COV), "eigenvalue"),
        (lambda: Gaussian(VP(), MEAN, COV + torch.tensor([[0.0, 0.2], [0.0, 0.0]])), "symmetric"),
        (lambda: GaussianMixture(VP(), torch.zeros(0, 2)), "(0, 2)"),
        (lambda: GaussianMixture(VP(), torch.zeros(3)), "(3,)"),
        (lambda: GaussianMixture(VP(), MEANS, -0.5), "-0.5"),
        (lambda: GaussianMixture(VP(), MEANS, math.nan), "nan"),
        (lambda: GaussianMixture(VP(), MEANS, 0.1, [1.0, 2.0]), "3 weights, got 2"),
        (lambda: GaussianMixture(VP(), MEANS, 0.1, [1.0, -2.0, 3.0]), "-2.0"),
        (lambda: GaussianMixture(VP(), MEANS, 0.1, [1.0, math.nan, 3.0]), "nan"),
        (lambda: gaussian(VP())(MEANS, torch.tensor(1.5)), "1.5"),
        (lambda: mixture(VP())(MEANS, torch.full((3,), 0.5)), "(3,)"),
    ],
)
def test_bad_numbers_are_refused_by_name(build: Callable[[], object], named: str) -> None:
    with pytest.raises(ValueError) as caught:
        build()
    assert named in str(caught.value)
