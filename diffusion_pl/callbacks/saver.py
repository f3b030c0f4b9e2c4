"""Save the newest checkpoint of a run, however it ends."""

import contextlib
from contextlib import nullcontext
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import SIGTERMException

from ..checkpoints.io import AtomicCheckpointIO, last_checkpoint
from ..runtime.loggers import LogError, in_order, writing
from ..runtime.signals import Agreement, Signals, Wish, requeue
from ..runtime.upstream.lightning import epochs_trained, skip_signal_broadcast, stop_after_batch
from ..runtime.upstream.torch import add_event
from ..training import LeanCallback


class Saver(LeanCallback, Checkpoint):
    """Writes checkpoints/last.ckpt in the run's folder every few steps, at the end, and when a signal stops the run.

    The one before stays next to it as previous.ckpt.  Every few steps training waits for a copy to host memory only, as
    large as the file, which a thread then writes; the last checkpoint of a run is waited for.  If one cannot be
    written, the run ends with the next step: continuing would risk losing progress; the last good checkpoint is intact.

    Ctrl-C, SIGTERM, SIGHUP, SIGXCPU, SIGUSR1 and SIGUSR2, and a reader of the output that goes away, let the current
    step finish, save and end; a second Ctrl-C ends at once.  Of several processes any can get the signal: all end
    after the same step, the next one.  A SLURM job that gets SIGUSR1 is requeued as well.

    Args:
        every_n_steps: number of optimizer steps between two checkpoints, at least 1.
    """

    def __init__(self, every_n_steps: int = 2000) -> None:
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps must be at least 1, got {every_n_steps}")
        self.every_n_steps = every_n_steps
        self._saved_step = 0
        self._wish = Wish.GO_ON  # of all processes
        self._signals: Signals | None = None
        self._agreement: Agreement | None = None

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        # The patience is what the user wrote; Lightning would take that of the checkpoint.
        for callback in trainer.callbacks:
            state = checkpoint.get("callbacks", {}).get(callback.state_key)
            if isinstance(callback, EarlyStopping) and state:
                state["patience"] = callback.patience
                exhausted = EarlyStoppingReason.PATIENCE_EXHAUSTED.value
                if state.get("stopping_reason") == exhausted and state["wait_count"] < callback.patience:
                    state["stopping_reason"] = EarlyStoppingReason.NOT_STOPPED.value

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._saved_step = self._last_step = trainer.global_step
        self._wish = Wish.GO_ON
        _overtake(trainer)
        self._signals = Signals(trainer)
        self._agreement = Agreement() if trainer.world_size > 1 else None
        if self._agreement is not None:
            skip_signal_broadcast(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step == self._last_step:
            return  # gradients are being accumulated, and would be lost
        self._last_step = step
        # The last step at once, not at the end: what other callbacks do there may fail.
        if step == trainer.max_steps:
            self._save(trainer)
            if self._signals is not None:
                self._signals.end()
        elif step % self.every_n_steps == 0:
            self._save(trainer, in_background=True)
        elif isinstance(trainer.strategy.checkpoint_io, AtomicCheckpointIO):
            trainer.strategy.checkpoint_io.check()
        wish = Wish.GO_ON if self._signals is None else self._signals.wish
        self._wish = wish if self._agreement is None else self._agreement(wish, pl_module.device)
        if self._wish and step != trainer.max_steps:
            stop_after_batch(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Processes with fewer batches than others would not stop, but wait for the others' losses.
        if self._agreement is not None:
            stop_after_batch(trainer, False)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._agreement is not None and self._wish and trainer.global_step != trainer.max_steps:
            stop_after_batch(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # The end of a run that is counted in epochs, or that EarlyStopping ends, whose state is newer than that of the
        # step: before what other callbacks do at the end, which may fail.
        if trainer.should_stop or epochs_trained(trainer) == trainer.max_epochs:
            self._save(trainer, again=trainer.should_stop)
            if self._signals is not None and not trainer.should_stop:
                self._signals.end()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._agreement is not None:
            self._agreement.last()
        self._save(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        # Any other exception may come in mid-step: what is on disk already is better.
        if isinstance(exception, LogError):
            with contextlib.suppress(OSError):  # most likely there is no room for it either
                self._save(trainer)
        elif isinstance(exception, SIGTERMException):
            self._save(trainer)
            wish = self._wish
            if self._agreement is None and self._signals is not None:
                wish = self._signals.wish  # maybe since the last step, in a validation
            if wish is Wish.REQUEUE:
                if trainer.is_global_zero:
                    print(requeue(), flush=True)
                trainer.strategy.barrier("requeue")  # if one ended now, SLURM might end the first before it asked

    def _save(self, trainer: Trainer, in_background: bool = False, again: bool = False) -> None:
        if trainer.fast_dev_run or (trainer.global_step == self._saved_step and not again):
            return
        self._saved_step = trainer.global_step
        io = trainer.strategy.checkpoint_io
        with io.in_background() if in_background and isinstance(io, AtomicCheckpointIO) else nullcontext():
            trainer.save_checkpoint(last_checkpoint(trainer.default_root_dir))


def _overtake(trainer: Trainer) -> None:
    """Let TensorBoard drop what the run logged after the checkpoint that it resumes from: it is logged again."""
    if trainer.global_step == 0 or not trainer.is_global_zero:
        return
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            with writing(f"the logs of TensorBoardLogger in {trainer.default_root_dir}"):
                _drop_from(logger, trainer.global_step + 1)


def _drop_from(logger: TensorBoardLogger, step: int) -> None:
    from tensorboard.compat.proto.event_pb2 import SessionLog

    in_order(logger)
    # What SummaryWriter(purge_step=…) writes, but the logger makes its writer before the step is known.
    add_event(logger.experiment, step, session_log=SessionLog(status=SessionLog.START))
    logger.experiment.flush()
