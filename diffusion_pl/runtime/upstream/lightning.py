"""Private or undocumented API of Lightning."""

import os
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning.pytorch import Trainer
    from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

Judge = Callable[..., None]


class QuickHookNotes:
    """Mixed into a LightningModule before it: what Lightning notes around every hook takes no time.

    It sets `_current_fx_name` fifty times a step to the name of the hook that is running; nn.Module's search for
    parameters and buffers in it costs a tenth of a small network's step.  Read: lightning 2.6.6.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "_current_fx_name":
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)


def global_seed() -> int | None:
    """The seed of the whole run; None: there is none.  `seed_everything` leaves it in the environment.

    PL_GLOBAL_SEED, by which the processes that Lightning starts have it too.  Read: lightning 2.6.6.
    """
    seed = os.environ.get("PL_GLOBAL_SEED")
    return None if seed is None else int(seed)


def stop_after_batch(trainer: "Trainer", now: bool = True) -> None:
    """Let `fit` end with SIGTERMException after the batch under way, where resuming is exact; now=False: do not.

    `_signal_connector.received_sigterm`, which Lightning's own handlers set.  Read: lightning 2.6.6.
    """
    trainer._signal_connector.received_sigterm = now


def skip_signal_broadcast(trainer: "Trainer") -> None:
    """Do not let all processes ask the first one in every step whether it was stopped, and wait for its answer.

    `_broadcast_sigterm_tensor` of the loop over batches.  Read: lightning 2.6.6.
    """
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]


def signal_started_processes(trainer: "Trainer", number: int) -> None:
    """Send a signal to the processes that this one has started: the launcher `_SubprocessScriptLauncher` knows them.

    Read: lightning 2.6.6.
    """
    from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher

    launcher = trainer.strategy.launcher
    if isinstance(launcher, _SubprocessScriptLauncher):
        launcher.kill(number)


def validated_names(trainer: "Trainer") -> list[str]:
    """Names of the values that the current validation, or the last one, has logged: `_results` of its loop.

    `trainer.callback_metrics` holds those of all hooks, new and old.  Read: lightning 2.6.6.
    """
    results: Any = trainer.fit_loop.epoch_loop.val_loop._results
    return [value.meta.name for value in results.values()]


def judge_through(callback: "ModelCheckpoint | EarlyStopping", ask: Callable[..., None], *args: Any) -> None:
    """Have ask(*args, judge, trainer, …) called where the callback would compare the value that it monitors.

    `_save_topk_checkpoint` of ModelCheckpoint and `_run_early_stopping_check` of EarlyStopping; `judge` is that method.
    Partials of what has a name, since some strategies pickle the callbacks.  Read: lightning 2.6.6.
    """
    from lightning.pytorch.callbacks import ModelCheckpoint

    method = "_save_topk_checkpoint" if isinstance(callback, ModelCheckpoint) else "_run_early_stopping_check"
    judge = partial(getattr(type(callback), method), callback)
    setattr(callback, method, partial(ask, *args, judge))


def save_after_validation(callback: "ModelCheckpoint") -> None:
    """Let a ModelCheckpoint compare again after the next validation: `_defer_save_until_validation`.

    Read: lightning 2.6.6.
    """
    callback._defer_save_until_validation = True


def batch_number(trainer: "Trainer") -> int:
    """Index of the current training batch, counted from 0 over all sessions of the run: `total_batch_idx`.

    Read: lightning 2.6.6.
    """
    return int(trainer.fit_loop.epoch_loop.total_batch_idx)


def batches_trained(trainer: "Trainer") -> int:
    """Batches that this process has trained with, over all sessions of the run: `batch_progress`.

    Read: lightning 2.6.6.
    """
    progress: Any = trainer.fit_loop.epoch_loop.batch_progress
    return int(progress.total.processed)


def epochs_trained(trainer: "Trainer") -> int:
    """Epochs that are over, or about to be in `on_train_epoch_end`: `epoch_progress`.  Read: lightning 2.6.6."""
    progress: Any = trainer.fit_loop.epoch_progress
    return int(progress.current.processed)
