"""`restore` by the posterior and by DPS, of linear tasks and of nonlinear measurements."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from images_model import fit_digits
from PIL import Image
from shell import cli
from torch import Tensor, nn

CKPT = Path("runs/plain/checkpoints/last.ckpt")


class Cubes(nn.Module):
    """Sums of cubes along the rows: of another shape than the image."""

    def forward(self, x: Tensor) -> Tensor:
        return x.pow(3).mean(-1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("restore")
    assert fit_digits(folder, "plain", conditional=False) == CKPT
    rng = np.random.default_rng(0)
    (folder / "in").mkdir()
    for k in range(2):
        Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(folder / "in" / f"{k}.png")
    return folder


def read_images(folder: Path) -> np.ndarray:
    return np.stack([np.asarray(Image.open(p)) for p in sorted(folder.glob("[0-9]*.png"))]).astype(float)


def restored(folder: Path, output: str, *args: Any) -> np.ndarray:
    done = cli(folder, "restore", "--ckpt_path", CKPT, "--path", "in", "--output", output, "--num_samples", 2, *args)
    assert done.code == 0, done.err
    return read_images(folder / output)


def test_the_posterior_keeps_what_is_known(folder: Path) -> None:
    given, result = read_images(folder / "in"), restored(folder, "p", "--method", "posterior", "--steps", 20)
    assert np.abs(result[:2, :, :4] - given[0, :, :4]).max() <= 1
    assert len({image.tobytes() for image in result}) == 4


@pytest.mark.parametrize(
    ("method", "share"),
    [
        (["posterior", "--steps", 40], 0.6),
        pytest.param(["dps", "--steps", 150, "--scale", 1], 0.8, marks=pytest.mark.slow),
    ],
)
def test_restored_images_agree_with_a_saturated_sensor(folder: Path, method: list[Any], share: float) -> None:
    """A sensor that saturates: what it sees of the restored images is near what it saw, unlike of other samples."""

    def seen(x: np.ndarray) -> np.ndarray:
        return 0.5 * np.tanh((2 * x / 255 - 1) / 0.5)

    sensor = ("--operator", "Clipped", "--operator.low", -0.5, "--operator.high", 0.5)
    result = restored(folder, method[0], *sensor, "--method", *method)
    given = np.repeat(read_images(folder / "in"), 2, 0)
    done = cli(folder, "sample", "--ckpt_path", CKPT, "--output", f"s-{method[0]}", "--num_samples", 4)
    assert done.code == 0, done.err
    plain = read_images(folder / f"s-{method[0]}")

    def error(x: np.ndarray) -> float:
        return float(np.sqrt(np.mean((seen(x) - seen(given)) ** 2)))

    assert error(result) < share * error(plain)
    assert (folder / method[0] / "grid.png").exists()


def test_an_operator_of_another_shape(folder: Path) -> None:
    args = ("--operator", "test_restore_nonlinear.Cubes", "--method", "dps", "--steps", 10)
    assert restored(folder, "cubes", *args).shape == (4, 8, 8)
    assert Cubes()(torch.ones(1, 1, 8, 8)).shape == (1, 1, 8)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--operator", "Clipped"], "--method replacement needs a linear task, not --operator"),
        (["--operator", "Clipped", "--operator.low", 2, "--method", "dps"], "low must be below high"),
        (["--operator", "Clipped", "--mask", "in/0.png", "--method", "dps"], "--mask is for --task inpaint"),
        (["--method", "dps", "--sampler", "Heun"], "--sampler has no effect with --method dps"),
        (["--method", "posterior", "--noise", -1], "noise"),
    ],
)
def test_bad_input_is_one_line(folder: Path, args: list[Any], message: str) -> None:
    done = cli(folder, "restore", "--ckpt_path", CKPT, "--path", "in", "--output", "no", *args)
    assert message in done.error
    assert not list((folder / "no").glob("*.png"))
