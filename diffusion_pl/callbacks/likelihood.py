"""The likelihood of held-out data while a model learns."""

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer

from ..data import DataModule
from ..evaluation import block_of, count, surprise, unit_of
from ..likelihood import FlowLikelihood
from ..training import DiffusionModule
from .measurement import Measurement


class Likelihood(Measurement):
    """−log p per dimension of held-out data, every few steps, at the end and in `test`, on the EMA weights.

    The tags tell the unit, the number of examples and the weights, such as bits_per_dim_n256/ema0.999, which
    ModelCheckpoint and EarlyStopping can monitor; beside it the standard error and the evaluations an example took.
    Data that were never quantised have nats_per_dim instead, in model units.  Always the same examples, noise and
    probes, dealt out to all processes in blocks: the values are those of `evaluate --metrics nll`, on any number of
    processes.

    Args:
        every_n_steps: optimizer steps between two evaluations.
        examples: the first so many of the split.
        split: of the data; `test` takes its own.
        estimator: how it is integrated; None: FlowLikelihood().
        dequantizations: noises for each example of quantised data; more than 1 is the tighter, importance-weighted.
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
        assert isinstance(pl_module, DiffusionModule)
        if not trainer.fast_dev_run:
            for name, value in self._of_split(trainer, pl_module, "test").items():
                pl_module.log(f"{name}/{pl_module.weights_name}", value)

    def measure(self, trainer: Trainer, model: DiffusionModule) -> dict[str, float]:
        return self._of_split(trainer, model, self.split)

    def _of_split(self, trainer: Trainer, model: DiffusionModule, split: str) -> dict[str, float]:
        data = _data(trainer)
        n = count(data, split, self.examples)
        # Every example in its own place, so that the sum is that of one process to the last bit.
        values, nfe = torch.zeros(2, n, dtype=torch.float64, device=model.device)
        for k in range(trainer.global_rank, -(-n // model.block), trainer.world_size):
            block = block_of(model, data, split, k)
            found = surprise(model, data, self.estimator, block, dequantizations=self.dequantizations)
            place = slice(block.numbers.start, min(block.numbers.stop, n))
            some = place.stop - place.start
            values[place], nfe[place] = found.values[:some, 0].to(values), found.nfe[:some].to(nfe)
        values, nfe = (trainer.strategy.reduce(part, reduce_op="sum") for part in (values, nfe))
        name = unit_of(data).replace("/", "_per_")
        measured = {f"{name}_n{n}": float(values.mean()), f"{name}_nfe_n{n}": float(nfe.mean())}
        return measured | ({f"{name}_error_n{n}": float(values.std()) / n**0.5} if n > 1 else {})


def _check(trainer: Trainer, module: LightningModule, split: str) -> None:
    if not isinstance(module, DiffusionModule):
        raise ValueError(f"Likelihood is of diffusion models, not of a {type(module).__name__}: take it out")
    next(_data(trainer).batches(split, 1))  # an empty split is told now


def _data(trainer: Trainer) -> DataModule:
    data: Any = trainer.datamodule
    assert isinstance(data, DataModule)
    return data
