"""What one pass over fields gives: that their values are there, and mean and standard deviation of each channel."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from ..conditions import Condition, Conditions, from_plain
from .base import count
from .field_source import blocks
from .loader import Source
from .units import Standardized

BLOCK = 2**23  # numbers that are looked at at a time


class Measured(NamedTuple):
    """units: of the fields;  conditions: of each condition that is not a label."""

    units: Standardized
    conditions: Mapping[str, Standardized] = MappingProxyType({})

    def of(self, name: str) -> Standardized | None:
        """The units of an entry of a batch; None: it is not scaled."""
        return self.units if name == "x" else self.conditions.get(name)

    def to_plain(self) -> dict[str, Any]:
        """As a checkpoint keeps it."""
        return {**_plain(self.units), "scales": {name: _plain(units) for name, units in self.conditions.items()}}

    @classmethod
    def from_plain(cls, state: Mapping[str, Any]) -> Self | None:
        """The inverse of `to_plain`, from a state that holds more; None: it was saved before anything was measured."""
        if "mean" not in state:
            return None
        conditions = from_plain(state["conditions"])
        scales = {name: _units(scale, conditions[name]) for name, scale in state["scales"].items()}
        return cls(_units(state, _fields(state["shape"])), scales)


class ChannelMoments:
    """Mean, variance and range of each channel, float64, of values that come in blocks; NaN is not counted.

        M ← M + M_b + (m_b − m)² n n_b / (n + n_b),   m ← m + (m_b − m) n_b / (n + n_b),   variance = M / n

    Reference: Chan, Golub & LeVeque, "Algorithms for computing the sample variance", Am. Stat. 37 (1983), Eq. 1.5.

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        self.count = torch.zeros(channels, dtype=torch.float64)
        self.mean, self._squares = torch.zeros_like(self.count), torch.zeros_like(self.count)
        self.low, self.high = torch.full_like(self.count, torch.inf), torch.full_like(self.count, -torch.inf)

    def add(self, x: Tensor) -> None:
        """Values (n, C, *)."""
        x = x.double().movedim(1, 0).flatten(1)
        if not x.shape[1]:
            return
        there = ~x.isnan()
        n = there.sum(1).double()
        total = self.count + n
        mean = torch.where(there, x, 0).sum(1) / n.clamp(min=1)
        deviation = torch.where(there, x - mean[:, None], 0)
        shift, share = mean - self.mean, n / total.clamp(min=1)
        self._squares += deviation.square().sum(1) + shift.square() * self.count * share
        self.mean += shift * share
        self.count = total
        self.low = torch.minimum(self.low, torch.where(there, x, torch.inf).amin(1))
        self.high = torch.maximum(self.high, torch.where(there, x, -torch.inf).amax(1))

    @property
    def std(self) -> Tensor:
        """Standard deviation of each channel, exactly 0 where all values are equal: (C,)."""
        std = (self._squares / self.count.clamp(min=1)).sqrt()
        return torch.where(self.low >= self.high, 0.0, std)


def measure(
    name: str, source: Source, rows: Tensor, conditions: Conditions, masked: bool, known: Measured | None = None
) -> Measured:
    """Look at all examples once: count what is missing, and measure each channel over the training split.

    Args:
        name: of the data, for messages.
        source: n examples, as stored.
        rows: numbers of the training examples, ascending.
        conditions: of the examples.
        masked: whether values of x may be missing.
        known: from a checkpoint; None: to be measured.

    Raises:
        ValueError: values are missing, or a channel cannot be scaled.
    """
    first = source.__getitems__(torch.tensor([0]))
    size = max(1, BLOCK // max(1, sum(value.numel() for value in first.values())))
    kinds = {"x": _fields(first["x"].shape[1:])} | {key: c for key, c in conditions.items() if c.kind != "label"}
    moments = {key: ChannelMoments(_channels_second(first[key], kind).shape[1]) for key, kind in kinds.items()}
    train = torch.zeros(len(source), dtype=torch.bool)
    train[rows] = True
    missing = _Missing()
    for begin, batch in blocks(source, size):
        missing.add(batch["x"], begin)
        for key, kind in kinds.items():
            if key != "x":
                _check_condition(f"{name}: condition {key}", batch[key], kind, begin)
            chosen = batch[key][train[begin : begin + len(batch[key])]]
            moments[key].add(_channels_second(torch.where(chosen.isfinite(), chosen, torch.nan), kind))
    if missing.values and not masked:
        raise ValueError(
            f"{name}: {missing.values:,} values in {count(missing.examples, 'example')} are NaN or infinite, the first "
            f"in example {missing.first}. Fix: fill them, or set data.missing to mask: the loss leaves them out"
        )
    if known is not None:
        return known
    # A prediction of the fields is in their units.
    same = {key: "x" if kind.prediction else key for key, kind in kinds.items()}
    scales = {key: _standardized(name, same[key], moments[same[key]], kind) for key, kind in kinds.items()}
    return Measured(scales.pop("x"), scales)


class _Missing:
    """Counts values that are NaN or infinite, the examples that have some, and the first of these."""

    def __init__(self) -> None:
        self.values, self.examples, self.first = 0, 0, -1

    def add(self, x: Tensor, begin: int) -> None:
        bad = (~x.isfinite()).flatten(1).sum(1)
        if bad.any():
            self.first = self.first if self.examples else begin + int(bad.nonzero()[0])
            self.values += int(bad.sum())
            self.examples += int((bad > 0).sum())


def _check_condition(name: str, values: Tensor, kind: Condition, begin: int) -> None:
    """Raise ValueError for infinite values, and for vectors and tokens of which only a part is given."""
    infinite = values.isinf().flatten(1).any(1)
    if infinite.any():
        where = begin + int(infinite.nonzero()[0])
        raise ValueError(f"{name} has infinite values, the first in example {where}. Fix: set them to NaN (not given)")
    missing = values.isnan()
    partly = (missing.any(-1) & ~missing.all(-1)).reshape(len(values), -1).any(1)
    if kind.kind != "image" and partly.any():
        where = begin + int(partly.nonzero()[0])
        raise ValueError(f"{name} has NaN and numbers in example {where}: expected NaN for all of a vector, or none")


def _fields(shape: Sequence[int]) -> Condition:
    """Fields scale as images do."""
    return Condition(tuple(shape), image=True)


def _channels_second(values: Tensor, kind: Condition) -> Tensor:
    """With the axis that is scaled in second place: of a sequence (n, L, D) the last, of all else the second."""
    return values.movedim(-1, 1) if kind.kind == "sequence" else values


def _standardized(name: str, key: str, moments: ChannelMoments, kind: Condition) -> Standardized:
    std, what = moments.std, "channel" if key == "x" else f"condition {key}, entry"
    for channel in range(len(std)):
        if not moments.count[channel]:
            raise ValueError(
                f"{name}: {what} {channel} has no value in the training examples: leave it out of the array"
            )
        if not std[channel].isfinite():
            raise ValueError(f"{name}: {what} {channel} has values too large to be scaled: change its units")
        if not std[channel] > 0:
            raise ValueError(
                f"{name}: {what} {channel} is {float(moments.low[channel]):g} in all training examples and cannot be "
                "scaled to unit variance: leave it out of the array"
            )
    plain = {"mean": moments.mean.tolist(), "std": std.tolist()}
    return _units(plain, kind)


def _plain(units: Standardized) -> dict[str, list[float]]:
    return {"mean": units.mean.flatten().tolist(), "std": units.std.flatten().tolist()}


def _units(plain: Mapping[str, Any], kind: Condition) -> Standardized:
    """Units whose mean and std broadcast to one example."""
    mean, std = (torch.tensor(plain[key], dtype=torch.float64) for key in ("mean", "std"))
    shape = (-1, *[1] * (len(kind.shape) - 1)) if kind.kind == "image" else (-1,)
    return Standardized(mean.reshape(shape), std.reshape(shape))
