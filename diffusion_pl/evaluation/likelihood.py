"""The likelihood of data and its bound: from examples to rows of values, block by block, and from rows to results.

Blocks are always of the same size, the last one filled up, so that no bit of a value depends on what else is evaluated
or on how many processes share the work.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningModule
from numpy.typing import NDArray
from torch import Tensor

from ..conditions import of_batch
from ..data import DataModule
from ..likelihood import ChainBound, ContinuousBound, FlowLikelihood, bits_per_dim, dequantized, width
from ..pipeline import Pipeline
from ..tensors import SampleNoise, mix
from .results import BoundResult, LikelihoodResult


class Block(NamedTuple):
    """numbers: of the examples in their split;  x: (B, *), in model units;  cond: their conditions, (B, …) each."""

    numbers: range
    x: Tensor
    cond: dict[str, Tensor]


def block_of(pipeline: Pipeline, data: DataModule, split: str, number: int) -> Block:
    """The examples of one block of a split."""
    source, size = data.part(split), pipeline.block
    numbers = range(number * size, (number + 1) * size)
    # Files are read without repeats, so the block is filled up afterwards.
    present = torch.arange(numbers.start, min(numbers.stop, len(source)))
    batch = data.on_after_batch_transfer(source.__getitems__(present), 0)
    fill = torch.arange(size).clamp(max=len(present) - 1)
    _refuse_missing(batch, split)
    full = {name: value[fill].to(pipeline.device) for name, value in batch.items()}
    return Block(numbers, full["x"], of_batch(full))


def refuse_missing(data: DataModule, split: str) -> None:
    """Raise ValueError if a split has missing values: its likelihood is not defined."""
    if "observed" in next(data.batches(split, 1)):
        for batch in data.batches(split, 100):
            _refuse_missing(batch, split)


def _refuse_missing(batch: Mapping[str, Tensor], split: str) -> None:
    if "observed" in batch and not batch["observed"].all():
        raise ValueError(f"the {split} split has missing values, of which a likelihood is not defined: fill them")


def count(data: DataModule, split: str, most: int | None) -> int:
    """How many examples a split has, at most `most`."""
    n = len(data.part(split))
    return n if most is None else min(n, most)


def unit_of(data: DataModule) -> str:
    """The unit of a likelihood: bits/dim of quantized data, else nats/dim in model units."""
    return "nats/dim" if data.units.levels is None else "bits/dim"


def log_unit(data: DataModule) -> float:
    """Nats in a unit of the likelihood, see `unit_of`."""
    return 1.0 if data.units.levels is None else math.log(2)


def refuse_consistency(pipeline: Pipeline) -> None:
    """Raise ValueError of a consistency model, which has no density: it has learned jumps to the data only."""
    if pipeline.consistency:
        raise ValueError(
            "a likelihood needs the ODE's velocity, and a consistency model has learned jumps to the data only. Fix: "
            "measure other metrics, or give the diffusion model that it began from"
        )


class Rows(LightningModule, ABC):
    """Makes a row of values of each example of a split; in `predict` {"block": (K,)} -> {"index": (N,), "x", "nfe"}.

    Args:
        pipeline: whose denoiser is evaluated.
        data: of the model.
        split: of the data.

    Attributes:
        nfe: function evaluations of a sample, of rows that draw some.
    """

    nfe = 0

    def __init__(self, pipeline: Pipeline, data: DataModule, split: str) -> None:
        super().__init__()
        self.pipeline, self.data, self.split = pipeline, data, split
        self.guided = pipeline.guided  # so that Lightning moves it

    @property
    def block(self) -> int:
        """How many examples are evaluated at a time."""
        return self.pipeline.block

    @abstractmethod
    def rows(self, block: Block) -> Tensor:
        """(B, columns), float64."""

    def rows_of(self, number: int) -> tuple[Tensor, Tensor]:
        """Numbers (B,) and rows (B, columns) of the examples of a block, on the CPU."""
        block = block_of(self.pipeline, self.data, self.split, number)
        return torch.tensor(block.numbers), self.rows(block).cpu()

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Any]:
        if not len(batch["block"]):
            return {}
        numbers, rows = zip(*(self.rows_of(number) for number in batch["block"].tolist()), strict=True)
        return {"index": torch.cat(numbers), "x": torch.cat(rows), "nfe": self.nfe}


class LikelihoodRows(Rows):
    """Of each example −log p per dimension, once for each repeat, then the mean number of evaluations it took.

    Args:
        likelihood: how log p is integrated.
        repeats: with other noise and probes each.
        dequantizations: noises for each example of quantized data, over which the density is averaged.
        seed: of noise and probes.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        data: DataModule,
        split: str,
        likelihood: FlowLikelihood,
        *,
        repeats: int = 1,
        dequantizations: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__(pipeline, data, split)
        refuse_consistency(pipeline)
        self.likelihood, self.repeats, self.dequantizations, self.seed = likelihood, repeats, dequantizations, seed

    def rows(self, block: Block) -> Tensor:
        numbers, x, cond = block
        delta = None if self.data.units.levels is None else width(self.data.units.levels, _range(self.data))
        dims = math.prod(self.data.shape)
        columns, nfe = [], torch.zeros(len(x), dtype=torch.long)
        for repeat in range(self.repeats):
            densities = []
            for k in range(self.dequantizations):
                noise = SampleNoise(mix(self.seed, repeat, k), numbers)
                point = x.double() if delta is None else dequantized(x, delta, noise)
                density = self.likelihood(self.pipeline.guided, point, noise, **cond)
                densities.append(density.log_p.cpu())
                nfe += density.nfe.cpu()
            log_p = torch.stack(densities).logsumexp(0) - math.log(self.dequantizations)
            columns.append(-log_p / dims if delta is None else bits_per_dim(log_p, dims, delta))
        columns.append(nfe / (self.repeats * self.dequantizations))
        return torch.stack([column.double() for column in columns], 1)


class BoundRows(Rows):
    """Of each example prior and decoder, then the terms of the diffusion, per dimension in the unit of the data.

    Args:
        bound: the bound.
        seed: of its noise.
    """

    def __init__(
        self, pipeline: Pipeline, data: DataModule, split: str, bound: ChainBound | ContinuousBound, seed: int = 0
    ) -> None:
        super().__init__(pipeline, data, split)
        refuse_consistency(pipeline)
        self.bound, self.seed = bound, seed

    def rows(self, block: Block) -> Tensor:
        numbers, x, cond = block
        scale = 1 / math.prod(self.data.shape) / log_unit(self.data)
        parts = self.bound(
            self.pipeline.guided, x.double(), SampleNoise(mix(self.seed, 1), numbers), self.data.units.levels, **cond
        )
        return torch.cat((parts.prior[:, None], parts.decoder[:, None], parts.terms.T), 1).double() * scale


def likelihood_result(
    rows: NDArray[Any], unit: str, protocol: Mapping[str, Any], model: Mapping[str, Any]
) -> LikelihoodResult:
    """Of rows (N, repeats + 1) of LikelihoodRows, in that unit; protocol and model: see Result."""
    each, nfe, n = rows[:, :-1], rows[:, -1], len(rows)
    error = float(each.mean(1).std(ddof=1)) / n**0.5 if n > 1 else None
    middle = float(each.mean())
    return LikelihoodResult.of(
        each.mean(0).tolist(),
        unit=unit,
        standard_error=error,
        interval_95=None if error is None else [middle - 1.96 * error, middle + 1.96 * error],
        protocol=protocol,
        model={**model, "nfe": float(nfe.mean())},
    )


def bound_result(
    rows: NDArray[Any], t: Tensor, unit: str, protocol: Mapping[str, Any], model: Mapping[str, Any]
) -> BoundResult:
    """Of rows (N, 2 + K) of BoundRows with terms at t: (K,), in that unit; protocol and model: see Result."""
    n, total = len(rows), rows.sum(1)
    terms = rows[:, 2:].mean(0)
    parts = {"prior": rows[:, 0].mean(), "diffusion": terms.sum(), "decoder": rows[:, 1].mean()}
    return BoundResult.of(
        [float(total.mean())],
        unit=unit,
        standard_error=float(total.std(ddof=1)) / n**0.5 if n > 1 else None,
        parts={name: float(value) for name, value in parts.items()},
        terms={"t": t.tolist(), "value": terms.tolist()},
        protocol=protocol,
        model={**model, "nfe": len(terms) + 1},
    )


def _range(data: DataModule) -> tuple[float, float]:
    if data.units.value_range is None:
        raise ValueError(f"{type(data).__name__} has levels but no value_range: its bits/dim are undefined")
    return data.units.value_range
