"""The pipeline of a model in training: what panels and metrics draw from."""

from collections.abc import Iterator
from contextlib import contextmanager

from lightning.pytorch import LightningModule, Trainer

from ..pipeline import Pipeline
from ..training import DiffusionModule

STOPS = 17  # times on the way from noise to data that are shown of a flow map


@contextmanager
def averaged_pipeline(trainer: Trainer, module: LightningModule, *, raw: bool = False) -> Iterator[Pipeline]:
    """Within, a pipeline of the run's EMA weights (of the raw ones, if `raw` or if there are no others)."""
    assert isinstance(module, DiffusionModule)
    with module.evaluation(raw):
        yield module.live_pipeline(trainer.datamodule)


def on_its_way(pipeline: Pipeline) -> Pipeline:
    """The pipeline with a sampler that shows the way from noise to data: a flow map that jumps there in fewer steps
    takes more, which end at the same samples as far as it is exact; a consistency model knows no others."""
    few = len(pipeline.sampler.grid(pipeline.schedule)) < STOPS
    return pipeline.with_sampler(steps=STOPS) if few and pipeline.exact_jumps and not pipeline.consistency else pipeline


def check_model(callback: str, module: LightningModule) -> None:
    """Raise ValueError if a module is no diffusion model, which a callback needs."""
    if not isinstance(module, DiffusionModule):
        kind = type(module).__name__
        raise ValueError(f"{callback} needs a diffusion model, got a {kind}: take it out of trainer.callbacks")
