"""Every schedule against autograd, its published SDE, the moment equations; beta schedules against DDPM arithmetic."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from conftest import INNER, SCHEDULES, array, classes
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad, solve_ivp
from scipy.special import expit

from diffusion_pl.schedules import (
    VE,
    VP,
    BetaTable,
    Cosine,
    CosineBetas,
    Karras,
    LinearBetas,
    LinearLogSNR,
    QuadraticBetas,
    Rectified,
    Schedule,
    SigmoidAlphaBars,
    SigmoidBetas,
    SubVP,
    ZeroTerminalSNR,
    posterior,
    transition,
)

every_schedule = pytest.mark.parametrize("schedule", SCHEDULES)


def at(*t: float) -> torch.Tensor:
    return torch.tensor(t, dtype=torch.float64)


# Every schedule ---------------------------------------------------------------------------------------------------


def test_all_schedules_are_found() -> None:
    result = {cls.__name__ for cls in classes(Schedule)}
    assert {"VP", "SubVP", "VE", "Cosine", "Karras", "Rectified", "LinearBetas", "ZeroTerminalSNR"} <= result


@every_schedule
def test_derivatives_are_those_of_alpha_and_sigma(schedule: Schedule) -> None:
    t = at(*INNER).requires_grad_()
    kernel = schedule(t)
    for value, derivative in ((kernel.alpha, kernel.d_alpha), (kernel.sigma, kernel.d_sigma)):
        (expected,) = torch.autograd.grad(value.sum() + 0 * t.sum(), t, retain_graph=True)
        np.testing.assert_allclose(array(derivative), array(expected), rtol=1e-8, atol=1e-300)


@every_schedule
def test_derived_quantities_are_those_of_the_schedule(schedule: Schedule) -> None:
    t, h = at(*INNER), 1e-5
    kernel, ahead, behind = schedule(t), schedule(t + h), schedule(t - h)
    variance = (ahead.sigma**2 - behind.sigma**2) / (2 * h)
    log_alpha = (ahead.alpha.log() - behind.alpha.log()) / (2 * h)
    np.testing.assert_allclose(array(kernel.drift), array(log_alpha), rtol=2e-4, atol=1e-9)
    np.testing.assert_allclose(
        array(kernel.diffusion_sq), array(variance - 2 * log_alpha * kernel.sigma**2), rtol=2e-4, atol=1e-6
    )
    snr = kernel.alpha**2 / kernel.sigma**2
    np.testing.assert_allclose(array(kernel.snr), array(snr), rtol=1e-12)
    np.testing.assert_allclose(array(kernel.logsnr), array(snr.log()), atol=1e-10)
    np.testing.assert_allclose(array(kernel.d_logsnr), array((ahead.logsnr - behind.logsnr) / (2 * h)), rtol=2e-4)


@every_schedule
def test_noise_only_grows(schedule: Schedule) -> None:
    kernel = schedule(torch.linspace(1e-4, 1, 3001, dtype=torch.float64))
    assert (kernel.logsnr.diff() < 0).all()
    assert (kernel.diffusion_sq[:-1] > 0).all()  # the last may be inf, where α = 0
    assert (kernel.alpha.diff() <= 0).all()
    assert (kernel.alpha >= 0).all()


@every_schedule
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6)], ids=str)
def test_time_inverts_logsnr(schedule: Schedule, dtype: torch.dtype, tolerance: float) -> None:
    t = torch.cat([torch.logspace(-5, -2, 20), torch.linspace(0.01, 0.999, 200)]).to(dtype)
    back = schedule.time(schedule(t).logsnr)
    assert back.dtype == dtype
    np.testing.assert_allclose(array(back), array(t), atol=tolerance)


@every_schedule
def test_closed_form_of_time_agrees_with_bisection(schedule: Schedule) -> None:
    logsnr = schedule(at(*INNER)).logsnr
    np.testing.assert_allclose(array(schedule.time(logsnr)), array(Schedule.time(schedule, logsnr)), atol=1e-12)


@every_schedule
def test_time_is_clamped_to_the_schedule(schedule: Schedule) -> None:
    beyond = schedule.time(at(-200.0, 200.0))
    assert beyond[0] == pytest.approx(1, abs=1e-9)
    assert 0 <= beyond[1] < 1e-9


@every_schedule
def test_single_precision_is_accurate_down_to_tiny_t(schedule: Schedule) -> None:
    t = torch.cat([torch.logspace(-5, -1, 60), torch.linspace(0.1104, 0.9897, 30)])
    single, double = schedule(t), schedule(t.double())
    for name in ("alpha", "sigma", "d_sigma", "d_alpha"):
        np.testing.assert_allclose(array(getattr(single, name)), array(getattr(double, name)), rtol=1e-4, err_msg=name)
    assert single.alpha.dtype == torch.float32


@every_schedule
def test_kernel_is_elementwise(schedule: Schedule) -> None:
    t = at(*INNER)
    for shape in ((8, 1, 1), (2, 4)):
        for whole, plain in zip(schedule(t.reshape(shape)), schedule(t), strict=True):
            assert torch.equal(whole, plain.reshape(shape))
    assert schedule(t[3]).alpha.shape == ()


@every_schedule
def test_prior_is_the_marginal_of_unit_data(schedule: Schedule) -> None:
    for t in (1.0, 0.5071):
        alpha, sigma, *_ = (float(v) for v in schedule(torch.tensor(t, dtype=torch.float64)))
        assert schedule.prior_std(t) == pytest.approx(math.hypot(alpha, sigma), rel=1e-12)


# Published SDEs ---------------------------------------------------------------------------------------------------


def beta(t: float) -> float:
    return 0.1 + 19.9 * t


#: dx = f x dt + g dw as each paper writes it: f(t), g²(t).
PUBLISHED: dict[str, tuple[Schedule, Callable[[float], float], Callable[[float], float]]] = {
    "VP": (VP(), lambda t: -beta(t) / 2, beta),
    "SubVP": (SubVP(), lambda t: -beta(t) / 2, lambda t: beta(t) * (1 - math.exp(-2 * quad(beta, 0, t)[0]))),
    "VE": (VE(), lambda t: 0.0, lambda t: 2 * (0.01 * 5000**t) ** 2 * math.log(5000)),
    "Karras": (  # dσ²/dt, σ = (a + bt)^7
        Karras(),
        lambda t: 0.0,
        lambda t: 14 * (80 ** (1 / 7) - 0.002 ** (1 / 7)) * (0.002 ** (1 / 7) * (1 - t) + 80 ** (1 / 7) * t) ** 13,
    ),
    "Rectified": (Rectified(), lambda t: -1 / (1 - t), lambda t: 2 * t / (1 - t)),
    # λ(0) = ∞, λ(1) = −∞: the cosine schedule proper, α = cos πt/2, for which g² = β = π tan πt/2.
    "Cosine": (
        Cosine(math.inf, -math.inf),
        lambda t: -math.pi / 2 * math.tan(math.pi * t / 2),
        lambda t: math.pi * math.tan(math.pi * t / 2),
    ),
    # VDM, App. A: g² = d/dt log(1 + e^γ) = −2f with γ = −13.3 + 18.3 t.
    "LinearLogSNR": (
        LinearLogSNR(13.3, -5.0),
        lambda t: -9.15 / (1 + math.exp(13.3 - 18.3 * t)),
        lambda t: 18.3 / (1 + math.exp(13.3 - 18.3 * t)),
    ),
}

published = pytest.mark.parametrize("name", PUBLISHED)


@published
def test_drift_and_noise_are_the_published_ones(name: str) -> None:
    schedule, drift, noise = PUBLISHED[name]
    kernel = schedule(at(*INNER))
    np.testing.assert_allclose(array(kernel.drift), [drift(t) for t in INNER], rtol=1e-9, atol=1e-300)
    np.testing.assert_allclose(array(kernel.diffusion_sq), [noise(t) for t in INNER], rtol=1e-9)


@published
def test_marginals_solve_the_published_moment_equations(name: str) -> None:
    """dm = f m,  dP = 2 f P + g²,  integrated numerically from one marginal to the next."""
    schedule, drift, noise = PUBLISHED[name]
    for start, end in ((1e-4, 0.05), (0.05, 0.6), (0.6, 0.97)):
        (alpha, sigma, *_), after = schedule(at(start)), schedule(at(end))
        solution = solve_ivp(
            lambda t, y: [drift(t) * y[0], 2 * drift(t) * y[1] + noise(t)],
            (start, end),
            [alpha.item(), sigma.item() ** 2],
            method="DOP853",
            rtol=1e-10,
            atol=1e-16,
        )
        np.testing.assert_allclose(solution.y[:, -1], [after.alpha.item(), after.sigma.item() ** 2], rtol=1e-7)


def test_vp_in_single_precision_where_one_minus_exp_fails() -> None:
    t = torch.tensor(1e-5)
    exact = math.sqrt(-math.expm1(-(float(t) * 0.1 + 19.9 * float(t) ** 2 / 2)))
    assert VP()(t).sigma.item() == pytest.approx(exact, rel=1e-6)
    log_mean = -0.25 * t**2 * (20 - 0.1) - 0.5 * t * 0.1
    naive = torch.sqrt(1 - torch.exp(2 * log_mean)).item()
    assert abs(naive / exact - 1) > 0.005  # 2.4 % or 0.6 %, as exp rounds: the test can fail


def test_ends_of_the_processes() -> None:
    one, zero = at(1.0), at(0.0)
    assert VP()(one).alpha.item() == pytest.approx(math.exp(-10.05 / 2), rel=1e-12)  # ∫β = 0.1 + 19.9/2
    assert VE()(one).sigma.item() == pytest.approx(50)
    assert VE()(zero).sigma.item() == pytest.approx(0.01)
    assert Karras()(one).sigma.item() == pytest.approx(80)
    assert Karras()(zero).sigma.item() == pytest.approx(0.002)
    assert (Rectified()(one).alpha.item(), Rectified()(one).sigma.item()) == (0, 1)
    cosine = Cosine(12.0, -9.0)
    assert cosine(at(0.0, 1.0)).logsnr.tolist() == pytest.approx([12, -9], rel=1e-9)
    for preserving in (VP(), Cosine(), LinearBetas()):
        kernel = preserving(at(*INNER))
        np.testing.assert_allclose(array(kernel.alpha**2 + kernel.sigma**2), 1, rtol=1e-12)
    vp, sub = VP()(at(*INNER)), SubVP()(at(*INNER))
    np.testing.assert_allclose(array(sub.sigma), array(vp.sigma**2), rtol=1e-12)  # Var[sub-VP] = Var[VP]²
    assert (sub.diffusion_sq < vp.diffusion_sq).all()


# Beta schedules ------------------------------------------------------------------------------------------------------

TABLES = [p for p in SCHEDULES if isinstance(p.values[0], BetaTable)]


def chain_betas(table: BetaTable) -> np.ndarray:
    """β_i from the table's own ᾱ, in float64."""
    alpha_bar = np.exp(2 * array(table.log_alpha))
    betas: np.ndarray = 1 - alpha_bar[1:] / alpha_bar[:-1]
    return betas


#: The lists of β as an independent construction gives them.
BRUTE: dict[str, tuple[BetaTable, np.ndarray]] = {
    "linear": (LinearBetas(1000), np.linspace(1e-4, 0.02, 1000)),
    "linear, 50 steps": (LinearBetas(50, 1e-4, 0.05), np.linspace(1e-4, 0.05, 50)),
    "scaled linear": (QuadraticBetas(1000, 0.00085, 0.012), np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2),
    "sigmoid": (SigmoidBetas(300, 1e-3, 0.05), 1e-3 + 0.049 * expit(np.linspace(-6, 6, 300))),
    "explicit": (BetaTable([0.1, 0.5, 0.2]), np.array([0.1, 0.5, 0.2])),
    "one step": (BetaTable([0.3]), np.array([0.3])),
    "one linear step": (LinearBetas(1, 0.25, 0.9), np.array([0.25])),
}

brute = pytest.mark.parametrize("name", BRUTE)


@brute
def test_table_is_the_ddpm_chain(name: str) -> None:
    """β, ᾱ, β̃, both posterior coefficients as Ho et al. (Eq. 4 and 7) compute them, with cumprod in float64."""
    table, betas = BRUTE[name]
    n = len(betas)
    alpha_bar = np.cumprod(1 - betas)
    before = np.concatenate([[1.0], alpha_bar[:-1]])
    i = np.arange(1, n + 1)
    at_t = table(torch.from_numpy(i / n))
    np.testing.assert_allclose(array(at_t.alpha) ** 2, alpha_bar, rtol=1e-10)
    np.testing.assert_allclose(array(at_t.sigma) ** 2, 1 - alpha_bar, rtol=1e-9)
    if n == 1:
        return
    later = slice(1, None)  # s = 0 has σ = 0: the last step is the sampler's final denoising
    at_s = table(torch.from_numpy((i[later] - 1) / n))
    at_t = table(torch.from_numpy(i[later] / n))
    np.testing.assert_allclose(array(transition(at_s, at_t).sigma_sq), betas[later], rtol=1e-6)
    np.testing.assert_allclose(array(transition(at_s, at_t).alpha), np.sqrt(1 - betas[later]), rtol=1e-9)
    from_t, from_0, var = (array(v) for v in posterior(at_s, at_t))
    np.testing.assert_allclose(var, ((1 - before) / (1 - alpha_bar) * betas)[later], rtol=1e-6)
    np.testing.assert_allclose(from_0, (np.sqrt(before) * betas / (1 - alpha_bar))[later], rtol=1e-6)
    np.testing.assert_allclose(from_t, (np.sqrt(1 - betas) * (1 - before) / (1 - alpha_bar))[later], rtol=1e-6)


@pytest.mark.parametrize("table", TABLES)
def test_log_alpha_is_linear_between_grid_points(table: BetaTable) -> None:
    n = table.steps
    assert len(table.log_alpha) == n + 1
    for i in {0, n // 2, n - 1}:
        ends = table(at(i / n, (i + 1) / n)).alpha.log()
        inside = table(at((i + 0.3) / n)).alpha.log()
        assert inside.item() == pytest.approx((0.7 * ends[0] + 0.3 * ends[1]).item(), rel=1e-9)
    assert table(at(0.0)).alpha.item() == 1
    assert ((chain_betas(table) > 0) & (chain_betas(table) < 1)).all()


def test_one_step_table() -> None:
    table = BetaTable([0.75])
    assert table(at(1.0)).alpha.item() == pytest.approx(0.5)
    assert table(at(0.5)).alpha.item() == pytest.approx(0.5**0.5)
    assert table.time(table(at(0.4)).logsnr).item() == pytest.approx(0.4)


def test_linear_betas_tend_to_vp_at_first_order() -> None:
    """β_i = β(t_i)/N gives the SDE as N grows; the error halves when N doubles."""
    t = at(0.25, 0.5, 0.75, 1.0)
    error = np.array(
        [array(LinearBetas(n, 0.1 / n, 20 / n)(t).alpha.log() - VP()(t).alpha.log()) for n in (200, 400, 800, 1600)]
    )
    np.testing.assert_allclose(np.log2(error[:-1] / error[1:]), 1, atol=0.1)
    assert abs(2 * error[-1] - error[-2]).max() < 1e-3  # nothing is left in the limit


def test_published_values_of_the_tables() -> None:
    """√ᾱ_T of Lin et al., arXiv 2305.08891, Table 1, and Nichol & Dhariwal's first and last cosine β."""
    last = {
        "linear": (LinearBetas(1000), 0.006353),
        "stable diffusion": (QuadraticBetas(1000, 0.00085, 0.012), 0.068265),
        "cosine": (CosineBetas(1000), 4.928e-05),
    }
    for name, (table, value) in last.items():
        assert table(at(1.0)).alpha.item() == pytest.approx(value, rel=2e-4), name
    betas = chain_betas(CosineBetas(1000))
    assert betas[0] == pytest.approx(4.1284e-05, rel=1e-3)
    assert betas[-1] == pytest.approx(0.999, abs=1e-6)
    # German Datasaurus introduction: ᾱ_50 = 0.280 for β up to 0.05, 0.603 for 0.02, ᾱ_25 = 0.733.
    assert LinearBetas(50, 1e-4, 0.05)(at(0.5, 1.0)).alpha.square().tolist() == pytest.approx([0.733, 0.280], abs=5e-4)
    assert LinearBetas(50, 1e-4, 0.02)(at(1.0)).alpha.item() ** 2 == pytest.approx(0.603, abs=5e-4)
    # French demo, T = 100: 0.364 for 1e-4…0.02, 2.0e-5 for ten times as much.
    assert LinearBetas(100)(at(1.0)).alpha.item() ** 2 == pytest.approx(0.364, abs=5e-4)
    assert LinearBetas(100, 1e-3, 0.2)(at(1.0)).alpha.item() ** 2 == pytest.approx(2.0e-5, rel=0.02)


def test_cosine_table_is_a_squared_cosine() -> None:
    """By the half-angle formula ᾱ(u) = (1 + cos θ_u)/(1 + cos θ_0), θ_u = π(u + s)/(1 + s)."""
    for steps, offset in ((1000, 0.008), (40, 0.05)):
        u = np.arange(1, steps) / steps
        theta = np.pi * (np.concatenate([[0], u]) + offset) / (1 + offset)
        expected = (1 + np.cos(theta)) / (1 + np.cos(theta[0]))
        alpha_bar = array(CosineBetas(steps, offset)(torch.from_numpy(u)).alpha) ** 2
        np.testing.assert_allclose(alpha_bar, expected[1:], rtol=1e-8)


def test_sigmoid_alpha_bars() -> None:
    table = SigmoidAlphaBars(1000)
    t = at(0.1, 0.25, 0.5, 0.75, 0.9)
    alpha_bar = array(table(t).alpha) ** 2
    np.testing.assert_allclose(alpha_bar + alpha_bar[::-1], 1, rtol=1e-9)  # symmetric about the middle
    tilt = SigmoidAlphaBars(1000, start=0, end=3, temperature=0.3)
    assert tilt(at(0.5)).alpha.item() ** 2 == pytest.approx((expit(10) - expit(5)) / (expit(10) - 0.5), rel=1e-9)
    linear = SigmoidAlphaBars(1000, temperature=1e3)(t).alpha.square()  # a flat logistic is a straight line
    np.testing.assert_allclose(array(linear), 1 - array(t), rtol=1e-5)


def test_sigmoid_betas_are_symmetric_between_their_asymptotes() -> None:
    betas = chain_betas(SigmoidBetas(101, 1e-3, 0.05))
    np.testing.assert_allclose(betas + betas[::-1], 0.051, rtol=1e-9)
    assert betas[0] == pytest.approx(1e-3 + 0.049 * 0.0024726, rel=1e-5)


def test_zero_terminal_snr_shifts_and_scales_the_signal() -> None:
    plain = LinearBetas(1000)
    rescaled = ZeroTerminalSNR(plain)
    t = torch.arange(1, 1000, dtype=torch.float64) / 1000
    old, new = array(plain(t).alpha), array(rescaled(t).alpha)
    slope = np.diff(new) / np.diff(old)
    np.testing.assert_allclose(slope, slope.mean(), rtol=1e-7)  # √ᾱ' is affine in √ᾱ …
    assert new[0] == pytest.approx(old[0], rel=1e-12)  # … keeps its first value …
    line = new[-1] + slope.mean() * (plain(at(1.0)).alpha.item() - old[-1])
    assert line == pytest.approx(0, abs=1e-9)  # … and ends at 0,
    assert rescaled(at(1.0)).snr.item() < 1e-11  # but for the crumb that keeps log α finite.
    assert rescaled(at(1.0)).logsnr.isfinite()
    assert torch.equal(plain.log_alpha, LinearBetas(1000).log_alpha)  # the wrapped table is untouched


def test_tables_leave_no_trace_in_checkpoints() -> None:
    table = LinearBetas(10, 0.01, 0.3)
    assert not table.state_dict()
    before = table(at(0.55)).alpha
    table.half()
    assert torch.equal(table(at(0.55)).alpha, before)


# Bad numbers ------------------------------------------------------------------------------------------------------

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (lambda: VP(-1, 20), "-1"),
        (lambda: VP(20, 0.1), "beta_min=20"),
        (lambda: VP(NAN, 20), "nan"),
        (lambda: VP(0.1, NAN), "nan"),
        (lambda: VP(0.1, INF), "inf"),
        (lambda: SubVP(0, 20), "beta_min=0"),
        (lambda: SubVP(5, 4), "beta_max=4"),
        (lambda: SubVP(0.1, INF), "inf"),
        (lambda: VE(1, 1), "sigma_min=1"),
        (lambda: VE(-0.1, 1), "-0.1"),
        (lambda: VE(0.1, NAN), "nan"),
        (lambda: VE(0.1, INF), "inf"),
        (lambda: Karras(2, 1), "sigma_min=2, sigma_max=1"),
        (lambda: Karras(0, 1), "sigma_min=0"),
        (lambda: Karras(0.1, INF), "inf"),
        (lambda: Karras(rho=0), "rho must be in [0.1, 100], got 0"),
        (lambda: Karras(rho=NAN), "nan"),
        (lambda: Cosine(-20, 20), "got 20 and -20"),
        (lambda: Cosine(NAN, -20), "nan"),
        (lambda: BetaTable([]), "at least one step"),
        (lambda: BetaTable([0.1, 1.5, 0.2]), "1.5"),
        (lambda: BetaTable([0.1, -0.25]), "-0.25"),
        (lambda: BetaTable([0.1, 0.0]), "0.0"),
        (lambda: BetaTable([NAN]), "nan"),
        (lambda: LinearBetas(0), "steps=0"),
        (lambda: LinearBetas(10, 0.02, 0.01), "0.02 and 0.01"),
        (lambda: LinearBetas(10, 0.02, 1.0), "1.0"),
        (lambda: LinearBetas(10, -0.02), "-0.02"),
        (lambda: QuadraticBetas(-3), "steps=-3"),
        (lambda: QuadraticBetas(10, -0.5, 0.5), "-0.5"),
        (lambda: SigmoidBetas(10, NAN), "nan"),
        (lambda: CosineBetas(0), "steps=0"),
        (lambda: CosineBetas(10, offset=-1), "-1"),
        (lambda: CosineBetas(10, max_beta=1), "max_beta must be in (0, 1), got 1"),
        (lambda: SigmoidAlphaBars(0), "steps=0"),
        (lambda: SigmoidAlphaBars(10, 3, -3), "got 3 and -3"),
        (lambda: SigmoidAlphaBars(10, temperature=0), "got 0"),
        (lambda: SigmoidAlphaBars(10, max_beta=NAN), "nan"),
        (lambda: ZeroTerminalSNR(BetaTable([0.5])), "got 1"),
    ],
)
def test_bad_numbers_are_refused_by_name(build: Callable[[], Schedule], named: str) -> None:
    with pytest.raises(ValueError) as caught:
        build()
    assert named in str(caught.value)


def decreasing_and_invertible(schedule: Schedule) -> None:
    t = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    logsnr = schedule(t).logsnr
    assert logsnr.isfinite().all()
    assert (logsnr.diff() < 0).all()
    np.testing.assert_allclose(array(schedule.time(logsnr)), array(t), atol=1e-7)


positive = st.floats(1e-3, 1e2)


@settings(max_examples=40, deadline=None)
@given(positive, positive, st.sampled_from([VP, SubVP]))
def test_any_valid_betas_give_a_schedule(low: float, width: float, kind: type[VP] | type[SubVP]) -> None:
    decreasing_and_invertible(kind(low / 10, low / 10 + width / 4))


@settings(max_examples=40, deadline=None)
@given(st.floats(1e-4, 1), st.floats(1.5, 1e4), st.floats(0.5, 12))
def test_any_valid_sigmas_give_a_schedule(low: float, ratio: float, rho: float) -> None:
    decreasing_and_invertible(VE(low, low * ratio))
    decreasing_and_invertible(Karras(low, low * ratio, rho))


@settings(max_examples=40, deadline=None)
@given(st.floats(-10, 30), st.floats(0.5, 40))
def test_any_valid_logsnr_range_gives_a_cosine(low: float, width: float) -> None:
    schedule = Cosine(low - 15 + width, low - 15)
    decreasing_and_invertible(schedule)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(1e-5, 0.9), min_size=1, max_size=12))
def test_any_valid_betas_give_a_table(betas: list[float]) -> None:
    table = BetaTable(betas)
    decreasing_and_invertible(table)
    np.testing.assert_allclose(chain_betas(table), betas, rtol=1e-8, atol=1e-12)
