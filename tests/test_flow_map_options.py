"""Parts and options of the loss of flow maps: pairs of times, weights, missing values, reflow, what is refused."""

from functools import partial
from typing import Any

import pytest
import torch
from flow_maps import COV, MEAN, At, Given, exact, examples, gaussian, mlp
from torch import Tensor, nn

from diffusion_pl.conditions import label
from diffusion_pl.denoisers import (
    Data,
    Epsilon,
    NetworkDenoiser,
    Parameterization,
    V,
    Velocity,
)
from diffusion_pl.losses import (
    Consistency,
    ContinuousConsistency,
    FlowMapLoss,
    LikelihoodTimes,
    MeanFlow,
    PairSampler,
    Reflow,
    Rule,
    Semigroup,
    ToData,
    TwoTimes,
    Uncertainty,
    UniformTimes,
)
from diffusion_pl.networks import MLP
from diffusion_pl.samplers import DDIM, Ancestral, UniformGrid
from diffusion_pl.schedules import VP, Cosine, Rectified, Schedule

# The rest of the loss -----------------------------------------------------------------------------------------------


def test_two_times_has_the_stated_part_of_equal_times() -> None:
    t, r, jumps = TwoTimes(UniformTimes(), 0.75).draw(VP(), 4000, torch.device("cpu"), torch.Generator().manual_seed(0))
    assert jumps == 1000
    assert (r[:jumps] < t[:jumps]).all()
    assert torch.equal(r[jumps:], t[jumps:])
    assert t[:jumps].mean().item() == pytest.approx(2 / 3, abs=0.03)
    assert t[jumps:].mean().item() == pytest.approx(1 / 2, abs=0.03)


def test_the_adaptive_weight_is_a_power_of_the_squared_error() -> None:
    square = torch.tensor([0.0, 0.999, 8.999])
    torch.testing.assert_close(MeanFlow(power=1.0).adaptive(square), torch.tensor([1000.0, 1.0, 1 / 9]))
    torch.testing.assert_close(MeanFlow(power=0.5).adaptive(square), torch.tensor([1000.0, 1.0, 1 / 9]).sqrt())


def test_uncertainty_is_best_at_the_logarithm_of_the_loss() -> None:
    """d(L/e^u + u)/du = 1 − L/e^u, by its one bias; u = 0 at first changes nothing."""
    t, x_0 = torch.linspace(0.1, 0.9, 8).double(), examples(8)
    denoiser, uncertainty = NetworkDenoiser(mlp().double(), VP(), V()), Uncertainty(8)
    options: dict[str, Any] = {"pairs": At(t, 0 * t), "coupling": Given(examples(8, 2))}
    plain = FlowMapLoss(Semigroup(), **options)(denoiser, x_0).loss
    weighted = FlowMapLoss(Semigroup(), **options, uncertainty=uncertainty)(denoiser, x_0).loss
    torch.testing.assert_close(weighted, plain)
    weighted.mean().backward()
    assert uncertainty.output.bias.grad is not None
    assert uncertainty.output.bias.grad.item() == pytest.approx(1 - plain.mean().item(), rel=1e-5)


def test_the_warm_up_lets_the_rest_in() -> None:
    """At batch 0 sCM's step is that of a denoiser's; after the warm-up it is MeanFlow's."""
    t, x_0 = torch.linspace(0.1, 0.9, 8).double(), examples(8)
    targets = {}
    for name, rule, batch in (
        ("start", ContinuousConsistency(10, False), 0),
        ("end", ContinuousConsistency(10, False), 10),
        ("MeanFlow", MeanFlow(power=0), 0),
    ):
        loss = FlowMapLoss(rule, At(t, 0 * t), coupling=Given(examples(8, 2)))
        loss.batches.fill_(batch)
        targets[name] = loss(NetworkDenoiser(mlp().double(), Cosine(), V()), x_0).loss
    torch.testing.assert_close(targets["end"], targets["MeanFlow"])
    assert not torch.allclose(targets["start"], targets["end"])


def test_missing_values_do_not_count() -> None:
    t, x_0 = torch.linspace(0.1, 0.9, 8).double(), examples(8)
    first = torch.tensor([[True, False]]).expand(8, 2)
    denoiser = exact(gaussian(VP()), V(), 0.3)
    loss = FlowMapLoss(Semigroup(), At(t, 0 * t), coupling=Given(examples(8, 2)))
    both, one, other = (loss(denoiser, x_0, observed=mask).loss for mask in (None, first, ~first))
    torch.testing.assert_close((one + other) / 2, both)
    assert not torch.allclose(one, other)


# What is refused ----------------------------------------------------------------------------------------------------


def check(loss: FlowMapLoss, schedule: Schedule, parameterization: Parameterization, network: nn.Module) -> None:
    loss.check(NetworkDenoiser(network, schedule, parameterization), (2,), {})


TWO, DATA = TwoTimes(UniformTimes()), ToData(UniformTimes())


@pytest.mark.parametrize(
    ("rule", "pairs", "schedule", "parameterization", "message"),
    [
        (MeanFlow(), TWO, Rectified(), Epsilon(), "Epsilon cannot jump from t = 1"),
        (ContinuousConsistency(), DATA, VP(), Data(), "ContinuousConsistency .* is not defined for Data"),
    ],
    ids=["no signal", "no slope"],
)
def test_parameterizations_without_a_jump_are_refused(
    rule: Rule, pairs: PairSampler, schedule: Schedule, parameterization: Parameterization, message: str
) -> None:
    with pytest.raises(ValueError, match=message) as error:
        check(FlowMapLoss(rule, pairs), schedule, parameterization, mlp())
    assert "Fix: set model.parameterization to" in str(error.value)
    check(FlowMapLoss(rule, pairs), schedule, Velocity(), mlp())


def test_a_network_without_jumps_is_refused() -> None:
    with pytest.raises(ValueError, match=r"MLP has no input for the length of a jump\. Fix: set flow_map to true"):
        check(FlowMapLoss(MeanFlow(), TWO), VP(), V(), MLP((2,), width=8, depth=1))


def test_a_teacher_of_another_schedule_is_refused() -> None:
    with pytest.raises(ValueError, match=r"teacher has another noise schedule, Cosine .* model's is VP"):
        check(FlowMapLoss(MeanFlow(), TWO, teacher=gaussian(Cosine())), VP(), V(), mlp())


def test_weighted_times_are_refused() -> None:
    with pytest.raises(ValueError, match="LikelihoodTimes weights its times"):
        FlowMapLoss(MeanFlow(), TwoTimes(LikelihoodTimes()))(NetworkDenoiser(mlp(), VP(), V()), torch.zeros(4, 2))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (partial(FlowMapLoss, MeanFlow(), TWO, differences=0.5), "differences must be in"),
        (partial(FlowMapLoss, Semigroup("teacher"), TWO), "there is no teacher"),
        (partial(FlowMapLoss, MeanFlow(), TWO, dropout={"label": 1.5}), "dropout of label must be in"),
        (partial(MeanFlow, power=2), "power must be in"),
        (partial(Consistency, q=1), "q must be above 1"),
        (partial(ContinuousConsistency, warmup=-1), "warmup must be at least 0"),
        (partial(TwoTimes, UniformTimes(), 1.0), "equal must be in"),
        (partial(Uncertainty, 0), "features must be at least 1"),
    ],
)
def test_options_out_of_range_are_refused(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_a_condition_that_is_not_there_cannot_be_dropped() -> None:
    loss = FlowMapLoss(MeanFlow(), TWO, dropout={"text": 0.1})
    with pytest.raises(ValueError, match=r"dropout\.text: the model has no such condition"):
        loss.check(NetworkDenoiser(mlp(), VP(), V()), (2,), {"label": label(3)})


class NoForwardMode(torch.autograd.Function):
    """sin, with a gradient but no forward-mode derivative."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.sin()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        slope: Tensor = grad_outputs[0] * x.cos()
        return slope


class Wave(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        wave: Tensor = NoForwardMode.apply(x)
        return wave


class Waving(nn.Module):
    """A network with a layer that has no forward-mode derivative."""

    flow_map = True

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.wave = mlp(), Wave()

    def forward(self, x: Tensor, c_noise: Tensor, jump: Tensor | None = None) -> Tensor:
        out: Tensor = self.wave(self.inner(x, c_noise, jump=jump))
        return out


def test_a_layer_without_forward_mode_is_named() -> None:
    denoiser, x_0 = NetworkDenoiser(Waving(), VP(), V()), examples(8).float()
    with pytest.raises(ValueError, match=r"wave \(Wave\) has no forward-mode derivative .*differences to 0.005"):
        FlowMapLoss(MeanFlow(), TWO)(denoiser, x_0)
    assert FlowMapLoss(MeanFlow(), TWO, differences=0.005)(denoiser, x_0).loss.isfinite().all()


# Reflow -------------------------------------------------------------------------------------------------------------


def test_reflow_pairs_noise_with_the_sample_it_leads_to() -> None:
    """By an exact map in one step: x_0 = mean + √C ε."""
    teacher = gaussian(Rectified())
    eps = examples(5, 2)
    x_0, same = Reflow(teacher, DDIM(UniformGrid(1)))(examples(5), eps, {})
    values, axes = torch.linalg.eigh(COV)
    torch.testing.assert_close(x_0, MEAN + eps @ (axes * values.sqrt()) @ axes.T, rtol=1e-8, atol=1e-8)
    assert torch.equal(same, eps)


def test_reflow_refuses_a_sampler_that_draws_noise() -> None:
    with pytest.raises(ValueError, match=r"Reflow: the sampler draws noise\. Fix: take a deterministic one"):
        Reflow(gaussian(VP()), Ancestral(UniformGrid(4)))(examples(5), examples(5, 2), {})
