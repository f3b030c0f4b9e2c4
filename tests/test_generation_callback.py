"""GenerationMetrics: figures while a model learns, equal to those of `evaluate`, on one process or two."""

import json
from pathlib import Path
from typing import Any

import pytest
from pictures_model import digits_changes, fit_digits
from shell import cli, scalars, start, tiny_config

METRICS: dict[str, Any] = {
    "class_path": "GenerationMetrics",
    "init_args": {
        "every_n_steps": 10,
        "num_samples": 128,
        "metrics": ["fid", "is"],
        "extractor": {"class_path": "DigitsClassifier"},
    },
}
BEST: dict[str, Any] = {
    "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
    "init_args": {"monitor": "fid_n128/ema0.999", "every_n_train_steps": 10, "filename": "best", "dirpath": "best"},
}


def figures(folder: Path, checkpoint: Path) -> dict[str, Any]:
    """Those of `evaluate`."""
    call = ("--extractor", "DigitsClassifier", "--num_samples", 128, "--metrics", "fid", "is", "--accelerator", "cpu")
    done = cli(folder, "evaluate", "--ckpt_path", checkpoint, "--output", "e", *call)
    assert done.code == 0, done.err
    found: dict[str, Any] = json.loads((folder / "e/evaluation.json").read_text())["figures"]
    return found


def test_two_processes_measure_what_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    pair = {"trainer__devices": 2, "trainer__strategy": "ddp", "trainer__accelerator": "cpu"}
    config = tiny_config(tmp_path, "two.yaml", **digits_changes(trainer__callbacks=[METRICS], **pair))
    process = start(tmp_path, "fit", "--config", config, "--run", "two")
    _, told = process.communicate(timeout=240)
    assert process.returncode == 0, told
    (_, value) = scalars(tmp_path / "runs/two")["fid_n128/ema0.999"][-1]
    assert figures(tmp_path, Path("runs/two/checkpoints/last.ckpt"))["fid"]["value"] == pytest.approx(value, rel=1e-6)


def test_it_measures_what_evaluate_does_and_keeps_the_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    checkpoint = fit_digits(tmp_path, trainer__callbacks=[METRICS, BEST], ema__decays=[0.999])
    found = scalars(tmp_path / "runs/digits")
    assert [step for step, _ in found["fid_n128/ema0.999"]] == [9, 19]
    assert found["not_finite_n128/ema0.999"][-1][1] == 0
    assert [path.name for path in (tmp_path / "best").iterdir()] == ["best.ckpt"]
    judged = figures(tmp_path, checkpoint)
    for name in ("fid", "is"):
        assert judged[name]["value"] == pytest.approx(found[f"{name}_n128/ema0.999"][-1][1], rel=1e-6)
