"""From a checkpoint alone to a model that samples."""

from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from .checkpoints import read
from .data import DataModule
from .module import DiffusionModule


def load(path: str | Path, weights: str = "ema") -> tuple[DiffusionModule, DataModule]:
    """Model and data of a checkpoint, rebuilt from the configuration inside it.

    Args:
        path: a checkpoint that `fit` wrote.
        weights: "ema" (the first average), "raw", or "ema:0.999" for one of several.

    Raises:
        FileNotFoundError, ValueError: no such file, damaged, made by other means, or without these weights.
    """
    checkpoint = read(path)
    description = checkpoint.get("diffusion_pl")
    if description is None:
        raise ValueError(f"{path} carries no configuration: it was not written by `python -m diffusion_pl fit`")
    model, data = rebuild(description)
    model.on_load_checkpoint(checkpoint)
    state, model.weights_name = select(checkpoint, weights, str(path))
    model.load_state_dict(state)
    data.load_state_dict(checkpoint.get(type(data).__qualname__, {}))
    return model.eval(), data


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
    shadow = {f"denoiser.network.{name}": value for name, value in averages[decay].items()}
    return {**checkpoint["state_dict"], **shadow}, f"ema{decay}"


def rebuild(description: dict[str, Any]) -> tuple[DiffusionModule, DataModule]:
    """Model and data from {"model": …, "data": …}, as a configuration file spells them."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(DiffusionModule, "model")
    parser.add_subclass_arguments(DataModule, "data")
    link_data(parser)
    parts = parser.instantiate_classes(parser.parse_object({key: description[key] for key in ("model", "data")}))
    return parts.model, parts.data


def link_data(parser: ArgumentParser) -> None:
    """The model's shape and classes come from the data."""
    for name in ("shape", "classes"):
        parser.link_arguments(f"data.{name}", f"model.{name}", apply_on="instantiate")
