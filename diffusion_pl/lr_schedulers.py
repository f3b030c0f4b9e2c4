"""Learning-rate schedules that know how long the run is."""

import math

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


class Warmup(LRScheduler):
    """Linear from 0 to the optimizer's rate over warmup_steps, then constant.

    Args:
        optimizer: whose rates are scaled.
        total_steps: optimizer steps of the run; unused, every schedule is made alike.
        warmup_steps: steps of the rise.
    """

    def __init__(self, optimizer: Optimizer, total_steps: int, warmup_steps: int) -> None:
        _check(warmup_steps, 0.0)
        self.warmup_steps = warmup_steps
        super().__init__(optimizer)

    def get_lr(self) -> list[float | Tensor]:
        rise = _rise(self.last_epoch, self.warmup_steps)
        return [base * rise for base in self.base_lrs]


class WarmupCosine(LRScheduler):
    """Linear from 0 to the optimizer's rate over warmup_steps, then half a cosine down to `final` times it.

    Args:
        optimizer: whose rates are scaled.
        total_steps: optimizer steps of the run, where the fall ends.
        warmup_steps: steps of the rise.
        final: fraction of the rate at the end.
    """

    def __init__(self, optimizer: Optimizer, total_steps: int, warmup_steps: int, final: float = 0.0) -> None:
        _check(warmup_steps, final)
        self.total_steps, self.warmup_steps, self.final = total_steps, warmup_steps, final
        super().__init__(optimizer)

    def get_lr(self) -> list[float | Tensor]:
        step = self.last_epoch
        progress = min(1.0, max(0, step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps))
        fall = self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * progress))
        return [base * fall * _rise(step, self.warmup_steps) for base in self.base_lrs]


def _rise(step: int, warmup_steps: int) -> float:
    # The first step is taken at 1/warmup_steps, not at 0: a step at rate 0 is a step lost.
    return min(1.0, (step + 1) / max(1, warmup_steps))


def _check(warmup_steps: int, final: float) -> None:
    if warmup_steps < 0:
        raise ValueError(f"warmup_steps must not be negative, got {warmup_steps}")
    if not 0 <= final <= 1:
        raise ValueError(f"final must lie in [0, 1], got {final}")
