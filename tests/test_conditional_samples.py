"""Samples given vectors, images and sequences: against closed forms of joint Gaussians, through the Pipeline."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.integrate import quad
from torch import Tensor, nn

from diffusion_pl.conditions import Condition, label, value_of
from diffusion_pl.denoisers import Denoiser, JointGaussian, NetworkDenoiser, Prediction, V
from diffusion_pl.losses import SNR, DenoisingLoss, UniformTimes
from diffusion_pl.pipeline import Pipeline
from diffusion_pl.samplers import DDIM, Heun, LogSNRGrid, UniformGrid
from diffusion_pl.schedules import VP, Rectified

D = 3
PARTS = {"size": Condition((2,)), "text": Condition((3, 2)), "low": Condition((1, 2, 2))}
SLICES = {"size": slice(3, 5), "text": slice(5, 11), "low": slice(11, 15)}
NAN = float("nan")


def joint() -> tuple[Tensor, Tensor]:
    """Mean and covariance of (x, size, text, low), float64."""
    generator = torch.Generator().manual_seed(3)
    root = torch.randn(15, 20, generator=generator, dtype=torch.float64)
    return torch.randn(15, generator=generator, dtype=torch.float64), root @ root.T / 20


def pipeline(conditions: dict[str, Condition], kept: list[int]) -> Pipeline:
    """Of x given some of the parts, whose numbers in the joint vector are `kept`; no prior mismatch: α = 0 at t = 1."""
    mean, cov = joint()
    denoiser = JointGaussian(Rectified(), mean[kept], cov[kept][:, kept], (D,), conditions)
    return Pipeline(denoiser, Heun(UniformGrid(250, t_min=1e-4)), (D,), conditions)


def sigma_points() -> Tensor:
    """Latents of mean 0 and covariance 1: an affine map of them has the mean and covariance of its distribution."""
    points: Tensor = D**0.5 * torch.cat((torch.eye(D), -torch.eye(D)))
    return points


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.double()
    return x.mean(0), torch.cov(x.T, correction=0)


def exact(known: list[int], y: Tensor, noise: float = 0.0) -> tuple[NDArray[Any], NDArray[Any]]:
    """Mean and covariance of x given the numbers `known` of the joint vector, from its precision matrix."""
    mean, cov = (part.numpy() for part in joint())
    both = [*range(D), *known]
    part = cov[np.ix_(both, both)] + np.diag([0.0] * D + [noise**2] * len(known))
    precision = np.linalg.inv(part)
    posterior = np.linalg.inv(precision[:D, :D])
    return mean[:D] - posterior @ precision[:D, D:] @ (y.double().numpy() - mean[known]), posterior


@pytest.mark.parametrize("name", PARTS)
def test_samples_given_a_condition_have_its_mean_and_covariance(name: str) -> None:
    known = [*range(15)[SLICES[name]]]
    pipe = pipeline({name: PARTS[name]}, [*range(D), *known]).with_latents(sigma_points())
    y = torch.randn(len(known), generator=torch.Generator().manual_seed(5))
    mean, cov = moments(pipe.with_cond(**{name: y.reshape(PARTS[name].shape)})(2 * D))
    expected_mean, expected_cov = exact(known, y)
    np.testing.assert_allclose(mean, expected_mean, atol=2e-3)
    np.testing.assert_allclose(cov, expected_cov, atol=2e-3)
    prior = joint()[1][:D, :D].numpy()
    assert np.abs(prior - expected_cov).max() > 0.05  # so that a condition without effect would fail


def test_parts_that_are_not_given_are_integrated_out() -> None:
    """A token and a pixel are missing, and the vector as a whole."""
    pipe = pipeline(PARTS, [*range(15)]).with_latents(sigma_points())
    y = torch.randn(15, generator=torch.Generator().manual_seed(6))
    text, low = y[SLICES["text"]].reshape(3, 2), y[SLICES["low"]].reshape(1, 2, 2).clone()
    low[0, 0, 1] = NAN
    given: dict[str, Any] = {"size": None, "text": text[:2], "low": low}  # a shorter sequence: the rest is padding
    mean, cov = moments(pipe(2 * D, **given))
    known = [5, 6, 7, 8, 11, 13, 14]
    expected_mean, expected_cov = exact(known, y[known])
    np.testing.assert_allclose(mean, expected_mean, atol=2e-3)
    np.testing.assert_allclose(cov, expected_cov, atol=2e-3)


def test_samples_given_a_noisy_image_have_the_wider_posterior() -> None:
    known = [*range(11, 15)]
    conditions = {"low": PARTS["low"], "low_noise": Condition((1,))}
    pipe = pipeline(conditions, [*range(D), *known]).with_latents(sigma_points())
    y = torch.randn(4, generator=torch.Generator().manual_seed(7))
    for level in (0.0, 0.8):
        mean, cov = moments(pipe(2 * D, low=y.reshape(1, 2, 2), low_noise=level))
        expected_mean, expected_cov = exact(known, y, level)
        np.testing.assert_allclose(mean, expected_mean, atol=2e-3)
        np.testing.assert_allclose(cov, expected_cov, atol=2e-3)
    assert np.trace(exact(known, y, 0.8)[1]) > 1.1 * np.trace(exact(known, y)[1])


@pytest.mark.parametrize("drop", [["a"], ["b"], ["a", "b"]])
def test_guidance_of_any_conditions_has_the_closed_form(drop: list[str]) -> None:
    """dx/dσ = Σ wᵢ σ (x − mᵢ)/(Cᵢ + σ²), w and 1 − w, from σ = ∞: std Π Cᵢ^{wᵢ/2}, and the mean by quadrature."""
    w, cov = 2.0, np.array([[1.0, 0.5, -0.6], [0.5, 1.2, 0.1], [-0.6, 0.1, 0.8]])
    y = {"a": 0.7, "b": -0.4}
    conditions = {name: Condition((1,)) for name in y}
    denoiser = JointGaussian(Rectified(), torch.zeros(3).double(), torch.tensor(cov), (1,), conditions)
    pipe = Pipeline(denoiser, Heun(UniformGrid(400, t_min=1e-4)), (1,), conditions)
    x = pipe.with_scale(w, drop).with_cond(**y).with_latents(torch.tensor([[1.0], [-1.0]]))(2)

    def given(names: list[str]) -> tuple[float, float]:
        places = [1 + [*y].index(name) for name in names]
        gain = np.linalg.solve(cov[np.ix_(places, places)], cov[places, 0]) if places else np.zeros(0)
        return float(gain @ [y[name] for name in names]), float(1 - gain @ cov[places, 0])

    (m_1, c_1), (m_0, c_0) = given(["a", "b"]), given([name for name in y if name not in drop])

    def factor(sigma: float) -> float:
        return float((c_1 + sigma**2) ** (w / 2) * (c_0 + sigma**2) ** ((1 - w) / 2))

    def slope(sigma: float) -> float:
        return (w * m_1 * sigma / (c_1 + sigma**2) + (1 - w) * m_0 * sigma / (c_0 + sigma**2)) / factor(sigma)

    mean = factor(0) * quad(slope, 0, np.inf)[0]
    assert float(x.double().std(correction=0)) == pytest.approx(factor(0), abs=2e-3)
    assert float(x.double().mean()) == pytest.approx(mean, abs=2e-3)
    assert abs(factor(0) - c_1**0.5) > 0.02  # so that guidance without effect would fail


# Values of conditions.


class Echo(Denoiser):
    """Of data that are the mean of the vector, or −9 where it is not given; the label is added."""

    def __init__(self) -> None:
        super().__init__()
        self.schedule = VP()

    def forward(self, x_t: Tensor, t: Tensor, **cond: Tensor) -> Prediction:
        kernel = self.schedule(t)
        total = torch.nan_to_num(cond["size"].mean(1), -9.0) + cond.get("label", torch.zeros(len(x_t)))
        x_0 = total[:, None].expand_as(x_t)
        return Prediction(x_0, (x_t - kernel.alpha * x_0) / kernel.sigma)


def echo(shape: tuple[int, ...] = (2,), **options: Any) -> Pipeline:
    return Pipeline(Echo(), DDIM(LogSNRGrid(4)), (1,), {"size": Condition(shape)}, **options)


@pytest.mark.parametrize("given", [[0.2, 0.6], "0.2, 0.6", "[0.2, 0.6]", (0.2, 0.6), np.array([0.2, 0.6])])
def test_a_vector_is_given_as_numbers(given: Any) -> None:
    assert echo()(3, size=given)[:, 0].tolist() == pytest.approx([0.4] * 3)


def test_values_come_in_turn() -> None:
    several = torch.tensor([[1.0, 1.0], [2.0, 2.0]])
    assert echo()(3, size=several)[:, 0].tolist() == pytest.approx([1, 2, 1])
    assert echo(turns={"size": several})(3)[:, 0].tolist() == pytest.approx([1, 2, 1])
    pipe = echo(turns={"size": several})
    assert pipe(3, size=[5, 5])[:, 0].tolist() == pytest.approx([5, 5, 5])
    torch.testing.assert_close(pipe.samples([1]).x_0, pipe.samples(range(4)).x_0[1:2])
    assert pipe.without_cond()(2)[:, 0].tolist() == pytest.approx([-9, -9])


def test_readers_make_values_of_texts() -> None:
    pipe = echo(readers={"size": lambda text: torch.full((2,), float(len(text)))})
    assert pipe(2, size="a coat")[:, 0].tolist() == pytest.approx([6, 6])
    assert pipe(1, size=torch.ones(2))[:, 0].tolist() == pytest.approx([1])  # a tensor is the value itself


def test_guidance_drops_what_training_dropped() -> None:
    """1 + w (1 − 1) of what is kept; without a record all conditions are dropped: −9 − 1 at w = 0."""
    conditions = {"size": Condition((1,)), "label": label(3)}
    for dropped, at_zero in (((), -10.0), (("label",), 1.0 - 1), (("size",), -9.0 + 2)):
        pipe = Pipeline(Echo(), DDIM(LogSNRGrid(4)), (1,), conditions, dropped=dropped).with_scale(0.0)
        assert pipe(1, size=1.0, label=2)[0, 0].item() == pytest.approx(at_zero)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: echo()(1, size="wide"), "cond.size: expected numbers, got wide"),
        (lambda: echo()(1, size=[1, 2, 3]), r"cond.size: expected 2 numbers, got one of shape \(3,\)"),
        (lambda: echo((1,))(1, size=[1, 2]), r"cond.size: expected a number, got one of shape \(2,\)"),
        (lambda: echo()(1, size=[1, NAN]), "cond.size: expected finite numbers"),
        (lambda: echo()(1, size=[1, float("inf")]), "cond.size: expected finite numbers"),
        (lambda: echo()(1, size=torch.zeros(0, 2)), "cond.size: expected 2 numbers"),
        (lambda: echo()(1, text="a coat"), "cond.text: the model has no such condition; it has size"),
        (lambda: echo()(1), "cond.size: a value is missing"),
        (lambda: echo().with_scale(2, ["text"]), "drop: the model has no condition text; it has size"),
        (lambda: echo().samples(range(2), size=torch.zeros(3, 2)), r"cond.size: expected a tensor of shape \(2, 2\)"),
        (lambda: value_of("low", PARTS["low"], torch.zeros(1, 3, 3)), r"expected image of shape \(1, 2, 2\), got"),
        (lambda: value_of("low", PARTS["low"], "low.png"), r"expected a tensor of shape \(1, 2, 2\), got low"),
        (lambda: value_of("text", PARTS["text"], torch.zeros(4, 2)), r"expected sequence of shape \(3, 2\), got"),
        (lambda: value_of("text", PARTS["text"], [[1.0, NAN]]), "cond.text: expected finite numbers"),
    ],
)
def test_bad_values_are_refused_by_name(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


# Training drops each condition by itself.


class Recording(nn.Module):
    """Keeps the conditions that it was called with."""

    def forward(self, x: Tensor, c_noise: Tensor, **cond: Tensor) -> Tensor:
        self.cond = cond
        return 0 * x


def test_each_condition_is_dropped_by_itself() -> None:
    """Of n examples n p_a p_b lose both, within five standard deviations; what is dropped is dropped as a whole."""
    n, rates = 20_000, {"label": 0.1, "size": 0.3, "text": 0.5}
    network = Recording()
    loss = DenoisingLoss(UniformTimes(), SNR(), dropout=rates)
    cond = {"label": torch.zeros(n, dtype=torch.int64), "size": torch.ones(n, 2), "text": torch.ones(n, 2, 3)}
    loss(NetworkDenoiser(network, VP(), V()), torch.zeros(n, 1), cond, torch.Generator().manual_seed(0))
    lost = {"label": network.cond["label"] < 0}
    for name in ("size", "text"):
        missing = network.cond[name].isnan().flatten(1)
        assert torch.equal(missing.any(1), missing.all(1))
        lost[name] = missing.all(1)
    for a in rates:
        for b in rates:
            p = rates[a] if a == b else rates[a] * rates[b]
            deviation = (p * (1 - p) / n) ** 0.5
            assert float((lost[a] & lost[b]).float().mean()) == pytest.approx(p, abs=5 * deviation)
