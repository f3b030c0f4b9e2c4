"""The training loop: windows of accumulation, intervals in steps, and what is made up for after a kill."""

import json
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from shell import LAST, assert_same_training, checkpoint, cli, fit, scalars, tiny_config

from diffusion_pl.callbacks import RunCard
from diffusion_pl.callbacks.saver import Saver


class Killed(BaseException):
    """Nothing more is done, as after SIGKILL."""


class KillAt(Callback):
    """Ends the run as a kill does: in a hook, at a step, once what callbacks do on exceptions is taken away.

    Args:
        hook: name of a hook; other callbacks' hooks of that name may come before or after.
        step: at which it kills.
    """

    def __init__(self, hook: str, step: int) -> None:
        self.step = step
        setattr(self, hook, self._kill)

    def _kill(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        if trainer.global_step == self.step:
            for callback in trainer.callbacks:  # type: ignore[attr-defined]
                if isinstance(callback, (Saver, RunCard)):
                    callback.on_exception = lambda *_: None  # type: ignore[method-assign]
                    callback.teardown = lambda *_: None  # type: ignore[method-assign]
            raise Killed


class Windows(Callback):
    """How many batches each optimizer step took, and the steps after which there was a validation."""

    windows: ClassVar[list[int]] = []
    validations: ClassVar[list[int]] = []
    epochs: ClassVar[list[int]] = []

    def __init__(self) -> None:
        self.batches = self.step = 0
        for seen in (Windows.windows, Windows.validations, Windows.epochs):
            seen.clear()

    def on_train_start(self, trainer: Trainer, *args: Any) -> None:
        self.step = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        self.batches += 1
        if trainer.global_step != self.step:
            self.windows.append(self.batches)
            self.batches, self.step = 0, trainer.global_step

    def on_validation_end(self, trainer: Trainer, *args: Any) -> None:
        self.validations.append(trainer.global_step)

    def on_train_epoch_end(self, trainer: Trainer, *args: Any) -> None:
        self.epochs.append(trainer.global_step)


WINDOWS = {"class_path": "test_loops.Windows"}
PANELS: dict[str, Any] = {
    "class_path": "PointPanels",
    "init_args": {"every_n_steps": 20, "num_samples": 20, "num_paths": 4},
}
PANELS["init_args"] |= {"field_times": [0.5], "film": False}
SMALL: dict[str, Any] = {"data__init_args": {"batch_size": 71, "repeats": 1}}  # an epoch is 2 batches
PER_EPOCH: dict[str, Any] = {"trainer__check_val_every_n_epoch": 1, "trainer__val_check_interval": 1.0}


def kill(folder: Path, hook: str, step: int, *args: Any, run: str = "killed", **changes: Any) -> Path:
    """Train until the hook kills the run."""
    callbacks = [*changes.pop("trainer__callbacks", []), {"class_path": "test_loops.KillAt"}]
    callbacks[-1]["init_args"] = {"hook": hook, "step": step}
    config = tiny_config(folder, "killed.yaml", trainer__callbacks=callbacks, **changes)
    with pytest.raises(Killed):
        cli(folder, "fit", "--config", config, "--run", run, *args)
    return folder / "runs" / run


def card(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "card.json").read_text())
    return content


# Accumulation


def test_accumulation_goes_across_epochs(tmp_path: Path) -> None:
    """Epochs of 2 batches, steps of 8."""
    changes: dict[str, Any] = {
        "trainer__max_steps": 6,
        "trainer__val_check_interval": 2,
        "trainer__callbacks": [WINDOWS],
    }
    fit(tmp_path, trainer__accumulate_grad_batches=8, **changes, **SMALL)
    assert Windows.windows == [8] * 6
    assert Windows.validations == [2, 4, 6]


def test_accumulated_step_is_the_step_of_the_whole_batch(tmp_path: Path) -> None:
    """The mean gradient of 4 batches; SGD moves by it: compared with autograd on the same batches and noise."""
    from shell import tiny_data, tiny_module, tiny_trainer, weights

    from diffusion_pl.runtime.upstream.loops import count_steps

    class Keep(Callback):
        def __init__(self) -> None:
            self.kept: list[tuple[int, Any]] = []

        def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, index: int) -> None:
            self.batch = batch

        def on_before_backward(self, trainer: Trainer, module: LightningModule, loss: torch.Tensor) -> None:
            self.kept.append((torch.default_generator.initial_seed(), self.batch))

    def sgd(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=0.1)

    keep, module = Keep(), tiny_module(optimizer=sgd)
    before = weights(module)
    trainer = tiny_trainer(tmp_path, keep, max_steps=1, accumulate_grad_batches=4)
    count_steps(trainer)
    trainer.fit(module, datamodule=tiny_data(batch_size=71, repeats=1))
    after = weights(module)
    again = tiny_module(optimizer=sgd)
    assert len(keep.kept) == 4
    total = torch.zeros(())
    for seed, batch in keep.kept:
        torch.default_generator.manual_seed(seed)
        total = total + again.losses(batch).loss.mean() / 4
    total.backward()
    for name, p in again.network.named_parameters():
        assert p.grad is not None
        torch.testing.assert_close(after[name], before[name] - 0.1 * p.grad)


def test_limited_epoch_that_splits_a_step_is_refused(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, trainer__limit_train_batches=3, trainer__accumulate_grad_batches=2)
    assert "trainer.limit_train_batches" in cli(tmp_path, "fit", "--config", config).error


@pytest.mark.parametrize(("interval", "steps"), [(5, [5, 10, 15, 20]), (0.5, [5, 10, 15, 20]), (1.0, [10, 20])])
def test_intervals_within_epochs_count_steps(tmp_path: Path, interval: float, steps: list[int]) -> None:
    """Epochs of 20 batches, 10 steps."""
    options = {"check_val_every_n_epoch": 1, "val_check_interval": interval, "accumulate_grad_batches": 2}
    changes: dict[str, Any] = {f"trainer__{name}": value for name, value in options.items()}
    fit(tmp_path, trainer__max_steps=20, trainer__callbacks=[WINDOWS], **changes)
    assert Windows.validations == steps


def test_interval_longer_than_an_epoch_names_the_options(tmp_path: Path) -> None:
    options = {"trainer__check_val_every_n_epoch": 1, "trainer__val_check_interval": 15}
    error = cli(tmp_path, "fit", "--config", tiny_config(tmp_path, trainer__accumulate_grad_batches=2, **options)).error
    assert "val_check_interval" in error
    assert "check_val_every_n_epoch" in error


# Epochs


@pytest.mark.parametrize(("steps", "accumulated"), [pytest.param(-1, 1, marks=pytest.mark.slow), (10_000, 3)])
def test_run_of_epochs_killed_twice_takes_the_same_steps(tmp_path: Path, steps: int, accumulated: int) -> None:
    """Checkpoints at the end of an epoch and within one."""
    each = -(-20 // accumulated)  # steps of an epoch
    changes: dict[str, Any] = {"trainer__max_epochs": 3, "trainer__max_steps": steps, "saver": {"every_n_steps": each}}
    changes |= {"trainer__accumulate_grad_batches": accumulated, "trainer__callbacks": [WINDOWS], **PER_EPOCH}
    whole = fit(tmp_path, run="whole", **changes)
    assert Windows.epochs == Windows.validations == [each, 2 * each, 3 * each]
    killed = kill(tmp_path, "on_train_batch_start", each + 2, **changes)
    kill(tmp_path, "on_train_batch_start", 2 * each + 1, "--ckpt_path", "last", **changes)
    fit(tmp_path, "--ckpt_path", "last", run="killed", **changes)
    assert checkpoint(killed)["global_step"] == 3 * each
    assert_same_training(whole, killed)
    ours, theirs = (checkpoint(run)["loops"]["fit_loop"] for run in (whole, killed))
    for part in (ours, theirs):
        del part["epoch_loop.val_loop.batch_progress"]  # of the last validation of the session
    assert ours == theirs


# Made up for


def shown(run: Path) -> dict[str, list[int]]:
    """Steps of all scalars and images, in all event files without those that were overtaken by a later one."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = EventAccumulator(str(run), size_guidance={"scalars": 0, "images": 0})
    folder.Reload()
    result = {tag: sorted(event.step for event in folder.Scalars(tag)) for tag in folder.Tags()["scalars"]}
    return result | {tag: sorted(event.step for event in folder.Images(tag)) for tag in folder.Tags()["images"]}


#: A run that draws and saves as often as it validates.
DRAWN: dict[str, Any] = {"trainer__callbacks": [PANELS], "saver": {"every_n_steps": 20}}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of such a run, `whole`, that nothing kills."""
    folder = tmp_path_factory.mktemp("drawn")
    fit(folder, run="whole", **DRAWN)
    return folder


@pytest.mark.parametrize(
    ("hook", "step"),
    [
        ("on_validation_start", 40),  # the last checkpoint is written
        pytest.param("on_validation_batch_start", 40, marks=pytest.mark.slow),
        ("on_train_epoch_end", 40),  # validated; before the last panels
        pytest.param("on_validation_start", 20, marks=pytest.mark.slow),
        ("on_train_batch_start", 20),
    ],
)
def test_what_was_due_when_killed_is_made_up_for_once(drawn: Path, hook: str, step: int) -> None:
    folder, whole = drawn, drawn / "runs" / "whole"
    name = f"{hook}-{step}"
    killed = kill(folder, hook, step, run=name, **DRAWN)
    assert checkpoint(killed)["global_step"] == step
    assert card(killed)["status"] == "running"
    again = cli(folder, "fit", "--config", "whole.yaml", "--run", name, "--ckpt_path", "auto")
    assert again.code == 0, again.err
    assert_same_training(whole, killed)
    assert shown(killed) == shown(whole)
    assert sorted(f.name for f in (killed / "panels").iterdir()) == sorted(f.name for f in (whole / "panels").iterdir())
    theirs, ours = card(killed), card(whole)
    assert theirs["status"] == "finished"
    if hook != "on_train_epoch_end":  # the validation was in this session
        assert theirs["metrics"]["step"] == 40
        assert theirs["metrics"]["values"]["val_loss/ema0.999"] == ours["metrics"]["values"]["val_loss/ema0.999"]
    before = shown(killed)
    done = cli(folder, "fit", "--config", "whole.yaml", "--run", name, "--ckpt_path", "auto")
    assert done.code == 0
    assert "finished at step 40: to train longer, raise --trainer.max_steps above 40" in done.out
    assert shown(killed) == before


def test_validation_interrupted_by_a_signal_is_repeated(tmp_path: Path) -> None:
    many = {"data__init_args": {"batch_size": 4, "repeats": 5}}
    whole = fit(tmp_path, run="whole", **many)
    signalled = [{"class_path": "test_saver.SignalInValidation"}]
    config = tiny_config(tmp_path, "stopped.yaml", trainer__callbacks=signalled, **many)
    assert cli(tmp_path, "fit", "--config", config, "--run", "stopped").code == 143
    fit(tmp_path, "--ckpt_path", "last", run="stopped", **many)
    stopped = tmp_path / "runs" / "stopped"
    assert scalars(stopped)["val_loss/ema0.999"] == scalars(whole)["val_loss/ema0.999"]
    assert_same_training(whole, stopped)


# Finished


class Worse(Callback):
    """Every validation is worse than the one before."""

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pl_module.log("worse", float(trainer.global_step))


def stopping(patience: int) -> list[dict[str, Any]]:
    early = {"class_path": "lightning.pytorch.callbacks.EarlyStopping"}
    return [{"class_path": "test_loops.Worse"}, {**early, "init_args": {"monitor": "worse", "patience": patience}}]


def test_run_that_early_stopping_ended_stays_finished(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"trainer__max_steps": 100, "trainer__val_check_interval": 10}
    run = fit(tmp_path, trainer__callbacks=stopping(1), saver={"every_n_steps": 10}, **changes)
    assert checkpoint(run)["global_step"] == 20
    config = tiny_config(tmp_path, trainer__callbacks=stopping(1), **changes)
    done = cli(tmp_path, "fit", "--config", config, "--run", "run", "--ckpt_path", "auto")
    assert done.code == 0
    assert "finished at step 20: EarlyStopping on worse" in done.out
    assert checkpoint(run)["global_step"] == 20
    fit(tmp_path, "--ckpt_path", "last", trainer__callbacks=stopping(3), **changes)
    assert checkpoint(run)["global_step"] == 40


def test_fewer_steps_than_the_checkpoint_has_are_refused(tmp_path: Path) -> None:
    fit(tmp_path)
    config = tiny_config(tmp_path)
    error = cli(tmp_path, "fit", "--config", config, "--run", "run", "--ckpt_path", "last", "--trainer.max_steps", 30)
    assert "is of step 40, beyond --trainer.max_steps 30" in error.error


def test_folder_of_a_run_stands_for_its_newest_good_checkpoint(tmp_path: Path) -> None:
    run = fit(tmp_path, saver={"every_n_steps": 20})
    config = tiny_config(tmp_path)
    done = cli(tmp_path, "sample", "--ckpt_path", "runs/run", "--num_samples", 5, "--output", "a")
    assert done.code == 0, done.err
    done = cli(tmp_path, "validate", "--config", config, "--ckpt_path", "runs/run")
    assert done.code == 0, done.err
    (run / LAST).write_bytes((run / LAST).read_bytes()[:-100])
    done = cli(tmp_path, "fit", "--config", config, "--ckpt_path", "runs/run", "--trainer.max_steps", 44)
    assert "runs/run" in done.run
    assert card(run)["sessions"][-1]["from_step"] == 20  # of previous.ckpt
    (tmp_path / "empty").mkdir()
    assert "no checkpoint in empty" in cli(tmp_path, "sample", "--ckpt_path", "empty").error


# Not finite


def test_weights_and_samples_that_are_not_finite_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = fit(tmp_path)
    content = checkpoint(run)
    for state in (content["state_dict"], *content["averages"]["shadows"].values()):
        for name, value in state.items():
            if name.endswith("bias"):
                value.fill_(torch.nan)
    (tmp_path / "nan").mkdir()
    torch.save(content, tmp_path / "nan" / "nan.ckpt")
    for weights in ("ema", "raw"):
        call = ("sample", "--ckpt_path", "nan/nan.ckpt", "--weights", weights, "--output", weights)
        assert "weights of nan/nan.ckpt are not finite" in cli(tmp_path, *call).error
    config = tiny_config(tmp_path)
    for _ in range(2):  # said again when the call is repeated
        done = cli(tmp_path, "predict", "--config", config, "--run", "p", "--ckpt_path", "nan/nan.ckpt")
        assert "weights of nan/nan.ckpt are not finite" in done.error

    from diffusion_pl.pipeline import Pipeline

    real = Pipeline.samples

    def diverge(self: Pipeline, *args: Any, **kwargs: Any) -> Any:
        samples = real(self, *args, **kwargs)
        samples.x_0[2] = torch.inf
        return samples

    monkeypatch.setattr(Pipeline, "samples", diverge)
    for _ in range(2):  # said again when the call is repeated
        done = cli(tmp_path, "sample", "--ckpt_path", "runs/run", "--num_samples", 5, "--output", "some")
        assert done.code == 2
        assert "1 of 5 samples are not finite" in done.err
    (tmp_path / "points.csv").write_text("x,y\n1,2\n3,4\n5,6\n")
    done = cli(tmp_path, "encode", "--ckpt_path", "runs/run", "--path", "points.csv", "--output", "code")
    assert "samples are not finite" in done.error
    sweep = ("--samplers", "DDIM", "--nfe", 4, "--num_samples", 10, "--output", "s")
    assert cli(tmp_path, "sweep", "--ckpt_path", "runs/run", *sweep).code == 2
