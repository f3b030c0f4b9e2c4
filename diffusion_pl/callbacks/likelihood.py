"""The likelihood of held-out data during training."""

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer

from ..data import DataModule
from ..evaluation import LikelihoodRows, count, likelihood_result, refuse_consistency, unit_of
from ..likelihood import FlowLikelihood
from ..pipeline import Pipeline
from ..training import DiffusionModule
from .measurement import Measurement
from .pipelines import averaged_pipeline, check_model


class Likelihood(Measurement):
    """−log p per dimension of held-out data, every few steps, at the end and in `test`, of the EMA weights.

    The tags give the unit, the number of examples and the weights, such as bits_per_dim_n256/ema0.999, which
    ModelCheckpoint and EarlyStopping can monitor; the standard error and the NFE of an example are logged as well.
    Continuous data have nats_per_dim instead, in model units.  Examples, noise and probes are always the same,
    divided among all processes in blocks: the values are those of `evaluate --metrics nll`, on any number of processes.

    Args:
        every_n_steps: optimizer steps between two measurements.
        examples: the first so many of the split.
        split: of the data; `test` takes its own.
        estimator: how it is integrated; None: FlowLikelihood().
        dequantizations: noises for each example of quantized data; more than 1 is tighter, importance-weighted.
    """

    def __init__(
        self,
        every_n_steps: int = 10_000,
        examples: int = 256,
        split: str = "val",
        estimator: FlowLikelihood | None = None,
        dequantizations: int = 1,
    ) -> None:
        super().__init__(every_n_steps)
        for name, value in {"examples": examples, "dequantizations": dequantizations}.items():
            if value < 1:
                raise ValueError(f"Likelihood: {name} must be at least 1, got {value}")
        self.examples, self.split = examples, split
        self.estimator, self.dequantizations = estimator or FlowLikelihood(), dequantizations

    @property
    def state_key(self) -> str:
        return self._generate_state_key(examples=self.examples, split=self.split, dequantizations=self.dequantizations)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        _check(trainer, pl_module, self.split)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        _check(trainer, pl_module, "test")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.fast_dev_run:
            with averaged_pipeline(trainer, pl_module) as pipeline:
                for name, value in self._of_split(trainer, pipeline, "test").items():
                    pl_module.log(f"{name}/{pipeline.weights}", value)

    def measure(self, trainer: Trainer, pipeline: Pipeline) -> dict[str, float]:
        return self._of_split(trainer, pipeline, self.split)

    def _of_split(self, trainer: Trainer, pipeline: Pipeline, split: str) -> dict[str, float]:
        data = _data(trainer)
        n = count(data, split, self.examples)
        source = LikelihoodRows(pipeline, data, split, self.estimator, dequantizations=self.dequantizations)
        # Every example in its own place, so that the mean is that of one process to the last bit.
        rows: Any = torch.zeros(n, 2, dtype=torch.float64, device=pipeline.device)
        for k in range(trainer.global_rank, -(-n // source.block), trainer.world_size):
            indices, values = source.rows_of(k)
            kept = indices < n
            rows[indices[kept]] = values[kept].to(rows)
        rows = trainer.strategy.reduce(rows, reduce_op="sum")
        result = likelihood_result(rows.cpu().numpy(), unit_of(data), {}, {})
        name = result.unit.replace("/", "_per_")
        measured = {f"{name}_n{n}": result.value, f"{name}_nfe_n{n}": float(result.model["nfe"])}
        return measured | ({} if result.standard_error is None else {f"{name}_error_n{n}": result.standard_error})


def _check(trainer: Trainer, module: LightningModule, split: str) -> None:
    check_model("Likelihood", module)
    assert isinstance(module, DiffusionModule)
    refuse_consistency(module.live_pipeline())
    next(_data(trainer).batches(split, 1))  # an empty split is an error now, not after some hours


def _data(trainer: Trainer) -> DataModule:
    data: Any = trainer.datamodule
    assert isinstance(data, DataModule)
    return data
