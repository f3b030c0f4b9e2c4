"""`evaluate --images`: a folder of images is measured by the protocol of a model's samples."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from images_model import fit_digits
from shell import cli

from diffusion_pl.data import Digits
from diffusion_pl.data.decoding import save_png
from diffusion_pl.data.stored import read_stored
from diffusion_pl.evaluation import note_of

EXTRACTOR = ("--extractor", "DigitsClassifier")
DATA = ("--data", "Digits", "--data.conditional", "true")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """80 samples of a model in `drawn`, and what `evaluate` measured of the same in `model`."""
    folder = tmp_path_factory.mktemp("images")
    ckpt = ("--ckpt_path", fit_digits(folder), "--num_samples", 80)
    assert cli(folder, "sample", *ckpt, "--output", "drawn", "--film").code == 0
    assert cli(folder, "evaluate", *ckpt, *EXTRACTOR, "--output", "model").code == 0
    return folder


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))


def results(folder: Path, output: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / output / "evaluation.json").read_text())["figures"]
    return content


def measured(folder: Path, output: str, *args: Any) -> dict[str, Any]:
    done = cli(folder, "evaluate", "--images", "drawn", *EXTRACTOR, "--output", output, *args)
    assert done.code == 0, done.err
    return results(folder, output)


def test_folder_of_samples_gives_the_models_values(folder: Path) -> None:
    of_model, of_images = results(folder, "model"), measured(folder, "a", *DATA)
    assert of_images.keys() == of_model.keys()
    for name, result in of_images.items():
        assert result["value"] == pytest.approx(of_model[name]["value"], rel=1e-4, abs=1e-6), name
        assert result["protocol"] == of_model[name]["protocol"]
        assert result["model"].keys() == {"images", "sha256"}
    done = cli(folder, "compare", "a/evaluation.json", "model/evaluation.json")
    assert done.code == 0, done.err
    assert "images" in done.out and "drawn" in done.out


def test_reference_takes_the_place_of_the_data(folder: Path) -> None:
    fid = measured(folder, "b", "--reference", "model/reference.npz", "--metrics", "fid")["fid"]
    assert fid["value"] == pytest.approx(results(folder, "model")["fid"]["value"], rel=1e-4)
    assert fid["protocol"] == results(folder, "model")["fid"]["protocol"]


def test_first_images_can_be_chosen(folder: Path) -> None:
    few = measured(folder, "c", *DATA, "--num_samples", 40, "--metrics", "kid")["kid"]
    assert few["protocol"]["num_samples"] == 40
    assert few["model"]["sha256"] != results(folder, "model")["kid"]["model"]["sha256"]


def test_hash_is_that_of_the_same_images_as_data(tmp_path: Path) -> None:
    data = Digits(val_fraction=0.1)
    data.setup()
    x = torch.cat([batch["x"] for batch in data.batches("val", 100)])
    for i, image in enumerate(data.units.to_uint8(x).numpy()):
        save_png(image, tmp_path / f"{i:03d}.png")
    call = ("--images", ".", *EXTRACTOR, "--data", "Digits", "--metrics", "kid", "--output", "../o")
    done = cli(tmp_path, "evaluate", *call)
    assert done.code == 0, done.err
    assert results(tmp_path, "../o")["kid"]["model"]["sha256"] == note_of(data, "val")["sha256"]


def test_overviews_of_sample_are_no_samples(folder: Path) -> None:
    assert {"grid.png", "film.gif"} <= {path.name for path in (folder / "drawn").iterdir()}
    stored = read_stored(folder / "drawn")
    assert (len(stored), stored.shape, stored.units.levels) == (80, (1, 8, 8), 256)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--images", "none", "--data", "Digits"], "none: no such folder"),
        (["--images", "empty", "--data", "Digits"], "empty: no images"),
        (["--images", "mixed", "--data", "Digits"], "mixed/b.png"),
        (["--images", "drawn"], "--reference"),
        (["--images", "drawn", "--data", "Moons"], "--data Moons"),
        (["--images", "drawn", "--data", "Folder", "--data.path", "large"], "1 x 16 x 16"),
        (["--images", "drawn", "--data.path", "large"], "--data: expected a class"),
        (["--images", "drawn", "--data", "Digits", "--steps", 4], "--steps"),
        (["--images", "drawn", "--data", "Digits", "--ckpt_path", "x.ckpt"], "--ckpt_path"),
        (["--images", "drawn", "--data", "Digits", "--repeats", 2], "repeats"),
        (["--images", "drawn", "--data", "Digits", "--devices", 2], "--devices"),
        (["--images", "drawn", "--data", "Digits", "--seed", 1], "--seed"),
        (["--images", "drawn", "--data", "Digits", "--weights", "raw"], "--weights"),
        (["--images", "drawn", "--data", "Digits", "--metrics", "nll"], "nll"),
        (["--images", "drawn", "--data", "Digits", "--num_samples", 81], "80 images"),
        (["--images", "drawn", "--reference", "model/reference.npz"], "--metrics fid"),
        (["--ckpt_path", "runs/digits", "--data", "Digits"], "--data: "),
        ([], "--ckpt_path"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(folder: Path, options: list[Any], expected: str) -> None:
    (folder / "empty").mkdir(exist_ok=True)
    for name, size in {"mixed/a.png": 8, "mixed/b.png": 9, "large/a.png": 16, "large/b.png": 16}.items():
        (folder / name).parent.mkdir(exist_ok=True)
        save_png(torch.zeros(1, size, size, dtype=torch.uint8).numpy(), folder / name)
    done = cli(folder, "evaluate", *EXTRACTOR, "--output", "bad", *options)
    assert done.code == 2
    assert expected in done.error
    assert not (folder / "bad").exists()


def test_repeated_call_shows_what_is_there(folder: Path) -> None:
    call = ("evaluate", "--images", "drawn", *EXTRACTOR, "--data", "Digits", "--metrics", "fid", "--output", "again")
    first = cli(folder, *call)
    assert (first.code, cli(folder, *call).out) == (0, first.out)
    shutil.copy(folder / "drawn/00.png", folder / "drawn/zz.png")
    try:
        assert "another call" in cli(folder, *call).error
    finally:
        (folder / "drawn/zz.png").unlink()
