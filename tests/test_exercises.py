"""Closed-form answers to the exercises of the VP-SDE seminar, against simulation and against the schedules.

dx = −λx dt + dβ        m = x_0 e^{−λt},  P = q/2λ (1 − e^{−2λt})
dx = sin x dt + dβ      m' = e^{−P/2} sin m,  P' = 2P e^{−P/2} cos m + q   (Gaussian assumed density)
Itô on ½x²              d(½x²) = x dx + ½ tr(GQGᵀ) dt
Wiener increments       E[dw dwᵀ] = Q dt
"""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from conftest import array
from scipy.integrate import solve_ivp

from diffusion_pl.schedules import VP, BetaTable, Kernel, Schedule, posterior, transition

PATHS = 40_000


def simulate(drift: Callable[[np.ndarray], np.ndarray], x: np.ndarray, q: float, t: float, steps: int) -> np.ndarray:
    """Euler–Maruyama paths of dx = drift(x) dt + dβ, E[dβ²] = q dt: values at t."""
    rng, dt = np.random.default_rng(0), t / steps
    for _ in range(steps):
        x = x + drift(x) * dt + math.sqrt(q * dt) * rng.normal(size=x.shape)
    return x


class OrnsteinUhlenbeck(Schedule):
    """dx = −λx dt + dβ as a schedule: the exercise's answer in the package's own terms."""

    def __init__(self, rate: float, q: float) -> None:
        super().__init__()
        self.rate, self.q = rate, q

    def forward(self, t: torch.Tensor) -> Kernel:
        alpha = torch.exp(-self.rate * t)
        var = self.q / (2 * self.rate) * -torch.expm1(-2 * self.rate * t)
        d_var = self.q * torch.exp(-2 * self.rate * t)
        return Kernel(alpha, var.sqrt(), -self.rate * alpha, d_var / (2 * var.sqrt()))


@pytest.mark.parametrize(("rate", "q", "t"), [(1.5, 0.8, 0.5), (4.0, 2.0, 1.0)])
def test_ornstein_uhlenbeck_moments(rate: float, q: float, t: float) -> None:
    x_0, steps = 1.3, 400
    end = simulate(lambda x: -rate * x, np.full(PATHS, x_0), q, t, steps)
    alpha, sigma, *_ = (v.item() for v in OrnsteinUhlenbeck(rate, q)(torch.tensor(t, dtype=torch.float64)))
    assert end.mean() == pytest.approx(x_0 * alpha, abs=4 * sigma / math.sqrt(PATHS) + x_0 * rate**2 * t / steps)
    assert end.var() == pytest.approx(sigma**2, rel=0.03)
    # The moment equations m' = −λm, P' = −2λP + q.
    moments = solve_ivp(lambda _, y: [-rate * y[0], -2 * rate * y[1] + q], (0, t), [x_0, 0.0], rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(moments.y[:, -1], [x_0 * alpha, sigma**2], rtol=1e-7)


def test_ornstein_uhlenbeck_as_a_schedule() -> None:
    """f = −λ and g² = q at every time, and N(0, q/2λ) is stationary under the package's own transition."""
    schedule = OrnsteinUhlenbeck(1.5, 0.8)
    kernel = schedule(torch.tensor([0.1, 0.4, 0.9], dtype=torch.float64))
    np.testing.assert_allclose(array(kernel.drift), -1.5, rtol=1e-12)
    np.testing.assert_allclose(array(kernel.diffusion_sq), 0.8, rtol=1e-10)
    step = transition(*(schedule(torch.tensor(t, dtype=torch.float64)) for t in (0.2, 0.7)))
    stationary = 0.8 / 3
    assert float(step.alpha**2 * stationary + step.sigma_sq) == pytest.approx(stationary, rel=1e-12)


@pytest.mark.parametrize(("mean", "var", "q"), [(0.8, 0.05, 0.3), (2.0, 0.02, 0.1)])
def test_sine_drift_closed_by_a_gaussian(mean: float, var: float, q: float) -> None:
    t = 0.5
    rng = np.random.default_rng(1)
    end = simulate(np.sin, mean + math.sqrt(var) * rng.normal(size=PATHS), q, t, 200)

    def closed(_: float, y: np.ndarray) -> list[float]:
        shrink = math.exp(-y[1] / 2)
        return [shrink * math.sin(y[0]), 2 * y[1] * shrink * math.cos(y[0]) + q]

    def linear(_: float, y: np.ndarray) -> list[float]:
        return [math.sin(y[0]), 2 * y[1] * math.cos(y[0]) + q]

    gaussian, naive = (solve_ivp(f, (0, t), [mean, var], rtol=1e-9).y[:, -1] for f in (closed, linear))
    assert end.mean() == pytest.approx(gaussian[0], abs=4 * end.std() / math.sqrt(PATHS) + 2e-3)
    assert end.var() == pytest.approx(gaussian[1], rel=0.03)
    assert abs(end.mean() - naive[0]) > 2 * abs(end.mean() - gaussian[0])  # linearisation is visibly worse


def test_steins_identities_behind_the_closure() -> None:
    """E sin x = e^{−P/2} sin m and E (x − m) sin x = P e^{−P/2} cos m, by quadrature."""
    node, weight = np.polynomial.hermite_e.hermegauss(60)
    weight = weight / weight.sum()
    for m, p in ((0.8, 0.5), (-2.0, 1.7)):
        x = m + math.sqrt(p) * node
        assert (weight * np.sin(x)).sum() == pytest.approx(math.exp(-p / 2) * math.sin(m), rel=1e-10)
        expected = p * math.exp(-p / 2) * math.cos(m)
        assert (weight * (x - m) * np.sin(x)).sum() == pytest.approx(expected, rel=1e-10)


def test_ito_on_half_x_squared() -> None:
    """Along one path of VP: ½x² is ∫ x dx + ½∫ β dt, and not ∫ x dx as ordinary calculus has it."""
    rng, steps = np.random.default_rng(0), 200_000
    dt = 1 / steps
    kernel = VP()(torch.arange(1, steps + 1, dtype=torch.float64) * dt)
    f, g_sq = array(kernel.drift), array(kernel.diffusion_sq)
    noise = rng.normal(size=steps) * np.sqrt(g_sq * dt)
    x = np.empty(steps + 1)
    x[0] = 0.5
    for i in range(steps):
        x[i + 1] = x[i] * (1 + f[i] * dt) + noise[i]
    left_sum = (x[:-1] * np.diff(x)).sum()
    gain = 0.5 * (x[-1] ** 2 - x[0] ** 2)
    correction = 0.5 * (0.1 + 19.9 / 2)  # ½∫β
    assert gain == pytest.approx(left_sum + correction, abs=0.06)
    assert abs(gain - left_sum) > 4


def test_vp_keeps_unit_variance_because_of_ito() -> None:
    """dE[x²]/dt = 2f E[x²] + g² = −β E[x²] + β: 1 is kept, and 2 decays to 1 as e^{−∫β}."""
    kernel = VP()(torch.linspace(0.01, 1, 50, dtype=torch.float64))
    np.testing.assert_allclose(array(2 * kernel.drift + kernel.diffusion_sq), 0, atol=1e-9)
    np.testing.assert_allclose(array(2 * kernel.alpha**2 + kernel.sigma**2), 1 + array(kernel.alpha) ** 2, rtol=1e-12)


def test_wiener_increments_are_of_the_size_of_the_root_of_dt() -> None:
    """E[dw dwᵀ] = Q dt with correlated Q, at two step sizes; sums of increments keep the distribution."""
    q = np.array([[1.0, 0.6], [0.6, 0.5]])
    root = np.linalg.cholesky(q)
    rng = np.random.default_rng(0)
    for dt in (1e-2, 1e-4):
        increments = math.sqrt(dt) * rng.normal(size=(200_000, 2)) @ root.T
        np.testing.assert_allclose(increments.T @ increments / len(increments) / dt, q, atol=0.02)
        joined = increments.reshape(-1, 10, 2).sum(1)
        np.testing.assert_allclose(joined.T @ joined / len(joined) / (10 * dt), q, atol=0.03)


def test_ito_with_correlated_noise() -> None:
    """E d(½|x|²) = ½ tr(GQGᵀ) dt for dx = G dw: the trace, not the sum of the entries."""
    q, g = np.array([[1.0, 0.6], [0.6, 0.5]]), np.array([[0.5, -1.0], [0.3, 0.8]])
    rng, t = np.random.default_rng(0), 0.7
    x = math.sqrt(t) * rng.normal(size=(PATHS, 2)) @ (g @ np.linalg.cholesky(q)).T
    energy = 0.5 * (x**2).sum(1)
    expected = 0.5 * np.trace(g @ q @ g.T) * t
    assert energy.mean() == pytest.approx(expected, abs=4 * energy.std() / math.sqrt(PATHS))


def test_reverse_variances_of_the_labml_notes() -> None:
    """KL(q ‖ p) between Gaussians of variances β̃ and β keeps the constant C of the seminar's corrected equality."""
    from diffusion_pl.schedules import gaussian_kl

    table = BetaTable(np.linspace(1e-4, 0.02, 1000).tolist())
    at_s, at_t = (table(torch.tensor(i / 1000, dtype=torch.float64)) for i in (1, 2))
    tilde, beta = float(posterior(at_s, at_t).var), float(transition(at_s, at_t).sigma_sq)
    shift, data_axes = 0.003, 12
    kl = gaussian_kl(
        torch.zeros(data_axes, dtype=torch.float64),
        torch.tensor(tilde),
        torch.full((data_axes,), shift, dtype=torch.float64),
        torch.tensor(beta),
    ).sum()
    d = data_axes
    expected = 0.5 * (tilde / beta * d - d + d * math.log(beta / tilde) + d * shift**2 / beta)
    assert float(kl) == pytest.approx(expected, rel=1e-6)
