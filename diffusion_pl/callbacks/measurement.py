"""Metrics every N steps: logged once, at their own step, and monitored only when they are new."""

from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from ..pipeline import Pipeline
from ..runtime.loggers import log_now
from ..runtime.upstream.lightning import judge_through, save_after_validation, validated_names
from ..training import LeanCallback, Trainable
from .pipelines import averaged_pipeline

#: Of each trainer, the step at which a value was measured last.
_measured: WeakKeyDictionary[Trainer, dict[str, int]] = WeakKeyDictionary()


class Measurement(LeanCallback):
    """Measures the EMA weights every few steps and at the end of training.

    Its values go to the loggers at the step of the weights that they are of, not when Lightning logs next, and can be
    monitored by ModelCheckpoint and EarlyStopping.

    Args:
        every_n_steps: optimizer steps between two measurements, at least 1.
    """

    def __init__(self, every_n_steps: int) -> None:
        if every_n_steps < 1:
            raise ValueError(f"{type(self).__name__}: every_n_steps must be at least 1, got {every_n_steps}")
        self.every_n_steps = every_n_steps
        self.measured_step = 0
        self.waits = True  # for its first values, in this session

    @abstractmethod
    def measure(self, trainer: Trainer, pipeline: Pipeline) -> dict[str, float]:
        """The values, the same on all processes, by their names without that of the weights.

        Args:
            trainer: of the run.
            pipeline: of the weights that are measured.
        """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        judge_fresh_values(trainer)

    def on_train_batch_end(  # type: ignore[no-untyped-def]
        self, trainer: Trainer, pl_module: LightningModule, outputs, batch, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step % self.every_n_steps == 0 or step == trainer.max_steps:
            self._report(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._report(trainer, pl_module)  # of a run that ended by max_epochs or by EarlyStopping

    def _report(self, trainer: Trainer, model: LightningModule) -> None:
        if trainer.global_step == self.measured_step:
            return  # while gradients are accumulated the step stays
        self.measured_step, self.waits = trainer.global_step, False
        if trainer.fast_dev_run:
            return
        with averaged_pipeline(trainer, model) as pipeline:
            values = self.measure(trainer, pipeline)
            report(trainer, {f"{name}/{pipeline.weights}": value for name, value in values.items()})

    def state_dict(self) -> dict[str, Any]:
        return {"measured_step": self.measured_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.measured_step = state_dict["measured_step"]


def report(trainer: Trainer, values: dict[str, float]) -> None:
    """Log values of the present step, now, and let callbacks monitor them."""
    log_now(trainer, values)
    if isinstance(trainer.lightning_module, Trainable):
        trainer.lightning_module.history.add(trainer.global_step, values)
    trainer.callback_metrics.update({name: torch.tensor(value) for name, value in values.items()})
    _note(trainer, values)


def judge_fresh_values(trainer: Trainer) -> None:
    """Let ModelCheckpoint and EarlyStopping compare a value only at the step at which it was measured.

    Lightning takes the last measurement: it files a checkpoint under the value of older weights, counts one value
    several times as no improvement, and ends the run where there is none yet.
    """
    if not any(isinstance(callback, _Noting) for callback in trainer.callbacks):
        trainer.callbacks.insert(0, _Noting())  # before those that monitor a value
    for callback in trainer.callbacks:
        if isinstance(callback, (ModelCheckpoint, EarlyStopping)) and callback.monitor is not None:
            judge_through(callback, _judge_if_fresh, callback, callback.monitor)


class _Noting(LeanCallback):
    """Notes at which step the values of a validation were measured."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            _note(trainer, validated_names(trainer))


def _note(trainer: Trainer, names: Iterable[str]) -> None:
    _measured.setdefault(trainer, {}).update(dict.fromkeys(names, trainer.global_step))


def _judge_if_fresh(callback: Any, monitor: str, judge: Callable[..., None], trainer: Trainer, *args: Any) -> None:
    step = _measured.get(trainer, {}).get(monitor)
    waits = any(isinstance(c, Measurement) and c.waits for c in trainer.callbacks)
    if step == trainer.global_step or (step is None and (monitor in trainer.callback_metrics or not waits)):
        judge(trainer, *args)
    elif isinstance(callback, ModelCheckpoint) and not trainer.validating:
        save_after_validation(callback)  # which may measure it
