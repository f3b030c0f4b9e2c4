"""Keeps the newest checkpoint of a run, whatever ends it."""

import os
import signal
import threading
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import SIGTERMException

from ..checkpoints import LAST, PREVIOUS, AtomicCheckpointIO
from ..lean import LeanCallback


class Saver(LeanCallback, Checkpoint):
    """Writes checkpoints/last.ckpt in the run's folder every few steps, at the end, and when the run is told to stop.

    The one before stays beside it as previous.ckpt.  Every few steps training waits for a copy to host memory only, as
    large as the file, which a thread then writes; the last checkpoint of a run is waited for.  If one cannot be
    written, the run ends with the next step: it would train on without a way back, and the last good one is whole.

    Ctrl-C and SIGTERM let the current step finish, save and end; a second Ctrl-C ends at once.

    Args:
        every_n_steps: optimizer steps between two checkpoints.
    """

    def __init__(self, every_n_steps: int = 2000) -> None:
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps must be at least 1, got {every_n_steps}")
        self.every_n_steps = every_n_steps
        self._saved_step = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._saved_step = trainer.global_step
        _overtake(trainer)
        if trainer.fast_dev_run or threading.current_thread() is not threading.main_thread():
            return  # only the main thread may handle signals
        previous = signal.getsignal(signal.SIGINT)

        def stop_gently(number: int, frame: Any) -> None:
            signal.signal(signal.SIGINT, previous)
            print("\nstopping after this step (once more: at once)", flush=True)
            os.kill(os.getpid(), signal.SIGTERM)  # Lightning stops on it between two batches, where resuming is exact

        signal.signal(signal.SIGINT, stop_gently)
        self._restore = lambda: signal.signal(signal.SIGINT, previous)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # The last step at once, not at the end: what other callbacks do there may fail.
        step = trainer.global_step
        if step == trainer.max_steps:
            self._save(trainer)
        elif step % self.every_n_steps == 0:
            self._save(trainer, in_background=True)
        elif isinstance(trainer.strategy.checkpoint_io, AtomicCheckpointIO):
            trainer.strategy.checkpoint_io.check()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if hasattr(self, "_restore"):
            self._restore()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        # Any other exception may come in mid-step: what is on disk already is better.
        if isinstance(exception, SIGTERMException):
            self._save(trainer)

    def _save(self, trainer: Trainer, in_background: bool = False) -> None:
        if trainer.fast_dev_run or trainer.global_step == self._saved_step:
            return
        self._saved_step = trainer.global_step
        io = trainer.strategy.checkpoint_io
        with io.in_background() if in_background and isinstance(io, AtomicCheckpointIO) else nullcontext():
            trainer.save_checkpoint(last_checkpoint(trainer.default_root_dir))


def last_checkpoint(run: str | Path) -> Path:
    """Where a run's newest checkpoint lies."""
    return Path(run) / "checkpoints" / LAST


def previous_checkpoint(run: str | Path) -> Path:
    """Where the one before lies."""
    return Path(run) / "checkpoints" / PREVIOUS


def _overtake(trainer: Trainer) -> None:
    """Tell TensorBoard to drop what the run logged beyond the checkpoint that it goes on from: it comes again."""
    if trainer.global_step == 0 or not trainer.is_global_zero:
        return
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog

    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            # What SummaryWriter(purge_step=…) writes, but the logger makes its writer before the step is known.
            writer = logger.experiment._get_file_writer()
            writer.add_event(Event(step=trainer.global_step, session_log=SessionLog(status=SessionLog.START)))
            logger.experiment.flush()
