"""Metrics of samples of continuous fields during training."""

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer

from ..data import DataModule
from ..evaluation import FieldSamples
from ..metrics import fields
from ..pipeline import Pipeline
from ..training import DiffusionModule
from .measurement import Measurement


class FieldMetrics(Measurement):
    """Samples of continuous fields against the data every few steps and at the end, of the EMA weights.

    Every process draws whole blocks of the same sequence of samples and goes through its share of the data; sums are
    taken in float64, so the values are those of one process and of `evaluate`.  The tags give the number of samples and
    the weights, such as spectrum_n256/ema0.999, which ModelCheckpoint and EarlyStopping can monitor; `moments` is four
    values, mean_error, std_error, skewness_error and kurtosis_error.

    Args:
        every_n_steps: optimizer steps between two measurements.
        num_samples: at least 2; the same samples as those of `evaluate`.
        metrics: of moments, marginals, spectrum, energy.
        split: of the data, that samples are measured against.
    """

    def __init__(
        self,
        every_n_steps: int = 10_000,
        num_samples: int = 256,
        metrics: Sequence[str] = ("moments", "marginals", "spectrum"),
        split: str = "train",
    ) -> None:
        super().__init__(every_n_steps)
        if num_samples < 2:
            raise ValueError(f"FieldMetrics: num_samples must be at least 2, got {num_samples}")
        unknown = next((name for name in metrics if name not in fields.NAMES), None)
        if unknown is not None or not metrics:
            raise ValueError(f"FieldMetrics: there is no metric {unknown!r} of fields, only {', '.join(fields.NAMES)}")
        self.num_samples, self.metrics, self.split = num_samples, list(metrics), split
        self._reference: FieldSamples | None = None

    @property
    def state_key(self) -> str:
        return self._generate_state_key(num_samples=self.num_samples, metrics=self.metrics, split=self.split)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        data = trainer.datamodule
        if not isinstance(data, DataModule) or not data.is_field or not isinstance(pl_module, DiffusionModule):
            raise ValueError("FieldMetrics measures models of continuous fields: take it out of trainer.callbacks")
        next(data.batches(self.split, 1))  # an empty split is an error now, not after some hours

    @torch.no_grad()
    def measure(self, trainer: Trainer, pipeline: Pipeline) -> dict[str, float]:
        data: Any = trainer.datamodule
        rank, world, size = trainer.global_rank, trainer.world_size, pipeline.block
        if self._reference is None:
            self._reference = FieldSamples(self.metrics, data.shape, len(data.part(self.split)), pipeline.device)
            for k, batch in enumerate(data.batches(self.split, 64)):
                if k % world == rank:
                    self._reference.add(batch["x"], 64 * k)
        generated = FieldSamples(self.metrics, data.shape, self.num_samples, pipeline.device)
        for k in range(rank, -(-self.num_samples // size), world):
            with trainer.precision_plugin.forward_context():
                x = pipeline.samples(range(k * size, (k + 1) * size)).x_0.float()
            generated.add(x[: self.num_samples - k * size], k * size)
        bad: Any = trainer.strategy.reduce(generated.statistics.bad.clone(), reduce_op="sum")
        measured = fields.scores(self.metrics, generated.statistics, self._reference.statistics)
        values = {f"{name}_n{self.num_samples}": float(score["value"]) for name, score in measured.items()}
        return values | {f"not_finite_n{self.num_samples}": float(bad)}
