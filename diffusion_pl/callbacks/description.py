"""Checkpoints that say what they are."""

from collections.abc import Callable
from importlib import import_module
from inspect import Parameter
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from .. import __version__
from ..data.base import say
from ..data.splits import SHUFFLED
from ..runtime.upstream.jsonargparse import parameters
from ..training import LeanCallback

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
        self._places: dict[str, str] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._places = places(self.config["data"], getattr(trainer, "datamodule", None))

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
        checkpoint["diffusion_pl"] = {"version": __version__, **self.config, "places": self._places}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        theirs = checkpoint.get("diffusion_pl")
        if theirs is None:
            return
        for path in _MEANING:
            before, now = (_spelled_out(_at(config, path), pl_module) for config in (theirs, self.config))
            difference = first_difference(before, now, path)
            if difference:
                raise ValueError(
                    f"the checkpoint is of another configuration: {difference}; use the config it was made with"
                )
        if trainer is not None and trainer.state.fn == "fit":
            _compare_data(theirs["data"], self.config["data"], getattr(trainer, "datamodule", None), checkpoint)


def _spelled_out(spec: Any, module: Any) -> Any:
    """A part of a model with the numbers that its schedule gives: StepIndex is what ScaledTime was for, in 0.1."""
    if not isinstance(spec, dict) or spec.get("class_path") != "diffusion_pl.denoisers.StepIndex":
        return spec
    steps = (spec.get("init_args") or {}).get("steps") or module.schedule.steps
    return {"class_path": "diffusion_pl.denoisers.ScaledTime", "init_args": {"scale": float(steps), "shift": -1.0}}


def places(spec: dict[str, Any], data: Any) -> dict[str, str]:
    """The options that name files or folders of this machine, as absolute paths: those that are there."""
    given, names = spec.get("init_args") or {}, getattr(data, "paths", ())
    found = {name: Path(given[name]).expanduser() for name in names if isinstance(given.get(name), str)}
    return {name: str(path.absolute()) for name, path in found.items() if path.exists()}


def _compare_data(theirs: dict[str, Any], ours: dict[str, Any], data: Any, checkpoint: dict[str, Any]) -> None:
    """Say which options of the data are others than the checkpoint's; its split stays."""
    if theirs["class_path"] != ours["class_path"]:
        there, here = (spec["class_path"].rpartition(".")[2] for spec in (theirs, ours))
        say(f"data: {here} here, {there} in the checkpoint: its scaling, split and class names are not carried over")
        return
    before, now = (spec.get("init_args") or {} for spec in (theirs, ours))
    before = {**_defaults(ours), **before} if now else before
    changed = [name for name in now if name in before and before[name] != now[name]]
    if changed:
        told = ", ".join(f"{name} is {now[name]}, was {before[name]}" for name in changed)
        say(f"data: {told} in the checkpoint{'; the split of the checkpoint stays' if 'seed' in changed else ''}")
    state = checkpoint.get(ours["class_path"].rpartition(".")[2])
    if "seed" in changed and state and "split" not in state:  # of version 0.1, which did not note it
        data.load_state_dict({**state, "split": {"rule": SHUFFLED, "seed": before["seed"], "grouped": False}})


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
    known = parameters(getattr(import_module(module), name))
    given = spec["init_args"]
    return {
        key: _plain(known[key].default) for key in given if key in known and known[key].default is not Parameter.empty
    }


def _plain(value: Any) -> Any:
    """As a configuration file holds it."""
    return [_plain(part) for part in value] if isinstance(value, (tuple, list)) else value


def _at(config: dict[str, Any], path: str) -> Any:
    """A part of a configuration; of a model given by its class, within the init_args."""
    for key in path.split("."):
        config = config.get(key, config["init_args"].get(key, {}) if isinstance(config.get("init_args"), dict) else {})
    return config
