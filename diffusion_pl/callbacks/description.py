"""Store the configuration in every checkpoint."""

from collections.abc import Callable
from importlib import import_module
from inspect import Parameter
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from .. import __version__
from ..data.base import say
from ..data.splits import SHUFFLED
from ..runtime.loggers import log_config
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
            if not (folder / "config.yaml").exists():  # else the run is resumed, and some loggers refuse other values
                for logger in trainer.loggers:
                    logger.log_hyperparams(self.config)
            self.save(folder / "config.yaml")
            log_config(trainer, folder / "config.yaml")

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["diffusion_pl"] = {"version": __version__, **self.config, "places": self._places}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        saved = checkpoint.get("diffusion_pl")
        if saved is None:
            return
        for path in _MEANING:
            before, now = (_spelled_out(_at(config, path), pl_module) for config in (saved, self.config))
            difference = first_difference(before, now, path)
            if difference:
                raise ValueError(
                    f"the checkpoint is of another configuration: {difference}; use the config it was made with"
                )
        if trainer is not None and trainer.state.fn == "fit":
            _compare_data(saved["data"], self.config["data"], getattr(trainer, "datamodule", None), checkpoint)


def _spelled_out(spec: Any, module: Any) -> Any:
    """A part of a model with the values that its schedule gives: StepIndex replaces ScaledTime of version 0.1."""
    if not isinstance(spec, dict) or spec.get("class_path") != "diffusion_pl.denoisers.StepIndex":
        return spec
    steps = (spec.get("init_args") or {}).get("steps") or module.schedule.steps
    return {"class_path": "diffusion_pl.denoisers.ScaledTime", "init_args": {"scale": float(steps), "shift": -1.0}}


def places(spec: dict[str, Any], data: Any) -> dict[str, str]:
    """The options that name existing files or folders of this machine, as absolute paths."""
    given, names = spec.get("init_args") or {}, getattr(data, "paths", ())
    files = {name: Path(given[name]).expanduser() for name in names if isinstance(given.get(name), str)}
    return {name: str(path.absolute()) for name, path in files.items() if path.exists()}


def _compare_data(saved: dict[str, Any], current: dict[str, Any], data: Any, checkpoint: dict[str, Any]) -> None:
    """Print which options of the data differ from the checkpoint's; its split stays."""
    if saved["class_path"] != current["class_path"]:
        saved_class, current_class = (spec["class_path"].rpartition(".")[2] for spec in (saved, current))
        kinds = f"{current_class} here, {saved_class} in the checkpoint"
        say(f"data: {kinds}: its scaling, split and class names are not carried over")
        return
    saved_options, current_options = (spec.get("init_args") or {} for spec in (saved, current))
    saved_options = {**_defaults(current), **saved_options} if current_options else saved_options
    changed = [
        name for name in current_options if name in saved_options and saved_options[name] != current_options[name]
    ]
    if changed:
        changes = ", ".join(f"{name} is {current_options[name]}, was {saved_options[name]}" for name in changed)
        say(f"data: {changes} in the checkpoint{'; the split of the checkpoint stays' if 'seed' in changed else ''}")
    state = checkpoint.get(current["class_path"].rpartition(".")[2])
    if "seed" in changed and state and "split" not in state:  # of version 0.1, which did not note it
        data.load_state_dict({**state, "split": {"rule": SHUFFLED, "seed": saved_options["seed"], "grouped": False}})


def first_difference(saved: Any, current: Any, path: str) -> str | None:
    """Where two plain values first differ, in words; None if nowhere.

    An option that a class did not have yet when the checkpoint was written has its present default there.
    """
    if isinstance(saved, dict) and isinstance(current, dict):
        if "init_args" in current and saved.get("class_path") == current["class_path"]:
            saved = {**saved, "init_args": {**_defaults(current), **saved.get("init_args", {})}}
        for key in sorted(saved.keys() | current.keys()):
            difference = first_difference(saved.get(key), current.get(key), f"{path}.{key}")
            if difference:
                return difference
        return None
    return None if saved == current else f"{path} is {saved} in the checkpoint, {current} here"


def _defaults(spec: dict[str, Any]) -> dict[str, Any]:
    """Defaults of the options that a configuration gives a class."""
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
