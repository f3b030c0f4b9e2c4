"""One progress bar for the whole run, with the remaining time."""

import math
import sys
import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from tqdm.auto import tqdm

from ..training import LeanCallback

#: Values stand before the clock, behind a short bar, so that 80 columns show them.
_BAR = "{desc}: {percentage:3.0f}%|{bar:10}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}, {rate_fmt}]"


class StepProgress(LeanCallback, ProgressBar):
    """Counts optimizer steps of the run in fit, batches elsewhere.  Redraws by the clock: a fast loop must not wait."""

    def __init__(self) -> None:
        super().__init__()
        self._enabled = True
        self._bar: tqdm[Any] | None = None
        self._next_draw = 0.0
        # Into a file or a pipe every redraw is a line of its own: fewer of them.
        self._interval = 0.2 if sys.stderr.isatty() else 10.0

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

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._close()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != "fit":
            self._open("validate", _total(trainer.num_val_batches))

    def on_validation_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if not trainer.training and trainer.state.fn != "fit":
            self._advance()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != "fit":
            self._close()

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
            bar_format=_BAR if total else None,
        )

    def _show(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._bar is None or self._bar.disable:
            return
        metrics = self.get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        self._bar.n = trainer.global_step
        # The end of a line is cut off in a narrow terminal: the most important value comes first.
        metrics = dict(sorted(metrics.items(), key=lambda item: not item[0].startswith("val_loss")))
        self._bar.set_postfix(metrics, refresh=False)
        self._bar.refresh()

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
