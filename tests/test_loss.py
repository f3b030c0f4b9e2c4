"""The loss against its own expectation: exact quadrature over (x_0, ε) on a line, and the posterior variance."""

from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch
from conftest import INNER, SCHEDULES, ExactNetwork, array, instances, weigh
from torch import Tensor, nn

from diffusion_pl.denoisers import EDM, Data, Epsilon, Gaussian, NetworkDenoiser, Parameterization, V, Velocity
from diffusion_pl.losses import (
    SNR,
    Coupling,
    DenoisingLoss,
    FlowMatching,
    GridTimes,
    Likelihood,
    LikelihoodTimes,
    MinibatchOT,
    MinSNR,
    Plain,
    Times,
    TimeSampler,
    Uncertainty,
    UniformTimes,
    VarianceBound,
    Weighting,
)
from diffusion_pl.schedules import VP, Cosine, Karras, Rectified, Schedule, SubVP

every_schedule = pytest.mark.parametrize("schedule", SCHEDULES)
every_weighting = pytest.mark.parametrize("weighting", instances(Weighting))


class At(TimeSampler):
    """t as given, in float64."""

    def __init__(self, t: Tensor, importance: float = 1.0) -> None:
        self.t, self.importance = t, importance

    def draw(self, schedule: Schedule, n: int, device: torch.device, generator: torch.Generator | None) -> Times:
        return Times(self.t.expand(n), torch.full((n,), self.importance, dtype=torch.float64))


class Given(Coupling):
    """ε as given."""

    def __init__(self, eps: Tensor) -> None:
        self.eps = eps

    def __call__(self, x_0: Tensor, eps: Tensor, cond: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        return x_0, self.eps


def network_of(
    var: float, schedule: Schedule, parameterization: Parameterization, mean: float = 0.4
) -> NetworkDenoiser:
    """The exact network for data N(mean, var) on a line."""
    oracle = Gaussian(schedule, torch.tensor([mean], dtype=torch.float64), torch.tensor([[var]], dtype=torch.float64))
    return NetworkDenoiser(ExactNetwork(oracle, parameterization), schedule, parameterization)


def quadrature(mean: float, var: float) -> tuple[Tensor, Tensor, np.ndarray]:
    """Nodes (x_0, ε) and weights that integrate any polynomial of low degree over N(mean, var) x N(0, 1) exactly."""
    node, weight = np.polynomial.hermite_e.hermegauss(5)
    weight = weight / weight.sum()
    x_0, eps = np.meshgrid(mean + var**0.5 * node, node, indexing="ij")
    first, second = (torch.from_numpy(v.reshape(-1, 1)) for v in (x_0, eps))
    return first, second, np.outer(weight, weight).ravel()


@every_schedule
@every_weighting
@pytest.mark.parametrize("t", [INNER[1], INNER[4], INNER[6]])
def test_the_exact_network_pays_the_posterior_variance(schedule: Schedule, weighting: Weighting, t: float) -> None:
    """E w ‖x̂_0 − x_0‖² = w Var[x_0 | x_t], Var by conditioning (precisions of Gaussians add)."""
    mean, var = 0.4, 0.3
    x_0, eps, weight = quadrature(mean, var)
    time = torch.tensor(t, dtype=torch.float64)
    losses = DenoisingLoss(At(time), weighting, Given(eps))(network_of(var, schedule, EDM(0.5), mean), x_0)
    alpha, sigma, *_ = schedule(time)
    posterior_var = 1 / (1 / var + alpha.item() ** 2 / sigma.item() ** 2)
    expected = float(weigh(weighting, schedule, time)) * posterior_var
    assert (weight * array(losses.loss)).sum() == pytest.approx(expected, rel=1e-7)


@every_schedule
def test_an_inexact_network_pays_its_bias_too(schedule: Schedule) -> None:
    """The loss of a network for data of another distribution: w E‖x̂_0 − x_0‖², by quadrature of that very error."""
    x_0, eps, weight = quadrature(0.4, 0.3)
    time = torch.tensor(INNER[4], dtype=torch.float64)
    denoiser = network_of(1.1, schedule, V(), mean=-0.2)
    alpha, sigma, *_ = schedule(time)
    error = array(denoiser(alpha * x_0 + sigma * eps, time).x_0 - x_0).ravel() ** 2
    losses = array(DenoisingLoss(At(time), MinSNR(), Given(eps))(denoiser, x_0).loss)
    np.testing.assert_allclose(losses, float(weigh(MinSNR(), schedule, time)) * error, rtol=1e-7, atol=1e-12)
    assert (weight * losses).sum() > 0


@every_schedule
@pytest.mark.parametrize("weighting", [w for w in instances(Weighting) if not isinstance(w.values[0], Plain)])
def test_the_loss_does_not_depend_on_what_the_network_predicts(schedule: Schedule, weighting: Weighting) -> None:
    """One denoiser, six networks: the same loss of every example."""
    rng = torch.Generator().manual_seed(0)
    x_0, eps = torch.randn(2, len(INNER), 1, dtype=torch.float64, generator=rng)
    times = At(torch.tensor(INNER, dtype=torch.float64))
    result = [
        array(DenoisingLoss(times, weighting, Given(eps))(network_of(1.7, schedule, p.values[0]), x_0).loss)
        for p in instances(Parameterization)
    ]
    assert len(result) >= 6
    assert (result[0] > 0).all()
    for other in result[1:]:
        np.testing.assert_allclose(other, result[0], rtol=1e-6)


@pytest.mark.parametrize(
    ("schedule", "parameterization", "weighting"),
    [
        (VP(), Epsilon(), SNR()),
        (Cosine(), V(), SNR(1)),
        (Karras(), EDM(0.5), SNR(4)),
        (VP(), Epsilon(), Plain()),
        (SubVP(), V(), Plain()),
        (Karras(), EDM(0.5), Plain()),
        (Rectified(), Velocity(), Plain()),
    ],
    ids=["DDPM", "v", "EDM", "plain epsilon", "plain v", "plain EDM", "plain velocity"],
)
def test_classical_losses_are_plain_mean_squares(
    schedule: Schedule, parameterization: Parameterization, weighting: Weighting
) -> None:
    """A network that says 0 pays the mean square of its target: ε, αε − σx_0, …"""

    class Zero(nn.Module):
        def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
            return torch.zeros_like(x)

    rng = torch.Generator().manual_seed(0)
    x_0, eps = torch.randn(2, len(INNER), 3, 4, 4, dtype=torch.float64, generator=rng)
    t = torch.tensor(INNER, dtype=torch.float64)
    denoiser = NetworkDenoiser(Zero(), schedule, parameterization)
    losses = DenoisingLoss(At(t), weighting, Given(eps))(denoiser, x_0)
    target = array(parameterization.target(schedule(t[:, None, None, None]), x_0, eps))
    np.testing.assert_allclose(array(losses.loss), [np.mean(one**2) for one in target], rtol=1e-7)
    assert losses.loss.shape == (8,)
    assert losses.t.tolist() == INNER


def test_importance_multiplies_the_loss() -> None:
    x_0, eps, _ = quadrature(0.4, 0.3)
    t, denoiser = torch.tensor(0.3, dtype=torch.float64), network_of(0.3, VP(), Epsilon())
    one, three = (array(DenoisingLoss(At(t, f), SNR(), Given(eps))(denoiser, x_0).loss) for f in (1.0, 3.0))
    np.testing.assert_allclose(three, 3 * one, rtol=1e-12)


@pytest.mark.parametrize("times", [UniformTimes(1e-3), LikelihoodTimes(1e-3)], ids=["uniform", "importance"])
def test_drawn_losses_average_to_the_bound(times: TimeSampler) -> None:
    """Monte Carlo over t, x_0 and ε together, with the package's own noise, against the integral over t."""
    n, var = 40_000, 0.3
    rng = torch.Generator().manual_seed(5)
    x_0 = 0.4 + var**0.5 * torch.randn(n, 1, dtype=torch.float64, generator=rng)
    loss = array(DenoisingLoss(times, Likelihood())(network_of(var, VP(), Epsilon()), x_0, None, rng).loss)
    t = torch.logspace(-3, 0, 20_001, dtype=torch.float64)
    alpha, sigma, *_ = (array(v) for v in VP()(t))
    density = array(weigh(Likelihood(), VP(), t)) / (1 / var + alpha**2 / sigma**2)
    exact = np.trapezoid(density, array(t)) / (1 - 1e-3)
    error = loss.std() / n**0.5
    assert error < (0.02 if isinstance(times, LikelihoodTimes) else 0.05) * exact
    assert abs(loss.mean() - exact) < 4 * error


def test_noise_is_fresh_standard_normal_and_from_the_generator() -> None:
    """With F = 0 and the ε-loss the loss is ε² itself: χ² distributed."""

    class Zero(nn.Module):
        def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
            return torch.zeros_like(x)

    from scipy import stats

    denoiser = NetworkDenoiser(Zero(), VP(), Epsilon())
    call = DenoisingLoss(GridTimes(1000), SNR())
    x_0 = torch.zeros(5000, 1)
    before = torch.get_rng_state()
    first = call(denoiser, x_0, None, torch.Generator().manual_seed(1))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(call(denoiser, x_0, None, torch.Generator().manual_seed(1)).loss, first.loss)
    assert not torch.equal(call(denoiser, x_0, None, torch.Generator().manual_seed(2)).loss, first.loss)
    assert stats.kstest(array(first.loss), "chi2", args=(1,)).pvalue > 1e-3


@pytest.mark.parametrize("parameterization", instances(Parameterization))
@pytest.mark.parametrize("schedule", [VP(), Cosine(), Rectified()], ids=lambda s: type(s).__name__)
def test_single_precision_is_accurate_at_tiny_t(schedule: Schedule, parameterization: Parameterization) -> None:
    """w = SNR is 1e6 and more at t = 1e-5, the error of x_0 as much smaller."""

    class Half(nn.Module):
        def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
            return 0.5 * x

    rng = torch.Generator().manual_seed(0)
    x_0, eps = torch.randn(2, 16, 2, generator=rng)
    t = torch.full((16,), 1e-5)
    denoiser = NetworkDenoiser(Half(), schedule, parameterization)
    single = DenoisingLoss(At(t), SNR(1), Given(eps))(denoiser, x_0).loss
    double = DenoisingLoss(At(t.double()), SNR(1), Given(eps.double()))(denoiser, x_0.double()).loss
    np.testing.assert_allclose(array(single), array(double), rtol=2e-3)


def test_coupling_changes_the_pairing_only() -> None:
    rng = torch.Generator().manual_seed(0)
    x_0 = torch.randn(32, 2, dtype=torch.float64, generator=rng)
    seen = {}

    class Spy(Coupling):
        def __call__(self, x_0: Tensor, eps: Tensor, cond: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
            _, seen["paired"] = MinibatchOT()(x_0, eps, cond)
            seen["drawn"] = eps
            return x_0, seen["paired"]

    class Zero(nn.Module):
        def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
            seen["x_t"] = x
            return torch.zeros_like(x)

    denoiser = NetworkDenoiser(Zero(), VP(), Velocity())
    t = torch.tensor(0.3, dtype=torch.float64)
    DenoisingLoss(At(t), SNR(), Spy())(denoiser, x_0, None, torch.Generator().manual_seed(1))
    alpha, sigma, *_ = VP()(t)
    assert not torch.equal(seen["paired"], seen["drawn"])
    np.testing.assert_allclose(array(seen["x_t"]), array(alpha * x_0 + sigma * seen["paired"]), rtol=1e-12)


def test_gradients_reach_the_network_and_conditions_too() -> None:
    class Conditional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, x: Tensor, c_noise: Tensor, label: Tensor) -> Tensor:
            return self.scale * label[:, None] * x

    network = Conditional()
    x_0, label = torch.randn(8, 2, generator=torch.Generator().manual_seed(0)), torch.arange(8.0)
    denoiser = NetworkDenoiser(network, VP(), Epsilon())
    call: Callable[[], Tensor] = lambda: (  # noqa: E731
        DenoisingLoss(UniformTimes(0.1), SNR())(
            denoiser, x_0, {"label": label}, torch.Generator().manual_seed(0)
        ).loss.mean()
    )
    call().backward()
    assert network.scale.grad is not None
    slope, h = network.scale.grad.item(), 1e-2
    with torch.no_grad():
        network.scale.add_(h)
        above = call()
        network.scale.sub_(2 * h)
        below = call()
    assert slope == pytest.approx(((above - below) / (2 * h)).item(), rel=1e-3)


def test_times_per_sample_are_separate_draws_with_the_same_mean() -> None:
    """Each example and its condition occur K times, with fresh (t, ε); the expectation does not depend on K."""
    schedule = VP()
    denoiser = network_of(0.5, schedule, V())
    x_0 = 0.4 + 0.5**0.5 * torch.randn(20_000, 1, dtype=torch.float64)
    seen: dict[str, Tensor] = {}

    class Listening(nn.Module):
        def forward(self, x: Tensor, c_noise: Tensor, label: Tensor) -> Tensor:
            seen["label"] = label
            output: Tensor = denoiser.network(x, c_noise)
            return output

    listening = NetworkDenoiser(Listening(), schedule, V())
    label = torch.arange(len(x_0))
    means = []
    for k in (1, 3):
        loss = DenoisingLoss(UniformTimes(), SNR(plus=1), times_per_sample=k)
        losses = loss(listening, x_0, {"label": label}, torch.Generator().manual_seed(0))
        assert losses.loss.shape == losses.t.shape == (k * len(x_0),)
        assert seen["label"].bincount().tolist() == [k] * len(x_0)
        assert len(losses.t.unique()) > 0.99 * k * len(x_0)
        means.append((losses.loss.mean().item(), losses.loss.std().item() / losses.loss.numel() ** 0.5))
    (one, error_one), (three, error_three) = means
    assert error_three < 0.65 * error_one
    assert abs(one - three) < 4 * (error_one**2 + error_three**2) ** 0.5


def test_times_per_sample_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="times_per_sample must be at least 1, got 0"):
        DenoisingLoss(UniformTimes(), SNR(), times_per_sample=0)


# Velocity: x-prediction, and its direction ----------------------------------------------------------------------------


class Output(nn.Module):
    """The network's output as given."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = nn.Parameter(output)

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        return self.output


def test_x_prediction_with_the_loss_of_the_velocity() -> None:
    """Li & He, arXiv 2511.13720, Eq. 6: ‖v̂ − v‖², v = (x_0 − x_t)/max(σ, 0.05), v̂ likewise of the output."""
    torch.manual_seed(0)
    x_0, guess = torch.randn(2, 6, 3, dtype=torch.float64)
    t = torch.tensor([0.01, 0.04, 0.06, 0.3, 0.7, 0.999], dtype=torch.float64)
    eps = torch.randn(6, 3, dtype=torch.float64)
    model = NetworkDenoiser(Output(guess), Rectified(), Data(scaled_input=False))
    loss = DenoisingLoss(At(t), FlowMatching(clip=0.05), Given(eps))(model, x_0).loss
    x_t, clipped = ((1 - t)[:, None] * x_0 + t[:, None] * eps), t.clamp(min=0.05)[:, None]
    difference = (x_0 - x_t) / clipped - (guess - x_t) / clipped
    np.testing.assert_allclose(array(loss), array(difference.square().mean(1)), rtol=1e-9)


@pytest.mark.parametrize("parameterization", [Velocity(), V(), Data(), EDM(0.5)], ids=lambda p: type(p).__name__)
def test_the_direction_of_the_velocity(parameterization: Parameterization) -> None:
    """Yao et al., arXiv 2501.01423: 1 − cos(v̂, v) along the channels, mean over places, whatever is predicted."""
    torch.manual_seed(0)
    schedule, t = Cosine(), torch.tensor([0.2, 0.7], dtype=torch.float64)
    x_0, eps, other_0, other_eps = torch.randn(4, 2, 3, 2, 2, dtype=torch.float64)
    kernel = schedule(t.view(2, 1, 1, 1))
    x_t = kernel.alpha * x_0 + kernel.sigma * eps
    other_0 = (x_t - kernel.sigma * other_eps) / kernel.alpha  # a pair with the same x_t
    model = NetworkDenoiser(Output(parameterization.target(kernel, other_0, other_eps)), schedule, parameterization)
    plain, added = (DenoisingLoss(At(t), Plain(), Given(eps), cosine=factor)(model, x_0).loss for factor in (0, 2.0))
    v, guess = (array(kernel.d_alpha * x + kernel.d_sigma * e) for x, e in ((x_0, eps), (other_0, other_eps)))
    cosine = (v * guess).sum(1) / np.sqrt((v**2).sum(1) * (guess**2).sum(1))
    np.testing.assert_allclose(array(added - plain), 2 * (1 - cosine).mean((1, 2)), rtol=1e-7)


def test_an_unscaled_input_reaches_the_network_as_it_is() -> None:
    class Echo(nn.Module):
        def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
            return x

    x_t, t = torch.randn(3, 2), torch.tensor(0.3)
    kernel = Rectified()(t)
    for parameterization in (Velocity(scaled_input=False), Data(scaled_input=False)):
        model = NetworkDenoiser(Echo(), Rectified(), parameterization)
        assert torch.equal(model.raw(x_t, t, kernel)[0], x_t)


def test_bad_factors_of_the_direction_are_refused() -> None:
    with pytest.raises(ValueError, match="cosine must be at least 0 and finite"):
        DenoisingLoss(UniformTimes(), Plain(), cosine=-1.0)
    model = NetworkDenoiser(Output(torch.zeros(4, 2)), Rectified(), Velocity())
    with pytest.raises(ValueError, match="cosine counts all channels"):
        DenoisingLoss(UniformTimes(), Plain(), cosine=1.0)(model, torch.zeros(4, 2), observed=torch.ones(4, 2).bool())


def test_uncertainty_learns_the_logarithm_of_the_loss() -> None:
    """u is best at log E[w e] for each noise level; at 0, where it starts, the loss is the plain one."""
    t, x_0 = torch.tensor([0.3]).double(), torch.randn(4096, 1, generator=torch.Generator().manual_seed(0)).double()
    denoiser, head = network_of(0.5, VP(), V()), Uncertainty(16).double()
    eps = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(1)).double()
    plain = DenoisingLoss(At(t), Plain(), Given(eps))(denoiser, x_0).loss
    loss = DenoisingLoss(At(t, importance=3.0), Plain(), Given(eps), uncertainty=head)
    torch.testing.assert_close(loss(denoiser, x_0).loss, 3 * plain)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        loss(denoiser, x_0).loss.mean().backward()
        optimizer.step()
    assert head(t).item() == pytest.approx(plain.mean().log().item(), abs=1e-3)
    with pytest.raises(ValueError, match=r"uncertainty weighs the weighted loss\. Fix: give a weighting"):
        DenoisingLoss(At(t), None, variance=VarianceBound(10, mean=True), uncertainty=head)
