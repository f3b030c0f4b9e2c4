"""The likelihood of data and its bound, block by block, as rows that any number of processes can share out.

Examples are always evaluated as many at a time, the last block filled up, so that a figure does not change by a bit
with what else is evaluated.
"""

import math
from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from ..data import DataModule
from ..likelihood import ChainBound, ContinuousBound, FlowLikelihood, bits_per_dim, dequantized, width
from ..tensors import SampleNoise, mix
from ..training import DiffusionModule


class Block(NamedTuple):
    """Numbers of examples in their split, those examples (B, *) in model units, and their conditions."""

    numbers: range
    x: Tensor
    cond: dict[str, Tensor]


def block_of(model: DiffusionModule, data: DataModule, split: str, number: int) -> Block:
    """The examples of one block of a split."""
    source, size = data.part(split), model.block
    numbers = range(number * size, (number + 1) * size)
    # Read without repeats, as files are, and filled up then.
    there = torch.arange(numbers.start, min(numbers.stop, len(source)))
    batch = data.on_after_batch_transfer(source.__getitems__(there), 0)
    fill = torch.arange(size).clamp(max=len(there) - 1)
    full = {name: value[fill].to(model.device) for name, value in batch.items()}
    return Block(numbers, full.pop("x"), full)


def count(data: DataModule, split: str, most: int | None) -> int:
    """How many examples a split has, at most `most`."""
    n = len(data.part(split))
    return n if most is None else min(n, most)


def unit_of(data: DataModule) -> str:
    """Of a likelihood of such data: bits/dim if they were quantised, else nats/dim in model units."""
    return "nats/dim" if data.units.levels is None else "bits/dim"


class Surprise(NamedTuple):
    """values: (B, repeats), −log p per dimension of each example;  nfe: (B,), evaluations that each took on average."""

    values: Tensor
    nfe: Tensor


def surprise(
    model: DiffusionModule,
    data: DataModule,
    rule: FlowLikelihood,
    block: Block,
    *,
    repeats: int = 1,
    dequantizations: int = 1,
    seed: int = 0,
) -> Surprise:
    """−log p per dimension of a block of examples: bits of quantised data, nats of all others."""
    numbers, x, cond = block
    delta = None if data.units.levels is None else width(data.units.levels, _range(data))
    dims = math.prod(data.shape)
    every, spent = [], torch.zeros(len(x), dtype=torch.long)
    for repeat in range(repeats):
        densities = []
        for k in range(dequantizations):
            noise = SampleNoise(mix(seed, repeat, k), numbers)
            point = x.double() if delta is None else dequantized(x, delta, noise)
            density = rule(model.guided(), point, noise, **cond)
            densities.append(density.log_p.cpu())
            spent += density.nfe.cpu()
        log_p = torch.stack(densities).logsumexp(0) - math.log(dequantizations)
        every.append(-log_p / dims if delta is None else bits_per_dim(log_p, dims, delta))
    return Surprise(torch.stack(every, 1), spent / (repeats * dequantizations))


class Rows(LightningModule, ABC):
    """Makes a row of numbers of each example, {"block": (K,)} -> {"index": (N,), "x": (N, columns)} in `predict`."""

    def __init__(self, model: DiffusionModule, data: DataModule, split: str) -> None:
        super().__init__()
        self.model, self.data, self.split = model, data, split

    @property
    def block(self) -> int:
        """How many examples at a time."""
        return self.model.block

    @abstractmethod
    def rows(self, block: Block) -> Tensor:
        """(B, columns), float64."""

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Any]:
        if not len(batch["block"]):
            return {}
        blocks = [block_of(self.model, self.data, self.split, k) for k in batch["block"].tolist()]
        index = torch.cat([torch.tensor(block.numbers) for block in blocks])
        return {"index": index, "x": torch.cat([self.rows(block).cpu() for block in blocks]), "nfe": 0}


class LikelihoodRows(Rows):
    """Of each example the values of `surprise`, then the evaluations it took."""

    def __init__(
        self, model: DiffusionModule, data: DataModule, split: str, rule: FlowLikelihood, **options: int
    ) -> None:
        super().__init__(model, data, split)
        self.rule, self.options = rule, options

    def rows(self, block: Block) -> Tensor:
        found = surprise(self.model, self.data, self.rule, block, **self.options)
        return torch.cat((found.values, found.nfe[:, None].double()), 1)


class BoundRows(Rows):
    """Of each example prior and decoder, then the terms of the diffusion, per dimension in the unit of the data."""

    def __init__(
        self, model: DiffusionModule, data: DataModule, split: str, rule: ChainBound | ContinuousBound, seed: int
    ) -> None:
        super().__init__(model, data, split)
        self.rule, self.seed = rule, seed

    def rows(self, block: Block) -> Tensor:
        numbers, x, cond = block
        scale = 1 / math.prod(self.data.shape) / (1 if self.data.units.levels is None else math.log(2))
        noise = SampleNoise(mix(self.seed, 1), numbers)
        found = self.rule(self.model.guided(), x.double(), noise, self.data.units.levels, **cond)
        return torch.cat((found.prior[:, None], found.decoder[:, None], found.terms.T), 1).double() * scale


def _range(data: DataModule) -> tuple[float, float]:
    if data.units.value_range is None:
        raise ValueError(f"{type(data).__name__} tells levels but no value_range: its bits/dim are undefined")
    return data.units.value_range
