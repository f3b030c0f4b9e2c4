"""Restoring fields of 1 to 3 axes and latents: operators, masks and boxes, and exact conditionals of Gaussians."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from diffusion_pl.autoencoders import KL, VQ, Autoencoder, Orthogonal, save_autoencoder, weights_hash
from diffusion_pl.commands.degrading import known_of, operator_of, read_box
from diffusion_pl.commands.restoring import METHODS, Known
from diffusion_pl.data import Latents
from diffusion_pl.data.images import Format, ImageFormat
from diffusion_pl.denoisers import (
    Clipped,
    Coarse,
    Denoiser,
    Gaussian,
    GaussianField,
    Gray,
    Masked,
    Operator,
    Prediction,
    radial,
)
from diffusion_pl.pipeline import Pipeline
from diffusion_pl.samplers import DDIM, DPMpp, LogSNRGrid, Sampler
from diffusion_pl.schedules import VP, Schedule

GRID = LogSNRGrid(60, 1.0, 1e-4)
CPU = torch.device("cpu")


def box(sizes: Sequence[int], *slices: slice) -> Masked:
    mask = torch.zeros(1, 1, *sizes)
    mask[0, 0][slices] = 1
    return Masked(mask)


def dense(function: Any, shape: Sequence[int]) -> np.ndarray:
    """The matrix of a linear function of arrays of a shape, without the rows that are 0: (M, N)."""
    columns = function(torch.eye(math.prod(shape)).reshape(-1, *shape)).flatten(1).numpy().T.astype(float)
    rows: np.ndarray = columns[np.abs(columns).sum(1) > 0]
    return rows


def root(power: Tensor) -> np.ndarray:
    """A matrix F with the covariance F Fᵀ of a field of this power."""
    axes = tuple(range(2, power.ndim + 1))
    return dense(lambda x: torch.fft.ifftn(power.sqrt() * torch.fft.fftn(x, dim=axes), dim=axes).real, power.shape)


def conditional(mean: np.ndarray, cov: np.ndarray, a: np.ndarray, y: np.ndarray, s: float) -> tuple[Any, Any]:
    """Mean and covariance of x ~ N(mean, cov) given y = a x + s ε, by the normal equations."""
    gain = cov @ a.T @ np.linalg.inv(a @ cov @ a.T + s**2 * np.eye(len(a)))
    return mean + gain @ (y - a @ mean), cov - gain @ a @ cov


def restored_moments(pipeline: Pipeline, known: Known) -> tuple[np.ndarray, np.ndarray]:
    """Mean b and covariance M Mᵀ of what `posterior` restores by a sampler without noise: of a Gaussian it is M ε + b.

    b is the sample of ε = 0, and the columns of M those of the unit vectors: no Monte Carlo error.
    """
    n = math.prod(pipeline.shape)
    start = torch.cat((torch.zeros(1, n), torch.eye(n))).reshape(-1, *pipeline.shape)
    known = known._replace(y=known.y.expand(n + 1, *known.y.shape[1:]))
    x = METHODS["posterior"].samples(pipeline.with_latents(start), known).flatten(1).double().numpy()
    m = (x[1:] - x[0]).T
    return x[0], m @ m.T


# Operators --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("operator", "shape"),
    [
        (Coarse([3]), (2, 6)),
        (Coarse(2), (1, 4, 6)),
        (Coarse([1, 2, 3]), (2, 2, 4, 3)),
        (Gray(3), (3, 5)),
        (Gray(2), (2, 2, 2, 2)),
        (box((4, 2, 2), slice(1, 3), slice(None), slice(None)), (1, 4, 2, 2)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Operator) else str(value),
)
def test_operators_of_any_axes_and_their_transposes(operator: Operator, shape: tuple[int, ...]) -> None:
    a = dense(operator, shape)
    np.testing.assert_allclose(a @ a.T, operator.gram * np.eye(len(a)), atol=1e-6)
    x = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    y = operator(x)
    back = operator.transpose(y).flatten(1).numpy()
    expected = x.flatten(1).numpy() @ a.T @ a
    np.testing.assert_allclose(back, expected, atol=1e-5)
    assert torch.allclose(operator(operator.consistent(torch.randn_like(x), y)), y, atol=1e-5)


def test_blocks_are_means_along_the_axes() -> None:
    x = torch.arange(12.0).reshape(1, 1, 2, 6)
    assert Coarse([1, 3])(x).flatten().tolist() == [1, 4, 7, 10]
    assert Coarse([2, 2])(x).flatten().tolist() == [3.5, 5.5, 7.5]
    for factor in (0, [1, 1], [2, 0], []):
        with pytest.raises(ValueError, match="factor must be at least 2"):
            Coarse(factor)


def test_boxes_name_a_slice_for_each_axis() -> None:
    values = np.arange(24).reshape(4, 6)
    for text, expected in ((":,2:4", values[:, 2:4]), ("-1:, :3", values[-1:, :3]), ("0:9,:", values)):
        assert np.array_equal(values[read_box(text, values.shape)], expected)
    for text, problem in ((":", "each axis of 4x6"), (":,3:3", "empty"), (":,1:2:3", "start:stop"), (":,-:", "whole")):
        with pytest.raises(ValueError, match=problem):
            read_box(text, values.shape)


# Fields -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "operator"),
    [
        ((16,), Coarse([4])),
        ((16,), box((16,), slice(5, 9))),
        ((4, 4, 4), Coarse([4, 2, 2])),
        ((4, 4, 4), box((4, 4, 4), slice(1, 2), slice(1, 3), slice(0, 2))),
    ],
    ids=["upscale-1D", "inpaint-1D", "upscale-3D", "inpaint-3D"],
)
def test_restored_gaussian_fields_have_the_exact_conditional(sizes: tuple[int, ...], operator: Operator) -> None:
    power, s = radial(sizes, lambda k: (1 + k**2) ** -1.5), 0.1
    power /= power.mean()
    field = GaussianField(VP(), power, mean=0.5)
    truth = field.draw(1, torch.Generator().manual_seed(1)).float()
    pipeline = Pipeline(field, DPMpp(GRID), (1, *sizes))
    mean, cov = restored_moments(pipeline, Known(operator, operator(truth), noise=s))
    f = root(power)
    a = dense(operator, (1, *sizes))
    y = a @ truth.flatten().double().numpy()
    exact_mean, exact_cov = conditional(np.full(len(f), 0.5), f @ f.T, a, y, s)
    assert np.abs(exact_mean - 0.5).max() > 0.4 and np.abs(exact_cov - f @ f.T).max() > 0.15
    np.testing.assert_allclose(mean, exact_mean, atol=0.01)
    np.testing.assert_allclose(cov, exact_cov, atol=0.02)


# Latents ----------------------------------------------------------------------------------------------------------


class Flat(Denoiser):
    """A Gaussian of arrays (C, H, W) with a dense covariance."""

    def __init__(self, schedule: Schedule, mean: Tensor, cov: Tensor, shape: Sequence[int]) -> None:
        super().__init__()
        self.schedule, self.shape = schedule, tuple(shape)
        self.inner = Gaussian(schedule, mean, cov)

    def forward(self, x_t: Tensor, t: Tensor, **cond: Tensor) -> Prediction:
        x_0, eps, _ = self.inner(x_t.flatten(1).double(), t)
        return Prediction(x_0.reshape(x_t.shape).to(x_t), eps.reshape(x_t.shape).to(x_t))


def latents(folder: Path, codec: Autoencoder, mean: float = 0.0, stds: Sequence[float] | None = None) -> Latents:
    """Latents of 8 x 8 images, as a checkpoint knows them."""
    channels = codec.latent_channels
    (folder / "autoencoder").mkdir(parents=True)
    save_autoencoder(codec, folder / "autoencoder")
    data = Latents(str(folder))
    data.load_state_dict(
        {
            "shape": [channels, 8 // codec.factor, 8 // codec.factor],
            "image_shape": [1, 8, 8],
            "levels": 17,
            "conditions": {},
            "class_counts": None,
            "mean": [mean] * channels,
            "std": list(stds or [1.0] * channels),
            "autoencoder": {"name": "autoencoder", "sha256": weights_hash(codec)},
            "data": {},
            "sha256": "",
        }
    )
    return data


def image_prior() -> tuple[GaussianField, np.ndarray, Tensor]:
    """Gaussian images of 8 x 8, their covariance, and one of them."""
    power = radial((8, 8), lambda k: (1 + k**2) ** -1.5)
    power /= power.mean()
    field = GaussianField(VP(), power)
    f = root(power)
    return field, f @ f.T, field.draw(1, torch.Generator().manual_seed(1)).float()


@pytest.fixture
def codec() -> Orthogonal:
    return Orthogonal((1, 8, 8), 2).requires_grad_(False)


@pytest.mark.parametrize("method", METHODS)
def test_orthogonal_latents_are_restored_as_pixels_are(tmp_path: Path, codec: Orthogonal, method: str) -> None:
    """The same noise, turned: every method gives the same images, and those of the dense covariance of the latents."""
    data, way, (field, cov, truth) = latents(tmp_path, codec), METHODS[method], image_prior()
    encode = dense(codec.encode_mean, (1, 8, 8))
    turned = Flat(field.schedule, torch.zeros(64).double(), torch.from_numpy(encode @ cov @ encode.T), data.shape)
    mask = box((8, 8), slice(None), slice(0, 4))
    pixels = ImageFormat("", Format((1, 8, 8), levels=17))
    grid = LogSNRGrid(9, 1.0, 1e-3)

    def restored(of: Any, denoiser: Denoiser, turn: Any) -> Tensor:
        rng = torch.Generator().manual_seed(2)
        pipeline = Pipeline(denoiser, DDIM(grid, 1.0), of.shape)
        known = known_of(of, mask, truth.expand(3, -1, -1, -1), method, way.linear, noise=0.05)
        built = way.build(pipeline, known)

        def noise(x: Tensor) -> Tensor:
            eps: Tensor = turn(torch.randn(len(x), 1, 8, 8, generator=rng))
            return eps

        sampler: Sampler = built.sampler
        x: Tensor = of.to_pixels(sampler(built.guided, noise(torch.empty(3)), noise).x_0)
        return x

    images, decoded = restored(pixels, field, lambda x: x), restored(data, turned, codec.encode_mean)
    assert float((images - images[:1]).abs().max()) > 0.3
    torch.testing.assert_close(decoded, images, rtol=0, atol=2e-3)


@pytest.mark.parametrize("operator", [Coarse(4), box((8, 8), slice(2, 4), slice(3, 5))], ids=["upscale", "inpaint"])
def test_restored_latents_have_the_conditional_of_pixels(tmp_path: Path, codec: Orthogonal, operator: Operator) -> None:
    """Latents of other scales, a mask that cuts through them: mean and covariance of the images given the pixels."""
    stds, s = [2.0, 0.7, 0.5, 0.3], 0.1
    data, (_, cov, truth) = latents(tmp_path, codec, 0.2, stds), image_prior()
    decode = dense(codec.decode, data.shape) * np.repeat(stds, 16)
    shift = data.to_pixels(torch.zeros(1, *data.shape)).flatten().double().numpy()
    encode = np.linalg.inv(decode)
    prior = Flat(VP(), torch.from_numpy(-encode @ shift), torch.from_numpy(encode @ cov @ encode.T), data.shape)
    pipeline = Pipeline(prior, DPMpp(GRID), data.shape)
    mean, made = restored_moments(pipeline, known_of(data, operator, truth, "posterior", False, noise=s))
    a = dense(operator, (1, 8, 8))
    exact_mean, exact_cov = conditional(np.zeros(64), cov, a, a @ truth.flatten().double().numpy(), s)
    assert np.abs(exact_mean).max() > 0.5
    np.testing.assert_allclose(decode @ mean + shift, exact_mean, atol=0.02)
    np.testing.assert_allclose(decode @ made @ decode.T, exact_cov, atol=0.03)


@pytest.mark.parametrize("kind", [KL, VQ])
def test_learned_decoders_are_differentiated(tmp_path: Path, kind: type[Any]) -> None:
    """Few steps by posterior and by dps through the decoder lower the error of what is measured."""
    torch.manual_seed(0)
    data = latents(tmp_path, kind((1, 8, 8), latent_channels=2, nf=8, ch_mult=(1, 2)))
    prior = Flat(VP(), torch.zeros(32).double(), torch.eye(32).double(), data.shape)
    pipeline, operator = Pipeline(prior, DDIM(LogSNRGrid(16, 1.0, 1e-2)), data.shape), Coarse(2)
    x_0 = data.to_pixels(torch.randn(2, *data.shape))

    def error(x: Tensor) -> float:
        return float((operator(data.to_pixels(x)) - operator(x_0)).square().mean().sqrt())

    plain = error(pipeline.samples(range(2)).x_0)
    for method, share in (("posterior", 0.7), ("dps", 0.9)):
        known = known_of(data, operator, x_0, method, False, noise=0.05, scale=0.3)
        assert error(METHODS[method].samples(pipeline, known)) < share * plain


def test_linear_methods_on_latents_are_refused_where_inexact(tmp_path: Path, codec: Orthogonal) -> None:
    data, x_0 = latents(tmp_path / "a", codec), torch.zeros(1, 1, 8, 8)
    learned = latents(tmp_path / "b", KL((1, 8, 8), latent_channels=2, nf=8, ch_mult=(1, 2)))
    half, cut = box((8, 8), slice(None), slice(0, 4)), box((8, 8), slice(None), slice(0, 3))
    for of, operator, problem in (
        (data, cut, "cuts through latents of 2x2 pixels"),
        (data, Coarse(2), "--task inpaint"),
        (learned, half, "stand for their own pixels alone"),
    ):
        with pytest.raises(ValueError, match=f"{problem}.*Fix: --method posterior or dps"):
            known_of(of, operator, x_0, "replacement", True)
    known = known_of(data, half, x_0, "replacement", True)
    assert isinstance(known.measure, Masked)
    assert known.measure.mask.flatten(1)[0].tolist() == [1, 1, 0, 0] * 4


def test_tasks_that_do_not_suit_the_data_are_refused() -> None:
    gray = ImageFormat("", Format((1, 8, 6)))
    for task, mask, factor, problem in (
        ("colorize", None, 2, r"1 channel\(s\)"),
        ("upscale", None, [2, 2, 2], "one for each axis of 8x6"),
        ("upscale", None, [2, 4], "does not divide the size 8x6"),
        ("inpaint", Path("0:4"), 2, "mask .0:4.: expected start:stop for each axis of 8x6"),
    ):
        with pytest.raises(ValueError, match=problem):
            operator_of(task, gray, mask, factor, CPU)
    for factor in (2, [2], [2, 2]):
        blocks = operator_of("upscale", gray, None, factor, CPU)
        assert isinstance(blocks, Coarse) and blocks.factor == (2, 2)
    left = operator_of("inpaint", gray, None, 2, CPU)
    rows = operator_of("inpaint", gray, Path("2:4,:"), 2, CPU)
    assert isinstance(left, Masked) and left.mask.sum((0, 1, 2)).tolist() == [8, 8, 8, 0, 0, 0]
    assert isinstance(rows, Masked) and rows.mask.sum((0, 1, 3)).tolist() == [0, 0, 6, 6, 0, 0, 0, 0]
    assert Clipped(-1, 1)(torch.zeros(1)) == 0
