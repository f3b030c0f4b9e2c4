"""Pairs of times (t, r), r ≤ t, between which a flow map learns to jump."""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from ..schedules import Schedule
from ..tensors import Recorded
from .timesteps import TimeSampler


class Pairs(NamedTuple):
    """t and r: (n,) each;  jumps: the first so many have r < t, the others r = t."""

    t: Tensor
    r: Tensor
    jumps: int


class PairSampler(Recorded, ABC):
    """Draws a pair of times per example.

    Args:
        times: distribution of t; one whose samples all have importance 1.
    """

    #: Whether r = 0 in all pairs.
    to_data: bool = False

    def __init__(self, times: TimeSampler) -> None:
        self.times = times

    @abstractmethod
    def draw(self, schedule: Schedule, n: int, device: torch.device, generator: torch.Generator | None) -> Pairs:
        """n pairs: (n,) each in float32."""

    def earliest(self, t: Tensor) -> Tensor:
        """The earliest r for times t, of any shape."""
        return torch.zeros_like(t)

    def _t(self, schedule: Schedule, n: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
        t, importance = self.times.draw(schedule, n, device, generator)
        if isinstance(importance, Tensor) or importance != 1:
            name = type(self.times).__name__
            raise ValueError(f"{type(self).__name__}: {name} weights its times. Fix: give it one that does not")
        return t


class ToData(PairSampler):
    """r = 0: the model learns only jumps to the data, as consistency models do.

    Args:
        times: distribution of t.
    """

    to_data = True

    def draw(self, schedule: Schedule, n: int, device: torch.device, generator: torch.Generator | None) -> Pairs:
        t = self._t(schedule, n, device, generator)
        return Pairs(t, torch.zeros_like(t), n)


class TwoTimes(PairSampler):
    """t and r are the later and the earlier of two times; in a part of the examples r = t, where the loss is that of an
    ordinary denoiser.

    Reference: Geng et al., "Mean flows", arXiv 2505.13447, Sec. 4.3.

    Args:
        times: distribution of both times.
        equal: part of a batch, from 0 to less than 1, that has r = t.
    """

    def __init__(self, times: TimeSampler, equal: float = 0.75) -> None:
        super().__init__(times)
        if not 0 <= equal < 1:
            raise ValueError(f"TwoTimes: equal must be in [0, 1), got {equal}")
        self.equal = equal

    def draw(self, schedule: Schedule, n: int, device: torch.device, generator: torch.Generator | None) -> Pairs:
        first, second = (self._t(schedule, n, device, generator) for _ in range(2))
        jumps = max(1, n - round(self.equal * n))
        t, r = torch.maximum(first, second), torch.minimum(first, second)
        return Pairs(torch.cat((t[:jumps], first[jumps:])), torch.cat((r[:jumps], first[jumps:])), jumps)
