"""The bound as a loss, and the schedule that it trains."""

import math

import pytest
import torch
from conftest import ExactNetwork
from torch import Tensor, nn

from diffusion_pl.denoisers import Epsilon, Gaussian, LogSNR, NetworkDenoiser
from diffusion_pl.losses import BoundLoss, DenoisingLoss, Likelihood, StratifiedTimes, Times
from diffusion_pl.networks import MLP
from diffusion_pl.schedules import VP, LearnedLogSNR, LinearLogSNR, Schedule

T = torch.linspace(0, 1, 11, dtype=torch.float64)


def exact(schedule: Schedule, var: float = 1.0) -> NetworkDenoiser:
    """The exact network for data N(0, var) on a line."""
    oracle = Gaussian(schedule, torch.zeros(1, dtype=torch.float64), torch.tensor([[var]], dtype=torch.float64))
    return NetworkDenoiser(ExactNetwork(oracle, Epsilon()), schedule, Epsilon())


class Precise(StratifiedTimes):
    """In float64."""

    def draw(self, schedule: Schedule, n: int, device: torch.device, generator: torch.Generator | None) -> Times:
        return Times(super().draw(schedule, n, device, generator).t.double())


def examples(n: int) -> Tensor:
    return torch.randn(n, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(7)


@pytest.mark.parametrize("features", [0, 6])
def test_a_learned_schedule_starts_near_the_linear_one(features: int) -> None:
    learned, linear = LearnedLogSNR(13.3, -5.0, features), LinearLogSNR(13.3, -5.0)
    difference = (learned(T).logsnr - linear(T).logsnr).abs()
    assert difference.max() < (0.2 if features else 1e-5)
    assert difference[[0, -1]].max() < 1e-5


def test_its_logsnr_falls_whatever_its_parameters() -> None:
    torch.manual_seed(0)
    schedule = LearnedLogSNR(features=5)
    with torch.no_grad():
        for p in schedule.parameters():
            p.copy_(3 * torch.randn_like(p))
    t = T.clone().requires_grad_()
    kernel = schedule(t)
    assert (kernel.logsnr.diff() < 0).all()
    for value, rate in ((kernel.alpha, kernel.d_alpha), (kernel.sigma, kernel.d_sigma)):
        (slope,) = torch.autograd.grad(value.sum(), t, retain_graph=True)
        torch.testing.assert_close(slope, rate)


@pytest.mark.parametrize("ends", [(13.3, -5.0), (9.0, -8.0)])
def test_the_exact_bound_is_the_entropy(ends: tuple[float, float]) -> None:
    """Of data N(0, 1), whatever the ends: ½ log 2πe nats."""
    loss = BoundLoss(StratifiedTimes())(exact(LearnedLogSNR(*ends)), examples(400_000), generator=seeded()).loss
    assert loss.mean().item() == pytest.approx(0.5 * math.log(2 * math.pi * math.e), abs=0.02)


def test_of_a_fixed_schedule_it_is_the_likelihood_loss() -> None:
    torch.manual_seed(0)
    denoiser = NetworkDenoiser(MLP((1,), width=8).double(), LinearLogSNR(), Epsilon(), LogSNR())
    gradients = []
    for loss in (BoundLoss(StratifiedTimes()), DenoisingLoss(StratifiedTimes(), Likelihood())):
        denoiser.zero_grad()
        loss(denoiser, examples(16), generator=seeded()).loss.mean().backward()
        gradients.append([p.grad for p in denoiser.parameters() if p.grad is not None])
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize("name", ["start", "fall", "slopes", "offsets", "weights"])
def test_ends_learn_by_the_bound_and_the_shape_by_its_square(name: str) -> None:
    """Gradients against central differences with the same noise, of a network that is not exact."""
    schedule = LearnedLogSNR(4.0, -4.0, features=3).double()
    with torch.no_grad():
        schedule.weights.fill_(0.5)
    torch.manual_seed(0)
    denoiser = NetworkDenoiser(MLP((1,), width=8).double(), schedule, Epsilon(), LogSNR())
    of_shape = name in schedule.shape_parameters
    p, loss, x_0 = getattr(schedule, name), BoundLoss(Precise()), examples(16)

    def value() -> Tensor:
        total: Tensor = loss(denoiser, x_0, generator=seeded()).loss
        if not of_shape:
            return total.mean()
        ends: Tensor = loss._ends(schedule, x_0, after_the_first()).mean(1)
        return (total - ends).square().mean()

    def after_the_first() -> torch.Generator:
        generator = seeded()
        t, _ = loss.times(schedule, x_0, generator)
        torch.randn(x_0.shape, dtype=x_0.dtype, generator=generator)
        assert len(t) == 16
        return generator

    loss(denoiser, x_0, generator=seeded()).loss.mean().backward()
    assert p.grad is not None
    gradient = p.grad.flatten()[0].item()
    step, values = 1e-5, []
    for sign in (1, -1):
        with torch.no_grad():
            p.flatten()[0] += sign * step
            values.append(value().item())
            p.flatten()[0] -= sign * step
    difference = (values[0] - values[1]) / (2 * step)
    assert abs(difference) > 1e-7
    assert gradient == pytest.approx(difference, rel=1e-4)


def test_the_shape_learns_a_lower_variance() -> None:
    """Of the exact denoiser of data far narrower than the noise, whose terms are large where λ is near log 100."""
    torch.manual_seed(0)
    schedule = LearnedLogSNR(13.3, -5.0, features=16)
    denoiser, loss, x_0 = exact(schedule, 0.01), BoundLoss(StratifiedTimes()), 0.1 * examples(256)

    def variance() -> float:
        with torch.no_grad():
            total: Tensor = loss(denoiser, x_0, generator=seeded()).loss
        return total.var().item()

    before = variance()
    shape = [getattr(schedule, name) for name in schedule.shape_parameters]
    optimizer, generator = torch.optim.Adam(shape, lr=0.1), torch.Generator().manual_seed(1)
    for _ in range(60):
        optimizer.zero_grad()
        loss(denoiser, x_0, generator=generator).loss.mean().backward()
        optimizer.step()
    assert variance() < 0.97 * before


def test_bad_options_are_named() -> None:
    with pytest.raises(ValueError, match="features must be at least 0, got -1"):
        LearnedLogSNR(features=-1)
    with pytest.raises(ValueError, match="logsnr_min < logsnr_max"):
        LearnedLogSNR(-5, 13)
    with pytest.raises(ValueError, match="BoundLoss: levels must be at least 2, got 1"):
        BoundLoss(StratifiedTimes(), levels=1)
    with pytest.raises(ValueError, match=r"BoundLoss: VP .*has no noise at t = 0\. Fix: set model\.schedule"):
        BoundLoss(StratifiedTimes()).check(NetworkDenoiser(nn.Linear(1, 1), VP(), Epsilon()), (1,), {})
