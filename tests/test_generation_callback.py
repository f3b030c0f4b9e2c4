"""GenerationMetrics: figures while a model learns, equal to those of `evaluate`."""

import json
from pathlib import Path
from typing import Any

import pytest
from pictures_model import fit_digits
from shell import cli, scalars

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


def test_it_measures_what_evaluate_does_and_keeps_the_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    checkpoint = fit_digits(tmp_path, trainer__callbacks=[METRICS, BEST], ema__decays=[0.999])
    found = scalars(tmp_path / "runs/digits")
    assert [step for step, _ in found["fid_n128/ema0.999"]] == [9, 19]
    assert found["not_finite_n128/ema0.999"][-1][1] == 0
    assert [path.name for path in (tmp_path / "best").iterdir()] == ["best.ckpt"]
    call = ("--extractor", "DigitsClassifier", "--num_samples", 128, "--metrics", "fid", "is")
    done = cli(tmp_path, "evaluate", "--ckpt_path", checkpoint, "--output", "e", *call)
    assert done.code == 0, done.err
    figures = json.loads((tmp_path / "e/evaluation.json").read_text())["figures"]
    for name in ("fid", "is"):
        assert figures[name]["value"] == pytest.approx(found[f"{name}_n128/ema0.999"][-1][1], rel=1e-5)
