"""From a checkpoint alone to a model that samples.

A checkpoint names classes, and a stranger's may name any: only those of diffusion_pl, torch.nn and torch.optim are
looked up, and those of packages that the variable DIFFUSION_PL_TRUST lists; nothing else is imported, let alone called.
"""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jsonargparse._common
from jsonargparse import ArgumentError, ArgumentParser, set_parsing_settings
from torch import Tensor

from . import __version__
from .bounds import check_plain, limited
from .checkpoints import read, read_hashed
from .classifier import NoisyClassifier
from .data import DataModule
from .module import DiffusionModule
from .reading import check, reading
from .trainable import Trainable

TRUST = "DIFFUSION_PL_TRUST"
_TRUSTED = ("diffusion_pl", "torch.nn", "torch.optim")


def load(path: str | Path, weights: str = "ema") -> tuple[DiffusionModule, DataModule]:
    """Model and data of a checkpoint, rebuilt from the configuration inside it.

    Args:
        path: a checkpoint that `fit` wrote.
        weights: "ema" (the first average), "raw", or "ema:0.999" for one of several.

    Raises:
        FileNotFoundError, ValueError: no such file, damaged, made by other means, of another version, or without these
            weights.
    """
    model, data = _load(path, weights)
    return diffusion_model(model, path), data


def diffusion_model(model: Trainable, path: str | Path) -> DiffusionModule:
    """The model itself, if it is one that samples; else ValueError."""
    if not isinstance(model, DiffusionModule):
        raise ValueError(f"{path} is a {type(model).__name__}, not a diffusion model: it can be given as --classifier")
    return model


def load_classifier(path: str | Path) -> NoisyClassifier:
    """The classifier of a checkpoint, with its first average, or its raw weights if it has none."""
    averages = read(path).get("callbacks", {}).get("EMA", {}).get("shadows", {})
    model, _ = _load(path, "ema" if averages else "raw")
    if not isinstance(model, NoisyClassifier):
        raise ValueError(
            f"{path} is a {type(model).__name__}, not a classifier: train one as configs/digits/classifier.yaml"
        )
    return model


def _load(path: str | Path, weights: str) -> tuple[Trainable, DataModule]:
    content, sha256 = read_hashed(path)
    model, data = from_content(content, path, weights)
    model.sha256 = sha256
    return model, data


def from_content(checkpoint: dict[str, Any], path: str | Path, weights: str) -> tuple[Trainable, DataModule]:
    """The same from the content of a checkpoint, or of a dump of `Guard`, that was read from path."""
    description = checkpoint.get("diffusion_pl")
    if description is None:
        raise ValueError(f"{path} carries no configuration: it was not written by `python -m diffusion_pl fit`")
    with reading(path, "checkpoint of this package", "use the file that `fit` or `import` wrote"):
        check_plain(description, "its configuration")
        check(checkpoint, _KIND)
    state = checkpoint["state_dict"]
    try:
        # Generously: some networks make parameters that they replace, and types differ in size.
        with limited(4 * len(state) + 100, sum(32 * tensor.numel() for tensor in state.values()) + 2**20):
            model, data = rebuild(description, _data_state(checkpoint, description))
    except (ArgumentError, TypeError, KeyError, ImportError) as error:
        denied = re.search(r"Importing '([\w.]+)' is not allowed", str(error))
        if denied:
            raise ValueError(f"{path} asks for {denied[1]}, {_refusal(denied[1])}") from error
        version = description.get("version")
        reason = " ".join(str(error).split())
        if version == __version__:
            raise ValueError(f"{path}: its configuration cannot be used: {reason}") from error
        raise ValueError(f"{path} was written by diffusion_pl {version}, this is {__version__}: {reason}") from error
    except (ArithmeticError, AttributeError, LookupError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path} is damaged: its configuration cannot be built ({reason})") from error
    model.on_load_checkpoint(checkpoint)
    with reading(path, "checkpoint of this package", "use the file that `fit` or `import` wrote"):
        state, model.weights_name = select(checkpoint, weights, str(path))
        model.load_state_dict(state)
    # Tables may be infinite, such as one of log-SNR; and a dump is of a step that went wrong.
    wrong = next((name for name, p in model.named_parameters() if not p.isfinite().all()), None)
    if wrong is not None and "dump" not in checkpoint:
        raise ValueError(
            f"the {model.weights_name} weights of {path} are not finite ({wrong}): the training diverged. Fix: use an "
            "earlier checkpoint"
        )
    return model.eval(), data


_KIND = {
    "diffusion_pl": {"version?": (str, None), "model": dict, "data": {"class_path": str, "init_args?": (dict, None)}},
    "state_dict": {"*": Tensor},
    "callbacks?": {"EMA?": {"updates": int, "shadows": {"*": {"*": Tensor}}}},
}


def select(checkpoint: dict[str, Any], weights: str, path: str) -> tuple[dict[str, Any], str]:
    """State dict with the chosen weights, and their name as panels and logs give it."""
    averages = checkpoint.get("callbacks", {}).get("EMA", {}).get("shadows", {})
    kind, _, decay = weights.partition(":")
    if weights == "raw":
        return checkpoint["state_dict"], "raw"
    if kind != "ema" or (decay and decay not in averages):
        there = ", ".join(["raw", *(f"ema:{d}" for d in averages)])
        raise ValueError(f"{path} has no weights {weights!r}: it holds {there}")
    if not averages:
        raise ValueError(f"{path} holds no average of the weights: add --weights raw")
    decay = decay or next(iter(averages))
    state, shadow = checkpoint["state_dict"], averages[decay]
    first = next(iter(shadow))
    prefix = next(name for name in state if name.endswith(f".{first}")).removesuffix(first)  # denoiser.network.
    return {**state, **{f"{prefix}{name}": value for name, value in shadow.items()}}, f"ema{decay}"


def rebuild(description: dict[str, Any], data_state: dict[str, Any]) -> tuple[Trainable, DataModule]:
    """Model and data, which need not be at hand.

    Args:
        description: {"model": …, "data": …}, as a configuration file spells them.
        data_state: the data module's state_dict.

    Raises:
        ArgumentError: it holds what is no configuration, or names a class of a package that is not trusted.
    """
    with _trusted_only():
        return _rebuild(description, data_state)


def _rebuild(description: dict[str, Any], data_state: dict[str, Any]) -> tuple[Trainable, DataModule]:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(DataModule, "data")
    data = parser.instantiate_classes(parser.parse_object({"data": description["data"]})).data
    data.load_state_dict(data_state)  # it tells the shape, so it comes before the model
    parser = ArgumentParser(exit_on_error=False)
    model, told = description["model"], {"shape": list(data.shape), "classes": data.classes}
    if "class_path" in model:
        parser.add_subclass_arguments(Trainable, "model")
        model = {**model, "init_args": {**model.get("init_args", {}), **told}}
    else:
        parser.add_class_arguments(DiffusionModule, "model")
        model = {**model, **told}
    return parser.instantiate_classes(parser.parse_object({"model": model})).model, data


def _refusal(name: str) -> str:
    package = name.partition(".")[0]
    if package in sys.stdlib_module_names:
        return "which no model is made of: it was not looked up, and the file is not to be trusted"
    return (
        "which is neither diffusion_pl's nor of torch.nn or torch.optim, so it was not imported: if you trust it, set "
        f"{TRUST}={package} in the environment"
    )


@contextmanager
def _trusted_only() -> Iterator[None]:
    """Within, jsonargparse looks up no other name, and none that is an alias of another one's (torch.nn.os.system)."""
    named = [name.strip() for name in os.environ.get(TRUST, "").split(",") if name.strip()]
    settings = jsonargparse._common.parsing_settings  # set_parsing_settings adds only, it knows no way back
    before = dict(settings)
    try:
        set_parsing_settings(import_path_denylist=["*"], import_path_allowlist=[*_TRUSTED, *named])
        yield
    finally:
        settings.update(before)


def _data_state(checkpoint: dict[str, Any], description: dict[str, Any]) -> dict[str, Any]:
    # Lightning files it under the name of the class.
    state: dict[str, Any] = checkpoint.get(description["data"]["class_path"].rpartition(".")[2], {})
    return state


def link_data(parser: ArgumentParser, place: str = "model") -> None:
    """The model's shape and classes, at `place` in the configuration, come from the data."""
    for name in ("shape", "classes"):
        parser.link_arguments(f"data.{name}", f"{place}.{name}", apply_on="instantiate")
