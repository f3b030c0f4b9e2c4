"""StepProgress: one bar, which counts the optimizer steps of the run."""

import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback, LightningModule, Trainer
from shell import cli, fit, tiny_config, tiny_data, tiny_module, tiny_trainer

from diffusion_pl.callbacks import EMA, Saver, StepProgress
from diffusion_pl.callbacks.sample_writer import Drawer, draw


class Terminal(io.StringIO):
    """Says that it is one."""

    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        return 2


@contextmanager
def watched(screen: io.StringIO | None = None, columns: int = 200) -> Iterator[io.StringIO]:
    """What the block writes to stderr; within a test, since pytest puts its own there before it."""
    screen = Terminal() if screen is None else screen
    with redirect_stderr(screen), pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.get_terminal_size", lambda *_: os.terminal_size((columns, 24)))  # tqdm asks it
        yield screen


def shown(screen: io.StringIO) -> list[str]:
    """Every state of the bars, in order."""
    return [text.strip() for text in re.split(r"[\r\n]", screen.getvalue()) if text.strip()]


def test_it_counts_every_optimizer_step_of_the_run(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, StepProgress(), max_steps=45, enable_progress_bar=True, val_check_interval=20)
    with watched() as screen:
        trainer.fit(tiny_module(), datamodule=tiny_data())
    states = shown(screen)
    assert all(state.startswith("fit") for state in states)  # validation opens none of its own
    assert re.match(r"fit: +0%.* 0/45 ", states[0])
    assert re.match(r"fit val_loss/raw=\S+: 100%.* 45/45 .*step.*train_loss/raw=", states[-1])


def test_bar_fits_80_columns_and_names_what_takes_time(tmp_path: Path) -> None:
    with watched(columns=80) as screen:
        bar, saver = StepProgress(), Saver(15)  # made where the terminal is
        trainer = tiny_trainer(tmp_path, bar, saver, max_steps=45, enable_progress_bar=True, val_check_interval=20)
        trainer.fit(tiny_module(), datamodule=tiny_data())
    *states, last = shown(screen)
    assert max(map(len, states)) <= 80
    for what in ("validation", "panels and metrics", "saving checkpoint"):
        assert any(state.startswith(f"fit {what} …:") for state in states), what
    assert any(re.match(r"fit val_loss/raw=\S+: 100%\|.*\| 45/45 \[\d\d:\d\d<\d\d:\d\d, ", state) for state in states)
    assert last.startswith("training is finished: ")


def test_accumulated_gradients_are_one_step(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, StepProgress(), max_steps=4, accumulate_grad_batches=5, enable_progress_bar=True)
    with watched() as screen:
        trainer.fit(tiny_module(), datamodule=tiny_data())
    assert " 4/4 " in shown(screen)[-1]


def test_a_resumed_run_keeps_the_count(tmp_path: Path) -> None:
    first = tiny_trainer(tmp_path, EMA(), max_steps=10)
    first.fit(tiny_module(), datamodule=tiny_data())
    first.save_checkpoint(tmp_path / "ten.ckpt")
    trainer = tiny_trainer(tmp_path, EMA(), StepProgress(), max_steps=15, enable_progress_bar=True)
    with watched() as screen:
        trainer.fit(tiny_module(), datamodule=tiny_data(), ckpt_path=str(tmp_path / "ten.ckpt"))
    assert " 10/15 " in shown(screen)[0]
    assert " 15/15 " in shown(screen)[-1]


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_other_commands_count_their_batches(tmp_path: Path, stage: str) -> None:
    trainer = tiny_trainer(tmp_path, StepProgress(), enable_progress_bar=True)
    with watched() as screen:
        if stage == "predict":
            draw(Drawer(tiny_module().live_pipeline()), 768, tmp_path, trainer, batch=256)
        else:
            getattr(trainer, stage)(tiny_module(), datamodule=tiny_data())
    name = "sample" if stage == "predict" else stage
    mine = [state for state in shown(screen) if state.startswith(f"{name}:")]
    assert re.match(rf"{name}: +0%.* 0/3 ", mine[0])
    assert re.match(rf"{name}: 100%.* 3/3 .*batch", mine[-1])


def test_a_long_validation_within_fit_leaves_the_bar_of_the_run(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, StepProgress(), max_steps=10, enable_progress_bar=True, num_sanity_val_steps=1)
    with watched() as screen:
        trainer.fit(tiny_module(), datamodule=tiny_data())
    assert " 10/10 " in shown(screen)[-1]


class Fail(Callback):
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        raise RuntimeError("on purpose")


def test_an_error_closes_the_bar_before_its_message(tmp_path: Path) -> None:
    bar = StepProgress()
    with watched() as screen, pytest.raises(RuntimeError):
        tiny_trainer(tmp_path, bar, Fail(), enable_progress_bar=True).fit(tiny_module(), datamodule=tiny_data())
    assert bar._bar is None
    assert screen.getvalue().endswith("\n")


def test_it_can_be_switched_off(tmp_path: Path) -> None:
    bar = StepProgress()
    bar.disable()
    with watched() as screen:
        tiny_trainer(tmp_path, bar, enable_progress_bar=True).fit(tiny_module(), datamodule=tiny_data())
    assert screen.getvalue() == ""


def test_a_file_gets_few_lines(tmp_path: Path) -> None:
    with watched(io.StringIO()) as screen:
        trainer = tiny_trainer(tmp_path, StepProgress(), max_steps=300, enable_progress_bar=True)
        trainer.fit(tiny_module(), datamodule=tiny_data())
    assert len(shown(screen)) <= 4


def test_the_command_line_enables_it_by_default(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, trainer__enable_progress_bar=True, trainer__max_steps=2)
    assert "2/2" in cli(tmp_path, "fit", "--config", config).err
    assert "Traceback" not in cli(tmp_path, "fit", "--config", config, "--trainer.callbacks+=RichProgressBar").err
    fit(tmp_path)  # enable_progress_bar is false there
    assert cli(tmp_path, "fit", "--config", tiny_config(tmp_path)).err == ""
