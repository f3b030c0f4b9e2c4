"""FieldMetrics: metrics of fields during training, equal to those of `evaluate`."""

import json
from pathlib import Path
from typing import Any

import pytest
from field_data import fit_waves
from images_model import fit_digits
from shell import cli, scalars, start, tiny_config

from diffusion_pl.callbacks import FieldMetrics

NAMES = ["moments", "marginals", "spectrum", "energy"]
METRICS: dict[str, Any] = {
    "class_path": "FieldMetrics",
    "init_args": {"every_n_steps": 10, "num_samples": 40, "metrics": NAMES},
}


def test_values_are_those_of_evaluate(tmp_path: Path) -> None:
    best = {
        "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
        "init_args": {"monitor": "spectrum_n40/ema0.999", "every_n_train_steps": 10, "dirpath": "best"},
    }
    checkpoint = fit_waves(tmp_path, trainer__callbacks=[METRICS, best], ema__decays=[0.999])
    logged = scalars(tmp_path / "runs/waves")
    assert [step for step, _ in logged["spectrum_n40/ema0.999"]] == [10, 20]
    assert logged["not_finite_n40/ema0.999"][-1][1] == 0
    done = cli(tmp_path, "evaluate", "--ckpt_path", checkpoint, "--num_samples", 40, "--accelerator", "cpu")
    assert done.code == 0, done.err
    results = json.loads((tmp_path / "evaluation/evaluation.json").read_text())["figures"]
    assert len(results) == 7
    for name, result in results.items():
        assert logged[f"{name}_n40/ema0.999"][-1][1] == pytest.approx(result["value"], rel=1e-5, abs=1e-6)
    assert list((tmp_path / "best").iterdir())


@pytest.mark.slow
def test_two_processes_measure_what_one_does(tmp_path: Path) -> None:
    """Two ranks train on other batches than one would, so their values are compared with those of `evaluate`."""
    pair = {"trainer__devices": 2, "trainer__strategy": "ddp", "trainer__accelerator": "cpu", "ema__decays": [0.999]}
    data = {"class_path": "field_data.Waves", "init_args": {"batch_size": 32}}
    network = {"class_path": "field_data.Pointwise"}
    changes: dict[str, Any] = {"data": data, "model__network": network, "trainer__max_steps": 20}
    config = tiny_config(tmp_path, "two.yaml", **changes, trainer__callbacks=[METRICS], **pair)
    process = start(tmp_path, "fit", "--config", config, "--run", "two")
    _, error = process.communicate(timeout=240)
    assert process.returncode == 0, error
    logged = scalars(tmp_path / "runs/two")
    checkpoint = "runs/two/checkpoints/last.ckpt"
    done = cli(tmp_path, "evaluate", "--ckpt_path", checkpoint, "--num_samples", 40, "--accelerator", "cpu")
    assert done.code == 0, done.err
    for name, result in json.loads((tmp_path / "evaluation/evaluation.json").read_text())["figures"].items():
        assert logged[f"{name}_n40/ema0.999"][-1][1] == pytest.approx(result["value"], rel=1e-5, abs=1e-6)


def test_bad_input_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no metric 'fid' of fields, only moments, marginals, spectrum, energy"):
        FieldMetrics(metrics=["fid"])
    with pytest.raises(ValueError, match="num_samples must be at least 2"):
        FieldMetrics(num_samples=1)
    with pytest.raises(AssertionError, match="FieldMetrics measures models of continuous fields"):
        fit_digits(tmp_path, trainer__callbacks=[METRICS])
