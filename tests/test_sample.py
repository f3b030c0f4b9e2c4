"""python -m diffusion_pl sample: files, units, seeds."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from shell import LAST, cli, fit, no_files_change

from diffusion_pl.tensors import SampleNoise


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a table of heights and weights whose file is gone."""
    folder = tmp_path_factory.mktemp("sample")
    rows = "".join(f"{150 + i * 7 % 50},{40 + i * 11 % 60},x\n" for i in range(200))
    (folder / "people.csv").write_text("height,weight,name\n" + rows)
    arguments = {"path": "people.csv", "columns": ["height", "weight"], "batch_size": 64, "repeats": 5}
    fit(folder, "--ema.decays", "[0.99,0.5]", data={"class_path": "Table", "init_args": arguments})
    (folder / "people.csv").unlink()
    return folder


def points(folder: Path, output: str, *args: object) -> np.ndarray:
    """The samples that the command wrote."""
    done = cli(folder, "sample", "--ckpt_path", Path("runs/run") / LAST, "--output", output, *args)
    assert done.code == 0, done.err
    return np.loadtxt(folder / output / "samples.csv", delimiter=",", skiprows=1, ndmin=2)


def test_more_samples_than_the_disk_has_room_for_are_refused(folder: Path) -> None:
    call = ("sample", "--ckpt_path", Path("runs/run") / LAST, "--output", "many", "--num_samples", 10**13)
    with no_files_change(folder):
        assert "Fix: ask for fewer, or write to another disk" in cli(folder, *call).error


def test_points_are_written_as_table_in_data_units_and_plot(folder: Path) -> None:
    samples = points(folder, "plain", "--num_samples", 300)
    assert samples.shape == (300, 2)
    with (folder / "plain" / "samples.csv").open() as file:
        assert next(csv.reader(file)) == ["height", "weight"]
    # Unit-variance noise would have mean 0; heights are around 175, weights around 70.
    assert samples.mean(0) == pytest.approx([174.5, 69.5], abs=6)
    assert ((samples.std(0) > 5) & (samples.std(0) < 40)).all()
    with Image.open(folder / "plain" / "samples.png") as plot:
        assert min(plot.size) > 100
    assert sorted(path.name for path in (folder / "plain").iterdir()) == [
        ".call.json",
        "samples.csv",
        "samples.json",
        "samples.png",
    ]


def test_it_says_what_it_did(folder: Path) -> None:
    done = cli(folder, "sample", "--ckpt_path", Path("runs/run") / LAST, "--output", "out", "--num_samples", 5)
    assert done.out.splitlines() == [
        "5 samples of runs/run/checkpoints/last.ckpt (ema0.99 weights), 4 NFE each",
        "saved:",
        "  out/samples.csv",
        "  out/samples.png",
        "  out/samples.json",
        "next: python -m diffusion_pl evaluate --ckpt_path runs/run/checkpoints/last.ckpt",
    ]


def test_json_is_all_that_is_on_stdout(folder: Path) -> None:
    call = ("sample", "--ckpt_path", "runs/run", "--num_samples", 5, "--seed", 3)
    done = cli(folder, *call, "--output", "json", "--json")
    content = json.loads(done.out)
    assert content["files"] == ["json/samples.csv", "json/samples.png", "json/samples.json"]
    assert (content["error"], content["status"], done.code) == ("", 0, 0)
    assert json.loads(cli(folder, *call, "--output", "json", "--json").out) == content  # repeated, from its note


def test_a_sample_is_the_same_whatever_the_batch_size(folder: Path) -> None:
    whole = points(folder, "b1000", "--num_samples", 600)
    for size in (7, 500):
        assert np.array_equal(points(folder, f"b{size}", "--num_samples", 600, "--batch_size", size), whole)
    assert np.array_equal(points(folder, "fewer", "--num_samples", 300), whole[:300])
    x = torch.empty(6, 2)
    noise, part = SampleNoise(3, range(6)), SampleNoise(3, [4, 1])
    for _ in range(3):
        assert torch.equal(noise(x)[[4, 1]], part(x[:2]))


def test_the_same_again_is_the_same_file(folder: Path) -> None:
    points(folder, "once", "--num_samples", 20, "--seed", 4)
    points(folder, "twice", "--num_samples", 20, "--seed", 4)
    assert (folder / "once" / "samples.csv").read_bytes() == (folder / "twice" / "samples.csv").read_bytes()


def test_another_seed_is_another_sample(folder: Path) -> None:
    first, second = (points(folder, f"seed{seed}", "--num_samples", 20, "--seed", seed) for seed in (0, 1))
    assert not np.isclose(first, second).all(1).any()


def test_the_weights_matter_and_are_named(folder: Path) -> None:
    samples = {choice: points(folder, f"w-{choice}", "--weights", choice) for choice in ("ema", "raw", "ema:0.5")}
    assert np.abs(samples["ema"] - samples["raw"]).max() > 0.1
    assert np.abs(samples["ema:0.5"] - samples["raw"]).max() > 1e-3
    assert np.abs(samples["ema:0.5"] - samples["ema"]).max() > 0.1


def test_files_that_are_there_are_not_overwritten(folder: Path) -> None:
    points(folder, "kept", "--num_samples", 3)
    (folder / "mine").mkdir()
    (folder / "mine" / "0.png").write_text("a photograph")
    call = ("sample", "--ckpt_path", Path("runs/run") / LAST, "--num_samples", 4)
    with no_files_change(folder):
        assert "kept holds the finished results of another call" in cli(folder, *call, "--output", "kept").error
        assert "mine is not empty (it holds 0.png)" in cli(folder, *call, "--output", "mine").error
        assert "runs is not empty" in cli(folder, *call, "--output", "runs").error


def test_a_finished_call_that_is_repeated_says_the_same(folder: Path) -> None:
    call = ("sample", "--ckpt_path", Path("runs/run") / LAST, "--num_samples", 3, "--output", "again")
    first = cli(folder, *call)
    with no_files_change(folder):
        second = cli(folder, *call)
    assert second.code == 0
    assert second.out == first.out


def test_an_output_that_is_a_file_is_said_before_sampling(folder: Path) -> None:
    (folder / "taken").write_text("")
    done = cli(folder, "sample", "--ckpt_path", Path("runs/run") / LAST, "--output", "taken")
    assert done.error.startswith("taken is a file, not a folder")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--num_samples", 0], "num_samples must be at least 1, got 0"),
        (["--batch_size", 0], "batch_size must be at least 1, got 0"),
        (["--seed", -1], "seed must not be negative, got -1"),
        (["--weights", "ema:0.7"], "has no weights 'ema:0.7': it holds raw, ema:0.99, ema:0.5"),
        (["--num_samples", "many"], "--num_samples: expected int, got many"),
        (["--accelerator", "abacus"], "expected one of auto, cpu, gpu, cuda, mps, got abacus"),
        (["--wieghts", "raw"], "unknown option --wieghts; did you mean --weights?"),
    ],
)
def test_bad_options_are_one_line_and_write_nothing(folder: Path, args: list[object], message: str) -> None:
    with no_files_change(folder):
        assert message in cli(folder, "sample", "--ckpt_path", Path("runs/run") / LAST, "--output", "no", *args).error


def test_without_a_checkpoint_it_says_which_option_is_missing(folder: Path) -> None:
    assert "ckpt_path" in cli(folder, "sample").error


def test_predict_writes_the_same_sequence_into_the_runs_folder(tmp_path: Path) -> None:
    run = fit(tmp_path)
    assert cli(tmp_path, "predict", "--config", "run.yaml", "--run", "run", "--ckpt_path", "last").code == 0
    assert cli(tmp_path, "sample", "--ckpt_path", run / LAST, "--output", "out").code == 0
    ours, theirs = (
        np.loadtxt(f / "samples.csv", delimiter=",", skiprows=1) for f in (run / "samples", tmp_path / "out")
    )
    assert ours.shape == (1000, 2)
    np.testing.assert_allclose(ours, theirs, 1e-5)


def test_the_plot_shows_the_data_if_available(tmp_path: Path) -> None:
    (tmp_path / "line.csv").write_text("x,y\n" + "".join(f"{i},{i}\n" for i in range(50)))
    arguments = {"path": "line.csv", "columns": ["x", "y"], "batch_size": 16}
    fit(tmp_path, data={"class_path": "Table", "init_args": arguments}, trainer__max_steps=1)
    points(tmp_path, "with_data", "--num_samples", 10)
    (tmp_path / "line.csv").unlink()
    points(tmp_path, "alone", "--num_samples", 10)
    with_data, alone = (tmp_path / name for name in ("with_data", "alone"))
    assert (with_data / "samples.csv").read_bytes() == (alone / "samples.csv").read_bytes()
    assert (with_data / "samples.png").read_bytes() != (alone / "samples.png").read_bytes()
