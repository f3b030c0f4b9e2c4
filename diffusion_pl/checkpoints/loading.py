"""Load a model from a checkpoint alone.

A checkpoint names classes, and one from elsewhere may name any: only those of diffusion_pl, torch.nn and torch.optim
are looked up, and those of packages that the variable DIFFUSION_PL_TRUST lists; nothing else is imported or called.
"""

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser
from torch import Tensor

from .. import __version__
from ..data import DataModule
from ..pipeline import Pipeline
from ..runtime.bounds import limited
from ..runtime.diagnosis import mistake_in
from ..runtime.processes import rank_label
from ..runtime.reading import check, reading
from ..runtime.run_card import read_card
from ..runtime.upstream.jsonargparse import imports_only, parameters
from ..training import DiffusionModule, NoisyClassifier, Trainable
from . import snapshots
from .io import FOREIGN, read_hashed
from .migrations import migrate_config

TRUST = "DIFFUSION_PL_TRUST"
#: Options of a loss that are given without a class are this one's.
DEFAULT_LOSS = {"model.loss": {"class_path": "diffusion_pl.losses.DenoisingLoss"}}
LINKED = ("shape", "conditions")  # what the model takes from the data
_TRUSTED = ("diffusion_pl", "torch.nn", "torch.optim")


def load_pipeline(
    path: str | Path, weights: str = "ema", data: Mapping[str, Any] | None = None
) -> tuple[Pipeline, DataModule]:
    """What draws samples of a checkpoint, and the data that it was trained on; see `load_model`."""
    model, dataset = load_model(path, weights, data)
    pipeline = model.live_pipeline(dataset)
    return replace(pipeline, sha256=model.sha256), dataset


def load_model(
    path: str | Path, weights: str = "ema", data: Mapping[str, Any] | None = None
) -> tuple[DiffusionModule, DataModule]:
    """Model and data of a checkpoint, rebuilt from the configuration inside it.

    The data are read (`setup`) if `data` asks for them, or if the run is one of this machine; nothing is downloaded
    unless `data` says ``download: true``.

    Args:
        path: a checkpoint that `fit` wrote, or the folder of a run: its newest good one.
        weights: "ema" (the first EMA weights; the raw ones where there are none), "raw", "ema:0.999" for one of
            several, or "std:0.15" for a width of power-function EMA weights, see `snapshots`.
        data: options of the data that take the place of the checkpoint's, such as ``{"path": "images"}``.

    Raises:
        FileNotFoundError, ValueError: no such file, damaged, made by other means, of another version, or without these
            weights.
    """
    content, sha256 = read_hashed(path)
    model, dataset = from_content(content, path, weights, data)
    model.sha256 = sha256
    return diffusion_model(model, path), dataset


def diffusion_model(model: Trainable, path: str | Path) -> DiffusionModule:
    """The model itself, if it is one that samples; else ValueError."""
    if not isinstance(model, DiffusionModule):
        raise ValueError(f"{path} is a {type(model).__name__}, not a diffusion model: it can be given as --classifier")
    return model


def load_classifier(path: str | Path) -> NoisyClassifier:
    """The classifier of a checkpoint, with its first EMA weights, or the raw ones if it has none."""
    checkpoint, sha256 = read_hashed(path)
    averages = checkpoint.get("averages", {}).get("shadows", {})
    model, _ = from_content(checkpoint, path, "ema" if averages else "raw")
    if not isinstance(model, NoisyClassifier):
        raise ValueError(
            f"{path} is a {type(model).__name__}, not a classifier: train one as configs/digits/classifier.yaml"
        )
    model.sha256 = sha256
    return model


def from_content(
    checkpoint: dict[str, Any], path: str | Path, weights: str, options: Mapping[str, Any] | None = None
) -> tuple[Trainable, DataModule]:
    """The same from the content of a checkpoint, or of a dump of `Guard`, that was read from path."""
    description = checkpoint.get("diffusion_pl")
    if description is None:
        raise ValueError(
            f"{path} carries no configuration: it was not written by `python -m diffusion_pl fit`. {FOREIGN}"
        )
    with reading(path, "checkpoint of this package", "use the file that `fit` or `import` wrote"):
        check(checkpoint, _KIND)
    state = checkpoint["state_dict"]
    try:
        # Generously: some networks make parameters that they replace, and types differ in size.
        with limited(4 * len(state) + 100, sum(32 * tensor.numel() for tensor in state.values()) + 2**20):
            model, data = rebuild(description, _data_state(checkpoint, description), options or {}, Path(path))
    except (ArgumentError, TypeError, KeyError, ImportError) as error:
        if denied := _denied({key: description[key] for key in ("model", "data")}):
            raise ValueError(f"{path} asks for {denied}, {_refusal(denied)}") from error
        version = description.get("version")
        with imports_only([*_TRUSTED, *_listed()]):
            option = options and mistake_in({"data": _placed(description, options)}, {"data": DataModule})
            reason = mistake_in({"model": description["model"]}, _model_types(description["model"]))
        if option:
            raise ValueError(f"--{option}") from error
        if gone := _gone(description):
            raise ValueError(f"{path} {gone}") from error
        reason = reason or " ".join(str(error).split())
        if version == __version__:
            raise ValueError(f"{path}: its configuration cannot be used: {reason}") from error
        raise ValueError(f"{path} was written by diffusion_pl {version}, this is {__version__}: {reason}") from error
    except (ArithmeticError, AttributeError, LookupError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path} is damaged: its configuration cannot be built ({reason})") from error
    fill(model, checkpoint, path, weights)
    return model.eval(), data


def fill(model: Trainable, checkpoint: dict[str, Any], path: str | Path, weights: str) -> str:
    """Load a checkpoint's weights into a model of its configuration.

    Returns:
        The name of the weights.

    Raises:
        ValueError: they are not there, do not fit, or are not finite.
    """
    if checkpoint.get("network_only"):  # of an export: what the loss holds is needed in training only
        of_loss = {name: value for name, value in model.state_dict().items() if name.startswith("loss.")}
        checkpoint = {**checkpoint, "state_dict": {**of_loss, **checkpoint["state_dict"]}}
    model.on_load_checkpoint(checkpoint)
    state, name = select(checkpoint, weights, str(path))
    with reading(path, "checkpoint of this package", "use the file that `fit` or `import` wrote"):
        model.load_weights(state, name)
    # Tables may be infinite, such as one of log-SNR; and a dump is of a step that went wrong.
    not_finite = next((key for key, p in model.named_parameters() if not p.isfinite().all()), None)
    if not_finite is not None and "dump" not in checkpoint:
        raise ValueError(
            f"the {name} weights of {path} are not finite ({not_finite}): the training diverged. Fix: use an earlier "
            "checkpoint"
        )
    return name


_KIND = {
    "diffusion_pl": {"version?": (str, None), "model": dict, "data": {"class_path": str, "init_args?": (dict, None)}},
    "state_dict": {"*": Tensor},
    "weights?": str,
    "averages?": {"updates": int, "begun?": {"*": int}, "shadows": {"*": {"*": Tensor}}},
}


def select(checkpoint: dict[str, Any], weights: str, path: str) -> tuple[dict[str, Any], str]:
    """State dict with the chosen weights, and their name as panels and logs give it."""
    choice = snapshots.parse(weights)
    if only := checkpoint.get("weights"):  # of an exported model, which has one set
        if weights not in ("ema", *(str(only).replace(*part, 1) for part in (("ema", "ema:"), ("emastd", "std:")))):
            raise ValueError(f"{path} has no weights {weights!r}: it holds {str(only).replace('ema', 'ema:', 1)}")
        return checkpoint["state_dict"], str(only)
    averages = checkpoint.get("averages", {}).get("shadows", {})
    if choice is not None:
        made = snapshots.reconstruct(checkpoint, path, choice)
        if made.warning and not rank_label():
            print(f"diffusion_pl: warning: {made.warning}", flush=True)
        return {**checkpoint["state_dict"], **made.tensors}, made.name
    kind, _, decay = weights.partition(":")
    if weights == "raw" or (weights in ("ema", "ema:") and not averages):
        return checkpoint["state_dict"], "raw"
    if kind != "ema" or (decay and decay not in averages):
        there = ", ".join(["raw", *(f"ema:{d}" for d in averages)])
        raise ValueError(f"{path} has no weights {weights!r}: it holds {there}")
    decay = decay or next(iter(averages))
    return {**checkpoint["state_dict"], **averages[decay]}, f"ema{decay}"


def rebuild(
    description: dict[str, Any],
    data_state: dict[str, Any],
    options: Mapping[str, Any] | None = None,
    path: Path | None = None,
) -> tuple[Trainable, DataModule]:
    """Model and data, which need not be there.

    Args:
        description: {"model": …, "data": …}, as a configuration file spells them, one of an older version too.
        data_state: the data module's state_dict.
        options: of the data, in place of the description's; None: none are given.
        path: of the checkpoint, if the description is one's; None: the data may be read.

    Raises:
        ArgumentError: it holds what is no configuration, or names a class of a package that is not trusted.
        ValueError: the data have no such option.
    """
    description = migrate_config(description, str(description.get("version") or ""))
    with imports_only([*_TRUSTED, *_listed()]):
        return _rebuild(description, data_state, options or {}, path)


def _rebuild(
    description: dict[str, Any], data_state: dict[str, Any], options: Mapping[str, Any], path: Path | None
) -> tuple[Trainable, DataModule]:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(DataModule, "data")
    spec = _placed(description, options)
    data = parser.instantiate(parser.parse_object({"data": spec})).data
    if path is not None:
        data.unasked = "" if options else _unasked(data, description["data"], path)
        if hasattr(data, "download"):  # what a checkpoint says is no consent
            data.download = data.download and "download" in options
    data.load_state_dict(data_state)  # it sets the shape, so it comes before the model
    parser = ArgumentParser(exit_on_error=False)
    model: dict[str, Any] = description["model"]
    linked: dict[str, Any] = {"shape": list(data.shape), "conditions": data.conditions}
    if "lr_scheduler" in model.get("init_args", model):
        # It is for training only, and version 0.1 wrote torch's schedulers without the options that they need.
        linked["lr_scheduler"] = None
    if "class_path" in model:
        parser.add_subclass_arguments(Trainable, "model")
        model = {**model, "init_args": {**model.get("init_args", {}), **linked}}
    else:
        parser.add_class_arguments(DiffusionModule, "model")
        parser.set_defaults(DEFAULT_LOSS)
        model = {**model, **linked}
    return parser.instantiate(parser.parse_object({"model": model})).model, data


def _placed(description: dict[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """The description of the data, with other options, and with paths that hold in any working directory."""
    spec: dict[str, Any] = description["data"]
    places = description.get("places") or {}
    there = {name: place for name, place in places.items() if Path(str(place)).exists()}
    return {**spec, "init_args": {**spec.get("init_args", {}), **there, **options}}


def _unasked(data: DataModule, spec: dict[str, Any], path: Path) -> str:
    """Why data that only the checkpoint names are not read; "" if they are: this machine's run names the same ones."""
    kind = type(data)
    named = _named(spec, kind)
    if not named or any(kind.__module__ == name or kind.__module__.startswith(f"{name}.") for name in _listed()):
        return ""
    for folder in (path, *path.absolute().parents[:3]):
        try:
            card_data = read_card(folder)["config"]["data"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if card_data.get("class_path") == spec.get("class_path") and _named(card_data, kind) == named:
            return ""
    listed = ", ".join(f"{name} {value}" for name, value in named.items())
    first = next(iter(named))
    return (
        f"{path} names its data ({kind.__name__}, {listed}), but is in no run folder whose card names the same, so "
        f"they were not read. Fix: give --data.{first} PATH"
    )


def _named(spec: dict[str, Any], kind: type[DataModule]) -> dict[str, Any]:
    """The options that say where the data are, unless they are the class's own defaults."""
    known, given = parameters(kind), spec.get("init_args") or {}
    return {
        name: given[name] for name in kind.paths if name in known and given.get(name) not in (None, known[name].default)
    }


def _listed() -> list[str]:
    """The packages that the environment says are trusted."""
    return [name.strip() for name in os.environ.get(TRUST, "").split(",") if name.strip()]


def _refusal(name: str) -> str:
    package = name.partition(".")[0]
    if package in sys.stdlib_module_names:
        return "which is not a model class; it was not imported, and the file may be malicious"
    return (
        "which is neither diffusion_pl's nor of torch.nn or torch.optim, so it was not imported: if you trust it, set "
        f"{TRUST}={package} in the environment"
    )


def _denied(part: Any, is_model: bool = False) -> str:
    """The first class path of a package that is not trusted, or text of the model that may be one; "" if none is."""
    if isinstance(part, dict):
        first = sorted(part.items(), key=lambda item: item[0] != "class_path")
        return next(
            filter(None, (_denied(value, is_model or key in ("model", "class_path")) for key, value in first)), ""
        )
    if isinstance(part, (list, tuple)):
        return next(filter(None, (_denied(value, is_model) for value in part)), "")
    trusted = tuple(f"{name}." for name in (*_TRUSTED, *_listed()))
    if not is_model or not isinstance(part, str) or not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)+", part):
        return ""
    names = (part,) if part.startswith("torch.") else (part, _real(part))
    return next((name for name in names if not name.startswith(trusted)), "")


def _real(path: str) -> str:
    """The path of a class or function where it is defined, of one that another module has imported."""
    parts = path.split(".")
    for n in range(len(parts) - 1, 0, -1):
        if (value := sys.modules.get(".".join(parts[:n]))) is not None:
            for name in parts[n:]:
                value = getattr(value, name, None)
            module, qualified = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
            return f"{module}.{qualified}" if module and qualified else path
    return path


def _model_types(model: Mapping[str, Any]) -> dict[str, Any]:
    """Types of what a description says of a model."""
    if "class_path" in model:
        return {"model": Trainable}
    return {f"model.{name}": parameter.annotation for name, parameter in parameters(DiffusionModule).items()}


def _gone(part: Any) -> str:
    """Which class of a trusted package of the user's own is no longer there, and what to do; "" if none is missing."""
    if isinstance(part, (list, tuple)):
        return next(filter(None, map(_gone, part)), "")
    if not isinstance(part, dict):
        return ""
    module, _, name = str(part.get("class_path", "")).rpartition(".")
    if any(module == known or module.startswith(f"{known}.") for known in _listed()):
        try:
            getattr(import_module(module), name)
        except (ImportError, AttributeError) as error:
            return (
                f"needs the class {module}.{name}, which is missing ({error}). Fix: put {module.partition('.')[0]} "
                "where Python finds it (PYTHONPATH), or give the class its old name again"
            )
    return _gone(list(part.values()))


def _data_state(checkpoint: dict[str, Any], description: dict[str, Any]) -> dict[str, Any]:
    # Lightning files it under the name of the class.
    state: dict[str, Any] = checkpoint.get(description["data"]["class_path"].rpartition(".")[2], {})
    return state


def link_data(parser: ArgumentParser, place: str = "model") -> None:
    """The model's shape and conditions, at `place` in the configuration, come from the data."""
    for name in LINKED:
        parser.link_arguments(f"data.{name}", f"{place}.{name}", apply_on="instantiate")
