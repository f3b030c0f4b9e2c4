"""Weightings against the KL divergences, published losses and limits that they stand for."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from conftest import INNER, SCHEDULES, array, instances, weigh
from scipy.integrate import quad
from torch.distributions import Normal, kl_divergence

from diffusion_pl.losses import P2, SNR, ChainELBO, FlowMatching, Likelihood, MinSNR, SoftMinSNR, Weighting
from diffusion_pl.schedules import VE, VP, Cosine, Karras, LinearBetas, Rectified, Schedule, SubVP

every_schedule = pytest.mark.parametrize("schedule", SCHEDULES)
every_weighting = pytest.mark.parametrize("weighting", instances(Weighting))


def times(dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.tensor(INNER, dtype=dtype)


@every_schedule
@every_weighting
def test_weights_are_positive_and_shaped_like_t(schedule: Schedule, weighting: Weighting) -> None:
    plain = weigh(weighting, schedule, times())
    assert (plain > 0).all()
    assert plain.isfinite().all()
    assert torch.equal(weigh(weighting, schedule, times().reshape(4, 2, 1, 1)), plain.reshape(4, 2, 1, 1))
    assert weigh(weighting, schedule, times()[2]).shape == ()


@every_schedule
@every_weighting
def test_weights_are_defined_up_to_t_1(schedule: Schedule, weighting: Weighting) -> None:
    """t = 1 is drawn by discrete times; α = 0 there for some processes, and no weight may become 0/0."""
    end, before = weigh(weighting, schedule, torch.tensor([1.0, 1 - 1e-8], dtype=torch.float64))
    assert end.item() == pytest.approx(before.item(), rel=1e-4, abs=1e-7)


@every_schedule
@every_weighting
def test_weights_in_single_precision(schedule: Schedule, weighting: Weighting) -> None:
    t = torch.tensor([1.03e-5, 1e-3, *INNER])
    single, double = weigh(weighting, schedule, t), weigh(weighting, schedule, t.double())
    assert single.dtype == torch.float32
    np.testing.assert_allclose(array(single), array(double), rtol=2e-3)


@every_schedule
def test_snr_family(schedule: Schedule) -> None:
    t = times()
    kernel = schedule(t)
    snr = array(kernel.alpha) ** 2 / array(kernel.sigma) ** 2
    np.testing.assert_allclose(array(weigh(SNR(), schedule, t)), snr, rtol=1e-10)
    np.testing.assert_allclose(array(weigh(SNR(2.5), schedule, t)), snr + 2.5, rtol=1e-10)
    for gamma in (0.7, 5.0):
        low = np.minimum(snr, gamma)
        np.testing.assert_allclose(array(weigh(MinSNR(gamma), schedule, t)), low, rtol=1e-10)
        soft = array(weigh(SoftMinSNR(gamma), schedule, t))
        np.testing.assert_allclose(1 / soft, 1 / snr + 1 / gamma, rtol=1e-9)  # harmonic
        assert (soft <= low).all()
        assert (soft >= low / 2).all()
    np.testing.assert_allclose(array(weigh(P2(k=3.0, gamma=0), schedule, t)), snr, rtol=1e-10)
    np.testing.assert_allclose(
        array(weigh(P2(gamma=1), schedule, t)), array(weigh(SoftMinSNR(1), schedule, t)), rtol=1e-9
    )
    log = np.log(array(weigh(P2(k=0.5, gamma=2), schedule, t)))
    np.testing.assert_allclose(log, np.log(snr) - 2 * np.log(snr + 0.5), rtol=1e-8, atol=1e-8)


def test_p2_of_a_variance_preserving_schedule_is_alpha_squared() -> None:
    np.testing.assert_allclose(array(weigh(P2(), VP(), times())), array(VP()(times()).alpha) ** 2, rtol=1e-9)


@every_schedule
def test_flow_matching_weighs_the_error_of_the_velocity(schedule: Schedule) -> None:
    """x_0 off by δ at the same x_t moves the velocity of the pair by √w δ."""
    t = times()
    kernel, x_0, x_t, delta = schedule(t), 0.3, 0.9, 0.01

    def velocity(guess: float) -> torch.Tensor:
        return kernel.d_alpha * guess + kernel.d_sigma * (x_t - kernel.alpha * guess) / kernel.sigma

    change = (velocity(x_0 + delta) - velocity(x_0)) / delta
    np.testing.assert_allclose(array(weigh(FlowMatching(), schedule, t)), array(change) ** 2, rtol=1e-7)


def test_a_clipped_velocity_divides_by_no_less_than_the_clip() -> None:
    """JiT's v-loss: (x̂_0 − x_t)/max(σ, clip) against (x_0 − x_t)/max(σ, clip), on a straight path."""
    t = torch.tensor([1e-4, 0.02, 0.05, 0.3, 1.0], dtype=torch.float64)
    weight = weigh(FlowMatching(clip=0.05), Rectified(), t)
    np.testing.assert_allclose(array(weight), [400, 400, 400, 1 / 0.09, 1], rtol=1e-9)
    np.testing.assert_allclose(array(weigh(FlowMatching(), Rectified(), t)), array(t) ** -2, rtol=1e-9)
    with pytest.raises(ValueError, match="clip must be at least 0"):
        FlowMatching(-1.0)


# Likelihood bounds ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("table", [LinearBetas(20, 1e-3, 0.4), LinearBetas(200, 1e-4, 0.1)], ids=["20", "200"])
def test_chain_elbo_is_the_kl_of_each_step(table: LinearBetas) -> None:
    """KL(q(x_{i−1} | x_i, x_0) ‖ p) of Ho et al., with their arithmetic, times T; the first step is a decoder."""
    steps = table.steps
    beta = np.linspace(*{20: (1e-3, 0.4), 200: (1e-4, 0.1)}[steps], steps)
    alpha_bar = np.cumprod(1 - beta)
    before = np.concatenate([[1.0], alpha_bar[:-1]])
    t = torch.arange(1, steps + 1, dtype=torch.float64) / steps
    weight = array(weigh(ChainELBO(steps), table, t))
    x_0, guess = 0.8, 0.35
    for i in range(1, steps):  # code index: step i + 1
        x_t = math.sqrt(alpha_bar[i]) * x_0 + 0.4
        first = math.sqrt(before[i]) * beta[i] / (1 - alpha_bar[i])
        second = math.sqrt(1 - beta[i]) * (1 - before[i]) / (1 - alpha_bar[i])
        std = torch.tensor(math.sqrt((1 - before[i]) / (1 - alpha_bar[i]) * beta[i]), dtype=torch.float64)
        kl = kl_divergence(Normal(first * x_0 + second * x_t, std), Normal(first * guess + second * x_t, std))
        assert weight[i] * (guess - x_0) ** 2 / steps == pytest.approx(float(kl), rel=1e-6)
    # −log N(x_0; x̂_0, (1 − ᾱ_1)/ᾱ_1) above its least value
    decoder = Normal(torch.tensor(guess), torch.tensor(math.sqrt((1 - alpha_bar[0]) / alpha_bar[0])))
    excess = decoder.log_prob(torch.tensor(guess)) - decoder.log_prob(torch.tensor(x_0))
    assert weight[0] * (guess - x_0) ** 2 / steps == pytest.approx(float(excess), rel=1e-4)


def test_chain_elbo_is_ddpms_weight_of_the_noise() -> None:
    """Ho et al., Eq. 12, with σ_i² = β̃_i:  β_i²/(2 β̃_i (1 − β_i)(1 − ᾱ_i)) on ‖ε − ε̂‖²."""
    beta = np.linspace(1e-4, 0.02, 1000)
    alpha_bar = np.cumprod(1 - beta)
    tilde = beta[1:] * (1 - alpha_bar[:-1]) / (1 - alpha_bar[1:])
    published = beta[1:] ** 2 / (2 * tilde * (1 - beta[1:]) * (1 - alpha_bar[1:]))
    t = torch.arange(2, 1001, dtype=torch.float64) / 1000
    on_eps = array(weigh(ChainELBO(1000), LinearBetas(1000), t)) * (1 - alpha_bar[1:]) / alpha_bar[1:] / 1000
    np.testing.assert_allclose(on_eps, published, rtol=1e-6)


@pytest.mark.parametrize(
    "schedule", [VP(), SubVP(), VE(), Cosine(), Karras(), Rectified()], ids=lambda s: type(s).__name__
)
def test_likelihood_is_the_limit_of_the_chain(schedule: Schedule) -> None:
    t = torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
    limit = array(weigh(Likelihood(), schedule, t))
    error = np.array([array(weigh(ChainELBO(steps), schedule, t)) / limit - 1 for steps in (1000, 2000, 4000)])
    np.testing.assert_allclose(np.log2(error[:-1] / error[1:]), 1, atol=0.05)  # first order in 1/T
    assert abs(error[-1]).max() < 0.02


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_likelihood_is_the_slope_of_the_snr(schedule: Schedule) -> None:
    t = times().requires_grad_()
    kernel = schedule(t)
    (slope,) = torch.autograd.grad((kernel.alpha / kernel.sigma).square().sum(), t)
    weight = array(weigh(Likelihood(), schedule, t))
    np.testing.assert_allclose(weight, -0.5 * array(slope), rtol=1e-8)
    # Song et al.: g² on the score; an x_0 error δ is a score error αδ/σ².
    np.testing.assert_allclose(weight, array(0.5 * kernel.diffusion_sq * kernel.alpha**2 / kernel.sigma**4), rtol=1e-8)


@pytest.mark.parametrize("schedule", [VP(), VE(), Rectified()], ids=["VP", "VE", "Rectified"])
def test_both_bounds_add_up_to_the_same_total(schedule: Schedule) -> None:
    """Σ_i w_i/T telescopes and ∫ w dt integrates to ½(SNR(s) − SNR(1)), from s = 0.1 on."""
    total = 0.5 * float(schedule(torch.tensor(0.1, dtype=torch.float64)).snr - schedule(torch.ones(())).snr)
    integral, _ = quad(
        lambda t: float(weigh(Likelihood(), schedule, torch.tensor(t, dtype=torch.float64))), 0.1, 1, limit=200
    )
    assert integral == pytest.approx(total, rel=1e-6)
    chain = weigh(ChainELBO(50), schedule, torch.arange(6, 51, dtype=torch.float64) / 50).mean() * 45 / 50
    assert float(chain) == pytest.approx(total, rel=1e-6)


# Bad numbers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (lambda: SNR(-1), "plus must be at least 0, got -1"),
        (lambda: SNR(math.nan), "nan"),
        (lambda: MinSNR(0), "gamma must be positive, got 0"),
        (lambda: MinSNR(-5), "-5"),
        (lambda: SoftMinSNR(0), "gamma must be positive, got 0"),
        (lambda: SoftMinSNR(math.nan), "nan"),
        (lambda: P2(k=0), "k must be positive, got 0"),
        (lambda: P2(gamma=-0.5), "gamma must be at least 0, got -0.5"),
        (lambda: ChainELBO(0), "steps must be positive, got 0"),
        (lambda: ChainELBO(-10), "-10"),
    ],
)
def test_bad_numbers_are_refused_by_name(build: Callable[[], Weighting], named: str) -> None:
    with pytest.raises(ValueError) as caught:
        build()
    assert named in str(caught.value)
