"""Checkpoints that say what they are."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from .. import __version__

#: Parts of the configuration that give the weights their meaning.
_MEANING = ("model.network", "model.schedule", "model.parameterization", "model.noise_input")


class Description(Callback):
    """Writes the configuration of model and data into every checkpoint, and refuses a checkpoint of another model.

    Args:
        config: {"model": …, "data": …}, plain values only.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config

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
    """Where two plain values first differ, in words; None if nowhere."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        for key in sorted(theirs.keys() | ours.keys()):
            difference = first_difference(theirs.get(key), ours.get(key), f"{path}.{key}")
            if difference:
                return difference
        return None
    return None if theirs == ours else f"{path} is {theirs} in the checkpoint, {ours} here"


def _at(config: dict[str, Any], path: str) -> Any:
    for key in path.split("."):
        config = config.get(key, {})
    return config
