"""python -m diffusion_pl sample, of images: files, bits, guidance, samplers, interrupted calls, processes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from images_model import fit_classifier, fit_digits
from PIL import Image
from PIL.GifImagePlugin import GifImageFile
from shell import cli, no_files_change, start

import diffusion_pl
from diffusion_pl.callbacks.sample_writer import Drawer
from diffusion_pl.checkpoints.io import sha256_of
from diffusion_pl.runtime.output_folder import UNFINISHED

CKPT = Path("runs/digits/checkpoints/last.ckpt")
PLAIN = Path("runs/plain/checkpoints/last.ckpt")
JUDGE = Path("runs/classifier/checkpoints/last.ckpt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sample_pictures")
    assert fit_digits(folder) == CKPT
    assert fit_digits(folder, "plain", conditional=False) == PLAIN
    assert fit_classifier(folder) == JUDGE
    return folder


def drawn(folder: Path, output: str, *args: Any, ckpt: Path = CKPT) -> np.ndarray:
    done = cli(folder, "sample", "--ckpt_path", ckpt, "--output", output, "--npz", "true", *args)
    assert done.code == 0, done.err
    with np.load(folder / output / "samples.npz") as file:
        return np.array(file["x"])


def test_pngs_are_the_array_without_loss(folder: Path) -> None:
    array = drawn(folder, "array", "--num_samples", 12)
    assert cli(folder, "sample", "--ckpt_path", CKPT, "--output", "png", "--num_samples", 12).code == 0
    names = sorted(p.name for p in (folder / "png").iterdir())
    assert names == [".call.json", *(f"{i:02d}.png" for i in range(12)), "grid.png", "samples.json"]
    images = np.stack([np.asarray(Image.open(folder / "png" / f"{i:02d}.png")) for i in range(12)])
    assert np.array_equal(images, array[:, 0])


def test_the_note_says_how_they_were_made(folder: Path) -> None:
    drawn(folder, "noted", "--sampler", "Heun", "--steps", 3, "--seed", 5, "--scale", 1.5, "--cond.label", 7)
    note = json.loads((folder / "noted" / "samples.json").read_text())
    assert note["sampler"]["class"] == "Heun"
    assert note["sampler"]["grid"]["class"] == "UniformGrid"  # which suits few steps
    assert note["sampler"]["grid"]["steps"] == 3
    assert note["sampler"]["churn_max"] == "inf"
    assert {k: note[k] for k in ("nfe", "seed", "scale", "cond", "num_samples")} == {
        "nfe": 5,
        "seed": 5,
        "scale": 1.5,
        "cond": {"label": 7},
        "num_samples": 64,
    }
    assert note["sha256"] == sha256_of(folder / CKPT)
    assert note["weights"] == "ema0.999"


def test_samples_are_bitwise_equal_for_any_batch_and_number(folder: Path) -> None:
    assert diffusion_pl.load(folder / CKPT).block == 64
    whole = drawn(folder, "whole", "--num_samples", 150)
    for k, (number, batch) in enumerate([(150, 1), (70, 64), (129, 1000), (3, 2)]):
        part = drawn(folder, f"part{k}", "--num_samples", number, "--batch_size", batch)
        assert np.array_equal(part, whole[:number])


def test_two_processes_draw_the_same_bits(folder: Path) -> None:
    whole = drawn(folder, "one", "--num_samples", 150)
    done = start(
        folder,
        *("sample", "--ckpt_path", CKPT, "--output", "two", "--npz", "true", "--num_samples", 150),
        *("--accelerator", "cpu", "--devices", 2, "--batch_size", 64),
    )
    out, err = done.communicate(timeout=240)
    assert done.returncode == 0, err
    assert out.count("150 samples of") == 1
    with np.load(folder / "two" / "samples.npz") as file:
        assert np.array_equal(file["x"], whole)


def test_an_interrupted_call_resumes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = drawn(folder, "uncut", "--num_samples", 200)
    step, calls = Drawer.predict_step, []

    def failing(self: Any, batch: Any, batch_idx: int) -> Any:
        calls.append(batch["block"].tolist())
        if len(calls) == 3:
            raise OSError("the power failed")
        return step(self, batch, batch_idx)

    args = ("sample", "--ckpt_path", CKPT, "--output", "cut", "--npz", "true", "--num_samples", 200, "--batch_size", 1)
    monkeypatch.setattr(Drawer, "predict_step", failing)
    assert cli(folder, *args).err.splitlines()[-1] == "diffusion_pl: error: the power failed"
    assert len(list((folder / "cut" / UNFINISHED).glob("*.pt"))) == 2
    # Another call may not mix its samples with these, and destroys nothing.
    with no_files_change(folder):
        error = cli(folder, *args, "--seed", 1).error
    assert error.startswith(
        "cut holds the unfinished results of another call (seed 0, now 1): repeat that call to finish it"
    )
    assert cli(folder, *args).code == 0
    assert calls[3:] == [[2], [3]]
    with np.load(folder / "cut" / "samples.npz") as file:
        assert np.array_equal(file["x"], whole)
    assert not (folder / "cut" / UNFINISHED).exists()


def test_a_full_disk_is_one_line_and_what_is_finished_stays(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save = torch.save
    saved: list[Any] = []

    def failing(content: Any, path: Any) -> None:
        if saved:
            raise RuntimeError("PytorchStreamWriter failed writing file: no space left on device")
        saved.append(path)
        save(content, path)

    monkeypatch.setattr(torch, "save", failing)
    args = ("sample", "--ckpt_path", CKPT, "--output", "full", "--num_samples", 200, "--batch_size", 1)
    line = cli(folder, *args).err.splitlines()[-1]
    assert "no space left on device" in line
    assert "repeat the call" in line
    assert [p.name for p in (folder / "full" / UNFINISHED).glob("*.pt")] == ["00000000.pt"]


def test_a_call_that_fails_at_once_leaves_no_folder(folder: Path) -> None:
    grid = ("--grid", "ExplicitGrid", "--grid.t", "[0.5, 0.9]")
    outcome = cli(folder, "sample", "--ckpt_path", CKPT, "--output", "none", *grid)
    assert "ExplicitGrid: times must fall strictly" in outcome.err
    assert outcome.code == 2
    assert not (folder / "none").exists()


def test_a_film_and_the_path_show_the_way_of_the_first_samples(folder: Path) -> None:
    whole = drawn(folder, "filmed", "--num_samples", 5, "--film", "true")
    with np.load(folder / "filmed" / "path.npz") as file:
        t, x, x_0 = (file[name] for name in ("t", "x", "x_0"))
    assert x.shape == x_0.shape == (5, 5, 1, 8, 8)
    assert t[0] == 1
    assert t[-1] == 0
    assert (np.diff(t) < 0).all()
    assert np.abs(x[-1].astype(int) * 255 // 16 - whole.astype(int)).max() <= 18  # one of the digits' 17 levels
    with Image.open(folder / "filmed" / "film.gif") as film:
        assert isinstance(film, GifImageFile)
        assert film.n_frames == 5


# Guidance ---------------------------------------------------------------------------------------------------------


def test_a_label_is_that_of_all_samples(folder: Path) -> None:
    """With --cond.label k sample i is what it is with label k; without, it has the label i mod 10."""
    by_index = drawn(folder, "labels", "--num_samples", 20)
    threes = drawn(folder, "threes", "--num_samples", 20, "--cond.label", 3)
    assert np.array_equal(threes[[3, 13]], by_index[[3, 13]])
    assert not np.array_equal(threes[4], by_index[4])


def test_scale_one_is_the_plain_model_and_other_scales_are_not(folder: Path) -> None:
    plain = drawn(folder, "w0", "--num_samples", 8)
    assert np.array_equal(drawn(folder, "w1", "--num_samples", 8, "--scale", 1), plain)
    assert not np.array_equal(drawn(folder, "w3", "--num_samples", 8, "--scale", 3), plain)


def test_a_classifier_guides_a_model_without_classes(folder: Path) -> None:
    plain = drawn(folder, "p0", "--num_samples", 10, ckpt=PLAIN)
    assert np.array_equal(
        drawn(folder, "p1", "--num_samples", 10, "--classifier", JUDGE, "--scale", 0, ckpt=PLAIN), plain
    )
    guided = drawn(folder, "p2", "--num_samples", 10, "--classifier", JUDGE, "--scale", 5, ckpt=PLAIN)
    assert not np.array_equal(guided, plain)


def test_a_weaker_model_guides(folder: Path) -> None:
    plain = drawn(folder, "g0", "--num_samples", 4, ckpt=PLAIN)
    same = drawn(folder, "g1", "--num_samples", 4, "--weak", PLAIN, "--scale", 3, ckpt=PLAIN)
    assert np.abs(same.astype(int) - plain.astype(int)).max() <= 1  # away from itself is nowhere, up to rounding
    assert "knows 10 classes, the model no" in cli(
        folder, "sample", "--ckpt_path", PLAIN, "--weak", CKPT, "--output", "no"
    ).error  # fmt: skip


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--sampler", "DPMp"], "--sampler: there is no class DPMp; did you mean DPMpp?"),
        (["--sampler", "DPMpp", "--sampler.ordr", 3], "--sampler.ordr of DPMpp; did you mean --sampler.order?"),
        (["--sampler", "DPMpp", "--sampler.order", 7], "order must be 1, 2 or 3, got 7"),
        (["--steps", 0], "steps must be at least 1, got 0"),
        (["--cond.label", 10], "cond.label: expected a number in 0 … 9; got 10"),
        (["--cond.lable", 1], "cond.lable: the model has no such condition; it has label"),
        (["--classifier", CKPT], "is a DiffusionModule, not a classifier"),
        (["--classifier", JUDGE, "--weak", CKPT], "give --classifier or --weak, not both"),
        (["--classifier", "nowhere.ckpt"], "no checkpoint at nowhere.ckpt"),
        (["--latents", "nowhere.npz"], "nowhere.npz: file not found"),
    ],
)
def test_bad_options_are_one_line_and_write_nothing(folder: Path, args: list[Any], message: str) -> None:
    with no_files_change(folder):
        assert message in cli(folder, "sample", "--ckpt_path", CKPT, "--output", "no", *args).error
    assert not (folder / "no").exists()


def test_what_a_model_without_classes_cannot_do(folder: Path) -> None:
    args = ("sample", "--ckpt_path", PLAIN, "--output", "no")
    assert "unconditional" in cli(folder, *args, "--scale", 2).error
    assert "unconditional" in cli(folder, *args, "--cond.label", 2).error


def test_a_classifier_is_not_sampled(folder: Path) -> None:
    error = cli(folder, "sample", "--ckpt_path", JUDGE, "--output", "no").error
    assert error.endswith("is a NoisyClassifier, not a diffusion model: it can be given as --classifier")


def test_a_truncated_checkpoint_is_one_line(folder: Path) -> None:
    (folder / "half.ckpt").write_bytes((folder / CKPT).read_bytes()[:20_000])
    assert "half.ckpt is damaged" in cli(folder, "sample", "--ckpt_path", "half.ckpt", "--output", "no").error


def test_a_checkpoint_of_another_version_is_named(folder: Path) -> None:
    content = torch.load(folder / CKPT, weights_only=True)
    content["diffusion_pl"]["version"] = "0.0.1"
    content["diffusion_pl"]["model"]["schedule"] = {"class_path": "Gone"}
    torch.save(content, folder / "old.ckpt")
    error = cli(folder, "sample", "--ckpt_path", "old.ckpt", "--output", "no").error
    assert "old.ckpt was written by diffusion_pl 0.0.1" in error
