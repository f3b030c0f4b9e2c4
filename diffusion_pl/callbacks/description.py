"""Checkpoints that say what they are."""

import inspect
from collections.abc import Callable
from importlib import import_module
from inspect import Parameter
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from .. import __version__
from ..lean import LeanCallback

#: Parts of the configuration that give the weights their meaning.
_MEANING = ("model.network", "model.schedule", "model.parameterization", "model.noise_input")


class Description(LeanCallback):
    """Writes the configuration into the run's folder and that of model and data into every checkpoint and every logger.

    Refuses a checkpoint of another model.

    Args:
        config: {"model": …, "data": …}, plain values only.
        save: writes the whole configuration to a file.
    """

    def __init__(self, config: dict[str, Any], save: Callable[[Path], None]) -> None:
        self.config, self.save = config, save

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Not earlier: a run that is refused leaves the file of the one before.
        if trainer.is_global_zero and not trainer.fast_dev_run:
            folder = Path(trainer.default_root_dir)
            folder.mkdir(parents=True, exist_ok=True)
            if not (folder / "config.yaml").exists():  # else the run goes on, and some loggers refuse other values
                for logger in trainer.loggers:
                    logger.log_hyperparams(self.config)
            self.save(folder / "config.yaml")

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["diffusion_pl"] = {"version": __version__, **self.config}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        theirs = checkpoint.get("diffusion_pl")
        if theirs is None:
            return
        for path in _MEANING:
            difference = first_difference(_at(theirs, path), _at(self.config, path), path)
            if difference:
                raise ValueError(
                    f"the checkpoint is of another configuration: {difference}; use the config it was made with"
                )


def first_difference(theirs: Any, ours: Any, path: str) -> str | None:
    """Where two plain values first differ, in words; None if nowhere.

    An option that a class did not have yet when the checkpoint was written had there what is its default now.
    """
    if isinstance(theirs, dict) and isinstance(ours, dict):
        if "init_args" in ours and theirs.get("class_path") == ours["class_path"]:
            theirs = {**theirs, "init_args": {**_defaults(ours), **theirs.get("init_args", {})}}
        for key in sorted(theirs.keys() | ours.keys()):
            difference = first_difference(theirs.get(key), ours.get(key), f"{path}.{key}")
            if difference:
                return difference
        return None
    return None if theirs == ours else f"{path} is {theirs} in the checkpoint, {ours} here"


def _defaults(spec: dict[str, Any]) -> dict[str, Any]:
    """Those of the options that a configuration gives a class."""
    module, _, name = spec["class_path"].rpartition(".")
    known = inspect.signature(getattr(import_module(module), name)).parameters
    given = spec["init_args"]
    return {
        key: _plain(known[key].default) for key in given if key in known and known[key].default is not Parameter.empty
    }


def _plain(value: Any) -> Any:
    """As a configuration file holds it."""
    return [_plain(part) for part in value] if isinstance(value, (tuple, list)) else value


def _at(config: dict[str, Any], path: str) -> Any:
    for key in path.split("."):
        config = config.get(key, {})
    return config
