"""The network's wrapper: what goes in, what comes out, and what it refuses."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from conftest import INNER, SCHEDULES, ExactNetwork, GaussianFlow, array, instances
from torch import Tensor, nn

from diffusion_pl.denoisers import (
    EDM,
    Data,
    Epsilon,
    LogSNR,
    NetworkDenoiser,
    NoiseInput,
    Parameterization,
    ScaledTime,
    StepIndex,
    V,
)
from diffusion_pl.schedules import VE, VP, Karras, Kernel, LinearBetas, Rectified, Schedule

every_schedule = pytest.mark.parametrize("schedule", SCHEDULES)


class Recorder(nn.Module):
    """Keeps what it was given; F = its parameter."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(0.25, dtype=dtype))

    def forward(self, x: Tensor, c_noise: Tensor, **cond: Tensor) -> Tensor:
        self.x, self.c_noise, self.cond = x, c_noise, cond
        return self.value.expand_as(x)


@every_schedule
@pytest.mark.parametrize("parameterization", instances(Parameterization))
@pytest.mark.parametrize("scalar", [True, False], ids=["t", "t per sample"])
def test_the_exact_network_gives_the_exact_denoiser(
    schedule: Schedule,
    parameterization: Parameterization,
    scalar: bool,
    near: Callable[..., None],
    device: torch.device,
    dtype: torch.dtype,
) -> None:
    oracle = GaussianFlow(schedule, dtype, device).oracle
    denoiser = NetworkDenoiser(ExactNetwork(oracle, parameterization), schedule, parameterization)
    x_t = 2 * torch.randn(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    if scalar:
        t = torch.tensor(0.4071, dtype=dtype, device=device)
    else:
        t = torch.tensor(INNER[1:-1], dtype=dtype, device=device)[:, None]
    result, exact = denoiser(x_t, t), oracle(x_t, t)
    scale = 1 + array(schedule(t).sigma / schedule(t).alpha).max()
    near(result.x_0, exact.x_0, rel=1e-9, abs=1e-11 * scale)
    near(result.eps, exact.eps, rel=1e-9, abs=1e-11 / array(schedule(t).sigma).min())


@every_schedule
@pytest.mark.parametrize("sigma_data", [0.5, 1.0])
def test_the_network_sees_unit_variance(schedule: Schedule, sigma_data: float) -> None:
    """Var[c_in x_t] = 1 for data of variance σ_d²: the widths of both parts of x_t are passed through it."""
    network = Recorder()
    denoiser = NetworkDenoiser(network, schedule, EDM(sigma_data))
    for t in torch.tensor(INNER, dtype=torch.float64):
        kernel = schedule(t)
        denoiser(torch.stack([kernel.alpha * sigma_data, kernel.sigma])[:, None], t)
        assert network.x.square().sum().item() == pytest.approx(1, rel=1e-12)


def test_variance_preserving_inputs_go_in_as_they_are() -> None:
    network, x_t = Recorder(), torch.randn(3, 2, dtype=torch.float64)
    NetworkDenoiser(network, VP(), Epsilon())(x_t, torch.tensor(0.3, dtype=torch.float64))
    np.testing.assert_allclose(array(network.x), array(x_t), rtol=1e-12)


def test_edm_input_is_that_of_the_paper() -> None:
    network, schedule = Recorder(), Karras()
    t = torch.tensor([[0.2], [0.6], [0.9]], dtype=torch.float64)
    x_t = torch.randn(3, 2, dtype=torch.float64)
    NetworkDenoiser(network, schedule, EDM(0.5), LogSNR())(x_t, t)
    sigma = array(schedule(t).sigma)
    np.testing.assert_allclose(array(network.x), array(x_t) / np.sqrt(sigma**2 + 0.25), rtol=1e-12)
    np.testing.assert_allclose(array(network.c_noise), 0.25 * np.log(sigma).ravel(), rtol=1e-12)


@pytest.mark.parametrize(
    ("noise_input", "expected"),
    [
        (None, [0.001, 0.5, 1.0]),
        (ScaledTime(1000, -1), [0, 499, 999]),
        (StepIndex(1000), [0, 499, 999]),
        (ScaledTime(999), [0.999, 499.5, 999]),
        (LogSNR(1.0), [2 * math.log(5000), 0.0, -2 * math.log(2)]),
    ],
)
def test_noise_inputs(noise_input: NoiseInput | None, expected: list[float]) -> None:
    class Fixed(VP):  # only λ matters here
        def forward(self, t: Tensor) -> Kernel:
            kernel = VP.forward(self, t)
            return kernel._replace(alpha=torch.ones_like(t), sigma=torch.where(t < 0.01, 0.0002, 2 * t))

    network, t = Recorder(), torch.tensor([[0.001], [0.5], [1.0]], dtype=torch.float64)
    NetworkDenoiser(network, Fixed(), Epsilon(), noise_input)(torch.ones(3, 2, dtype=torch.float64), t)
    assert network.c_noise.shape == (3,)
    np.testing.assert_allclose(array(network.c_noise), expected, atol=1e-9)


def test_scalar_times_are_given_to_every_sample() -> None:
    network = Recorder()
    NetworkDenoiser(network, VP(), Epsilon())(torch.ones(4, 3, 2, 2), torch.tensor(0.25))
    assert network.c_noise.tolist() == [0.25] * 4
    assert network.x.shape == (4, 3, 2, 2)


def test_conditions_reach_the_network() -> None:
    network, label = Recorder(), torch.tensor([1, 2])
    NetworkDenoiser(network, VP(), Epsilon())(torch.ones(2, 2), torch.tensor(0.3), label=label)
    assert network.cond == {"label": label}


@pytest.mark.parametrize("inner", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("outer", [torch.float32, torch.float64], ids=str)
def test_network_and_arithmetic_keep_their_precisions(inner: torch.dtype, outer: torch.dtype) -> None:
    network, schedule = Recorder(inner), Rectified()
    denoiser = NetworkDenoiser(network, schedule, V())
    x_t, t = torch.full((2, 2), 1 / 3, dtype=outer), torch.tensor(0.3, dtype=torch.float64)
    result = denoiser(x_t, t)
    assert network.x.dtype == network.c_noise.dtype == inner
    assert result.x_0.dtype == result.eps.dtype == outer
    split = 0.7 * array(result.x_0) + 0.3 * array(result.eps)
    np.testing.assert_allclose(split, array(x_t), rtol=1e-6 if outer == torch.float32 else 1e-14)


def test_raw_is_what_the_network_said() -> None:
    denoiser = NetworkDenoiser(Recorder(), VE(), Data())
    x_t, t = torch.ones(2, 3, dtype=torch.float64), torch.tensor(0.7, dtype=torch.float64)
    output, v = denoiser.raw(x_t, t, VE()(t))
    assert (output == 0.25).all()
    assert v is None
    assert (denoiser(x_t, t).x_0 == 0.25).all()  # F = x_0


@pytest.mark.parametrize("schedule", [VP(), LinearBetas(10, 0.01, 0.5)], ids=["VP", "table"])
@pytest.mark.parametrize("value", [-0.1, 1.5, math.nan])
def test_times_outside_the_schedule_are_refused(value: float, schedule: Schedule) -> None:
    denoiser = NetworkDenoiser(Recorder(), schedule, Epsilon())
    with pytest.raises(ValueError, match=rf"t must be in \[0, 1\], got {value}"):
        denoiser(torch.ones(2, 2), torch.tensor(value, dtype=torch.float64))


@pytest.mark.parametrize("shape", [(2,), (2, 2), (1, 1), (3, 1), (2, 1, 1)], ids=str)
def test_other_shapes_of_t_are_refused(shape: tuple[int, ...]) -> None:
    denoiser = NetworkDenoiser(Recorder(), VP(), Epsilon())
    with pytest.raises(ValueError) as caught:
        denoiser(torch.ones(2, 2), torch.full(shape, 0.5))
    assert str(shape) in str(caught.value)
    assert "(2, 2)" in str(caught.value)


def test_a_network_that_changes_the_shape_is_refused() -> None:
    """Broadcasting would otherwise hide it."""

    class Wide(nn.Module):
        def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
            return torch.cat((x, x, x), 1)

    denoiser = NetworkDenoiser(Wide(), VP(), Epsilon())
    with pytest.raises(ValueError, match=r"makes \(5, 3\) of x_t: \(5, 1\)"):
        denoiser(torch.zeros(5, 1), torch.tensor(0.5))
