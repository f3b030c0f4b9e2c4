"""Learned variance, adaptive times, self-conditioning and label dropout: what they add to the loss and to sampling."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from conftest import GaussianFlow, array
from scipy.stats import norm
from torch import Tensor, nn

from diffusion_pl.denoisers import Data, Epsilon, NetworkDenoiser, Parameterization, Prediction, V
from diffusion_pl.losses import SNR, DenoisingLoss, GridTimes, LossSecondMoment, UniformTimes, VarianceBound
from diffusion_pl.samplers import DDIM, Ancestral, UniformGrid
from diffusion_pl.schedules import VP, LinearBetas
from diffusion_pl.tensors import SampleNoise

N = 20
TABLE = LinearBetas(N, 0.005, 0.3)
BETAS = np.linspace(0.005, 0.3, N)
BARS = np.cumprod(1 - BETAS)


def example(v: float, i: int) -> tuple[Tensor, Tensor, Tensor, Prediction]:
    """x_0 on the levels of 256, x_t, t = i/N and a prediction with that v."""
    rng = torch.Generator().manual_seed(0)
    x_0 = torch.randint(0, 256, (4, 3), generator=rng).double() / 127.5 - 1
    x_0[0] = torch.tensor([-1.0, 1.0, 0.0])
    x_0 = (x_0 * 127.5).round() / 127.5
    eps = torch.randn(4, 3, dtype=torch.float64, generator=rng)
    x_t = math.sqrt(BARS[i - 1]) * x_0 + math.sqrt(1 - BARS[i - 1]) * eps
    guess = x_0 + 0.05 * torch.randn(4, 3, dtype=torch.float64, generator=rng)
    return x_0, x_t, torch.full((4, 1), i / N, dtype=torch.float64), Prediction(guess, eps, torch.full_like(x_0, v))


@pytest.mark.parametrize("v", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("i", [2, 7, N])
def test_the_bound_is_the_kl_of_the_step(i: int, v: float) -> None:
    """Nichol & Dhariwal, Eq. 15 and 4, written out for the table in numpy, bits per dimension times N λ."""
    x_0, x_t, t, prediction = example(v, i)
    before = BARS[i - 2]
    beta, tilde = BETAS[i - 1], BETAS[i - 1] * (1 - before) / (1 - BARS[i - 1])
    var = np.exp(v * np.log(beta) + (1 - v) * np.log(tilde))

    def mean(x: Tensor) -> np.ndarray:
        first = math.sqrt(before) * beta / (1 - BARS[i - 1]) * array(x)
        result: np.ndarray = first + math.sqrt(1 - beta) * (1 - before) / (1 - BARS[i - 1]) * array(x_t)
        return result

    kl = 0.5 * (np.log(var / tilde) + (tilde + (mean(x_0) - mean(prediction.x_0)) ** 2) / var - 1)
    result = VarianceBound(N, 0.01)(TABLE, x_0, x_t, t, prediction)
    np.testing.assert_allclose(array(result), 0.01 * N * kl.mean(1) / math.log(2), rtol=1e-6)


@pytest.mark.parametrize("levels", [256, None])
def test_the_first_step_uses_the_likelihood_of_the_data(levels: int | None) -> None:
    x_0, x_t, t, prediction = example(0.4, 1)
    tilde = BETAS[1] * (1 - BARS[0]) / (1 - BARS[1])  # clipped: that of the second step
    std = np.exp(0.5 * (0.4 * np.log(BETAS[0]) + 0.6 * np.log(tilde)))
    if levels:
        above, below = ((array(x_0) + s - array(prediction.x_0)) / std for s in (1 / 255, -1 / 255))
        above, below = np.where(array(x_0) > 0.999, np.inf, above), np.where(array(x_0) < -0.999, -np.inf, below)
        log_p = np.log(norm.cdf(above) - norm.cdf(below))
    else:
        log_p = norm.logpdf(array(x_0), array(prediction.x_0), std)
    result = VarianceBound(N, 1.0, levels)(TABLE, x_0, x_t, t, prediction)
    np.testing.assert_allclose(array(result), -N * log_p.mean(1) / math.log(2), rtol=1e-6)


def test_the_levels_share_all_of_the_probability() -> None:
    bound = VarianceBound(N, levels=17)
    levels = (torch.arange(17, dtype=torch.float64) / 8 - 1)[:, None]
    for mean in (-1.3, 0.2, 0.95):
        nats = bound._decoder(levels, torch.full_like(levels, mean), torch.full_like(levels, 0.3**2))
        assert float(torch.exp(-nats).sum()) == pytest.approx(1, abs=1e-6)


def test_only_the_variance_learns_from_the_bound() -> None:
    x_0, x_t, t, prediction = example(0.4, 5)
    guess, v = prediction.x_0.requires_grad_(), torch.full_like(x_0, 0.4, requires_grad=True)
    VarianceBound(N)(TABLE, x_0, x_t, t, Prediction(guess, prediction.eps, v)).sum().backward()
    assert guess.grad is None
    assert v.grad is not None
    assert float(v.grad.abs().min()) > 0


def test_the_bound_alone_teaches_mean_and_variance() -> None:
    """L_vlb is N/ln 2 times the KL, to both; its gradients by central differences."""
    x_0, x_t, t, prediction = example(0.4, 5)
    guess, v = prediction.x_0.clone().requires_grad_(), torch.full_like(x_0, 0.4, requires_grad=True)
    bound = VarianceBound(N, 1.0, mean=True)

    def value(x: Tensor, v: Tensor) -> float:
        return bound(TABLE, x_0, x_t, t, Prediction(x, prediction.eps, v)).sum().item()

    bound(TABLE, x_0, x_t, t, Prediction(guess, prediction.eps, v)).sum().backward()
    step = torch.zeros_like(x_0)
    step[2, 1] = 1e-5
    assert guess.grad is not None and v.grad is not None
    slopes = [
        (value(guess.detach() + a, v.detach() + b) - value(guess.detach() - a, v.detach() - b)) / 2e-5
        for a, b in ((step, 0), (0, step))
    ]
    assert [guess.grad[2, 1].item(), v.grad[2, 1].item()] == pytest.approx(slopes, rel=1e-5)
    assert abs(slopes[0]) > 0.1
    # So does the whole loss, which then is the bound and nothing else.
    network = Twice(0.0)
    denoiser = NetworkDenoiser(network, TABLE, Epsilon())
    torch.manual_seed(0)
    alone = DenoisingLoss(GridTimes(N), None, variance=bound)(denoiser, x_0).loss
    torch.manual_seed(0)
    both = DenoisingLoss(GridTimes(N), SNR(), variance=bound)(denoiser, x_0).loss
    torch.manual_seed(0)
    simple = DenoisingLoss(GridTimes(N), SNR())(denoiser, x_0).loss
    torch.testing.assert_close(alone + simple, both)
    with pytest.raises(ValueError, match=r"VarianceBound\. Fix: set its"):
        DenoisingLoss(GridTimes(N), None, variance=VarianceBound(N))
    with pytest.raises(ValueError, match="without a weighting"):
        DenoisingLoss(GridTimes(N), None)


class Twice(nn.Module):
    """A network of F = 0.1 x and a variance channel of its own."""

    def __init__(self, output: float) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.tensor(output, dtype=torch.float64))

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        return torch.cat((0.1 * x, self.level.expand_as(x)), 1)


def test_training_on_the_bound_finds_the_better_variance() -> None:
    """For N(0, 1) data the right variance of every step is β (v = 1)."""
    torch.manual_seed(0)
    network = Twice(0.0)
    denoiser = NetworkDenoiser(network, TABLE, Epsilon())
    loss = DenoisingLoss(GridTimes(N), SNR(), variance=VarianceBound(N, 0.1))
    optimizer = torch.optim.Adam(network.parameters(), lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        loss(denoiser, torch.randn(256, 2, dtype=torch.float64)).loss.mean().backward()
        optimizer.step()
    assert float((network.level + 1) / 2) > 0.8


@pytest.mark.parametrize("meaning", [Epsilon(), Data(), V()], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize(("output", "variance"), [(-1.0, 0.0), (1.0, 1.0), (0.0, 0.5)])
def test_ancestral_steps_take_the_variance_that_was_learned(
    output: float, variance: float, meaning: Parameterization
) -> None:
    denoiser = NetworkDenoiser(Twice(output), VP(), meaning)
    x_T = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    grid = UniformGrid(8, 0.9, 0.05)
    learned, fixed = (Ancestral(grid, v)(denoiser, x_T, SampleNoise(0, range(5))).x_0 for v in (None, variance))
    np.testing.assert_allclose(array(learned), array(fixed), rtol=1e-9)


def test_what_was_not_learned_cannot_be_taken() -> None:
    with pytest.raises(ValueError, match="the network predicts no variance"):
        Ancestral(UniformGrid(4), None)(GaussianFlow(VP()).oracle, torch.zeros(1, 2, dtype=torch.float64))
    denoiser = NetworkDenoiser(nn.Identity(), VP(), Epsilon())
    denoiser.network.forward = lambda x, c_noise: x
    with pytest.raises(ValueError, match="set its learned_variance to true"):
        DenoisingLoss(GridTimes(N), SNR(), variance=VarianceBound(N))(denoiser, torch.randn(4, 2))


# Times by the second moment of the loss -----------------------------------------------------------------------------


def taught(losses: np.ndarray, uniform: float = 0.1) -> LossSecondMoment:
    """Updated with each of the losses (N, history) at its step, oldest first."""
    times = LossSecondMoment(len(losses), losses.shape[1], uniform)
    for column in losses.T:
        times.learn((torch.arange(len(losses)) + 1) / len(losses), torch.from_numpy(column))
    return times


def test_probabilities_are_uniform_until_every_step_has_history() -> None:
    times = LossSecondMoment(4, 2)
    for _ in range(2):
        np.testing.assert_allclose(array(times.share()), 0.25)
        times.learn(torch.tensor([0.25, 0.5, 0.75]), torch.tensor([1.0, 2.0, 3.0]))
    np.testing.assert_allclose(array(times.share()), 0.25)
    times.learn(torch.tensor([1.0, 1.0]), torch.tensor([4.0, 4.0]))
    assert float(times.share()[3]) == pytest.approx(0.999 * 0.4 + 0.001 / 4)


def test_probabilities_follow_the_rms_of_the_latest_losses() -> None:
    losses = np.random.default_rng(0).uniform(0.5, 3, (6, 5))
    root = np.sqrt((losses**2).mean(1))
    expected = 0.9 * root / root.sum() + 0.1 / 6
    np.testing.assert_allclose(array(taught(losses).share()), expected, rtol=1e-5)
    older = np.concatenate([np.full((6, 3), 100.0), losses], 1)  # more than it remembers
    forgetting = LossSecondMoment(6, 5, 0.1)
    for column in older.T:
        forgetting.learn((torch.arange(6) + 1) / 6, torch.from_numpy(column))
    np.testing.assert_allclose(array(forgetting.share()), expected, rtol=1e-5)


def test_estimates_are_unbiased_and_draws_follow_probabilities() -> None:
    times = taught(np.linspace(0.2, 4, 10)[:, None].repeat(3, 1))
    t, importance = times.draw(VP(), 200_000, torch.device("cpu"), torch.Generator().manual_seed(0))
    assert isinstance(importance, Tensor)
    f = torch.sin(7 * t) + t
    exact = (torch.sin(7 * torch.arange(1, 11) / 10) + torch.arange(1, 11) / 10).mean()
    assert float((importance * f).mean()) == pytest.approx(float(exact), abs=0.01)
    counts = np.bincount(np.round(array(t) * 10).astype(int), minlength=11)[1:] / 200_000
    np.testing.assert_allclose(counts, array(times.share()), atol=0.005)


def test_its_memory_is_in_the_state() -> None:
    times, fresh = taught(np.linspace(0.2, 4, 10)[:, None].repeat(3, 1)), LossSecondMoment(10, 3, 0.1)
    fresh.load_state_dict(times.state_dict())
    assert torch.equal(fresh.share(), times.share())
    assert "times.history" in DenoisingLoss(times, SNR()).state_dict()


def test_it_learns_the_unweighted_losses_of_training_only() -> None:
    denoiser = NetworkDenoiser(Network(), VP(), Data())
    times = LossSecondMoment(5, 2)
    loss = DenoisingLoss(times, SNR())
    x_0 = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
    denoiser.eval()
    loss(denoiser, x_0)
    assert int(times.seen.sum()) == 0
    denoiser.train()
    for _ in range(5):
        loss(denoiser, x_0)
    assert int(times.seen.sum()) == 5 * 64
    # Once the distribution is no longer uniform, it is updated with the loss without importance.
    share = times.share()
    assert float(share.max()) > 1.2 * float(share.min())
    result = loss(denoiser, x_0)
    index = torch.round(result.t * 5).long() - 1
    newest = times.history[index, (times.seen[index] - 1) % 2]
    last = torch.tensor([not (index[k + 1 :] == i).any() for k, i in enumerate(index)])
    np.testing.assert_allclose(array(newest[last]), array((result.loss * 5 * share[index])[last]), rtol=1e-5)


@pytest.mark.parametrize("bad", [{"steps": 0}, {"history": 0}, {"uniform": 0.0}, {"uniform": 2.0}])
def test_bad_numbers_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="got"):
        LossSecondMoment(**bad)


# Self-conditioning and labels ---------------------------------------------------------------------------------------


class Network(nn.Module):
    """Keeps what it is given."""

    def __init__(self, self_condition: bool = False) -> None:
        super().__init__()
        self.self_condition = self_condition
        self.gain = nn.Parameter(torch.tensor(0.5))
        self.calls: list[dict[str, Any]] = []

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None, x_0_hat: Tensor | None = None) -> Tensor:
        self.calls.append({"label": label, "x_0_hat": x_0_hat, "grad": torch.is_grad_enabled()})
        return self.gain * x


def test_half_of_the_steps_are_given_the_networks_own_estimate() -> None:
    network = Network(True)
    denoiser = NetworkDenoiser(network, VP(), Data())
    loss, rng = DenoisingLoss(UniformTimes(), SNR()), torch.Generator().manual_seed(0)
    for _ in range(400):
        loss(denoiser, torch.ones(3, 2), None, rng)
    conditioned = [call for call in network.calls if call["x_0_hat"] is not None]
    assert 0.4 < len(conditioned) / 400 < 0.6
    assert len(network.calls) == 400 + len(conditioned)  # a first pass for each of these, and for these alone
    assert all(call["grad"] and not call["x_0_hat"].requires_grad for call in conditioned)
    first = network.calls[network.calls.index(conditioned[0]) - 1]
    assert not first["grad"]


def test_the_coin_is_of_the_generator() -> None:
    def pattern() -> list[bool]:
        network = Network(True)
        loss, rng = DenoisingLoss(UniformTimes(), SNR()), torch.Generator().manual_seed(5)
        for _ in range(20):
            loss(NetworkDenoiser(network, VP(), Data()), torch.ones(3, 2), None, rng)
        return [call["x_0_hat"] is not None for call in network.calls]

    assert pattern() == pattern()
    assert len(set(pattern())) == 2


def test_sampling_hands_every_evaluation_the_estimate_before() -> None:
    network = Network(True)
    denoiser = NetworkDenoiser(network, VP(), Data())
    path = DDIM(UniformGrid(5))(denoiser, torch.ones(2, 2), path=True).path
    assert path is not None
    assert network.calls[0]["x_0_hat"] is None
    for call, before in zip(network.calls[1:], path.x_0, strict=False):
        assert torch.equal(call["x_0_hat"], before)
    plain = Network(False)
    DDIM(UniformGrid(5))(NetworkDenoiser(plain, VP(), Data()), torch.ones(2, 2))
    assert all(call["x_0_hat"] is None for call in plain.calls)


def test_labels_are_withheld_at_the_given_rate() -> None:
    network = Network()
    loss = DenoisingLoss(UniformTimes(), SNR(), dropout={"label": 0.3})
    label = torch.arange(20_000) % 7
    denoiser, rng = NetworkDenoiser(network, VP(), Data()), torch.Generator().manual_seed(0)
    loss(denoiser, torch.ones(20_000, 2), {"label": label}, rng)
    given = network.calls[0]["label"]
    withheld = given == -1
    assert float(withheld.float().mean()) == pytest.approx(0.3, abs=0.015)
    assert torch.equal(given[~withheld], label[~withheld])


@pytest.mark.parametrize("dropout", [-0.1, 1.0, math.nan])
def test_a_bad_rate_is_refused(dropout: float) -> None:
    with pytest.raises(ValueError, match="dropout of label must be in"):
        DenoisingLoss(UniformTimes(), SNR(), dropout={"label": dropout})
