"""The loss of flow maps: nothing to learn at exact maps, gradients that point back, shared dropout."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import Standard
from flow_maps import COV, MEAN, At, DoubleTimes, Given, bump_of, exact, examples, gaussian, mixture, mlp
from torch import Tensor, nn

from diffusion_pl.denoisers import (
    EDM,
    Data,
    Denoiser,
    Epsilon,
    ExactMap,
    Gaussian,
    NetworkDenoiser,
    V,
    Velocity,
)
from diffusion_pl.losses import (
    Consistency,
    ContinuousConsistency,
    DenoisingLoss,
    FlowMapLoss,
    ImprovedMeanFlow,
    Jumps,
    Lagrangian,
    MeanFlow,
    PairSampler,
    Plain,
    Rule,
    Semigroup,
    Target,
    Times,
    TimeSampler,
    ToData,
    TwoTimes,
    UniformTimes,
)
from diffusion_pl.losses.rules import grows
from diffusion_pl.schedules import VP, Cosine, Karras, Rectified, Schedule

every_schedule = pytest.mark.parametrize("schedule", [VP(), Cosine(), Karras(), Rectified()])
#: Squared errors, without adaptive weights and warm-up.
RULES: dict[str, Rule] = {
    "MeanFlow": MeanFlow(power=0),
    "ImprovedMeanFlow": ImprovedMeanFlow(power=0),
    "ContinuousConsistency": ContinuousConsistency(warmup=0, normalize=False),
    "Lagrangian": Lagrangian(),
    "Semigroup": Semigroup(),
    "Consistency": Consistency(power=0),
    "teacher's halves": Semigroup("teacher"),
}
every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)


class OneTime(TimeSampler):
    """t as given."""

    def __init__(self, t: Tensor) -> None:
        self.t = t

    def draw(self, schedule: Schedule, n: int, device: torch.device, generator: torch.Generator | None) -> Times:
        return Times(self.t)


class Keep(Rule):
    """Keeps the jumps of the last batch."""

    jumps: Jumps

    def target(self, jumps: Jumps) -> Target:
        self.jumps = jumps
        return Target(jumps.output)


def pairs_of(rule: Rule) -> PairSampler:
    to_data = isinstance(rule, (Consistency, ContinuousConsistency))
    return ToData(DoubleTimes()) if to_data else TwoTimes(DoubleTimes(), 0.25)


def gradient(loss: FlowMapLoss, denoiser: NetworkDenoiser, x_0: Tensor, seed: int = 0) -> tuple[float, float]:
    """Mean loss, and its derivative by the perturbation."""
    value = loss(denoiser, x_0, generator=torch.Generator().manual_seed(seed)).loss.mean()
    (slope,) = torch.autograd.grad(value, bump_of(denoiser))
    return value.item(), slope.item()


# Exact maps ---------------------------------------------------------------------------------------------------------


@every_schedule
@every_rule
def test_an_exact_gaussian_map_has_nothing_to_learn(schedule: Schedule, rule: Rule) -> None:
    """Loss and gradient are 0 to 1e-10 for each parameterization; after a perturbation the gradient points back, where
    the output's share in the jump grows with t.
    """
    teacher, x_0, t = gaussian(schedule), examples(64), torch.linspace(0.2, 0.8, 7, dtype=torch.float64)
    loss = FlowMapLoss(rule, pairs_of(rule), teacher=teacher)
    tried = 0
    for parameterization in (V(), Velocity(), EDM(0.5), Data(), Epsilon()):
        growing = grows(parameterization, schedule, t, torch.zeros_like(t))
        if isinstance(rule, ContinuousConsistency) and not growing:
            continue  # refused by the loss's check
        tried += growing
        value, slope = gradient(loss, exact(teacher, parameterization), x_0)
        assert abs(value) < 1e-10
        assert abs(slope) < 1e-10
        if growing:
            slopes = [gradient(loss, exact(teacher, parameterization, bump), x_0)[1] for bump in (0.01, -0.01)]
            assert slopes[0] > 1e-8
            assert slopes[1] < -1e-8
    assert tried >= 1


@pytest.mark.parametrize("taught", [False, True])
def test_where_r_is_t_it_is_the_denoising_loss(taught: bool) -> None:
    """Loss and gradient, of the pair as of a teacher, whose estimates are then those of the pair."""
    t = torch.linspace(0.1, 0.9, 64, dtype=torch.float64)
    x_0, eps = examples(64), examples(64, 1)
    teacher = Gaussian(VP(), MEAN, COV) if taught else None
    network = mlp().double()
    denoiser = NetworkDenoiser(network, VP(), V())
    if teacher is not None:
        kernel = VP()(t[:, None])
        prediction = teacher(kernel.alpha * x_0 + kernel.sigma * eps, t[:, None])
        pair = prediction.x_0, prediction.eps
    else:
        pair = x_0, eps
    ours = FlowMapLoss(MeanFlow(0.0), At(t, t, 0), coupling=Given(eps), teacher=teacher)(denoiser, x_0)
    theirs = DenoisingLoss(OneTime(t), Plain(), Given(pair[1]))(denoiser, pair[0])
    torch.testing.assert_close(ours.loss, theirs.loss)
    slopes = [torch.autograd.grad(losses.loss.mean(), list(network.parameters())) for losses in (ours, theirs)]
    assert sum(float(slope.norm()) for slope in slopes[0]) > 0.1
    for one, other in zip(*slopes, strict=True):
        torch.testing.assert_close(one, other)


@every_schedule
@pytest.mark.parametrize("rule", [Lagrangian(), Semigroup()], ids=["Lagrangian", "Semigroup"])
def test_rules_of_the_model_itself_need_no_teacher(schedule: Schedule, rule: Rule) -> None:
    """Jumps of an exact map alone; the pairs do not enter."""
    value, slope = gradient(
        FlowMapLoss(rule, TwoTimes(DoubleTimes(), 0.0)), exact(gaussian(schedule), V()), examples(64)
    )
    assert abs(value) < 1e-10
    assert abs(slope) < 1e-10


#: Rules in which the pair's direction stands linearly, so that its expectation is the ODE's velocity.
EULERIAN = ["MeanFlow", "ImprovedMeanFlow", "ContinuousConsistency"]


@pytest.mark.parametrize("name", EULERIAN)
@pytest.mark.parametrize("schedule", [VP(), pytest.param(Rectified(), marks=pytest.mark.slow)])
def test_the_expected_gradient_without_a_teacher(schedule: Schedule, name: str) -> None:
    """Zero within its standard error at the exact map; after perturbations of either sign it points back."""
    loss = FlowMapLoss(RULES[name], pairs_of(RULES[name]))
    batches = [examples(512, seed) for seed in range(20)]
    for bump in (0.0, 1.0, -1.0):
        denoiser = exact(gaussian(schedule), V(), bump)
        slopes = torch.tensor([gradient(loss, denoiser, x_0, seed)[1] for seed, x_0 in enumerate(batches)])
        score = slopes.mean() / (slopes.std() / len(batches) ** 0.5)
        assert abs(score) < 4 if bump == 0 else score * bump > 5


def test_consistency_of_times_that_rounding_joins_is_no_loss() -> None:
    """Close to t = 1 of Rectified a late stage's s is t in single precision."""
    t = torch.tensor([0.999998152256012, 0.5])
    rule = Consistency(every=1, stages=8)
    loss = FlowMapLoss(rule, At(t, torch.zeros(2))).train()
    loss.batches += 7
    values = loss(NetworkDenoiser(mlp(), Rectified(), Velocity()), examples(2).float()).loss
    assert values[0] == 0
    assert values[1] > 0


def test_consistency_on_pairs_is_exact_as_its_times_meet() -> None:
    """Each stage halves u_t − u_s, and the expected gradient; the loss, of an error of second order, falls eightfold.

    A Gaussian's map is linear, so that the expected target given x_t is that of the pair (E[x_0 | x_t], E[ε | x_t]).
    """
    t = torch.full((64, 1), 0.6, dtype=torch.float64)
    x_t = examples(64)
    x_0, eps, _ = Gaussian(VP(), MEAN, COV)(x_t, t)
    values, slopes = [], []
    for stage in (6, 7, 8):
        rule = Consistency(every=1, stages=20, power=0)
        loss = FlowMapLoss(rule, At(t[:, 0], torch.zeros_like(t[:, 0])), coupling=Given(eps))
        loss.batches.fill_(stage)
        value, slope = gradient(loss, exact(gaussian(VP()), V()), x_0)
        values.append(value)
        slopes.append(slope)
    assert slopes[0] / slopes[1] == pytest.approx(2, rel=0.05)
    assert slopes[1] / slopes[2] == pytest.approx(2, rel=0.05)
    assert values[1] / values[2] == pytest.approx(8, rel=0.1)


@pytest.mark.parametrize("name", ["MeanFlow", "Lagrangian", "Semigroup", "teacher's halves"])
def test_the_exact_map_of_a_mixture_has_nothing_to_learn(name: str) -> None:
    """By the ODE to 1e-10: derivatives of the map are differences of it."""
    oracle = mixture(Rectified())
    solved = ExactMap(oracle, 1e-10)
    differences = 1e-3 if name in ("MeanFlow", "Lagrangian") else None
    t, r = (torch.tensor(times, dtype=torch.float64) for times in ([0.9, 0.8, 0.6, 0.5], [0.4, 0.1, 0.3, 0.05]))
    pull: Denoiser = solved if name == "teacher's halves" else oracle
    loss = FlowMapLoss(RULES[name], At(t, r), teacher=pull, differences=differences)
    x_0 = oracle.means[torch.tensor([0, 1, 2, 0])]
    value, slope = gradient(loss, exact(solved, Velocity()), x_0)
    perturbed, back = gradient(loss, exact(solved, Velocity(), 0.05), x_0)
    assert value < 1e-8
    assert abs(slope) < 1e-4
    assert perturbed > 1e3 * value
    assert back > 10 * abs(slope)


# One pass and the other ---------------------------------------------------------------------------------------------


def kept(network: nn.Module, **options: Any) -> tuple[Jumps, Tensor]:
    """The jumps of a batch of 8, and what torch's generator gives next."""
    rule = Keep()
    x_0 = torch.randn(8, 2, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(7)
    target = options.pop("target", None)
    loss = FlowMapLoss(rule, TwoTimes(UniformTimes(0.1), 0.0), **options)
    loss(NetworkDenoiser(network, VP(), V()), x_0, target=target)
    return rule.jumps, torch.rand(1)


class Dropping(nn.Module):
    """A network whose hidden values drop out."""

    flow_map = True

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.drop = mlp(), nn.Dropout(0.5)

    def forward(self, x: Tensor, c_noise: Tensor, jump: Tensor | None = None) -> Tensor:
        out: Tensor = self.inner(self.drop(x.repeat(1, 8)).reshape(len(x), 8, 2).mean(1), c_noise, jump=jump)
        return out


def test_all_passes_drop_out_the_same() -> None:
    jumps, _ = kept(Dropping())
    first, second = (jumps.raw(jumps.x_t, jumps.t, jumps.r) for _ in range(2))
    assert torch.equal(first, jumps.output)
    assert torch.equal(second, jumps.output)
    with torch.no_grad():
        elsewhere, _ = jumps.denoiser.raw(jumps.x_t, jumps.t, jumps.denoiser.schedule(jumps.t), jumps.r)
    assert not torch.equal(elsewhere, jumps.output)


def test_passes_without_gradients_leave_the_generator_alone() -> None:
    """What is drawn after a batch does not depend on how often the rule asked the network."""

    def drawn_after(rule: Rule) -> Tensor:
        torch.manual_seed(3)
        loss = FlowMapLoss(rule, TwoTimes(UniformTimes(0.1), 0.0))
        loss(
            NetworkDenoiser(Dropping().train(), VP(), V()),
            examples(8).float(),
            generator=torch.Generator().manual_seed(0),
        )
        return torch.rand(1)

    assert len({drawn_after(rule).item() for rule in (Keep(), MeanFlow(), Lagrangian(), Semigroup())}) == 1


class Analytic(nn.Module):
    """F = sin(x + 2 c_noise) cos(3 jump), in double precision."""

    flow_map = True

    def forward(self, x: Tensor, c_noise: Tensor, jump: Tensor) -> Tensor:
        return torch.sin(x + 2 * c_noise[:, None]) * torch.cos(3 * jump[:, None])


def analytic(t: Tensor, r: Tensor) -> Jumps:
    """Jumps of `Analytic` between the times, (8,) each."""
    rule = Keep()
    loss = FlowMapLoss(rule, At(t.double(), r.double()), coupling=Given(examples(8, 2)))
    loss(NetworkDenoiser(Analytic(), VP(), V()), examples(8))
    return rule.jumps


DERIVATIVES: list[Callable[[Jumps], Tensor]] = [lambda j: j.along_ode(j.velocity), Jumps.along_target]


def test_differences_agree_to_second_order() -> None:
    """Half the step, a quarter of the error, of both derivatives; interior times."""
    jumps = analytic(torch.linspace(0.5, 0.8, 8), torch.linspace(0.1, 0.3, 8))
    for derivative in DERIVATIVES:
        exactly = derivative(jumps)
        errors = [(derivative(replace(jumps, differences=h)) - exactly).norm().item() for h in (0.02, 0.01)]
        assert 3.5 < errors[0] / errors[1] < 4.5
        assert errors[1] < 1e-2 * exactly.norm()


def test_differences_stay_between_the_end_times() -> None:
    """At t = 1 and r = 0 the difference is one-sided, and still the derivative."""
    jumps = analytic(torch.ones(8), torch.zeros(8))
    for derivative in DERIVATIVES:
        error = derivative(replace(jumps, differences=1e-5)) - derivative(jumps)
        assert error.abs().max() < 1e-3


def test_targets_by_averaged_weights() -> None:
    network, other = mlp(), mlp()
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(0.5)
    jumps, _ = kept(network, target=dict(other.named_parameters()), averaged_target=True)
    expected, _ = NetworkDenoiser(other, VP(), V()).raw(jumps.x_t, jumps.t, VP()(jumps.t), jumps.r)
    torch.testing.assert_close(jumps.raw(jumps.x_t, jumps.t, jumps.r), expected.detach())
    assert not torch.allclose(jumps.output, expected)


@every_rule
def test_bfloat16_autocast_is_near_single_precision(rule: Rule) -> None:
    losses, teacher = [], Gaussian(VP(), MEAN.float(), COV.float())
    for enabled in (False, True):
        network = mlp()
        pairs = ToData(UniformTimes(0.1)) if "Consistency" in type(rule).__name__ else TwoTimes(UniformTimes(0.1), 0.25)
        loss = FlowMapLoss(rule, pairs, teacher=teacher)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            value = loss(
                NetworkDenoiser(network, VP(), V()), examples(64).float(), generator=torch.Generator().manual_seed(0)
            )
        value.loss.mean().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
        losses.append(value.loss.mean().item())
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


@every_rule
def test_nothing_in_a_step_waits_for_the_device(rule: Rule) -> None:
    """On torch's meta device whatever reads a value raises."""
    network = mlp().to("meta")
    pairs = ToData(UniformTimes()) if "Consistency" in type(rule).__name__ else TwoTimes(UniformTimes())
    loss = FlowMapLoss(rule, pairs, teacher=Standard(VP())).to("meta")
    value = loss(NetworkDenoiser(network, VP(), V()), torch.zeros(8, 2, device="meta")).loss
    value.mean().backward()
    assert value.shape == (8,)
    assert all(p.grad is not None for p in network.parameters())
