"""FID and other metrics of samples during training."""

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn

from ..data import DataModule
from ..evaluation import Features, check_features, keeps_rows, scores, warn_of_few
from ..metrics import FeatureStatistics, InceptionV3
from ..metrics.generation import check_names
from ..pipeline import Pipeline
from ..training import DiffusionModule
from .measurement import Measurement


class GenerationMetrics(Measurement):
    """Samples against the data every few steps and at the end, of the EMA weights.

    Every process draws whole blocks of the same sequence of samples, and computes features of its share of the data;
    moments are summed in float64, so the values are those of one process.  The tags give the number of samples and the
    weights, such as fid_n1000/ema0.999, which ModelCheckpoint and EarlyStopping can monitor.

    Args:
        every_n_steps: optimizer steps between two measurements.
        num_samples: at least 2; the same samples as those of `evaluate`.
        metrics: of fid, is, kid, prc, sfid, cmmd.
        extractor: network of features, see diffusion_pl.metrics; None: InceptionV3.
        split: of the data, that samples are measured against.
    """

    def __init__(
        self,
        every_n_steps: int = 10_000,
        num_samples: int = 1000,
        metrics: Sequence[str] = ("fid",),
        extractor: nn.Module | None = None,
        split: str = "train",
    ) -> None:
        super().__init__(every_n_steps)
        if num_samples < 2:
            raise ValueError(f"GenerationMetrics: num_samples must be at least 2, got {num_samples}")
        check_names(metrics)
        self.num_samples, self.split = num_samples, split
        self.metrics, self.extractor = list(metrics), extractor
        self._features: Features | None = None
        self._reference: FeatureStatistics | None = None

    @property
    def state_key(self) -> str:
        return self._generate_state_key(num_samples=self.num_samples, metrics=self.metrics, split=self.split)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        data = trainer.datamodule
        if not isinstance(data, DataModule) or not data.is_image or not isinstance(pl_module, DiffusionModule):
            raise ValueError("GenerationMetrics measures models of images: take it out of trainer.callbacks")
        data.originals.setup("fit")
        next(data.originals.batches(self.split, 1))  # an empty split is an error now, not after some hours
        if self.extractor is None:
            self.extractor = InceptionV3(spatial="sfid" in self.metrics)
        self.extractor.eval().requires_grad_(False).to(pl_module.device)
        self._features = Features(data.image_shape or data.shape, data.units, self.extractor)
        check_features(self.metrics, self._features)
        if "fid" in self.metrics and trainer.is_global_zero:
            warn_of_few(self.num_samples, self._features)

    @torch.no_grad()
    def measure(self, trainer: Trainer, pipeline: Pipeline) -> dict[str, float]:
        assert isinstance(trainer.datamodule, DataModule)
        features, data = self._features, trainer.datamodule.originals
        assert features is not None
        rank, world, size = trainer.global_rank, trainer.world_size, pipeline.block
        if self._reference is None:
            self._reference = self._empty(features, pipeline)
            for k, batch in enumerate(data.batches(self.split, 64)):
                if k % world == rank:
                    features.add(self._reference, features.of(data)(batch["x"]), 64 * k)
        generated = self._empty(features, pipeline)
        for k in range(rank, -(-self.num_samples // size), world):
            with trainer.precision_plugin.forward_context():
                x = pipeline.samples(range(k * size, (k + 1) * size)).x_0.float()
            features.add(generated, features(x)[: self.num_samples - k * size], k * size)
        measured = scores(self.metrics, generated, self._reference, features)
        bad: Any = trainer.strategy.reduce(generated.bad.clone(), reduce_op="sum")
        values = {f"{name}_n{self.num_samples}": float(score["value"]) for name, score in measured.items()}
        return values | {f"not_finite_n{self.num_samples}": float(bad)}

    def _empty(self, features: Features, pipeline: Pipeline) -> FeatureStatistics:
        return features.empty(keeps_rows(self.metrics)).to(pipeline.device)
