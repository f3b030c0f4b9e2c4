"""The pipeline of a model in training: what panels and metrics draw from."""

from collections.abc import Iterator
from contextlib import contextmanager

from lightning.pytorch import LightningModule, Trainer

from ..pipeline import Pipeline
from ..training import DiffusionModule


@contextmanager
def averaged_pipeline(trainer: Trainer, module: LightningModule, *, raw: bool = False) -> Iterator[Pipeline]:
    """Within, a pipeline of the run's EMA weights (of the raw ones, if `raw` or if there are no others)."""
    assert isinstance(module, DiffusionModule)
    with module.evaluation(raw):
        yield module.live_pipeline(trainer.datamodule)


def check_model(callback: str, module: LightningModule) -> None:
    """Raise ValueError if a module has no samples, which a callback needs."""
    if not isinstance(module, DiffusionModule):
        kind = type(module).__name__
        raise ValueError(f"{callback} needs a diffusion model, got a {kind}: take it out of trainer.callbacks")
