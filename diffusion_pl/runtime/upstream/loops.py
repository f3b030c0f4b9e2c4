"""Lightning's training loop, counted in optimizer steps, that makes up for what was due where a run is resumed.

Lightning counts batches: it validates every so many of them, and takes a step at the end of an epoch however few it has
accumulated.  Where it resumes depends on the hook in which the checkpoint was written, and what was still due at that
step (a validation, the end of the run) is done twice or never.  All classes of loops are private: `_FitLoop`,
`_TrainingEpochLoop`.  Read: lightning 2.6.6.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from lightning.pytorch.loops.fetchers import _DataFetcher
from lightning.pytorch.loops.fit_loop import _FitLoop
from lightning.pytorch.loops.loop import _Loop
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop

from ..run_card import done_in


class EpochLoop(_TrainingEpochLoop):
    """Validates every val_check_interval optimizer steps, and never while gradients are accumulated."""

    def on_run_start(self, data_fetcher: _DataFetcher) -> None:
        super().on_run_start(data_fetcher)
        self.restarting = False  # FitLoop did what was due: this loop must not guess at it, nor keep its place for ever

    def _should_check_val_fx(self, data_fetcher: _DataFetcher) -> bool:
        trainer = self.trainer
        if self._should_accumulate():
            return False
        if _counts_steps(trainer) and not trainer.should_stop:
            return self._should_check_val_epoch() and self.global_step % int(trainer.val_check_interval) == 0
        return super()._should_check_val_fx(data_fetcher)


class FitLoop(_FitLoop):
    """Resumes after the last batch that was trained with, wherever in the loop the checkpoint was written.

    The card of the run says what was done at that step: a validation that was due and is missing, and the end of the
    run (last panels, status), are done before anything else.  A run that is finished is said to be, and stays so.
    """

    def __init__(self, trainer: Trainer) -> None:
        super().__init__(trainer, trainer.min_epochs, trainer.max_epochs)
        self.epoch_loop = EpochLoop(trainer, trainer.min_steps, trainer.max_steps)
        self._end_is_due = False
        self._validation_is_due = False

    def run(self) -> None:
        if self.is_resuming:
            self._look_back()
        super().run()

    def setup_data(self) -> None:
        super().setup_data()
        trainer: Any = self.trainer
        accumulated = trainer.accumulate_grad_batches
        if trainer.fast_dev_run or math.isinf(self.max_batches):
            return
        if self.max_batches % accumulated:
            raise ValueError(
                f"an epoch of {self.max_batches} batches is no multiple of trainer.accumulate_grad_batches "
                f"{accumulated}: set trainer.limit_train_batches (or overfit_batches) to a multiple of it"
            )
        interval = trainer.val_check_interval
        if isinstance(interval, int) and trainer.check_val_every_n_epoch is not None:
            trainer.val_check_batch = interval * accumulated
            if trainer.val_check_batch > self.max_batches and trainer.limit_val_batches:
                raise ValueError(
                    f"trainer.val_check_interval {interval} is more than the {int(self.max_batches) // accumulated} "
                    "optimizer steps of an epoch: set trainer.check_val_every_n_epoch to null to count steps over "
                    "epochs, or trainer.val_check_interval to 1.0 to validate at the end of each"
                )

    def _load_combined_loader_states(self) -> None:
        # Lightning leaves the loader's place alone at the end of an epoch, and the loader's batches are one stream.
        if self._combined_loader_states_to_load and self._combined_loader is not None:
            self._combined_loader._load_state_dicts(self._combined_loader_states_to_load)
            self._combined_loader_states_to_load = []

    @property
    def done(self) -> bool:
        return not (self._end_is_due and self._within_epoch) and super().done

    @property
    def skip(self) -> bool:
        return super().skip and not self._end_is_due

    @property
    def _within_epoch(self) -> bool:
        epoch: Any = self.epoch_progress.current
        return bool(epoch.processed < epoch.ready)

    def _look_back(self) -> None:
        """What was done at the step that the run resumes from, before the card of this session replaces that one."""
        trainer: Any = self.trainer
        step = trainer.global_step
        if -1 < trainer.max_steps < step:
            raise ValueError(
                f"the checkpoint {trainer.ckpt_path} is of step {step}, beyond --trainer.max_steps "
                f"{trainer.max_steps}: set it above {step} to train on"
            )
        stopper = next((c for c in trainer.callbacks if _stopped(c)), None)
        trainer.should_stop = stopper is not None
        validated, ended = trainer.strategy.broadcast(done_in(trainer.default_root_dir, step))
        self._validation_is_due = not validated and self._within_epoch
        over = super().done
        self._end_is_due = over and not ended
        if over and ended and trainer.is_global_zero:
            print(f"the run is finished at step {step}: {self._why_finished(stopper)}", flush=True)

    def _why_finished(self, stopper: Any) -> str:
        trainer = self.trainer
        if stopper is not None:
            return (
                f"EarlyStopping on {stopper.monitor} ended it; to train longer, raise its patience or take it out of "
                "trainer.callbacks"
            )
        name = "max_steps" if trainer.global_step == trainer.max_steps else "max_epochs"
        return f"to train longer, raise --trainer.{name} above {getattr(trainer, name)}"

    def reset(self) -> None:
        if self.is_resuming:
            self._align()
        super().reset()

    def _align(self) -> None:
        """One state for a checkpoint of any hook: after a batch, or after the end of an epoch."""
        epochs: Any = self.epoch_progress
        batches: Any = self.epoch_loop.batch_progress
        inside = self._within_epoch
        for epoch in (epochs.total, epochs.current):
            epoch.started, epoch.completed = epoch.ready, epoch.processed
        for batch in (batches.total, batches.current):
            batch.ready = batch.started = batch.completed = batch.processed
        batches.is_last_batch = batches.current.ready >= self.max_batches
        # Not the setter of _FitLoop, which takes any run that is limited by max_steps for one within an epoch.
        _Loop.restarting.fset(self, inside)  # type: ignore[attr-defined]
        self.epoch_loop._batches_that_stepped = self.trainer.global_step

    def on_run_start(self) -> None:
        super().on_run_start()
        loop, trainer = self.epoch_loop, self.trainer
        assert self._data_fetcher is not None
        if self._validation_is_due and loop._should_check_val_fx(self._data_fetcher):
            loop.val_loop.restarting = False  # all of it, though the run was stopped in its midst
            trainer.validating = True
            loop.val_loop.run()
            trainer.training = True
        self._validation_is_due = False

    def on_advance_start(self) -> None:
        self._end_is_due = False
        super().on_advance_start()


def count_steps(trainer: Trainer) -> None:
    """Give a trainer these loops, and let it log the values of step n under n; before it is used.

    `_LoggerConnector.log_metrics` would log them under n − 1.
    """
    trainer.fit_loop = FitLoop(trainer)
    connector = trainer._logger_connector
    connector.log_metrics = partial(_log_metrics, trainer, connector.log_metrics)  # type: ignore[method-assign]


def _log_metrics(
    trainer: Trainer,
    log: Callable[[dict[str, Any], int | None], None],
    metrics: dict[str, Any],
    step: int | None = None,
) -> None:
    if metrics and step is None and "step" not in metrics:
        metrics, step = {**metrics, "epoch": trainer.current_epoch}, trainer.global_step
    log(metrics, step)


def _counts_steps(trainer: Trainer) -> bool:
    """Whether the interval of validations is a number of steps over the whole run."""
    return (
        trainer.check_val_every_n_epoch is None
        and isinstance(trainer.val_check_interval, int)
        and getattr(trainer, "_val_check_time_interval", None) is None
    )


def _stopped(callback: Any) -> bool:
    return isinstance(callback, EarlyStopping) and callback.stopping_reason is not EarlyStoppingReason.NOT_STOPPED
