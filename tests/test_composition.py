"""Configurations laid over each other: another class starts from its own defaults; what is replaced is said."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from shell import LAST, checkpoint, cli, tiny_config

#: A tiny model with an option of the same name as another class has, at every depth.
OPTIONS: dict[str, Any] = {
    "model__noise_input": {"class_path": "ScaledTime", "init_args": {"scale": 999}},
    "model__loss": {
        "times": {"class_path": "LogNormalTimes", "init_args": {"mean": -3.0, "std": 2.0}},
        "weighting": {"class_path": "SNR", "init_args": {"plus": 4}},
    },
    "model__lr_scheduler": {"class_path": "WarmupCosine", "init_args": {"warmup_steps": 5}},
    "model__sampler": {
        "class_path": "Heun",
        "init_args": {"grid": {"class_path": "KarrasGrid", "init_args": {"steps": 7}}, "churn": 1.0},
    },
    "model__network": {
        "class_path": "diffusion_pl.networks.MLP",
        "init_args": {
            "width": 16,
            "time_embedding": {"class_path": "diffusion_pl.networks.Fourier", "init_args": {"features": 32}},
        },
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("composed")
    tiny_config(path, **OPTIONS)
    return path


def composed(folder: Path, *args: Any, over: Any = None) -> dict[str, Any]:
    """The configuration that would be run, of the file, one more over it, and options."""
    if over is not None:
        (folder / "over.yaml").write_text(yaml.safe_dump(over))
        args = ("--config", "over.yaml", *args)
    done = cli(folder, "fit", "--config", "tiny.yaml", *args, "--print_config")
    assert done.code == 0, done.err
    config: dict[str, Any] = yaml.safe_load(done.out)
    return config


@pytest.mark.parametrize("name", ["LogSNR", "diffusion_pl.denoisers.LogSNR"])
def test_another_noise_input_has_its_own_scale(folder: Path, name: str) -> None:
    own = {"class_path": "diffusion_pl.denoisers.LogSNR", "init_args": {"scale": -0.125, "shift": 0.0}}
    assert composed(folder, over={"model": {"noise_input": {"class_path": name}}})["model"]["noise_input"] == own
    assert composed(folder, "--model.noise_input", name)["model"]["noise_input"] == own
    own["init_args"] = {"scale": -0.125, "shift": 2.0}
    shifted = composed(folder, "--model.noise_input", name, "--model.noise_input.shift", 2)
    assert shifted["model"]["noise_input"] == own


def test_every_depth_has_its_own_defaults(folder: Path) -> None:
    """In one file over the other: loss.times, sampler and its grid, an embedding in a network, optimizer, data."""
    over = {
        "model": {
            "loss": {"times": {"class_path": "LogitNormalTimes"}},
            "sampler": {"init_args": {"grid": {"class_path": "LogSNRGrid"}}},
            "network": {"init_args": {"time_embedding": {"class_path": "diffusion_pl.networks.Sinusoidal"}}},
            "optimizer": {"class_path": "torch.optim.SGD"},
        },
        "data": {"class_path": "Moons", "init_args": {"num_points": 99}},
    }
    config = composed(folder, over=over)
    model, data = config["model"], config["data"]["init_args"]
    assert model["loss"]["init_args"]["times"]["init_args"] == {"mean": 0.0, "std": 1.0, "t_min": 1e-5}
    assert model["loss"]["init_args"]["weighting"]["init_args"] == {"plus": 4.0}  # not replaced
    assert model["sampler"]["init_args"]["grid"]["init_args"]["steps"] is None
    assert model["sampler"]["init_args"]["churn"] == 1.0
    network = model["network"]["init_args"]
    assert (network["width"], network["time_embedding"]["init_args"]["features"]) == (16, 128)
    assert model["optimizer"]["init_args"]["lr"] == 0.001
    assert (data["num_points"], data["batch_size"], data["repeats"]) == (99, 512, None)


def test_command_line_options_replace_classes_too(folder: Path) -> None:
    sampler = composed(folder, "--model.sampler.grid", "LogSNRGrid")["model"]["sampler"]["init_args"]
    assert (sampler["grid"]["init_args"]["steps"], sampler["churn"]) == (None, 1.0)
    data = composed(folder, "--data", "Moons", "--data.num_points", 99)["data"]["init_args"]
    assert (data["num_points"], data["batch_size"]) == (99, 512)
    refused = cli(folder, "fit", "--config", "tiny.yaml", "--model.lr_scheduler", "Warmup").error
    assert "missing: warmup_steps" in refused
    given = ("--model.optimizer", "SGD", "--model.optimizer.lr", 0.5, "--model.optimizer.momentum", 0.9)
    options = composed(folder, *given)["model"]["optimizer"]["init_args"]
    assert (options["lr"], options["momentum"]) == (0.5, 0.9)


def test_the_same_class_spelled_differently_keeps_options(folder: Path) -> None:
    over = {
        "model": {
            "network": {"class_path": "diffusion_pl.networks.mlp.MLP", "init_args": {"depth": 3}},
            "noise_input": {"class_path": "diffusion_pl.denoisers.ScaledTime"},
            "loss": {"times": {"class_path": "diffusion_pl.losses.LogNormalTimes", "init_args": {"std": 9.0}}},
            "optimizer": {"class_path": "torch.optim.adamw.AdamW"},
        },
        "data": {"class_path": "diffusion_pl.data.points.Datasaurus"},
    }
    model = composed(folder, over=over)["model"]
    assert (model["network"]["init_args"]["width"], model["network"]["init_args"]["depth"]) == (16, 3)
    assert model["noise_input"]["init_args"]["scale"] == 999
    assert model["loss"]["init_args"]["times"]["init_args"] == {"mean": -3.0, "std": 9.0}
    assert model["optimizer"]["init_args"]["lr"] == 0.01


# Callbacks


def test_a_list_that_replaces_callbacks_says_which(tmp_path: Path) -> None:
    summary = [{"class_path": "ModelSummary"}]
    tiny_config(tmp_path, trainer__callbacks=summary)
    (tmp_path / "more.yaml").write_text("trainer: {callbacks: [{class_path: Timer}]}")
    (tmp_path / "plus.yaml").write_text("trainer: {callbacks+: [{class_path: Timer}]}")
    args = ("doctor", "--config", "tiny.yaml")
    for more in (("--config", "more.yaml"), ("--trainer.callbacks", "Timer")):
        (line,) = (line for line in cli(tmp_path, *args, *more).out.splitlines() if "callbacks+" in line)
        assert "ModelSummary" in line and "Timer" not in line
    for silent in (("--config", "plus.yaml"), ("--trainer.callbacks+=Timer",), ("--trainer.callbacks", "[]")):
        assert "callbacks+" not in cli(tmp_path, *args, *silent).out


# The folder of the runs


def test_runs_are_in_the_default_root_dir(tmp_path: Path) -> None:
    """Of a relative and of an absolute path; resumed there, and from the configuration saved there."""
    for root in ("results", str(tmp_path / "elsewhere")):
        config = tiny_config(tmp_path, trainer__max_steps=2, trainer__default_root_dir=root)
        run = tmp_path / root / "mine"
        done = cli(tmp_path, "fit", "--config", config, "--run", "mine")
        assert done.run == f"{root}/mine"
        assert f"--logdir {root}" in done.out
        more = ("--ckpt_path", "last", "--trainer.max_steps", 4)
        assert cli(tmp_path, "fit", "--config", config, "--run", "mine", *more).run == f"{root}/mine"
        assert checkpoint(run)["global_step"] == 4
        by_path = ("--ckpt_path", run / LAST, "--trainer.max_steps", 5)
        assert cli(tmp_path, "fit", "--config", config, *by_path).run == f"{root}/mine"
        assert cli(tmp_path, "fit", "--config", run / "config.yaml", "--trainer.max_steps", 1).run == f"{root}/mine-2"
        outside = cli(tmp_path, "fit", "--config", config, "--run", "../other").error
        assert outside.startswith("--run")
    assert not (tmp_path / "runs").exists()
