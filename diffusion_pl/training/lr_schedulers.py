"""Learning-rate schedules: built for a run, moved to its position, and previewed.

A scheduler takes one step per optimizer step.  It is made from the optimizer and its own options; one that has a
parameter `total_steps`, such as WarmupCosine or torch's OneCycleLR, is also given the number of steps of the run.
"""

import inspect
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol

from torch import Tensor
from torch.optim import Optimizer, lr_scheduler
from torch.optim.lr_scheduler import LRScheduler


class SchedulerFactory(Protocol):
    """Makes a scheduler: a class of schedulers with its options, as the command line gives it, or any function.

    `total_steps` is passed to what has such a parameter; a function of two required parameters gets it as the second.
    """

    def __call__(self, optimizer: Optimizer, /, *, total_steps: int) -> LRScheduler: ...


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


class InverseSqrt(LRScheduler):
    """Linear from 0 to the optimizer's rate over warmup_steps; from step decay_steps on, the rate falls as 1/√step.

    Reference: Karras et al., arXiv 2312.02696, Eq. 67.

    Args:
        optimizer: whose rates are scaled.
        total_steps: optimizer steps of the run; unused, every schedule is made alike.
        decay_steps: step at which the fall begins.
        warmup_steps: steps of the rise.
    """

    def __init__(self, optimizer: Optimizer, total_steps: int, decay_steps: int, warmup_steps: int = 0) -> None:
        _check(warmup_steps, 0.0)
        if decay_steps < 1:
            raise ValueError(f"decay_steps must be at least 1, got {decay_steps}")
        self.decay_steps, self.warmup_steps = decay_steps, warmup_steps
        super().__init__(optimizer)

    def get_lr(self) -> list[float | Tensor]:
        fall = 1 / math.sqrt(max(1.0, (self.last_epoch + 1) / self.decay_steps))
        return [base * fall * _rise(self.last_epoch, self.warmup_steps) for base in self.base_lrs]


def _rise(step: int, warmup_steps: int) -> float:
    # The first step is taken at 1/warmup_steps, not at 0: a step at rate 0 is a step lost.
    return min(1.0, (step + 1) / max(1, warmup_steps))


def _check(warmup_steps: int, final: float) -> None:
    if warmup_steps < 0:
        raise ValueError(f"warmup_steps must not be negative, got {warmup_steps}")
    if not 0 <= final <= 1:
        raise ValueError(f"final must be in [0, 1], got {final}")


def check_factory(factory: SchedulerFactory) -> None:
    """Raise ValueError for torch's schedulers that are more than a function of the step."""
    kind = _target(factory)
    name = getattr(kind, "__name__", str(kind))
    advice = "set it to a scheduler that depends on the step only, such as WarmupCosine, StepLR or ExponentialLR"
    if isinstance(kind, type) and issubclass(kind, lr_scheduler.ReduceLROnPlateau):
        raise ValueError(f"model.lr_scheduler: {name} follows a monitored metric, which is not supported; {advice}")
    if factory is not kind and kind in (lr_scheduler.SequentialLR, lr_scheduler.ChainedScheduler):
        raise ValueError(f"model.lr_scheduler: {name} needs schedulers that exist already; {advice}, or LambdaLR")
    if kind is LRScheduler:
        raise ValueError(f"model.lr_scheduler: {name} is only the base class; {advice}")


def make_scheduler(factory: SchedulerFactory, optimizer: Optimizer, total_steps: float) -> LRScheduler:
    """The scheduler of a run.

    Args:
        factory: see there.
        optimizer: whose rates are scheduled.
        total_steps: optimizer steps of the run; infinite if unknown.

    Raises:
        ValueError: options that the class refuses, or a run of unknown length for a scheduler that needs it.
    """
    check_factory(factory)
    kind = _target(factory)
    make: Callable[..., LRScheduler] = factory
    given = factory.keywords if isinstance(factory, partial) else {}
    parameters = inspect.signature(kind if isinstance(kind, type) else factory).parameters
    args: tuple[Any, ...] = (optimizer,)
    options: dict[str, Any] = {}
    if "total_steps" in parameters:
        # OneCycleLR can be given epochs and steps_per_epoch instead.
        if given.get("total_steps") is None and given.get("epochs") is None:
            options["total_steps"] = total_steps
    elif not isinstance(kind, type) and len([p for p in parameters.values() if _positional(p)]) > 1:
        args = (optimizer, total_steps)
    if total_steps in (*args, *options.values()):
        if not math.isfinite(total_steps):
            raise ValueError("model.lr_scheduler needs the length of the run: set trainer.max_steps")
        args = tuple(int(arg) if arg is total_steps else arg for arg in args)
        options = {name: int(value) for name, value in options.items()}
    with _named(getattr(kind, "__name__", str(kind))):
        return make(*args, **options)


def advance(scheduler: LRScheduler, steps: int) -> None:
    """Take so many steps at once: whatever its options, the rates are then those of its step `steps`.

    Raises:
        ValueError: the schedule is shorter, or its options are bad.
    """
    with _named(type(scheduler).__name__), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*before.*optimizer.step")
        for _ in range(steps):
            scheduler.step()


@contextmanager
def _named(name: str) -> Iterator[None]:
    """What a scheduler makes of bad options, as a ValueError with its name."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, NotImplementedError, TypeError, ValueError) as error:
        reason = error.args[0] if error.args else type(error).__name__
        raise ValueError(f"model.lr_scheduler: {name}: {reason}") from error


def _target(factory: Any) -> Any:
    """The class (or function) within partials, the command line's among them."""
    if not isinstance(factory, partial):
        return factory
    classes = [arg for arg in factory.args if isinstance(arg, type) and issubclass(arg, LRScheduler)]
    return classes[0] if classes else _target(factory.func)


def _positional(parameter: inspect.Parameter) -> bool:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return parameter.kind in kinds and parameter.default is inspect.Parameter.empty
