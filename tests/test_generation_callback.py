"""GenerationMetrics: metrics during training, equal to those of `evaluate`, on one process or two."""

import json
from pathlib import Path
from typing import Any

import pytest
from images_model import digits_changes, fit_digits
from lightning.pytorch import Callback, LightningModule, Trainer
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


def evaluated(folder: Path, checkpoint: Path) -> dict[str, Any]:
    """The results of `evaluate`."""
    call = ("--extractor", "DigitsClassifier", "--num_samples", 128, "--metrics", "fid", "is", "--accelerator", "cpu")
    done = cli(folder, "evaluate", "--ckpt_path", checkpoint, "--output", "e", *call)
    assert done.code == 0, done.err
    results: dict[str, Any] = json.loads((folder / "e/evaluation.json").read_text())["figures"]
    return results


@pytest.mark.slow
def test_two_processes_measure_what_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    pair: dict[str, Any] = {"trainer__devices": 2, "trainer__strategy": "ddp", "trainer__accelerator": "cpu"}
    config = tiny_config(tmp_path, "two.yaml", **digits_changes(trainer__callbacks=[METRICS], **pair))
    process = start(tmp_path, "fit", "--config", config, "--run", "two")
    _, error = process.communicate(timeout=240)
    assert process.returncode == 0, error
    (_, value) = scalars(tmp_path / "runs/two")["fid_n128/ema0.999"][-1]
    assert evaluated(tmp_path, Path("runs/two/checkpoints/last.ckpt"))["fid"]["value"] == pytest.approx(value, rel=1e-6)


@pytest.mark.parametrize("accumulated", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_values_are_logged_once_and_the_best_is_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accumulated: int
) -> None:
    """Measured every 4 steps, logged every 3, saved every 2, validated every 6, and 30 samples of blocks of 64."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    few = {**METRICS, "init_args": {**METRICS["init_args"], "every_n_steps": 4, "num_samples": 30, "metrics": ["fid"]}}
    best: dict[str, Any] = {**BEST, "init_args": {**BEST["init_args"], "monitor": "fid_n30/ema0.999"}}
    best["init_args"] |= {"every_n_train_steps": 2, "save_top_k": -1, "filename": "{step}"}
    early: dict[str, Any] = {"class_path": "lightning.pytorch.callbacks.EarlyStopping", "init_args": {"patience": 99}}
    early["init_args"]["monitor"] = "fid_n30/ema0.999"
    of_loss = {**BEST, "init_args": {"monitor": "val_loss/ema0.999", "every_n_train_steps": 2, "dirpath": "loss"}}
    of_loss["init_args"] |= {"save_top_k": -1, "filename": "{step}"}
    steps: dict[str, Any] = {
        "trainer__max_steps": 14,
        "trainer__val_check_interval": 6,
        "trainer__log_every_n_steps": 3,
    }
    fit_digits(
        tmp_path,
        trainer__callbacks=[{"class_path": "test_generation_callback.Kept"}, few, early, best, of_loss],
        trainer__accumulate_grad_batches=accumulated,
        ema__decays=[0.999],
        **steps,
    )
    logged = scalars(tmp_path / "runs/digits")
    assert [step for step, _ in logged["fid_n30/ema0.999"]] == [4, 8, 12, 14]
    for tag in ("val_loss/ema0.999", "seen_loss/ema0.999"):
        assert [step for step, _ in logged[tag]] == [6, 12]
    assert [step for step, _ in logged["train_loss/raw"]] == [3, 6, 9, 12]
    assert {path.stem for path in (tmp_path / "loss").iterdir()} == {"step=6", "step=12"}
    (fid,) = (c for c in Kept.trainer.checkpoint_callbacks if getattr(c, "monitor", "") == "fid_n30/ema0.999")
    filed = {Path(path).stem: float(value) for path, value in fid.best_k_models.items()}  # type: ignore[attr-defined]
    assert filed == {f"step={step}": pytest.approx(value) for step, value in logged["fid_n30/ema0.999"]}
    best_step = min(logged["fid_n30/ema0.999"], key=lambda point: point[1])[0]
    assert Path(fid.best_model_path).stem == f"step={best_step}"  # type: ignore[attr-defined]
    call = ("--extractor", "DigitsClassifier", "--num_samples", 30, "--metrics", "fid", "--accelerator", "cpu")
    done = cli(tmp_path, "evaluate", "--ckpt_path", fid.best_model_path, "--output", "e", *call)  # type: ignore[attr-defined]
    assert done.code == 0, done.err
    value = json.loads((tmp_path / "e/evaluation.json").read_text())["figures"]["fid"]["value"]
    assert value == pytest.approx(min(filed.values()), rel=1e-5)


class Kept(Callback):
    """Keeps the trainer for the test."""

    trainer: Trainer

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        Kept.trainer = trainer


def test_it_measures_what_evaluate_does_and_keeps_the_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    checkpoint = fit_digits(tmp_path, trainer__callbacks=[METRICS, BEST], ema__decays=[0.999])
    logged = scalars(tmp_path / "runs/digits")
    assert [step for step, _ in logged["fid_n128/ema0.999"]] == [10, 20]
    assert logged["not_finite_n128/ema0.999"][-1][1] == 0
    assert [path.name for path in (tmp_path / "best").iterdir()] == ["best.ckpt"]
    results = evaluated(tmp_path, checkpoint)
    for name in ("fid", "is"):
        assert results[name]["value"] == pytest.approx(logged[f"{name}_n128/ema0.999"][-1][1], rel=1e-6)
