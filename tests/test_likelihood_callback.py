"""Likelihood and SeenLoss: metrics of the data during training, on one process or two."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from images_model import digits_changes, fit_digits
from shell import LAST, cli, scalars, start, tiny_config

from diffusion_pl.checkpoints.loading import load_model

LIKELIHOOD: dict[str, Any] = {
    "class_path": "Likelihood",
    "init_args": {"every_n_steps": 20, "examples": 40, "estimator": {"init_args": {"rtol": 1e-2, "atol": 1e-2}}},
}
LIKELIHOOD["init_args"]["estimator"]["class_path"] = "diffusion_pl.likelihood.FlowLikelihood"


@pytest.mark.slow
def test_two_processes_measure_what_evaluate_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    pair: dict[str, Any] = {"trainer__devices": 2, "trainer__strategy": "ddp", "trainer__accelerator": "cpu"}
    config = tiny_config(tmp_path, "two.yaml", **digits_changes(trainer__callbacks=[LIKELIHOOD], **pair))
    process = start(tmp_path, "fit", "--config", config, "--run", "two")
    _, error = process.communicate(timeout=240)
    assert process.returncode == 0, error
    logged = scalars(tmp_path / "runs/two")
    (step, value) = logged["bits_per_dim_n40/ema0.999"][-1]
    assert step == 20
    call = ["--metrics", "nll", "--likelihood_split", "val", "--likelihood_examples", 40, "--accelerator", "cpu"]
    call += ["--likelihood.rtol", 1e-2, "--likelihood.atol", 1e-2, "--output", "e"]
    done = cli(tmp_path, "evaluate", "--ckpt_path", Path("runs/two") / LAST, *call)
    assert done.code == 0, done.err
    nll = json.loads((tmp_path / "e/evaluation.json").read_text())["figures"]["nll"]
    assert value == pytest.approx(nll["value"], rel=1e-6)
    assert logged["bits_per_dim_error_n40/ema0.999"][-1][1] == pytest.approx(nll["standard_error"], rel=1e-5)
    assert logged["bits_per_dim_nfe_n40/ema0.999"][-1][1] == pytest.approx(nll["model"]["nfe"], rel=1e-6)
    # test takes the test split, from the same configuration
    done = cli(
        tmp_path,
        "test",
        "--config",
        config,
        "--trainer.devices",
        1,
        "--ckpt_path",
        Path("runs/two") / LAST,
        "--run",
        "t",
    )
    assert done.code == 0, done.err
    assert "bits_per_dim_n40/ema0.999" in scalars(tmp_path / "runs/t")


def test_points_have_nats(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, trainer__callbacks=[LIKELIHOOD])
    done = cli(tmp_path, "fit", "--config", config, "--run", "points")
    assert done.code == 0, done.err
    logged = scalars(tmp_path / "runs/points")
    assert [step for step, _ in logged["nats_per_dim_n14/ema0.999"]] == [20, 40]


def test_an_empty_split_is_refused_before_training(tmp_path: Path) -> None:
    callback = {**LIKELIHOOD, "init_args": {**LIKELIHOOD["init_args"], "split": "tets"}}
    done = cli(tmp_path, "fit", "--config", tiny_config(tmp_path, trainer__callbacks=[callback]))
    assert "there is no split 'tets'" in done.error


def test_the_seen_loss_is_the_loss_of_the_training_split(tmp_path: Path) -> None:
    """Against the loss of the loaded model by a plain loop over many draws, in total and in each bin."""
    fit_digits(tmp_path, conditional=False, trainer__val_check_interval=20, trainer__max_steps=60)
    logged = scalars(tmp_path / "runs/digits")
    assert [s for s, _ in logged["seen_loss/ema0.999"]] == [s for s, _ in logged["val_loss/ema0.999"]]
    model, data = load_model(tmp_path / "runs/digits" / LAST)
    data.setup("fit")
    torch.manual_seed(0)
    with torch.no_grad():
        drawn = [model.losses(batch) for batch in data.batches("train", 250)]
    loss, t = (torch.cat([getattr(d, name) for d in drawn]) for name in ("loss", "t"))
    for low in (0.0, 0.25, 0.5, 0.75):
        mine = loss[(t >= low) & (t < low + 0.25)]
        value = logged[f"seen_loss/ema0.999_t{low:.2f}-{low + 0.25:.2f}"][-1][1]
        assert value == pytest.approx(float(mine.mean()), abs=8 * float(mine.std()) / len(mine) ** 0.5 + 1e-6)


@pytest.mark.slow
def test_memorised_data_separate_the_two_losses(tmp_path: Path) -> None:
    """A wide network on 16 points: the loss of what it saw falls far below that of what it did not."""
    network = {"class_path": "diffusion_pl.networks.MLP", "init_args": {"width": 128, "depth": 2}}
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(32, 2, generator=generator)
    (tmp_path / "points.csv").write_text("x,y\n" + "\n".join(f"{a},{b}" for a, b in x.tolist()) + "\n")
    data = {"class_path": "Table", "init_args": {"path": "points.csv", "columns": ["x", "y"], "val_fraction": 0.5}}
    done = cli(
        tmp_path,
        "fit",
        "--config",
        tiny_config(
            tmp_path, model__network=network, data=data, trainer__max_steps=3000, trainer__val_check_interval=3000
        ),
        "--run",
        "few",
    )
    assert done.code == 0, done.err
    logged = scalars(tmp_path / "runs/few")
    assert logged["seen_loss/ema0.999"][-1][1] < 0.6 * logged["val_loss/ema0.999"][-1][1]
