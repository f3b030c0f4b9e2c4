"""One progress bar for the whole run, with what is being done and the remaining time."""

import math
import sys
import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from tqdm.auto import tqdm

from ..runtime.startup import say
from ..training import LeanCallback

#: In 80 columns: the most important value comes first, the others last, where a narrow terminal cuts them off.
_BAR = "{desc}: {percentage:3.0f}%|{bar:8}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"
_NOTEBOOK_BAR = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"


class StepProgress(LeanCallback, ProgressBar):
    """Counts optimizer steps of the run in fit, batches elsewhere.  Redraws by the clock: a fast loop must not wait.

    In a terminal and in a notebook it says what a step waits for: validation, panels and metrics, checkpoints.
    """

    def __init__(self) -> None:
        super().__init__()
        self._enabled = True
        self._bar: tqdm[Any] | None = None
        self._next_draw = 0.0
        # By its name: the class's module imports ipywidgets, which takes time.
        self._in_notebook = any(cls.__name__ == "tqdm_notebook" for cls in tqdm.__mro__)
        self._interactive = self._in_notebook or sys.stderr.isatty()
        # Into a file or a pipe every redraw is a line of its own: fewer of them.
        self._interval = 0.2 if self._interactive else 10.0

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        total = trainer.estimated_stepping_batches
        self._open("fit", None if math.isinf(total) else int(total), initial=trainer.global_step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = time.monotonic()
        if self._bar is not None and now >= self._next_draw:
            self._next_draw = now + self._interval
            self._show(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._show(trainer, pl_module)
        self._close()
        if self._enabled and trainer.is_global_zero:
            say("training is finished: last panels, metrics and checkpoint …", self._interactive)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._say(trainer, "saving checkpoint")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._close()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != "fit":
            self._open("validate", _total(trainer.num_val_batches))
        else:
            self._say(trainer, "validation")

    def on_validation_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if not trainer.training and trainer.state.fn != "fit":
            self._advance()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != "fit":
            self._close()
        else:  # this callback comes before those of panels and metrics
            self._say(trainer, "panels and metrics")

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._open("test", _total(trainer.num_test_batches))

    def on_test_batch_end(self, *args: Any) -> None:
        self._advance()

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._open("sample", _total(trainer.num_predict_batches))

    def on_predict_batch_end(self, *args: Any) -> None:
        self._advance()

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close()

    def _open(self, what: str, total: int | None, initial: int = 0) -> None:
        self._bar = tqdm(
            desc=what,
            total=total,
            initial=initial,
            dynamic_ncols=True,
            disable=not self._enabled,
            unit="step" if what == "fit" else "batch",
            mininterval=self._interval,
            bar_format=(_NOTEBOOK_BAR if self._in_notebook else _BAR) if total else None,
        )

    def _show(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._bar is None or self._bar.disable:
            return
        metrics = self.get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        # The loss that was validated last, else the newest of training.
        first = next((name for name in metrics if name.startswith("val_loss")), None)
        first = first or next((name for name in metrics if name.startswith("train_loss")), None)
        value = "" if first is None else f" {first}={self._bar.format_num(metrics.pop(first))}"
        self._bar.n = trainer.global_step
        self._bar.set_description_str(f"fit{value}", refresh=False)
        self._bar.set_postfix(metrics, refresh=False)
        self._bar.refresh()

    def _say(self, trainer: Trainer, what: str) -> None:
        """Show what the next step waits for; the next redraw shows values again."""
        if self._bar is None or self._bar.disable or not self._interactive:
            return
        self._bar.n = trainer.global_step
        self._bar.set_description_str(f"fit {what} …")
        self._next_draw = 0.0

    def _advance(self) -> None:
        if self._bar is not None:
            self._bar.update()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _total(batches: list[int | float]) -> int | None:
    total = sum(batches)
    return None if math.isinf(total) else int(total)
