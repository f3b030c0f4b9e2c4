"""Residual targets: the network models x minus a prediction, and all else sees x."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from diffusion_pl.callbacks.doctor import _second_moment
from diffusion_pl.conditions import Condition, as_prediction, from_plain, prediction_of, to_plain
from diffusion_pl.data import Digits, Fields
from diffusion_pl.denoisers import EDM, Data, Epsilon, JointGaussian, NetworkDenoiser, Parameterization, V, Velocity
from diffusion_pl.losses import SNR, DenoisingLoss, UniformTimes
from diffusion_pl.pipeline import Pipeline
from diffusion_pl.samplers import DDIM, Heun, LogSNRGrid, UniformGrid
from diffusion_pl.schedules import VP, Rectified, Schedule
from diffusion_pl.training import DiffusionModule

SHAPE = (1, 1, 3)
D = 3
CONDITIONS = {"mean": Condition(SHAPE, prediction=True)}


class Exact(nn.Module):
    """The network's output F of the residual's exact denoiser: of (r, mean) ~ N jointly, c_noise = t."""

    def __init__(self, schedule: Schedule, parameterization: Parameterization, joint: JointGaussian) -> None:
        super().__init__()
        self.schedule, self.parameterization, self.joint = schedule, parameterization, joint

    def forward(self, x: Tensor, c_noise: Tensor, mean: Tensor) -> Tensor:
        t = c_noise.reshape(-1, 1, 1, 1)
        kernel = self.schedule(t)
        r_0, eps, _ = self.joint(x / self.parameterization.c_in(kernel), t, mean=mean)
        return self.parameterization.target(kernel, r_0, eps)


def joint() -> tuple[Tensor, Tensor]:
    """Mean and covariance of (x, prediction), float64; the prediction is correlated with x, and biased."""
    root = torch.randn(6, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    root[:3] += 2 * root[3:]
    return torch.randn(6, generator=torch.Generator().manual_seed(2), dtype=torch.float64), root @ root.T / 9


def test_samples_have_the_mean_and_covariance_of_x() -> None:
    """Given the prediction p: E x = m + C_xp C_pp⁻¹ (p − m_p), Cov x = C_xx − C_xp C_pp⁻¹ C_px, exactly."""
    mean, cov = joint()
    less = torch.eye(6, dtype=torch.float64)
    less[:D, D:] = -torch.eye(D)
    schedule, parameterization = Rectified(), Velocity()
    residual = JointGaussian(schedule, less @ mean, less @ cov @ less.T, SHAPE, CONDITIONS)
    network = Exact(schedule, parameterization, residual)
    denoiser = NetworkDenoiser(network, schedule, parameterization, prediction="mean")
    latents = D**0.5 * torch.cat((torch.eye(D), -torch.eye(D))).reshape(-1, *SHAPE)
    pipe = Pipeline(denoiser, Heun(UniformGrid(60, t_min=1e-4)), SHAPE, CONDITIONS).with_latents(latents)
    p = torch.tensor([0.5, -1.0, 2.0])
    pipe = pipe.with_cond(mean=p.reshape(SHAPE))
    x = pipe.samples(range(2 * D)).x_0.flatten(1).double()
    gain = cov[:D, D:] @ cov[D:, D:].inverse()
    np.testing.assert_allclose(x.mean(0), mean[:D] + gain @ (p.double() - mean[D:]), atol=0.01)
    np.testing.assert_allclose(torch.cov(x.T, correction=0), cov[:D, :D] - gain @ cov[D:, :D], atol=0.01)
    again = pipe.encode(x.float().reshape(-1, *SHAPE))
    torch.testing.assert_close(again, latents, atol=0.04, rtol=0)


class Small(nn.Module):
    """A linear layer of x and the condition."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.line = nn.Linear(2 * D + 1, D)

    def forward(self, x: Tensor, c_noise: Tensor, mean: Tensor) -> Tensor:
        y: Tensor = self.line(torch.cat((x.flatten(1), mean.nan_to_num().flatten(1), c_noise[:, None]), 1))
        return y.reshape(x.shape)


@pytest.mark.parametrize("parameterization", [V(), EDM(0.3), Epsilon(), Data()])
def test_the_loss_is_that_of_the_residual(parameterization: Parameterization) -> None:
    x, p = torch.randn(2, 8, *SHAPE, generator=torch.Generator().manual_seed(3))
    make = partial(NetworkDenoiser, Small(), VP(), parameterization)
    loss = DenoisingLoss(UniformTimes(), SNR(plus=1))
    own = loss(make(prediction="mean"), x, {"mean": p}, torch.Generator().manual_seed(4))
    residual = loss(make(), x - p, {"mean": p}, torch.Generator().manual_seed(4))
    torch.testing.assert_close(own.loss, residual.loss, rtol=1e-3, atol=1e-4)
    plain = loss(make(), x, {"mean": p}, torch.Generator().manual_seed(4))
    assert (own.loss - plain.loss).abs().max() > 0.01


def test_a_prediction_that_is_not_given_is_zero() -> None:
    x_t, t = torch.randn(4, *SHAPE), torch.tensor(0.4)
    missing = torch.full((4, *SHAPE), float("nan"))
    make = partial(NetworkDenoiser, Small(), VP(), V())
    own, plain = make(prediction="mean")(x_t, t, mean=missing), make()(x_t, t, mean=missing)
    torch.testing.assert_close(own.x_0, plain.x_0)


# In the user's units.


class Zero(nn.Module):
    """Predicts a residual of 0, as a network of `Data`."""

    def __init__(self, shape: tuple[int, ...], conditions: Mapping[str, Condition]) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, c_noise: Tensor, **cond: Tensor) -> Tensor:
        return self.scale * x


def module(data: Any) -> DiffusionModule:
    loss, sampler = DenoisingLoss(UniformTimes(), SNR()), DDIM(LogSNRGrid(4))
    parts = Zero, VP(), Data(), loss, sampler, torch.optim.AdamW
    return DiffusionModule(*parts, shape=data.shape, conditions=data.conditions)


@pytest.fixture(scope="module")
def weather(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """x = 280 + 10 (m + 0.3 r), its prediction 281 + 10 m, in two channels."""
    rng = np.random.default_rng(0)
    m, r = rng.normal(size=(2, 200, 4, 6, 2))
    path = tmp_path_factory.mktemp("weather") / "all.npz"
    np.savez(path, x=280 + 10 * (m + 0.3 * r), guess=281 + 10 * m, other=m[:, :, :, :1])
    np.save(path.with_name("one.npy"), 281 + 10 * m[0])
    return path


def fields(path: Path, **options: Any) -> Fields:
    data = Fields(str(path), "x", axes="NHWC", conditions={"guess": "guess"}, **{"residual": "guess", **options})
    data.setup("fit")
    return data


def test_fields_and_their_prediction_have_the_same_units(weather: Path) -> None:
    data = fields(weather)
    assert prediction_of(data.conditions) == "guess"
    batch = next(data.batches("val", 30))
    raw = {name: data.decode(batch[name].double()) for name in ("x", "guess")}
    assert raw["x"].mean() == pytest.approx(280, abs=2) and raw["guess"].mean() == pytest.approx(281, abs=2)
    residual = (raw["x"] - raw["guess"]).flatten()
    assert float(residual.mean()) == pytest.approx(-1, abs=0.5) and float(residual.std()) == pytest.approx(3, rel=0.1)
    # In model units 10 · √1.09 is 1; the doctor compares sigma_data with the residual.
    expected = (0.3**2 + 0.1**2) / 1.09
    assert _second_moment(data) == pytest.approx(expected, rel=0.1)
    assert _second_moment(fields(weather, residual=None)) == pytest.approx(1, rel=0.1)


def test_samples_are_prediction_plus_residual(weather: Path) -> None:
    data = fields(weather)
    state = data.state_dict()
    assert from_plain(to_plain(data.conditions)) == data.conditions
    other = Fields("gone.npz", "x", axes="NHWC", conditions={"guess": "guess"}, residual="guess")
    other.load_state_dict(state)
    one = weather.with_name("one.npy")
    x = module(other).live_pipeline(other).with_cond(guess=str(one)).samples(range(2)).x_0
    np.testing.assert_allclose(other.array(x)[1], np.load(one), rtol=1e-6)
    with pytest.raises(ValueError, match=r"the checkpoint's fields are 2 x 4 x 6 with guess \(prediction"):
        fields(weather, residual=None).check_state(state)


def test_images_have_the_residual_of_a_low_resolution(tmp_path: Path) -> None:
    data = Digits(low=4, residual="low")
    data.setup("fit")
    image = np.random.default_rng(0).integers(0, 17, (4, 4)) * 15
    Image.fromarray(image.astype(np.uint8)).save(tmp_path / "low.png")
    x = module(data).live_pipeline(data)(2, low=str(tmp_path / "low.png"))
    np.testing.assert_array_equal(x[1, 0], (image.repeat(2, 0).repeat(2, 1) / 255 * 16).round())


@pytest.mark.parametrize(
    ("residual", "message"),
    [
        ("none", "data.residual: none is not a condition of the data; they have guess, other"),
        ("other", r"data.residual: other is a image of shape \(1, 4, 6\), and a prediction must be an image"),
    ],
)
def test_bad_predictions_are_refused(weather: Path, residual: str, message: str) -> None:
    conditions = {"guess": "guess", "other": "other"}
    with pytest.raises(ValueError, match=message):
        Fields(str(weather), "x", axes="NHWC", conditions=conditions, residual=residual).setup("fit")
    with pytest.raises(ValueError, match=r"data.residual: label is a label"):
        as_prediction("data.residual", "label", Digits(conditional=True).conditions, (1, 8, 8))
