"""`evaluate` and `compare`, as people call them, and evaluations in Python: results that say how they were measured."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from images_model import fit_digits
from shell import cli, fit, start

from diffusion_pl.callbacks.sample_writer import Drawer, SampleWriter
from diffusion_pl.checkpoints.loading import load_pipeline
from diffusion_pl.evaluation import Plan, read_results
from diffusion_pl.evaluation.classes import with_labels
from diffusion_pl.evaluation.run import run
from diffusion_pl.likelihood import ContinuousBound
from diffusion_pl.metrics import DigitsClassifier


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("evaluate")


@pytest.fixture(scope="module")
def digits(folder: Path) -> Path:
    return fit_digits(folder)


@pytest.fixture(scope="module")
def points(folder: Path) -> Path:
    fit(folder, run="points", trainer__max_steps=20)
    return Path("runs/points/checkpoints/last.ckpt")


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))


def evaluate(folder: Path, checkpoint: Path, output: str, *args: Any) -> dict[str, Any]:
    done = cli(folder, "evaluate", "--ckpt_path", checkpoint, "--output", output, *args)
    assert done.code == 0, done.err
    results: dict[str, Any] = json.loads((folder / output / "evaluation.json").read_text())["figures"]
    return results


IMAGES = ("--extractor", "DigitsClassifier", "--num_samples", 80)


def test_image_metrics_say_how_they_were_measured(folder: Path, digits: Path) -> None:
    results = evaluate(folder, digits, "a", *IMAGES, "--repeats", 2)
    assert set(results) == {"fid", "is", "kid", "precision", "recall"}
    fid = results["fid"]
    assert len(fid["values"]) == 2
    assert fid["value"] == pytest.approx(np.mean(fid["values"]))
    assert fid["std"] == pytest.approx(np.std(fid["values"], ddof=1))
    protocol, model = fid["protocol"], fid["model"]
    assert protocol["num_samples"] == 80
    assert protocol["extractor"]["class"] == "DigitsClassifier"
    assert len(protocol["extractor"]["sha256"]) == 64
    assert protocol["reference"] | {"sha256": ""} == {"data": "Digits", "split": "train", "n": 1618, "sha256": ""}
    assert "17 levels" in protocol["quantisation"]
    assert model["weights"].startswith("ema")
    assert model["nfe"] == 4
    assert model["sampler"]["class"] == "DDIM"
    # The same from the moments alone, and of one repeat its first.
    again = evaluate(folder, digits, "b", *IMAGES, "--metrics", "fid", "--reference", "a/reference.npz")
    assert again["fid"]["value"] == pytest.approx(fid["values"][0], rel=1e-12)
    assert not (folder / "a" / "samples").exists()


def test_run_in_python_gives_what_the_command_writes(
    folder: Path, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    options = ("--likelihood_split", "val", "--likelihood_examples", 3, "--accelerator", "cpu")
    bound = ("--bound", "ContinuousBound", "--bound.times", 4)
    expected = evaluate(folder, digits, "command", *IMAGES, "--metrics", "fid", "elbo", *options, *bound)
    pipeline, data = load_pipeline(digits)
    plan = Plan(
        metrics=("fid", "elbo"),
        num_samples=80,
        extractor=DigitsClassifier(),
        likelihood_split="val",
        likelihood_examples=3,
        bound=ContinuousBound(times=4),
    )
    results = run(pipeline, data, plan, checkpoint=str(digits), accelerator="cpu")
    assert {name: result.to_json() for name, result in results.metrics.items()} == expected
    assert results.problem == ""
    # Of a model in memory, which has no checkpoint, the file can be read too.
    plain = run(replace(pipeline, sha256=None), data, replace(plan, metrics=("fid",)), accelerator="cpu")
    assert [path.name for path in plain.write(tmp_path)] == ["evaluation.json", "reference.npz"]
    read = read_results(tmp_path / "evaluation.json")["fid"]
    assert read == plain["fid"]
    assert (read.value, read.model["checkpoint"]) == (expected["fid"]["value"], None)


def test_an_interrupted_evaluation_continues(folder: Path, digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = evaluate(folder, digits, "whole", *IMAGES, "--metrics", "fid", "--batch_size", 32)
    write, seen = SampleWriter.on_predict_batch_end, []

    def stumble(self: SampleWriter, *args: Any, **kwargs: Any) -> None:
        write(self, *args, **kwargs)
        seen.append(1)
        if len(seen) == 1:
            raise OSError("the disk went away")

    monkeypatch.setattr(SampleWriter, "on_predict_batch_end", stumble)
    call = ("evaluate", "--ckpt_path", digits, "--output", "torn", *IMAGES, "--metrics", "fid", "--batch_size", 32)
    assert "the disk went away" in cli(folder, *call).err
    other = cli(folder, *call[:-4], "--metrics", "fid", "--seed", 1)
    assert other.code == 2
    assert "another call" in other.error
    assert cli(folder, *call).code == 0
    results = json.loads((folder / "torn/evaluation.json").read_text())["figures"]
    assert results["fid"]["value"] == whole["fid"]["value"]


def test_likelihood_and_bound_of_images_in_bits(folder: Path, digits: Path) -> None:
    few = ("--metrics", "nll", "elbo", "--likelihood_split", "val", "--bound.times", 16, "--likelihood.rtol", 1e-3)
    loose = ("--likelihood.atol", 1e-3)
    results = evaluate(folder, digits, "bits", *few, *loose, "--likelihood_examples", 20, "--repeats", 2)
    nll, elbo = results["nll"], results["elbo"]
    assert nll["unit"] == elbo["unit"] == "bits/dim"
    assert 0 < nll["value"] < 20
    low, high = nll["interval_95"]
    assert low < nll["value"] < high
    assert nll["std"] < nll["standard_error"] * 3
    assert nll["protocol"]["data"]["split"] == "val"
    assert nll["protocol"]["examples"] == 20
    assert nll["protocol"]["estimator"]["probes"] == 1
    assert nll["model"]["nfe"] > 20
    assert elbo["value"] == pytest.approx(sum(elbo["parts"].values()))
    assert sum(elbo["terms"]["value"]) == pytest.approx(elbo["parts"]["diffusion"], rel=1e-6)
    # What else is evaluated changes no bit.
    fewer = evaluate(folder, digits, "fewer", *few, *loose, "--likelihood_examples", 1)
    one = evaluate(folder, digits, "fewer2", *few, *loose, "--likelihood_examples", 1, "--dequantizations", 1)
    assert fewer["nll"]["value"] == one["nll"]["value"]


@pytest.mark.slow
def test_two_processes_measure_what_one_does(folder: Path, digits: Path) -> None:
    few = (
        "--metrics",
        "fid",
        "nll",
        "elbo",
        "--likelihood_split",
        "val",
        "--bound.times",
        6,
        "--likelihood.rtol",
        1e-2,
    )
    call = (*IMAGES, *few, "--likelihood.atol", 1e-2, "--likelihood_examples", 100, "--accelerator", "cpu")
    one = evaluate(folder, digits, "one", *call)
    pair = ("evaluate", "--ckpt_path", digits, "--output", "two", *call, "--devices", 2)
    process = start(folder, *pair)
    _, error = process.communicate(timeout=240)
    assert process.returncode == 0, error
    two = json.loads((folder / "two/evaluation.json").read_text())["figures"]
    # The network runs on one thread there, on two here, so bits may differ.
    for name in ("fid", "nll", "elbo"):
        assert two[name]["value"] == pytest.approx(one[name]["value"], rel=1e-6)
        assert two[name]["protocol"] == one[name]["protocol"]
        assert two[name]["model"] == one[name]["model"]
    assert sorted(path.name for path in (folder / "two").iterdir()) == [
        ".call.json",
        "evaluation.json",
        "reference.npz",
    ]


def test_point_metrics(folder: Path, points: Path) -> None:
    names = ("energy", "mmd", "sliced", "prc", "nll", "elbo")
    options = ("--num_samples", 300, "--likelihood.probes", 0, "--bound", "ChainBound", "--bound.times", 20)
    results = evaluate(folder, points, "points", "--metrics", *names, *options)
    assert set(results) == {"energy", "mmd", "sliced", "precision", "recall", "nll", "elbo"}
    assert results["nll"]["unit"] == "nats/dim"
    assert 0 < results["energy"]["value"] < 5
    assert all(math.isfinite(f["value"]) for f in results.values())


def test_samples_that_are_not_finite_are_counted(folder: Path, digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Drawer.predict_step

    def with_nan(self: Any, batch: Any, batch_idx: int) -> Any:
        drawn = original(self, batch, batch_idx)
        drawn["x"][3] = math.nan
        return drawn

    monkeypatch.setattr(Drawer, "predict_step", with_nan)
    call = ("evaluate", "--ckpt_path", digits, "--output", "nan", *IMAGES, "--metrics", "fid")
    for _ in range(2):  # the error is the same when the call is repeated
        done = cli(folder, *call)
        assert done.code == 2
        assert "1 of 80 samples are not finite" in done.err
    assert json.loads((folder / "nan/evaluation.json").read_text())["figures"]["fid"]["not_finite"] == 1


def test_two_evaluations_side_by_side(folder: Path, digits: Path, points: Path) -> None:
    evaluate(folder, digits, "left", *IMAGES, "--metrics", "fid", "is")
    evaluate(folder, digits, "right", *IMAGES, "--metrics", "fid", "is", "--steps", 8)
    evaluate(folder, digits, "more", "--extractor", "DigitsClassifier", "--num_samples", 96, "--metrics", "fid")
    done = cli(folder, "compare", "left/evaluation.json", "right/evaluation.json")
    assert done.code == 0
    assert re.search(r"^  nfe +4 \| 8$", done.out, re.MULTILINE)
    assert "lower is better" in done.out and "higher is better" in done.out
    assert "{" not in done.out  # no dictionaries
    three = cli(folder, "compare", *(f"{name}/evaluation.json" for name in ("left", "right", "left")), "--json")
    rows = {row["metric"]: row for row in json.loads(three.out)["rows"]}
    assert rows["fid"]["C - A"] == 0
    assert rows["fid"]["B - A"] == rows["fid"]["B"] - rows["fid"]["A"]
    assert rows["is"]["best"] in ("B", "A, C")
    assert "two or more" in cli(folder, "compare", "left/evaluation.json").error
    left = ("compare", "left/evaluation.json")
    refused = cli(folder, *left, "more/evaluation.json")
    assert refused.code == 2
    assert "not measured alike: fid (num_samples: 80 and 96)" in refused.error
    assert "has no kid" in cli(folder, *left, "right/evaluation.json", "--metrics", "kid").error
    assert "tiny.yaml: file not found" in cli(folder, *left, "tiny.yaml").error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--metrics", "lpips"], "there is no metric 'lpips' of images, only fid, is, kid, prc, sfid, cmmd, nll, elbo"),
        (["--num_samples", 1], "num_samples must be at least 2"),
        (["--repeats", 0], "repeats must be at least 1"),
        (["--seed", -1], "seed must not be negative"),
        (["--split", "training"], "there is no split 'training', only train, val, test"),
        (["--reference", "none.npz"], "none.npz: file not found"),
        (["--metrics", "sfid"], "sfid needs spatial features, and DigitsClassifier gives none"),
        (["--labels", "random"], "labels must be balanced or drawn, got random"),
        (
            ["--per_class", "true", "--metrics", "fid", "--reference", "none.npz"],
            "per_class compares with the examples",
        ),
        (["--reference", "none.npz", "--metrics", "fid"], "none.npz"),
        (["--extractor", "InceptionV3", "--extractor.weights", "none.pth"], "there is no file none.pth"),
        (["--extractor.weights", "none.pth"], "there is no file none.pth"),
    ],
)
def test_bad_input_is_one_line(folder: Path, digits: Path, options: list[Any], message: str) -> None:
    extractor = () if "--extractor" in str(options) else IMAGES[:2]
    done = cli(folder, "evaluate", "--ckpt_path", digits, "--output", "bad", *extractor, *options)
    assert done.code == 2
    assert message in done.error


def test_a_reference_of_other_features_is_refused(folder: Path, digits: Path) -> None:
    note = {
        "extractor": None,
        "shape": [1, 8, 8],
        "levels": 17,
        "data": "Digits",
        "split": "train",
        "n": 2,
        "sha256": "",
    }
    np.savez(folder / "other.npz", n=2, mean=np.zeros(64), cov=np.eye(64), note=json.dumps(note))
    call = ("evaluate", "--ckpt_path", digits, "--output", "bad", *IMAGES, "--metrics", "fid")
    assert "was made with another extractor" in cli(folder, *call, "--reference", "other.npz").error


def test_labels_are_balanced_or_drawn_and_recorded(folder: Path, digits: Path) -> None:
    call = ("--metrics", "fid", "--steps", 1)
    balanced = evaluate(folder, digits, "balanced", *IMAGES, *call)["fid"]
    drawn = evaluate(folder, digits, "drawn", *IMAGES, *call, "--labels", "drawn")["fid"]
    assert [each["model"]["labels"] for each in (balanced, drawn)] == ["balanced", "drawn"]
    assert balanced["value"] != drawn["value"]
    assert balanced["protocol"] == drawn["protocol"]
    pipeline, _ = load_pipeline(folder / digits)
    labels = with_labels(pipeline, "drawn", 5000, 3)[0].values(range(5000))["label"]
    counts = torch.bincount(labels, minlength=10)
    assert len(counts) == 10
    # The counts of 5,000 draws have a standard deviation of √(5000 · 0.1 · 0.9) = 21.
    assert 2 < float((counts - 500).double().std()) < 60
    assert torch.equal(labels, with_labels(pipeline, "drawn", 5000, 3)[0].values(range(5000))["label"])
    with pytest.raises(ValueError, match=r"the model has none to draw.*--labels balanced"):
        with_labels(pipeline.with_cond(label=3), "drawn", 9, 0)


def test_metrics_of_each_class(folder: Path, digits: Path) -> None:
    call = ("--metrics", "fid", "is", "prc", "--steps", 1, "--per_class", "true")
    results = evaluate(folder, digits, "classes", *IMAGES, *call)
    assert "classes" not in results["is"]
    for name in ("fid", "precision", "recall"):
        assert list(results[name]["classes"]) == [str(k) for k in range(10)]
    # Eight samples of each class in turn; those of one are measured as a set of their own.
    only = evaluate(folder, digits, "one", *IMAGES[:2], *call[:1], "fid", "--steps", 1, "--num_samples", 80)
    assert read_results(folder / "classes" / "evaluation.json")["fid"].value == only["fid"]["value"]
    assert min(results["fid"]["classes"].values()) > results["fid"]["value"] / 10


def test_a_file_of_another_package_is_a_reference(folder: Path, digits: Path) -> None:
    own = evaluate(folder, digits, "own", *IMAGES, "--metrics", "fid")["fid"]
    with np.load(folder / "own" / "reference.npz") as file:
        np.savez(folder / "edm.npz", mu=file["mean"], sigma=file["cov"])
    foreign = evaluate(folder, digits, "foreign", *IMAGES, "--metrics", "fid", "--reference", "edm.npz")["fid"]
    assert foreign["value"] == pytest.approx(own["value"], rel=1e-12)
    assert foreign["protocol"]["reference"]["split"] == "foreign"
    refused = cli(folder, "compare", "own/evaluation.json", "foreign/evaluation.json")
    assert "not measured alike: fid" in refused.error


def test_papers_value_is_next_to_ours(folder: Path) -> None:
    band = {"band": [1.0, 2.0], "num_samples": 80, "source": "a test", "by": "DigitsClassifier", "paper": 1.5}
    checkpoint = fit_digits(folder, "published", expected={"fid": band}, trainer__max_steps=1)
    call = ("evaluate", "--ckpt_path", checkpoint, "--steps", 1, "--metrics", "fid", "is", "--extractor", IMAGES[1])
    done = cli(folder, *call, "--num_samples", 80, "--output", "alike", "--json")
    rows = {row["metric"]: row for row in json.loads(done.out)["rows"]}
    assert [rows["fid"]["paper"], rows["fid"]["as in the paper"]] == [1.5, "yes"]
    assert [rows["is"]["paper"], rows["is"]["as in the paper"]] == [None, None]
    done = cli(folder, *call, "--num_samples", 64, "--output", "other", "--json")
    (row, _) = json.loads(done.out)["rows"]
    assert row["as in the paper"] == "samples 64, not 80"
