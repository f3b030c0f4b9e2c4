"""FID and its kin while a model learns."""

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn

from ..data import DataModule
from ..evaluation import to_features, width_of
from ..metrics import FeatureStatistics, InceptionV3
from ..metrics.generation import check_names, enough, scores
from ..training import DiffusionModule
from .measurement import Measurement


class GenerationMetrics(Measurement):
    """Samples against the data every few steps and at the end, on the EMA weights.

    Every process draws whole blocks of the same sequence of samples and features of its share of the data; moments are
    summed in float64, so the values are those of one process.  The tags tell the number of samples and the weights,
    such as fid_n1000/ema0.999, which ModelCheckpoint and EarlyStopping can monitor.

    Args:
        every_n_steps: optimizer steps between two evaluations.
        num_samples: at least 2; the same samples as those of `evaluate`.
        metrics: of fid, is, kid, prc.
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
        self._reference: FeatureStatistics | None = None

    @property
    def state_key(self) -> str:
        return self._generate_state_key(num_samples=self.num_samples, metrics=self.metrics, split=self.split)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        data = trainer.datamodule
        if not isinstance(data, DataModule) or not data.is_image or not isinstance(pl_module, DiffusionModule):
            raise ValueError("GenerationMetrics measures models of images: take it out of trainer.callbacks")
        next(data.batches(self.split, 1))  # an empty split is told now
        if self.extractor is None:
            self.extractor = InceptionV3()
        self.extractor.eval().requires_grad_(False).to(pl_module.device)
        warning = enough(self.num_samples, width_of(self.extractor, data)) if "fid" in self.metrics else None
        if warning and trainer.is_global_zero:
            print(f"diffusion_pl: warning: {warning}", flush=True)

    @torch.no_grad()
    def measure(self, trainer: Trainer, model: DiffusionModule) -> dict[str, float]:
        data: Any = trainer.datamodule
        assert self.extractor is not None
        convert, dim = to_features(data, self.extractor), width_of(self.extractor, data)
        rank, world, size = trainer.global_rank, trainer.world_size, model.block
        if self._reference is None:
            self._reference = FeatureStatistics(dim, keep=self.metrics != ["fid"]).to(model.device)
            for k, batch in enumerate(data.batches(self.split, 64)):
                if k % world == rank:
                    _add(self._reference, convert(batch["x"]), 64 * k)
        ours = FeatureStatistics(dim, keep=self.metrics != ["fid"]).to(model.device)
        count = -(-self.num_samples // size)
        for k in range(rank, count, world):
            with trainer.precision_plugin.forward_context():
                x = model.sample(range(k * size, (k + 1) * size)).x_0.float()
            _add(ours, convert(x)[: self.num_samples - k * size], k * size)
        found = scores(self.metrics, ours, self._reference)
        measured = {f"{name}_n{self.num_samples}": result["value"] for name, result in found.items()}
        return measured | {f"not_finite_n{self.num_samples}": float(ours.bad)}


def _add(statistics: FeatureStatistics, rows: torch.Tensor, first: int) -> None:
    place, dim = statistics.total.device, statistics.dim
    rows = rows.to(place)
    statistics.update(rows[:, :dim], torch.arange(first, first + len(rows), device=place), rows[:, dim:])
