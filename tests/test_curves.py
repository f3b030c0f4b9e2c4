"""Curves of a run: what its history holds, over sessions and stops, and what is said of it."""

import re
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from shell import checkpoint, cli, events, fit, tiny_config, tiny_data, tiny_module, tiny_trainer

from diffusion_pl.callbacks.seen_loss import memorises
from diffusion_pl.runtime.dashboard import dashboard_tag
from diffusion_pl.training import History
from diffusion_pl.training.history import MOST


def steps_of(run: Path) -> dict[str, list[int]]:
    """The steps of each series in the newest checkpoint of a run."""
    return {name: rows[:, 0].int().tolist() for name, rows in checkpoint(run)["history"].items()}


def test_the_history_keeps_what_is_new_at_full_resolution() -> None:
    history = History()
    for step in range(1, 5 * MOST):
        history.add(step, {"a": torch.tensor(float(step)), "b": -1.0})
    series = history.series()
    assert series["a"].shape == series["b"].shape
    assert MOST <= len(series["a"]) < 2 * MOST
    assert torch.equal(series["a"][:, 0], series["a"][:, 1])
    steps = series["a"][:, 0]
    assert steps[-1] == 5 * MOST - 1 and steps[-2] == 5 * MOST - 2
    assert (steps.diff() > 0).all() and steps[0] < 20


def test_the_history_of_a_checkpoint_goes_on() -> None:
    first, second = History(), History()
    first.add(10, {"a": 1.5})
    second.load(first.series())
    second.add(10, {"a": 2.5})  # measured again where the run resumes
    second.add(20, {"a": 3.5})
    assert second.series()["a"].tolist() == [[10, 2.5], [20, 3.5]]
    assert History().series() == {}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty steps in two sessions, the second one without a logger."""
    folder = tmp_path_factory.mktemp("curves")
    run = fit(folder, "--trainer.max_steps", 20)
    (run / "curves.png").unlink()
    return fit(folder, "--ckpt_path", "last", "--trainer.logger", "false")


def test_curves_are_drawn_and_go_on_over_sessions(run: Path) -> None:
    """The validation of step 20 came after the checkpoint of that step, as the one of 40 did."""
    series = steps_of(run)
    assert series["train_loss/raw"] == [10, 20, 30, 40]
    assert series["val_loss/ema0.999"] == series["seen_loss/ema0.999"] == [20]
    assert not [name for name in series if "_t0" in name]
    with Image.open(run / "curves.png") as image:
        assert image.width >= 700
        assert len(set(image.convert("RGB").getdata())) > 20


def test_tensorboard_opens_on_losses(run: Path) -> None:
    (file,) = events(run)
    tags = file.Tags()
    groups = sorted({tag.partition("/")[0] for tag in tags["scalars"]})
    assert groups == ["losses", "per_noise_level", "training"]
    shown = {tag for tag in tags["scalars"] if tag.startswith("losses/")}
    assert shown == {"losses/train_loss/raw", "losses/val_loss/ema0.999", "losses/seen_loss/ema0.999"}
    assert {"training/examples_per_second", "training/memory_gib", "training/learning_rate"} <= {*tags["scalars"]}


def test_tensorboard_shows_the_configuration(run: Path) -> None:
    (file,) = events(run)
    (text,) = file.Tensors("configuration/text_summary")
    shown = text.tensor_proto.string_val[0].decode()
    config = yaml.safe_load(re.fullmatch(r"```yaml\n(.*)```", shown, re.DOTALL)[1])  # type: ignore[index]
    assert config["model"]["schedule"]["class_path"] == "diffusion_pl.schedules.VP"
    assert config["trainer"]["max_steps"] == 20
    assert not (run / "hparams.yaml").exists()


def test_throughput_counts_training_steps(run: Path) -> None:
    (file,) = events(run)
    speed = file.Scalars("training/examples_per_second")
    assert [event.step for event in speed] == [10, 20]
    assert all(100 < event.value < 1e7 for event in speed)
    assert all(0.05 < event.value < 100 for event in file.Scalars("training/memory_gib"))


@pytest.mark.parametrize(
    ("name", "tag"),
    [
        ("val_loss/ema0.999", "losses/val_loss/ema0.999"),
        ("val_loss/ema0.999_t0.25-0.50", "per_noise_level/val_loss/ema0.999_t0.25-0.50"),
        ("fid_n1000/ema0.999", "metrics/fid_n1000/ema0.999"),
        ("val_accuracy/raw", "metrics/val_accuracy/raw"),
        ("data/mean_0", "samples/data/mean_0"),
        ("samples_ema0.999/constant", "samples/samples_ema0.999/constant"),
        ("gradient_norm/raw", "training/gradient_norm/raw"),
        ("mine", "mine"),
    ],
)
def test_sections_of_the_dashboard(name: str, tag: str) -> None:
    assert dashboard_tag(name) == tag


def test_a_stopped_run_has_its_curves(tmp_path: Path) -> None:
    stop = {"class_path": "shell.SignalAt", "init_args": {"batch": 25, "number": int(signal.SIGTERM)}}
    config = tiny_config(tmp_path, trainer__callbacks=[stop])
    assert cli(tmp_path, "fit", "--config", config, "--run", "run").code == 143
    assert steps_of(tmp_path / "runs/run")["train_loss/raw"] == [10, 20]
    assert (tmp_path / "runs/run/curves.png").exists()


def test_plain_python_has_the_history_and_no_image(tmp_path: Path) -> None:
    module = tiny_module()
    tiny_trainer(tmp_path).fit(module, datamodule=tiny_data())
    assert module.history.series()["train_loss/raw"][:, 0].tolist() == [5, 10, 15, 20]
    assert not (tmp_path / "curves.png").exists()


def rows(*values: float) -> Any:
    return torch.tensor([[100.0 * k, value] for k, value in enumerate(values, 1)])


@pytest.mark.parametrize(
    ("validation", "seen", "said"),
    [
        ((1.0, 0.9, 1.1), (1.0, 0.9, 0.8), True),
        ((1.0, 0.9, 1.1, 1.2), (1.0, 0.9, 0.8, 0.7), False),  # was said before
        ((1.0, 0.9, 0.95), (1.0, 0.9, 0.8), False),  # noise
        ((1.0, 0.9, 1.1), (1.0, 0.9, 1.0), False),  # both rise: the training diverges
        ((1.0,), (1.0,), False),
        ((), (), False),
    ],
)
def test_memorisation_is_said_once(validation: tuple[float, ...], seen: tuple[float, ...], said: bool) -> None:
    note = memorises(rows(*validation).reshape(-1, 2), rows(*seen).reshape(-1, 2))
    assert (note is not None) == said
    if note is not None:
        assert "0.9 (step 200) to 1.1" in note
