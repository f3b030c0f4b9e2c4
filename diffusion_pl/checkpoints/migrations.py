"""Convert configurations and checkpoints of older versions: pure functions from plain values to plain values.

A configuration (a file's, an option's, or what a checkpoint says of its model and data) and the rest of a checkpoint
pass through the steps of the versions after the one that wrote them, in order.  A step leaves its argument as it is and
changes nothing that is of the present form already: a configuration file says no version, and passes through all.

What changes with a version is one more line here: a moved module in MOVED, anything else a function in STEPS.
"""

import re
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, NamedTuple

from .. import __version__
from ..runtime.bounds import check_plain
from ..runtime.reading import reading

Config = dict[str, Any]


class Step(NamedTuple):
    """The way to the form of a version.

    moved: modules whose classes have moved, to the package that has them now;  config: of {"model": …, "data": …} and
    other sections, any of which may be missing, to the same;  content: of a whole checkpoint to the same.
    """

    version: str
    moved: Mapping[str, str] = {}
    config: tuple[Callable[[Config], Config], ...] = ()
    content: tuple[Callable[[Config], Config], ...] = ()


#: The flat modules of 0.1 and where their classes are since 0.2.
MOVED = {
    f"diffusion_pl.{old}": f"diffusion_pl.{package}"
    for package, modules in {
        "schedules": ("transitions",),
        "denoisers": ("denoiser", "parameterizations", "guidance", "inverse", "oracles"),
        "samplers": ("grids",),
        "losses": ("loss", "times", "weightings", "couplings", "variance"),
        "likelihood": ("elbo",),
        "training": ("module", "classifier", "trainable", "lr_schedulers", "lean"),
    }.items()
    for old in modules
}


def named_dropout(config: Config) -> Config:
    """The loss's `label_dropout: 0.1` of version 0.1 as `dropout: {label: 0.1}`; 0 as no dropout.

    Args:
        config: {"model": …} and other sections, any of which may be missing; a model or a loss may be given with a
            class_path or without.
    """
    model = config.get("model")
    options = _options(model)
    loss = options.get("loss")
    if "label_dropout" not in _options(loss):
        return config
    kept = {name: value for name, value in _options(loss).items() if name != "label_dropout"}
    probability = _options(loss)["label_dropout"]
    if "dropout" not in kept:
        kept["dropout"] = {"label": probability} if probability else None
    return {**config, "model": _with_options(model, {**options, "loss": _with_options(loss, kept)})}


def without_classes(config: Config) -> Config:
    """Without the model's number of classes, which version 0.1 noted: its conditions come from the data.

    Args:
        config: see `named_dropout`.
    """
    model = config.get("model")
    if "classes" not in _options(model):
        return config
    kept = {name: value for name, value in _options(model).items() if name != "classes"}
    return {**config, "model": _with_options(model, kept)}


def _options(spec: Any) -> Config:
    """The options of a class, which are below init_args where its path is given."""
    if not isinstance(spec, dict):
        return {}
    options = spec.get("init_args", {}) if "class_path" in spec or "init_args" in spec else spec
    return options if isinstance(options, dict) else {}


def _with_options(spec: Any, options: Config) -> Config:
    return {**spec, "init_args": options} if "class_path" in spec or "init_args" in spec else options


def averages_of_0_1(content: Config) -> Config:
    """The averages, which were the state of a callback and named parameters within the network.

    Raises:
        ValueError: they are of no network in the checkpoint.
    """
    callbacks = content.get("callbacks")
    if not isinstance(callbacks, dict) or not isinstance(callbacks.get("EMA"), dict) or "averages" in content:
        return content
    saved = callbacks["EMA"]
    shadows = saved.get("shadows")
    if not isinstance(shadows, dict) or not all(isinstance(shadow, dict) for shadow in shadows.values()):
        return {**content, "averages": saved}  # which is refused where its form is checked
    names = {name for shadow in shadows.values() for name in shadow}
    network = ""
    if names:
        first = min(names)
        places = [key.removesuffix(first) for key in content["state_dict"] if key.endswith(f".{first}")]
        fitting = [place for place in places if all(f"{place}{name}" in content["state_dict"] for name in names)]
        if not fitting:
            raise ValueError(f"the checkpoint is damaged: it has an average of {first}, but no such weights")
        network = fitting[0]  # denoiser.network. or classifier.
    return {
        **content,
        "callbacks": {name: state for name, state in callbacks.items() if name != "EMA"},
        "averages": {
            "updates": saved.get("updates", 0),
            "shadows": {
                decay: {f"{network}{name}": value for name, value in shadow.items()}
                for decay, shadow in shadows.items()
            },
        },
    }


STEPS = (Step("0.2.0", moved=MOVED, config=(named_dropout, without_classes), content=(averages_of_0_1,)),)

_PATH = re.compile(r"(?<![\w.])diffusion_pl(?:\.\w+)+(?![\w./])")


def migrate_config(config: Config, version: str = "") -> Config:
    """A configuration, or a part of one, as this version spells it.

    Args:
        config: plain values.
        version: that wrote it; "": not known.
    """
    for step in _after(version):
        config = _moved(config, step.moved)
        for change in step.config:
            config = change(config)
    return config


def migrate_checkpoint(content: Config, path: Any = "the checkpoint") -> Config:
    """The content of a checkpoint of this package as this version writes it; of any other file as it is.

    Raises:
        ValueError: a newer version wrote it, or its configuration is of no sensible size.
    """
    description = content.get("diffusion_pl")
    if not isinstance(description, dict):
        return content
    version = str(description.get("version") or "")
    if _number(version) > _number(__version__):
        raise ValueError(
            f"{path} was written by diffusion_pl {version}, this is {__version__}. Fix: pip install -U diffusion_pl"
        )
    with reading(path, "checkpoint of this package", "use the file that `fit` or `import` wrote"):
        check_plain(description, "its configuration")
        content = {**content, "diffusion_pl": migrate_config(description, version)}
        for step in _after(version):
            for change in step.content:
                content = change(content)
    return content


def migrate_text(text: str) -> str:
    """An argument of the command line, or a file's text, with the class paths of this version; says which were not."""
    return _PATH.sub(lambda match: _present_path(match[0]), text)


def _present_path(path: str) -> str:
    now = path
    for step in STEPS:
        now = _renamed(now, step.moved)
    if now != path:
        _say(path, now)
    return now


@cache
def _say(old: str, now: str) -> None:
    """Once in a process, on the first process only."""
    from lightning.fabric.utilities.rank_zero import rank_zero_only

    rank_zero_only(print)(f"diffusion_pl: warning: {old} is now {now}", flush=True)


def _after(version: str) -> tuple[Step, ...]:
    return tuple(step for step in STEPS if _number(step.version) > _number(version))


def _number(version: str) -> tuple[int, ...]:
    """(0, 2, 0) of "0.2.0" and of "0.2.0.dev1"; () of what is no version, which is before all."""
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, match[0].split("."))) if match else ()


def _moved(value: Any, moved: Mapping[str, str]) -> Any:
    """Plain values with every class path in them renamed; parts that are one object stay one."""
    copies: dict[int, Any] = {}

    def copy(part: Any) -> Any:
        if isinstance(part, str):
            return _renamed(part, moved)
        if not isinstance(part, (dict, list, tuple)):
            return part
        if id(part) not in copies:
            if isinstance(part, dict):
                copies[id(part)] = filled = dict[Any, Any]()
                filled.update((key, copy(inner)) for key, inner in part.items())
            else:
                copies[id(part)] = items = list[Any]()
                items.extend(copy(inner) for inner in part)
        return copies[id(part)]

    return copy(value)


def _renamed(path: str, moved: Mapping[str, str]) -> str:
    module, _, name = path.rpartition(".")
    return f"{moved[module]}.{name}" if module in moved and name[:1].isupper() and name.isidentifier() else path
