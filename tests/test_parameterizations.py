"""What F means: round trips on every schedule, slopes by autograd, the papers' own definitions."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from conftest import INNER, SCHEDULES, array, instances, weigh

from diffusion_pl.denoisers import EDM, Data, Epsilon, Parameterization, Score, V, Velocity
from diffusion_pl.losses import SNR, FlowMatching, Plain
from diffusion_pl.schedules import VP, Cosine, Karras, Rectified, Schedule, SubVP

every_schedule = pytest.mark.parametrize("schedule", SCHEDULES)
every_parameterization = pytest.mark.parametrize("parameterization", instances(Parameterization))


def times(dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.tensor(INNER, dtype=dtype)[:, None]


def pairs(n: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    return tuple(torch.randn(2, n, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))


@every_schedule
@every_parameterization
def test_target_and_prediction_are_inverse(
    schedule: Schedule,
    parameterization: Parameterization,
    near: Callable[..., None],
    device: torch.device,
    dtype: torch.dtype,
) -> None:
    x_0, eps = (v.to(device, dtype) for v in pairs())
    kernel = schedule(times(dtype).to(device)[1:-1])
    x_0, eps = x_0[1:-1], eps[1:-1]
    x_t = kernel.alpha * x_0 + kernel.sigma * eps
    result = parameterization.predict(kernel, x_t, parameterization.target(kernel, x_0, eps))
    # Dividing by a small α (or σ) magnifies rounding; that is all that is allowed.
    scale = 1e-13 if dtype == torch.float64 else 1e-5
    assert ((result.x_0 - x_0).abs() <= scale * (10 + 100 * kernel.sigma / kernel.alpha)).all()
    assert ((result.eps - eps).abs() <= scale * (10 + 100 * kernel.alpha / kernel.sigma)).all()


@every_schedule
@every_parameterization
def test_any_output_splits_x_t(schedule: Schedule, parameterization: Parameterization) -> None:
    x_t, output = pairs()
    kernel = schedule(times())
    x_0, eps, _ = parameterization.predict(kernel, x_t, output)
    bound = (kernel.alpha * x_0).abs() + (kernel.sigma * eps).abs() + x_t.abs()
    assert ((kernel.alpha * x_0 + kernel.sigma * eps - x_t).abs() <= 1e-13 * bound).all()
    # and F is recovered from that split
    again = parameterization.target(kernel, x_0, eps)
    p, q = parameterization.coefficients(kernel)
    assert ((again - output).abs() <= 1e-12 * ((p * x_0).abs() + (q * eps).abs() + 1)).all()


@every_schedule
@every_parameterization
def test_c_out_is_the_slope_of_x_0(schedule: Schedule, parameterization: Parameterization) -> None:
    x_t, output = pairs()
    kernel = schedule(times())
    output.requires_grad_()
    (slope,) = torch.autograd.grad(parameterization.predict(kernel, x_t, output).x_0.sum(), output)
    np.testing.assert_allclose(array(parameterization.c_out(kernel).expand_as(slope)), array(slope), rtol=1e-10)


def test_targets_as_published() -> None:
    x_0, eps = pairs()
    t = times()
    for schedule in (VP(), SubVP(), Cosine(), Karras(), Rectified()):
        clock = t.clone().requires_grad_()
        (alpha, sigma, *_), kernel = schedule(clock), schedule(t)
        assert torch.equal(Epsilon().target(kernel, x_0, eps), eps)
        assert torch.equal(Data().target(kernel, x_0, eps), x_0)
        # Velocity: the path's own derivative, by autograd, coordinate by coordinate.
        path = alpha * x_0 + sigma * eps
        velocity = torch.cat([torch.autograd.grad(path[:, j].sum(), clock, retain_graph=True)[0] for j in range(5)], 1)
        np.testing.assert_allclose(array(Velocity().target(kernel, x_0, eps)), array(velocity), rtol=1e-10, atol=1e-12)
        # Score: ∇ log q(x_t | x_0), by autograd.
        x_t = (kernel.alpha * x_0 + kernel.sigma * eps).requires_grad_()
        distribution = torch.distributions.Normal(kernel.alpha * x_0, kernel.sigma.expand_as(x_0))
        (score,) = torch.autograd.grad(distribution.log_prob(x_t).sum(), x_t)
        np.testing.assert_allclose(array(Score().target(kernel, x_0, eps)), array(score), rtol=1e-8, atol=1e-8)


def test_v_is_the_derivative_along_the_circle() -> None:
    """Salimans & Ho: with α = cos φ, σ = sin φ, v = dx_t/dφ and x_0 = αx_t − σv."""
    phi = torch.tensor([[0.2], [0.8], [1.4]], dtype=torch.float64, requires_grad=True)
    x_0, eps = pairs(3)
    path = torch.cos(phi) * x_0 + torch.sin(phi) * eps
    v = torch.cat([torch.autograd.grad(path[:, j].sum(), phi, retain_graph=True)[0] for j in range(5)], 1)
    schedule = Cosine()
    kernel = schedule(schedule.time(-2 * phi.detach().tan().log()))
    np.testing.assert_allclose(array(V().target(kernel, x_0, eps)), array(v), rtol=1e-9)
    np.testing.assert_allclose(array(V().predict(kernel, path.detach(), v).x_0), array(x_0), atol=1e-12)


@pytest.mark.parametrize("sigma_data", [0.5, 1.7])
def test_edm_preconditioning_is_that_of_the_paper(sigma_data: float) -> None:
    """D(x; σ) = c_skip x + c_out F with Table 1's columns "ours"."""
    schedule = Karras()
    x, output = pairs()
    kernel = schedule(times())
    sigma = array(kernel.sigma)
    c_skip = sigma_data**2 / (sigma**2 + sigma_data**2)
    c_out = sigma * sigma_data / np.sqrt(sigma_data**2 + sigma**2)
    result = EDM(sigma_data).predict(kernel, x, output).x_0
    np.testing.assert_allclose(array(result), c_skip * array(x) + c_out * array(output), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(array(EDM(sigma_data).c_out(kernel)), c_out, rtol=1e-12)


@every_schedule
@pytest.mark.parametrize("sigma_data", [0.5, 1.0, 3.0])
def test_edm_targets_have_unit_variance_uncorrelated_with_input(schedule: Schedule, sigma_data: float) -> None:
    """EDM asks for Var F* = 1 and the smallest c_out, that is Cov(F*, x_t) = 0, for data of variance σ_d²."""
    kernel = schedule(times())
    p, q = EDM(sigma_data).coefficients(kernel)
    np.testing.assert_allclose(array(p**2 * sigma_data**2 + q**2), 1, rtol=1e-12)
    covariance = p * kernel.alpha * sigma_data**2 + q * kernel.sigma
    assert (covariance.abs() <= 1e-12 * (kernel.alpha * sigma_data + kernel.sigma)).all()


@every_schedule
def test_weights_in_network_space_are_one(schedule: Schedule) -> None:
    """The classical losses: SNR with ε, SNR + 1/σ_d² with EDM, the flow-matching weight with the velocity."""
    t = times()
    kernel = schedule(t)
    for weighting, parameterization in (
        (SNR(), Epsilon()),
        (SNR(4), EDM(0.5)),
        (SNR(1 / 9), EDM(3.0)),
        (FlowMatching(), Velocity()),
    ):
        effective = weigh(weighting, schedule, t) * parameterization.c_out(kernel).square()
        np.testing.assert_allclose(array(effective), 1, rtol=1e-9)
        plain = weigh(Plain(), schedule, t, parameterization)
        np.testing.assert_allclose(array(plain), array(weigh(weighting, schedule, t)), rtol=1e-9)


@pytest.mark.parametrize("schedule", [VP(), Cosine()], ids=["VP", "Cosine"])
def test_v_loss_is_snr_plus_one_where_variance_is_preserved(schedule: Schedule) -> None:
    effective = weigh(SNR(1), schedule, times()) * V().c_out(schedule(times())).square()
    np.testing.assert_allclose(array(effective), 1, rtol=1e-9)
    plain = weigh(Plain(), schedule, times(), V())
    np.testing.assert_allclose(array(plain), array(weigh(SNR(1), schedule, times())), rtol=1e-9)


@every_schedule
@pytest.mark.parametrize(
    ("weighting", "parameterization"),
    [(SNR(), Epsilon()), (SNR(4), EDM(0.5)), (FlowMatching(), Velocity())],
    ids=["epsilon", "edm", "velocity"],
)
def test_weights_in_network_space_are_one_in_single_precision(
    schedule: Schedule, weighting: SNR, parameterization: Parameterization
) -> None:
    t = torch.tensor([1e-5, 1e-4, 1e-2, 0.5, 0.97])
    effective = weigh(weighting, schedule, t) * parameterization.c_out(schedule(t)).square()
    np.testing.assert_allclose(array(effective), 1, rtol=1e-4)


def test_velocity_and_v_are_defined_at_alpha_0() -> None:
    kernel = Rectified()(torch.tensor(1.0, dtype=torch.float64))
    x_0, eps = pairs(1)
    for parameterization in (Velocity(), V(), Data(), EDM(0.5)):
        result = parameterization.predict(kernel, eps, parameterization.target(kernel, x_0, eps))
        np.testing.assert_allclose(array(result.x_0), array(x_0), rtol=1e-12)
        np.testing.assert_allclose(array(result.eps), array(eps), rtol=1e-12)


@pytest.mark.parametrize("value", [0, -0.5, math.nan, math.inf])
def test_edm_refuses_a_bad_sigma_data(value: float) -> None:
    with pytest.raises(ValueError, match=f"sigma_data .* got {value}"):
        EDM(value)
