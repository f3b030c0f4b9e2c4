"""Self-conditioning: the estimate that a network is handed is its own last one, in training and in sampling."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from conftest import array, by_class, samplers
from torch import Tensor, nn

from diffusion_pl.denoisers import (
    AutoGuided,
    ClassifierFree,
    ClassifierGuided,
    Data,
    Denoiser,
    Epsilon,
    Gray,
    NetworkDenoiser,
    Prediction,
    Reconstructing,
    Thresholded,
    V,
)
from diffusion_pl.losses import SNR, DenoisingLoss, UniformTimes
from diffusion_pl.networks import LinearAttentionUNet
from diffusion_pl.samplers import DDIM, Grid, Sampler, UniformGrid
from diffusion_pl.schedules import VP

Build = Callable[[Grid], Sampler]


class Linear(nn.Module):
    """F = a x + b x_0_hat, b and 0 where there is none; keeps what it is given."""

    self_condition = True

    def __init__(self, a: float = 0.5, b: float = 0.3) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(a, dtype=torch.float64))
        self.b = nn.Parameter(torch.tensor(b, dtype=torch.float64))
        self.calls: list[dict[str, Any]] = []

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None, x_0_hat: Tensor | None = None) -> Tensor:
        self.calls.append({"x": x, "c_noise": c_noise, "label": label, "x_0_hat": x_0_hat})
        return self.a * x if x_0_hat is None else self.a * x + self.b * x_0_hat


class Conditioned(Denoiser):
    """x̂_0 = ½x_t + 0.1 x_0_hat + label/10; records its conditions and its estimates."""

    self_conditioned = True

    def __init__(self, takes: bool = True, gain: float = 0.5) -> None:
        super().__init__()
        self.schedule, self.self_conditioned, self.gain = VP(), takes, gain
        self.conds: list[dict[str, Tensor]] = []
        self.estimates: list[Tensor] = []

    def forward(self, x_t: Tensor, t: Tensor, **cond: Tensor) -> Prediction:
        kernel = self.schedule(t)
        x_0 = self.gain * x_t
        if "x_0_hat" in cond:
            x_0 = x_0 + 0.1 * cond["x_0_hat"]
        if "label" in cond:
            x_0 = x_0 + cond["label"].reshape(-1, *[1] * (x_t.ndim - 1)) / 10
        self.conds.append(cond)
        self.estimates.append(x_0)
        return Prediction(x_0, (x_t - kernel.alpha * x_0) / kernel.sigma)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# Training ---------------------------------------------------------------------------------------------------------


def steps(n: int, meaning: Any = None, **kwargs: Any) -> tuple[Linear, list[int]]:
    """The network after n training steps, and how many calls each took."""
    network, counts = Linear(), []
    denoiser, loss = NetworkDenoiser(network, VP(), meaning or Data()), DenoisingLoss(UniformTimes(0.1), SNR())
    rng = torch.Generator().manual_seed(0)
    for k in range(n):
        before = len(network.calls)
        loss(denoiser, normal(3, 2, seed=k), kwargs, rng)
        counts.append(len(network.calls) - before)
    return network, counts


def test_about_half_of_the_steps_take_a_first_pass() -> None:
    _, counts = steps(600)
    assert set(counts) == {1, 2}
    assert abs(np.mean(counts) - 1.5) < 4 * 0.5 / 600**0.5


@pytest.mark.parametrize("meaning", [Data(), Epsilon(), V()], ids=lambda m: type(m).__name__)
def test_the_estimate_is_of_the_first_pass_at_the_same_point(meaning: Any) -> None:
    """x̂_0 = (q x_t − σF)/d with F = a x, by the parameterization's own numbers; the label goes to both passes."""
    network, counts = steps(20, meaning, label=torch.arange(3))
    at = next(k for k, n in enumerate(counts) if n == 2)
    first, second = network.calls[sum(counts[:at]) : sum(counts[:at]) + 2]
    assert torch.equal(first["x"], second["x"])
    assert torch.equal(first["c_noise"], second["c_noise"])
    assert torch.equal(first["label"], second["label"])
    assert first["x_0_hat"] is None
    kernel = VP()(first["c_noise"][:, None])
    x_t = array(first["x"])  # c_in is 1: a variance-preserving schedule, unit data
    alpha, sigma = array(kernel.alpha), array(kernel.sigma)
    output = 0.5 * x_t
    expected = {"Data": output, "Epsilon": (x_t - sigma * output) / alpha, "V": alpha * x_t - sigma * output}
    np.testing.assert_allclose(array(second["x_0_hat"]), expected[type(meaning).__name__], rtol=1e-5, atol=1e-6)


def test_the_estimate_is_held_fixed_by_the_gradient() -> None:
    """∂loss/∂a with x_0_hat a constant c: 2 mean(w (F − x_0) x); were it not, b ∂c/∂a would be in it."""
    network = Linear()
    denoiser, call = NetworkDenoiser(network, VP(), Data()), DenoisingLoss(UniformTimes(0.1), SNR())
    x_0, seed = normal(5, 2), 0
    while True:
        network.calls.clear()
        losses = call(denoiser, x_0, None, torch.Generator().manual_seed(seed))
        if len(network.calls) == 2:
            break
        seed += 1
    losses.loss.sum().backward()
    inputs = network.calls[1]
    assert not inputs["x_0_hat"].requires_grad
    kernel = VP()(losses.t[:, None])
    weight = array(kernel.snr)
    x, c = array(inputs["x"]), array(inputs["x_0_hat"])
    error = 0.5 * x + 0.3 * c - array(x_0)
    assert network.a.grad is not None
    assert network.b.grad is not None
    assert float(network.a.grad) == pytest.approx((weight * 2 * error * x).mean(1).sum(), rel=1e-5)
    assert float(network.b.grad) == pytest.approx((weight * 2 * error * c).mean(1).sum(), rel=1e-5)
    through = (weight * 2 * error * (x + 0.3 * x)).mean(1).sum()
    assert abs(float(network.a.grad) - through) > 0.05 * abs(through)


def test_withheld_labels_are_withheld_from_both_passes() -> None:
    network = Linear()
    denoiser = NetworkDenoiser(network, VP(), Data())
    loss, rng = DenoisingLoss(UniformTimes(0.1), SNR(), dropout={"label": 0.5}), torch.Generator().manual_seed(0)
    pairs = 0
    for _ in range(20):
        network.calls.clear()
        loss(denoiser, normal(16, 2), {"label": torch.arange(16)}, rng)
        if len(network.calls) == 2:
            pairs += 1
            assert torch.equal(network.calls[0]["label"], network.calls[1]["label"])
            assert (network.calls[0]["label"] == -1).any()
    assert pairs > 3


def test_validation_with_a_generator_is_the_same_each_time() -> None:
    network = Linear()
    denoiser = NetworkDenoiser(network, VP(), Data()).eval()
    loss = DenoisingLoss(UniformTimes(0.1), SNR(), dropout={"label": 0.4})
    before, label = torch.get_rng_state(), torch.arange(32)

    def epoch(seed: int) -> tuple[Tensor, list[bool]]:
        network.calls.clear()
        rng = torch.Generator().manual_seed(seed)
        result = torch.cat([loss(denoiser, normal(32, 2), {"label": label}, rng).loss for _ in range(8)])
        return result, [call["x_0_hat"] is not None for call in network.calls]

    (one, estimated), (again, told_again), (other, _) = epoch(3), epoch(3), epoch(4)
    assert torch.equal(one, again)
    assert estimated == told_again
    assert not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), before)


# Sampling ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [p for p in samplers() if "Replacement" not in p.id])
def test_every_sampler_passes_the_previous_estimate(build: Build) -> None:
    model, label = Conditioned(), torch.tensor([0, 1, 0])
    for _ in range(2):  # a second run begins with none again
        model.conds.clear()
        model.estimates.clear()
        result = build(UniformGrid(5, 0.9, 0.1))(model, normal(3, 2), lambda x: normal(*x.shape), label=label)
        assert result.nfe == len(model.conds)
        assert "x_0_hat" not in model.conds[0]
        for cond, said in zip(model.conds[1:], model.estimates, strict=False):
            assert torch.equal(cond["x_0_hat"], said)
            assert torch.equal(cond["label"], label)


def test_a_denoiser_without_estimate_input_gets_none() -> None:
    model = Conditioned(takes=False)
    DDIM(UniformGrid(5, 0.9, 0.1))(model, normal(3, 2))
    assert all(cond == {} for cond in model.conds)


def wrappers() -> list[Any]:
    def classifier(x: Tensor, t: Tensor) -> Tensor:
        return x.flatten(1)[:, :2]

    gray = torch.full((1, 1, 2, 2), 0.3, dtype=torch.float64)
    return [
        pytest.param(lambda m: Thresholded(m, -0.5, 0.5), id="Thresholded"),
        pytest.param(lambda m: ClassifierFree(m, 2.0), id="ClassifierFree"),
        pytest.param(lambda m: AutoGuided(m, Conditioned(gain=0.2), 2.0), id="AutoGuided"),
        pytest.param(lambda m: ClassifierGuided(m, classifier, 2.0), id="ClassifierGuided"),
        pytest.param(lambda m: Reconstructing(m, Gray(3), gray), id="Reconstructing"),
    ]


@pytest.mark.parametrize("wrap", wrappers())
def test_a_guided_model_gets_the_guided_estimate(wrap: Callable[[Denoiser], Denoiser]) -> None:
    model = Conditioned()
    guided = wrap(model)
    assert guided.self_conditioned
    path = DDIM(UniformGrid(5, 0.9, 0.1))(guided, normal(3, 3, 2, 2), path=True, label=torch.tensor([0, 1, 0])).path
    assert path is not None
    assert len(model.conds) == 5
    assert "x_0_hat" not in model.conds[0]
    for cond, estimate, said in zip(model.conds[1:], path.x_0, model.estimates, strict=False):
        both = torch.cat((estimate, estimate)) if isinstance(guided, ClassifierFree) else estimate
        assert torch.equal(cond["x_0_hat"], both)
        assert not torch.allclose(said[:3], estimate)  # guidance did something
    assert not wrap(Conditioned(takes=False)).self_conditioned


def test_a_weaker_model_without_self_conditioning_gets_none() -> None:
    model, weak = Conditioned(), Conditioned(takes=False, gain=0.2)
    label = torch.tensor([0, 1, 0])
    DDIM(UniformGrid(4, 0.9, 0.1))(AutoGuided(model, weak, 2.0), normal(3, 2), label=label)
    assert ["x_0_hat" in cond for cond in model.conds] == [False, True, True, True]
    assert all(set(cond) == {"label"} for cond in weak.conds)
    both = Conditioned(gain=0.2)
    model.conds.clear()
    DDIM(UniformGrid(4, 0.9, 0.1))(AutoGuided(model, both, 2.0), normal(3, 2), label=label)
    for ours, theirs in zip(model.conds[1:], both.conds[1:], strict=True):
        assert torch.equal(ours["x_0_hat"], theirs["x_0_hat"])


def unet() -> LinearAttentionUNet:
    torch.manual_seed(0)
    return LinearAttentionUNet((1, 8, 8), conditions=by_class(3), dim=8, dim_mults=(1, 2), self_condition=True)


def test_a_real_network_trains_and_samples_on_its_estimates() -> None:
    denoiser = NetworkDenoiser(unet(), VP(), V())
    assert denoiser.self_conditioned
    x_t, t = normal(2, 1, 8, 8).float(), torch.tensor(0.5)
    with torch.no_grad():
        none, zeros, ones = (denoiser(x_t, t, **({} if h is None else {"x_0_hat": torch.full_like(x_t, h)})).x_0
                             for h in (None, 0.0, 1.0))  # fmt: skip
    assert torch.equal(none, zeros)
    assert not torch.allclose(none, ones, atol=1e-3)
    rng = torch.Generator().manual_seed(0)
    for _ in range(4):
        losses = DenoisingLoss(UniformTimes(), SNR())(denoiser, x_t, {"label": torch.tensor([0, -1])}, rng)
        losses.loss.mean().backward()
    assert DDIM(UniformGrid(3))(denoiser, x_t).x_0.isfinite().all()


def test_a_single_precision_network_samples_in_double_precision() -> None:
    """As it does without self-conditioning: the network runs in its own precision."""
    denoiser = NetworkDenoiser(unet(), VP(), V())
    assert DDIM(UniformGrid(3))(denoiser, normal(2, 1, 8, 8)).x_0.dtype == torch.float64
