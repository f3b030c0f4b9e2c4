"""What older versions wrote, in the words of this one: pure functions from plain values to plain values."""

from typing import Any

Config = dict[str, Any]


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
    """The options of a class, which stand below init_args where its path is told."""
    if not isinstance(spec, dict):
        return {}
    options = spec.get("init_args", {}) if "class_path" in spec or "init_args" in spec else spec
    return options if isinstance(options, dict) else {}


def _with_options(spec: Any, options: Config) -> Config:
    return {**spec, "init_args": options} if "class_path" in spec or "init_args" in spec else options
