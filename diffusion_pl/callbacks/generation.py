"""FID and its kin while a model learns."""

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn

from ..data import Images
from ..evaluation import to_features, width_of
from ..lean import LeanCallback
from ..metrics import FeatureStatistics, InceptionV3
from ..metrics.generation import check_names, enough, scores
from ..module import DiffusionModule
from .ema import judged_weights


class GenerationMetrics(LeanCallback):
    """Samples against the data every few steps and at the end, on the weights that are judged: the run's average.

    Every process draws whole blocks of the same sequence of samples and features of its share of the data; moments are
    summed in float64, so the figures are those of one process.  The tags tell the number of samples and the weights,
    such as fid_n1000/ema0.999, which ModelCheckpoint can monitor.

    Args:
        every_n_steps: optimizer steps between two evaluations.
        num_samples: rounded up to whole blocks.
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
        for name, value in (("every_n_steps", every_n_steps), ("num_samples", num_samples - 1)):
            if value < 1:
                raise ValueError(f"GenerationMetrics: {name} is too small")
        check_names(metrics)
        self.every_n_steps, self.num_samples, self.split = every_n_steps, num_samples, split
        self.metrics, self.extractor = list(metrics), extractor
        self._reference: FeatureStatistics | None = None
        self._measured_step = 0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        data = trainer.datamodule
        if not isinstance(data, Images) or not isinstance(pl_module, DiffusionModule):
            raise ValueError("GenerationMetrics measures models of pictures: take it out of trainer.callbacks")
        next(data.batches(self.split, 1))  # an empty split is told now
        if self.extractor is None:
            self.extractor = InceptionV3()
        self.extractor.eval().requires_grad_(False).to(pl_module.device)
        warning = enough(self.num_samples, width_of(self.extractor, data)) if "fid" in self.metrics else None
        if warning and trainer.is_global_zero:
            print(f"diffusion_pl: warning: {warning}", flush=True)

    def on_train_batch_end(  # type: ignore[no-untyped-def]
        self, trainer: Trainer, pl_module: LightningModule, outputs, batch, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if (step % self.every_n_steps and step != trainer.max_steps) or step == self._measured_step:
            return
        self._measured_step = step  # while gradients are accumulated the step stays
        if trainer.fast_dev_run:
            return
        assert isinstance(pl_module, DiffusionModule)
        with judged_weights(trainer, pl_module):
            for name, value in self._measure(trainer, pl_module).items():
                pl_module.log(f"{name}/{pl_module.weights_name}", value)

    @torch.no_grad()
    def _measure(self, trainer: Trainer, model: DiffusionModule) -> dict[str, float]:
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
            _add(ours, convert(x), k * size)
        found = scores(self.metrics, ours, self._reference)
        measured = {f"{name}_n{count * size}": result["value"] for name, result in found.items()}
        return measured | {f"not_finite_n{count * size}": float(ours.bad)}


def _add(statistics: FeatureStatistics, rows: torch.Tensor, first: int) -> None:
    place, dim = statistics.total.device, statistics.dim
    rows = rows.to(place)
    statistics.update(rows[:, :dim], torch.arange(first, first + len(rows), device=place), rows[:, dim:])
