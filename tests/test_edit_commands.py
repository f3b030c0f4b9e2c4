"""python -m diffusion_pl encode, restore and sweep."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from images_model import fit_digits
from PIL import Image
from shell import cli, fit, no_files_change

CKPT = Path("runs/plain/checkpoints/last.ckpt")
POINTS = Path("runs/points/checkpoints/last.ckpt")
ACCURATE = ("--sampler", "Heun", "--steps", 50)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("edit")
    assert fit_digits(folder, "plain", conditional=False) == CKPT
    rng = np.random.default_rng(0)
    (folder / "in").mkdir()
    for k in range(2):
        Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(folder / "in" / f"{k}.png")
    fit(folder, run="points")
    return folder


def read_images(folder: Path) -> np.ndarray:
    return np.stack([np.asarray(Image.open(p)) for p in sorted(folder.glob("[0-9]*.png"))]).astype(int)


def ran(folder: Path, *args: Any) -> str:
    done = cli(folder, *args)
    assert done.code == 0, done.err
    return done.out


# encode -----------------------------------------------------------------------------------------------------------


def test_images_are_recovered_from_their_latents(folder: Path) -> None:
    out = ran(folder, "encode", "--ckpt_path", CKPT, "--path", "in", "--output", "e", *ACCURATE)
    assert "2 examples carried to noise and back by Heun" in out
    given = read_images(folder / "in")
    assert np.abs(read_images(folder / "e") - given).max() <= 4
    ran(folder, "sample", "--ckpt_path", CKPT, "--latents", "e/latents.npz", *ACCURATE, "--output", "back")
    assert np.abs(read_images(folder / "back") - given).max() <= 4


def test_interpolation_connects_two_images(folder: Path) -> None:
    ran(folder, "encode", "--ckpt_path", CKPT, "--path", "in", "--output", "way", "--steps", 60, "--between", 5)
    way = read_images(folder / "way")
    assert len(way) == 7
    assert np.abs(way[[0, -1]] - read_images(folder / "in")).max() <= 40  # DDIM, 60 steps
    steps = np.abs(np.diff(way, axis=0)).mean((1, 2))
    assert steps.max() < 0.7 * np.abs(way[-1] - way[0]).mean()


def test_points_are_encoded_from_a_table(folder: Path) -> None:
    (folder / "points.csv").write_text("x,y\n50,40\n30,80\n")
    options = ("--sampler", "Heun", "--grid", "UniformGrid", "--grid.steps", 200, "--grid.t_min", 0.001)
    out = ran(folder, "encode", "--ckpt_path", POINTS, "--path", "points.csv", "--output", "pe", *options)
    assert "2 examples" in out
    result = np.loadtxt(folder / "pe" / "samples.csv", delimiter=",", skiprows=1)
    np.testing.assert_allclose(result, [[50, 40], [30, 80]], atol=0.5)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--path", "nowhere.png"], "nowhere.png"),
        (["--path", "in", "--sampler", "Ancestral"], "Ancestral draws noise: encoding needs a deterministic sampler"),
        (["--path", "in", "--between", -1], "between must not be negative, got -1"),
        (["--path", "runs"], "runs: no images in this folder"),
        (["--path", "in", "--output", "in"], "in is not empty"),
    ],
)
def test_bad_input_of_encode_is_one_line(folder: Path, args: list[Any], message: str) -> None:
    with no_files_change(folder):
        assert message in cli(folder, "encode", "--ckpt_path", CKPT, "--output", "no", *args).error


def test_class_models_encode_and_restore_with_or_without_label(folder: Path) -> None:
    ckpt = fit_digits(folder)
    given = read_images(folder / "in")
    for name, label in (("any", []), ("two", ["--cond.label", 2])):
        ran(folder, "encode", "--ckpt_path", ckpt, "--path", "in", "--output", name, *ACCURATE, *label)
        assert np.abs(read_images(folder / name) - given).max() <= 4
        ran(folder, "restore", "--ckpt_path", ckpt, "--path", "in", "--output", f"r{name}", *label)
        assert len(read_images(folder / f"r{name}")) == 8
    assert "cond.label: expected a number in 0 … 9; got 11" in cli(
        folder, "restore", "--ckpt_path", ckpt, "--path", "in", "--output", "no", "--cond.label", 11
    ).error  # fmt: skip


# restore ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [["replacement", "--repeats", 2, "--sampler", "Ancestral"], ["gradient"]])
def test_what_is_known_stays(folder: Path, method: list[Any]) -> None:
    name = f"r-{method[0]}"
    ran(
        folder,
        "restore",
        "--ckpt_path",
        CKPT,
        "--path",
        "in",
        "--output",
        name,
        "--num_samples",
        3,
        "--method",
        *method,
    )
    given, result = read_images(folder / "in"), read_images(folder / name)
    assert len(result) == 6
    assert np.abs(result[:3, :, :4] - given[0, :, :4]).max() <= 1
    assert np.abs(result[3:, :, :4] - given[1, :, :4]).max() <= 1
    assert len({image.tobytes() for image in result}) == 6  # the rest is drawn


def test_a_mask_says_what_is_known(folder: Path) -> None:
    mask = np.zeros((8, 8), np.uint8)
    mask[2:5] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    call = ("--ckpt_path", CKPT, "--path", "in/0.png", "--mask", "mask.png", "--output", "masked", "--num_samples", 2)
    assert "--task inpaint --mask mask.png --method posterior" in ran(folder, "restore", *call)  # the next command
    given, result = read_images(folder / "in")[0], read_images(folder / "masked")
    assert np.abs(result[:, 2:5] - given[2:5]).max() <= 1
    assert np.abs(result[:, 5:] - given[5:]).max() > 10


def test_upscaled_images_have_the_means_of_the_blocks(folder: Path) -> None:
    args = ("--path", "in", "--task", "upscale", "--output", "up", "--num_samples", 1)
    ran(folder, "restore", "--ckpt_path", CKPT, *args, "--sampler", "Ancestral", "--steps", 40)
    given, result = read_images(folder / "in"), read_images(folder / "up")

    def means(x: np.ndarray) -> np.ndarray:
        result: np.ndarray = x.reshape(2, 4, 2, 4, 2).mean((2, 4))
        return result

    inside = (result > 0).reshape(2, 4, 2, 4, 2).all((2, 4)) & (result < 255).reshape(2, 4, 2, 4, 2).all((2, 4))
    assert inside.sum() > 3  # elsewhere clipping to the range moves the mean
    np.testing.assert_allclose(means(result)[inside], means(given)[inside], atol=1)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--task", "colorize"], "colorize needs a model of colour images, this one has 1 channel(s)"),
        (["--task", "upscale", "--factor", 3], "factor 3 does not divide the size 8x8"),
        (["--task", "upscale", "--factor", 0], "factor must be at least 2, got 0"),
        (["--task", "sharpen"], "--task"),
        (["--repeats", 0], "repeats must be at least 1, got 0"),
        (["--mask", "in"], "in: give one mask, not a folder of 2"),
        (["--mask", ":4"], "mask ':4': expected start:stop for each axis of 8x8, such as :,:4"),
        (["--task", "upscale", "--mask", "in/0.png"], "--mask is for --task inpaint and has no effect with --task"),
    ],
)
def test_bad_input_of_restore_is_one_line(folder: Path, args: list[Any], message: str) -> None:
    with no_files_change(folder):
        assert message in cli(folder, "restore", "--ckpt_path", CKPT, "--path", "in", "--output", "no", *args).error


def test_points_are_not_restored(folder: Path) -> None:
    error = cli(
        folder, "restore", "--ckpt_path", "runs/points/checkpoints/last.ckpt", "--path", "in", "--output", "no"
    ).error
    assert error.endswith("is a model of points: only images and fields can be restored")


# sweep ------------------------------------------------------------------------------------------------------------


def test_a_sweep_has_a_row_for_each_sampler_and_number(folder: Path) -> None:
    options = "{class_path: DPMpp, init_args: {order: 3}}"
    out = ran(folder, "sweep", "--ckpt_path", CKPT, "--samplers", "DDIM", "Heun", options, "--nfe", 4, 9, 18,
              "--num_samples", 64, "--output", "s")  # fmt: skip
    with (folder / "s" / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["sampler"], int(row["nfe"])) for row in rows] == [
        *(("DDIM", n) for n in (4, 9, 18)),
        *(("Heun", n) for n in (3, 9, 17)),
        *(("DPMpp(order=3)", n) for n in (4, 9, 18)),
    ]
    errors = {(row["sampler"], int(row["nfe"])): float(row["error"]) for row in rows}
    assert errors["DDIM", 18] < errors["DDIM", 9] < errors["DDIM", 4]
    assert errors["DPMpp(order=3)", 18] < errors["DDIM", 18]
    assert all(0 < float(row["distance"]) < 5 for row in rows)
    nearest = min(rows, key=lambda row: float(row["distance"]))["sampler"].partition("(")[0]
    assert f"next: python -m diffusion_pl sample --ckpt_path {CKPT} --sampler {nearest} --s" in out
    with Image.open(folder / "s" / "sweep.png") as plot:
        assert min(plot.size) > 200


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--samplers", "DDMI", "--nfe", "5"], "there is no class DDMI; did you mean DDIM?"),
        (["--samplers", "DDIM", "Heun", "--nfe", "0", "5"], "nfe must be at least 1"),
    ],
)
def test_bad_input_of_sweep_is_one_line(folder: Path, args: list[Any], message: str) -> None:
    with no_files_change(folder):
        assert message in cli(folder, "sweep", "--ckpt_path", CKPT, "--output", "no", *args).error
