"""Save a model built in Python as a checkpoint, with the configuration recorded by its parts.

Parts know what they were made with, see `Recorded`; a factory is a class, or functools.partial of one.
"""

import functools
import sys
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from lightning.pytorch import LightningModule
from torch import Tensor

from .. import __version__
from ..data import DataModule
from ..tensors import Recorded

FROM_DATA = ("shape", "classes", "conditions")  # arguments of a model that its data give


def content(model: LightningModule, data: DataModule, step: int) -> dict[str, Any]:
    """A checkpoint as `fit` writes it, without the optimizer's state.

    Args:
        model: a `Trainable`, with its averages.
        data: what it was trained on.
        step: optimizer steps that it has taken.

    Raises:
        ValueError: a part does not know how it was made.
    """
    spec = describe(model, "model")
    if spec["class_path"] == "diffusion_pl.training.DiffusionModule":  # as configuration files spell it
        spec = spec["init_args"]
    whole = {
        "pytorch-lightning_version": version("lightning"),
        "epoch": 0,
        "global_step": step,
        "state_dict": {name: value.detach().cpu() for name, value in model.state_dict().items()},
        "callbacks": {},
        "optimizer_states": [],
        "lr_schedulers": [],
        type(data).__qualname__: data.state_dict(),
        "diffusion_pl": {"version": __version__, "model": spec, "data": described(data, "data")},
    }
    model.on_save_checkpoint(whole)
    return whole


def described(part: Recorded, where: str) -> dict[str, Any]:
    """An object as a configuration file spells it: {"class_path": …, "init_args": …}."""
    kept = {name: value for name, value in part.arguments.items() if where != "model" or name not in FROM_DATA}
    return {
        "class_path": class_path(type(part), where),
        "init_args": {name: describe(value, f"{where}.{name}") for name, value in kept.items()},
    }


def describe(value: Any, where: str) -> Any:
    """A value, an object or a factory as a configuration file spells it.

    Raises:
        ValueError: it cannot be spelled, such as a lambda.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, (list, tuple)):
        return [describe(item, f"{where}[{k}]") for k, item in enumerate(value)]
    if isinstance(value, Mapping):
        return {str(key): describe(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, type):
        return {"class_path": class_path(value, where)}
    if isinstance(value, functools.partial):
        # A configuration file's factories hold their class as the one positional argument of what calls it.
        kinds = [value.func, *value.args] if isinstance(value.func, type) else list(value.args)
        if len(kinds) == 1 and isinstance(kinds[0], type):
            options = {name: describe(item, f"{where}.{name}") for name, item in value.keywords.items()}
            return {"class_path": class_path(kinds[0], where), "init_args": options}
    if not isinstance(value, Recorded):
        name = getattr(value, "__qualname__", type(value).__name__)
        raise ValueError(
            f"{where} is {name}, which a file cannot describe. Fix: give "
            "a class, functools.partial of a class with named arguments, or an object of a class of diffusion_pl"
        )
    return described(value, where)


def class_path(kind: type, where: str) -> str:
    """The shortest name that a class can be imported by.

    Raises:
        ValueError: there is none.
    """
    module, name = kind.__module__, kind.__qualname__
    if module == "__main__" or "." in name:
        raise ValueError(f"{where}: the class {name} cannot be imported. Fix: define it at the top of a module")
    parts = module.split(".")
    places = [".".join(parts[:k]) for k in range(min(2, len(parts)), len(parts) + 1)]
    place = next(place for place in places if getattr(sys.modules.get(place), name, None) is kind)
    return f"{place}.{name}"
