"""Values that are measured every so many steps: logged once, at their own step, and judged only where they are new."""

from abc import abstractmethod
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from ..runtime.loggers import tell
from ..training import DiffusionModule, LeanCallback

#: Of each trainer, the step at which a value was measured last.
_measured: WeakKeyDictionary[Trainer, dict[str, int]] = WeakKeyDictionary()


class Measurement(LeanCallback):
    """Measures the EMA weights every few steps and at the end of the training.

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
    def measure(self, trainer: Trainer, model: DiffusionModule) -> dict[str, float]:
        """The values, the same on all processes, by their names without that of the weights."""

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
        assert isinstance(model, DiffusionModule)
        with model.evaluation():
            values = self.measure(trainer, model)
            report(trainer, {f"{name}/{model.weights_name}": value for name, value in values.items()})

    def state_dict(self) -> dict[str, Any]:
        return {"measured_step": self.measured_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.measured_step = state_dict["measured_step"]


def report(trainer: Trainer, values: dict[str, float]) -> None:
    """Log values of the present step, now, and let callbacks monitor them."""
    tell(trainer, values)
    trainer.callback_metrics.update({name: torch.tensor(value) for name, value in values.items()})
    _note(trainer, values)


def judge_fresh_values(trainer: Trainer) -> None:
    """Let ModelCheckpoint and EarlyStopping judge by a value only at the step at which it was measured.

    Lightning takes whatever was measured last: it files a checkpoint under the value of older weights, counts one value
    several times as no improvement, and ends the run where there is none yet.  Read from lightning 2.6.6.
    """
    if not any(isinstance(callback, _Noting) for callback in trainer.callbacks):
        trainer.callbacks.insert(0, _Noting())  # before those that judge
    for callback in trainer.callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.monitor is not None:
            _guard(callback, "_save_topk_checkpoint", callback.monitor)
        elif isinstance(callback, EarlyStopping):
            _guard(callback, "_run_early_stopping_check", callback.monitor)


class _Noting(LeanCallback):
    """Notes at which step the values of a validation were measured."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            results: Any = trainer.fit_loop.epoch_loop.val_loop._results
            _note(trainer, [value.meta.name for value in results.values()])


def _note(trainer: Trainer, names: Iterable[str]) -> None:
    _measured.setdefault(trainer, {}).update(dict.fromkeys(names, trainer.global_step))


def _guard(callback: Any, method: str, monitor: str) -> None:
    # A partial of what has a name, since some strategies pickle the callbacks.
    setattr(callback, method, partial(_judge_if_fresh, getattr(type(callback), method), callback, monitor))


def _judge_if_fresh(judge: Callable[..., None], callback: Any, monitor: str, trainer: Trainer, *args: Any) -> None:
    step = _measured.get(trainer, {}).get(monitor)
    waits = any(isinstance(c, Measurement) and c.waits for c in trainer.callbacks)
    if step == trainer.global_step or (step is None and (monitor in trainer.callback_metrics or not waits)):
        judge(callback, trainer, *args)
    elif isinstance(callback, ModelCheckpoint) and not trainer.validating:
        callback._defer_save_until_validation = True  # which may measure it
