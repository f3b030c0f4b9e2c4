"""Thresholding against a per-sample computation in numpy."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from conftest import array
from torch import Tensor

from diffusion_pl.denoisers import Denoiser, Prediction, Thresholded
from diffusion_pl.schedules import VP, Karras, Rectified, Schedule


class Says(Denoiser):
    """x̂_0 = given, whatever x_t."""

    def __init__(self, schedule: Schedule, x_0: Tensor) -> None:
        super().__init__()
        self.schedule, self.x_0 = schedule, x_0

    def forward(self, x_t: Tensor, t: Tensor, **cond: Tensor) -> Prediction:
        kernel = self.schedule(t)
        shift = cond.get("shift", torch.zeros(()))
        return Prediction(self.x_0 + shift, (x_t - kernel.alpha * (self.x_0 + shift)) / kernel.sigma)


def batch() -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    scale = torch.tensor([0.2, 1.0, 3.0, 10.0], dtype=torch.float64)[:, None, None, None]
    x_0 = scale * torch.randn(4, 3, 5, 5, dtype=torch.float64, generator=rng)
    return x_0, torch.randn(4, 3, 5, 5, dtype=torch.float64, generator=rng)


@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (0.0, 1.0), (-3.0, 0.5)])
@pytest.mark.parametrize("quantile", [None, 0.995, 0.8, 1.0])
def test_thresholds(low: float, high: float, quantile: float | None) -> None:
    x_0, x_t = batch()
    t = torch.tensor(0.4, dtype=torch.float64)
    actual = Thresholded(Says(VP(), x_0), low, high, quantile)(x_t, t).x_0
    for i in range(4):
        sample = array(x_0[i])
        if quantile is None:
            expected = np.clip(sample, low, high)
        else:
            middle = (low + high) / 2
            reach = max(np.quantile(np.abs(sample - middle), quantile), (high - low) / 2)
            inside = np.clip(sample, middle - reach, middle + reach)
            expected = middle + (inside - middle) * (high - low) / 2 / reach
        np.testing.assert_allclose(array(actual[i]), expected, rtol=1e-10, atol=1e-12)
    assert actual.min() >= low - 1e-12
    assert actual.max() <= high + 1e-12


@pytest.mark.parametrize("schedule", [VP(), Karras(), Rectified()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("quantile", [None, 0.9])
def test_the_noise_follows_the_clipped_data(schedule: Schedule, quantile: float | None) -> None:
    x_0, x_t = batch()
    wrapped = Thresholded(Says(schedule, x_0), quantile=quantile)
    for t in (
        torch.tensor(0.4, dtype=torch.float64),
        torch.tensor([0.1, 0.4, 0.7, 0.95], dtype=torch.float64)[:, None, None, None],
    ):
        kernel, result = schedule(t), wrapped(x_t, t)
        assert not torch.allclose(result.x_0, x_0)
        np.testing.assert_allclose(array(kernel.alpha * result.x_0 + kernel.sigma * result.eps), array(x_t), atol=1e-12)


def test_samples_do_not_share_their_quantile() -> None:
    x_0, x_t = batch()
    t = torch.tensor(0.4, dtype=torch.float64)
    whole = Thresholded(Says(VP(), x_0), quantile=0.9)(x_t, t).x_0
    alone = Thresholded(Says(VP(), x_0[2:3]), quantile=0.9)(x_t[2:3], t).x_0
    np.testing.assert_allclose(array(whole[2:3]), array(alone), rtol=1e-12)


def test_data_within_range_are_left_alone_and_conditions_pass() -> None:
    x_0 = torch.tensor([[0.3, -0.6]], dtype=torch.float64)
    t, x_t = torch.tensor(0.4, dtype=torch.float64), torch.ones(1, 2, dtype=torch.float64)
    for quantile in (None, 0.995):
        wrapped = Thresholded(Says(VP(), x_0), quantile=quantile)
        np.testing.assert_allclose(array(wrapped(x_t, t).x_0), array(x_0), rtol=1e-14)
        shifted = wrapped(x_t, t, shift=torch.tensor(0.1, dtype=torch.float64)).x_0
        np.testing.assert_allclose(array(shifted), array(x_0) + 0.1, rtol=1e-14)


@pytest.mark.parametrize(
    ("kwargs", "named"),
    [
        ({"low": 1.0, "high": 1.0}, "got 1.0 and 1.0"),
        ({"low": math.nan}, "nan"),
        ({"quantile": 0.0}, "got 0.0"),
        ({"quantile": 99.5}, "got 99.5"),
        ({"quantile": math.nan}, "nan"),
    ],
)
def test_bad_numbers_are_refused_by_name(kwargs: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError) as caught:
        Thresholded(Says(VP(), torch.zeros(1, 2)), **kwargs)
    assert named in str(caught.value)
