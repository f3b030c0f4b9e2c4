"""Gaussian random fields in 1, 2 and 3 dimensions: spectra and conditional means of samples against closed forms."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffusion_pl.denoisers import (
    Clipped,
    Gaussian,
    GaussianField,
    GaussianMixture,
    Magnitude,
    Masked,
    MomentMatched,
    radial,
)
from diffusion_pl.denoisers.posterior import conjugate_gradients
from diffusion_pl.metrics.fields import FieldStatistics
from diffusion_pl.samplers import DDIM, DPS, Ancestral, DPMpp, ExplicitGrid, LogSNRGrid, Sampler, UniformGrid
from diffusion_pl.schedules import VP, Karras, Rectified

SIZES = [(16,), (8, 6), (4, 4, 4)]
every_size = pytest.mark.parametrize("sizes", SIZES, ids=str)


def spectrum(sizes: tuple[int, ...]) -> Tensor:
    """Two channels of other slopes, of unit variance each."""
    both = torch.cat([radial(sizes, lambda k: (1 + k**2) ** -1), radial(sizes, lambda k: torch.exp(-0.5 * k))])
    return both / both.flatten(1).mean(1).reshape(2, *[1] * len(sizes))


def covariance(power: Tensor) -> NDArray[Any]:
    """Of the flattened field of one channel: a block-circulant matrix made of the inverse FFT of P, by numpy."""
    first = np.fft.ifftn(power.numpy()).real
    places = np.stack(np.unravel_index(np.arange(first.size), first.shape))
    shifts = places[:, :, None] - places[:, None, :]
    block: NDArray[Any] = first[tuple(shift % size for shift, size in zip(shifts, first.shape, strict=True))]
    return block


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@every_size
@pytest.mark.parametrize("schedule", [VP(), Rectified(), Karras()], ids=lambda s: type(s).__name__)
def test_denoiser_equals_the_dense_gaussian(sizes: tuple[int, ...], schedule: VP) -> None:
    power, t = spectrum(sizes), torch.tensor(0.4, dtype=torch.float64)
    field = GaussianField(schedule, power, mean=0.3)
    x_t = normal(3, 2, *sizes)
    made = field(x_t, t)
    for c in range(2):
        cov = torch.from_numpy(covariance(power[c]))
        dense = Gaussian(schedule, torch.full((len(cov),), 0.3, dtype=torch.float64), cov)(x_t[:, c].flatten(1), t)
        np.testing.assert_allclose(made.x_0[:, c].flatten(1), dense.x_0, rtol=1e-8, atol=1e-10)
        np.testing.assert_allclose(made.eps[:, c].flatten(1), dense.eps, rtol=1e-8, atol=1e-10)
    # A time for each sample is the same as each time alone.
    times = torch.tensor([0.2, 0.4, 0.9], dtype=torch.float64).reshape(-1, *[1] * (len(sizes) + 1))
    np.testing.assert_allclose(field(x_t, times).x_0[1], made.x_0[1], rtol=1e-12)


@every_size
@pytest.mark.parametrize("build", [Ancestral, DPMpp], ids=lambda s: s.__name__)
def test_samples_have_the_spectrum(sizes: tuple[int, ...], build: type[Sampler]) -> None:
    """Each shell within 5 standard errors of the known power and 3 % of discretisation."""
    power, n = spectrum(sizes), 800
    field = GaussianField(VP(), power)
    steps = 40 if build is DPMpp else 120
    sampler = build(LogSNRGrid(steps, 1.0, 1e-4))
    rng = torch.Generator().manual_seed(0)
    x_T = sampler.prior(field.schedule, torch.randn(n, *field.power.shape, dtype=torch.float64, generator=rng))
    x = sampler(field, x_T, lambda x: torch.randn(x.shape, dtype=x.dtype, generator=rng)).x_0
    for drawn in (x, field.draw(n, rng)):
        statistics = FieldStatistics(drawn.shape[1:])
        statistics.update(drawn)
        shells = statistics.shells
        full = np.abs(np.stack(np.meshgrid(*(np.fft.fftfreq(s) * max(sizes) for s in sizes), indexing="ij")))
        radius = np.rint(np.sqrt((full**2).sum(0)))
        expected = np.stack([power.numpy()[:, radius == k].mean(1) for k in shells.k.tolist()], 1)
        made = statistics.compute().power.numpy()
        slack = 0.03 + 5 * np.sqrt(2 / (n * np.minimum(shells.modes.numpy(), 2)))
        assert np.all(np.abs(made / expected - 1) < slack)
        assert float(statistics.compute().kurtosis.abs().max()) < 0.3


def test_spectra_that_make_no_real_field_are_refused() -> None:
    with pytest.raises(ValueError, match="symmetric"):
        GaussianField(VP(), torch.arange(8.0)[None])
    with pytest.raises(ValueError, match="at least 0"):
        GaussianField(VP(), -torch.ones(1, 8))


# The posterior ----------------------------------------------------------------------------------------------------


def posterior(power: Tensor, a: np.ndarray, y: np.ndarray, s: float) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of a one-channel field given y = a x + s ε, by the normal equations."""
    cov = covariance(power[0])
    gain = cov @ a.T @ np.linalg.inv(a @ cov @ a.T + s**2 * np.eye(len(a)))
    return gain @ y, cov - gain @ a @ cov


@pytest.mark.parametrize("noise", [0.3, 0.0])
@every_size
def test_moment_matching_is_exact_for_linear_observations(sizes: tuple[int, ...], noise: float) -> None:
    """E[x_0 | x_t, y] at a time, of a mask and of means of pairs: x_t is one more observation of x_0."""
    power, n = spectrum(sizes)[:1], math.prod(sizes)
    a = np.eye(n)[1 : n // 2 : 2] + np.eye(n)[: n // 2 - 1 : 2]
    a = a[: n // 4]
    matrix = torch.from_numpy(a)
    y, x_t, t = normal(3, len(a), seed=1), normal(3, 1, *sizes), torch.tensor(0.5, dtype=torch.float64)
    schedule = VP()
    matched = MomentMatched(
        GaussianField(schedule, power), lambda x: x.flatten(1) @ matrix.T, y, noise, iterations=2 * len(a)
    )
    made = matched(x_t, t)
    alpha, sigma, *_ = (float(value) for value in schedule(t))
    cov = covariance(power[0])
    gain = alpha * cov @ np.linalg.inv(alpha**2 * cov + sigma**2 * np.eye(n))
    mean, left = x_t.flatten(1).numpy() @ gain.T, cov - alpha * gain @ cov
    to_y = left @ a.T @ np.linalg.inv(a @ left @ a.T + noise**2 * np.eye(len(a)))
    expected = mean + (y.numpy() - mean @ a.T) @ to_y.T
    np.testing.assert_allclose(made.x_0.flatten(1).numpy(), expected, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose((alpha * made.x_0 + sigma * made.eps).numpy(), x_t.numpy(), atol=1e-9)


@pytest.mark.parametrize("sizes", [(16,), (8, 6), pytest.param((4, 4, 4), marks=pytest.mark.slow)])
def test_samples_given_an_observation_are_those_of_the_posterior(sizes: tuple[int, ...]) -> None:
    """Every third value is known with noise: mean within 5 standard errors, standard deviations 3 % on average."""
    power, n, s = spectrum(sizes)[:1], math.prod(sizes), 0.2
    mask = torch.zeros(n, dtype=torch.float64)
    mask[::3] = 1
    y = mask * normal(n, seed=2)
    operator = Masked(mask.reshape(1, 1, *sizes))
    draws, sampler = 600, DPMpp(LogSNRGrid(40, 1.0, 1e-4))
    rng = torch.Generator().manual_seed(0)
    x_T = torch.randn(draws, 1, *sizes, dtype=torch.float64, generator=rng)
    matched = MomentMatched(
        GaussianField(VP(), power), operator, y.reshape(1, 1, *sizes), s, iterations=int(mask.sum())
    )
    x = sampler(matched, x_T, lambda x: torch.randn(x.shape, dtype=x.dtype, generator=rng)).x_0.flatten(1).numpy()
    known = np.eye(n)[mask.numpy() > 0]
    mean, cov = posterior(power, known, y.numpy()[mask.numpy() > 0], s)
    std = np.sqrt(np.diag(cov))
    assert np.abs(mean).max() > 1
    assert np.all(np.abs(x.mean(0) - mean) < 5 * std / math.sqrt(draws) + 0.02)
    np.testing.assert_allclose(x.std(0), std, rtol=0.15)
    assert np.mean(x.std(0) / std) == pytest.approx(1, abs=0.03)


def test_moment_matching_of_a_mixture_and_a_nonlinear_sensor() -> None:
    """A bimodal value seen through tanh, with noise: mean and standard deviation against quadrature."""
    mixture = GaussianMixture(VP(), torch.tensor([[-1.0], [1.5]]).double(), torch.tensor([0.3, 0.4]).double())
    sensor, y, s = Clipped(-2, 2), torch.tensor([[0.9]], dtype=torch.float64), 0.3
    grid = np.linspace(-4, 5, 20_001)
    prior = sum(np.exp(-0.5 * ((grid - m) / d) ** 2) / d for m, d in ((-1, 0.3), (1.5, 0.4)))
    density = prior * np.exp(-0.5 * ((0.9 - 2 * np.tanh(grid / 2)) / s) ** 2)
    density /= density.sum()
    mean = (density * grid).sum()
    std = np.sqrt((density * (grid - mean) ** 2).sum())
    matched = MomentMatched(mixture, sensor, y, s, iterations=1)
    rng = torch.Generator().manual_seed(0)
    x_T = torch.randn(3000, 1, dtype=torch.float64, generator=rng)
    x = DDIM(LogSNRGrid(100, 1.0, 1e-4), 1.0)(
        matched, x_T, lambda x: torch.randn(x.shape, dtype=x.dtype, generator=rng)
    ).x_0
    assert float(x.mean()) == pytest.approx(mean, abs=0.1)
    assert float(x.std()) == pytest.approx(std, abs=0.1)


def test_conjugate_gradients_solve_each_sample() -> None:
    a = normal(4, 6, 6)
    a = a @ a.transpose(1, 2)
    a[3] = torch.diag(torch.tensor([1.0, 2, 3, 0, 0, 0], dtype=torch.float64))  # singular, with a solution
    b = normal(4, 6, seed=1)
    b[2] = 0
    b[3, 3:] = 0
    x = conjugate_gradients(lambda v: torch.einsum("bij,bj->bi", a, v), b, 40)
    np.testing.assert_allclose(torch.einsum("bij,bj->bi", a, x).numpy(), b.numpy(), atol=1e-8)
    assert torch.equal(x[2], torch.zeros(6, dtype=torch.float64))


def test_a_step_of_dps_is_that_of_the_paper() -> None:
    """Chung et al., Alg. 1, for a Gaussian, whose ∂x̂_0/∂x_t is a known matrix, and A(x) = x²: by numpy."""
    schedule = VP()
    cov = np.array([[1.0, 0.6], [0.6, 0.8]])
    prior = Gaussian(schedule, torch.zeros(2, dtype=torch.float64), torch.from_numpy(cov))
    t, s = torch.tensor([0.5, 0.4], dtype=torch.float64)
    y, x_t, noise = normal(3, 2, seed=1).square(), normal(3, 2), normal(3, 2, seed=2)
    grid = ExplicitGrid([0.5, 0.4])
    drawn = DPS(grid, torch.square, y, scale=0.7)(prior, x_t, lambda x: noise, path=True).path
    plain = Ancestral(grid)(prior, x_t, lambda x: noise, path=True).path
    assert drawn is not None and plain is not None
    alpha, sigma, *_ = (float(value) for value in schedule(t))
    jacobian = alpha * cov @ np.linalg.inv(alpha**2 * cov + sigma**2 * np.eye(2))
    x_0 = x_t.numpy() @ jacobian.T
    rest = y.numpy() - x_0**2
    gradient = (-4 * rest * x_0) @ jacobian  # of ‖y − x_0²‖²
    expected = plain.x[1].numpy() - 0.7 * gradient / np.linalg.norm(rest, axis=1, keepdims=True)
    np.testing.assert_allclose(drawn.x[1].numpy(), expected, rtol=1e-9)
    assert float(s) == pytest.approx(0.4)


@every_size
def test_dps_agrees_with_nonlinear_measurements(sizes: tuple[int, ...]) -> None:
    """Of Fourier magnitudes the residual is far below that of samples which do not know them."""
    field = GaussianField(VP(), spectrum(sizes)[:1])
    truth = field.draw(4, torch.Generator().manual_seed(1))
    y = Magnitude()(truth)
    np.testing.assert_allclose(
        y.numpy(), np.abs(np.fft.fftn(truth.numpy(), axes=range(2, truth.ndim), norm="ortho")), atol=1e-5
    )
    rng = torch.Generator().manual_seed(0)
    x_T = torch.randn(truth.shape, dtype=torch.float64, generator=rng)

    def error(sampler: Sampler) -> float:
        x = sampler(field, x_T, lambda x: torch.randn(x.shape, dtype=x.dtype, generator=rng)).x_0
        assert not x.requires_grad
        return float((Magnitude()(x) - y).square().mean().sqrt())

    grid = UniformGrid(150, 1.0, 1e-3)
    assert error(DPS(grid, Magnitude(), y, scale=0.2)) < 0.35 * error(Ancestral(grid))


def test_bad_arguments_are_refused() -> None:
    field, y = GaussianField(VP(), torch.ones(1, 4)), torch.zeros(1, 1, 4)
    with pytest.raises(ValueError, match="noise"):
        MomentMatched(field, torch.abs, y, noise=-1)
    with pytest.raises(ValueError, match="scale"):
        DPS(UniformGrid(4), torch.abs, y, scale=-1)
    with pytest.raises(ValueError, match="below"):
        Clipped(1, 1)
