"""Counts optimizer steps per second of a fit, without its start and its end."""

import time
from typing import Any, ClassVar

from lightning.pytorch import Callback, LightningModule, Trainer


class Stopwatch(Callback):
    """Times a run from step `skip` to its last but one, before it saves; the results of all runs stay in `rates`.

    Args:
        skip: steps before the clock starts.
    """

    rates: ClassVar[list[float]] = []

    def __init__(self, skip: int = 100) -> None:
        self.skip, self.start = skip, 0.0

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        if trainer.global_step == self.skip:
            self.start = time.perf_counter()
        elif trainer.global_step == trainer.max_steps - 1:
            self.rates.append((trainer.max_steps - 1 - self.skip) / (time.perf_counter() - self.start))


class FirstStep(Callback):
    """Ends the process, at once, when the first step is done."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        import os

        os._exit(0)
