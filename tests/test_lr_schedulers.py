"""Learning rates, step by step."""

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler as torchs
from torch.optim.lr_scheduler import LRScheduler

import diffusion_pl.training.lr_schedulers
from diffusion_pl.training import InverseSqrt, Warmup, WarmupCosine, advance, check_factory, make_scheduler


def optimizer(*rates: float) -> torch.optim.Optimizer:
    return torch.optim.SGD([{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": rate} for rate in rates or (2.0,)])


def rates(scheduler: LRScheduler, steps: int) -> list[list[float]]:
    """The rates of each step of a run, for each group of parameters."""
    seen = []
    for _ in range(steps):
        seen.append([group["lr"] for group in scheduler.optimizer.param_groups])
        scheduler.optimizer.step()
        scheduler.step()
    return seen


def flat(scheduler: LRScheduler, steps: int) -> list[float]:
    return [rate for (rate,) in rates(scheduler, steps)]


def test_warmup_rises_linearly_from_its_first_step_and_stays() -> None:
    assert flat(Warmup(optimizer(), 10, warmup_steps=4), 7) == pytest.approx([0.5, 1, 1.5, 2, 2, 2, 2])


def test_without_warmup_the_first_step_is_at_full_rate() -> None:
    assert flat(Warmup(optimizer(), 3, warmup_steps=0), 3) == [2, 2, 2]
    assert flat(WarmupCosine(optimizer(), 3, warmup_steps=0), 1) == [2]


def test_cosine_decays_from_the_warmup_to_the_end_of_the_run() -> None:
    seen = flat(WarmupCosine(optimizer(), 104, warmup_steps=4, final=0.1), 110)
    assert seen[:4] == pytest.approx([0.5, 1, 1.5, 2])
    assert seen[4] == pytest.approx(2)
    assert seen[54] == pytest.approx(2 * 0.55)  # halfway
    assert seen[29] == pytest.approx(2 * (0.1 + 0.9 * (2 + math.sqrt(2)) / 4))  # a quarter of the way
    assert seen[104:] == pytest.approx([0.2] * 6)  # and no rise again beyond the end
    assert all(a > b for a, b in pairwise(seen[4:105]))


def test_inverse_sqrt_rises_stays_and_falls() -> None:
    seen = flat(InverseSqrt(optimizer(), 100, decay_steps=10, warmup_steps=4), 91)
    assert seen[:10] == pytest.approx([0.5, 1, 1.5, *[2] * 7])
    assert (seen[39], seen[89]) == pytest.approx((1, 2 / 3))  # four and nine times as late
    with pytest.raises(ValueError, match="decay_steps must be at least 1, got 0"):
        InverseSqrt(optimizer(), 100, decay_steps=0)


def test_every_group_keeps_its_own_rate() -> None:
    assert rates(Warmup(optimizer(1, 3), 10, warmup_steps=2), 2) == [[0.5, 1.5], [1, 3]]


@pytest.mark.parametrize("make", [Warmup, WarmupCosine, InverseSqrt])
def test_a_resumed_schedule_continues(make: Any) -> None:
    whole = flat(make(optimizer(), 20, 5), 20)
    half = make(optimizer(), 20, 5)
    flat(half, 8)
    resumed = make(optimizer(), 20, 5)
    resumed.optimizer.load_state_dict(half.optimizer.state_dict())
    resumed.load_state_dict(half.state_dict())
    assert flat(resumed, 12) == whole[8:]


def test_bad_numbers_are_named() -> None:
    with pytest.raises(ValueError, match="warmup_steps must not be negative, got -1"):
        Warmup(optimizer(), 10, warmup_steps=-1)
    with pytest.raises(ValueError, match=r"final must be in \[0, 1\], got 1.5"):
        WarmupCosine(optimizer(), 10, warmup_steps=1, final=1.5)


def test_a_warmup_longer_than_the_run_is_still_a_rise() -> None:
    seen = flat(WarmupCosine(optimizer(), 3, warmup_steps=10), 3)
    assert seen == pytest.approx([0.2, 0.4, 0.6])


def test_all_schedulers_take_optimizer_steps_and_warmup() -> None:
    """The module gives the optimizer and the steps of the run."""
    kinds: list[Any] = [kind for kind in vars(diffusion_pl.training.lr_schedulers).values() if isinstance(kind, type)]
    for make in kinds:
        if issubclass(make, LRScheduler) and make is not LRScheduler:
            assert make(optimizer(), 10, 2).get_last_lr()[0] > 0


def test_the_length_goes_only_to_what_has_total_steps() -> None:
    """gamma once became the number of steps."""
    make: Callable[..., Any] = make_scheduler
    assert flat(make(partial(torchs.ExponentialLR, gamma=0.5), optimizer(), 100), 3) == [2, 1, 0.5]
    assert make(partial(torchs.OneCycleLR, max_lr=1.0), optimizer(), 100).total_steps == 100
    epochs = partial(torchs.OneCycleLR, max_lr=1.0, epochs=2, steps_per_epoch=7)
    assert make(epochs, optimizer(), 100).total_steps == 14
    assert make(partial(WarmupCosine, warmup_steps=3), optimizer(), 100).total_steps == 100
    assert make(partial(torchs.CosineAnnealingLR, T_max=9), optimizer(), 100).T_max == 9


def test_a_run_of_unknown_length_is_refused_where_it_matters() -> None:
    endless: Any = make_scheduler(partial(torchs.StepLR, step_size=3), optimizer(), math.inf)
    assert endless.step_size == 3
    with pytest.raises(ValueError, match=r"trainer\.max_steps"):
        make_scheduler(partial(WarmupCosine, warmup_steps=3), optimizer(), math.inf)


@pytest.mark.parametrize("kind", [torchs.ReduceLROnPlateau, torchs.ChainedScheduler, torchs.SequentialLR, LRScheduler])
def test_schedulers_of_more_than_the_step_are_refused(kind: Any) -> None:
    with pytest.raises(ValueError, match=rf"model\.lr_scheduler: {kind.__name__} .* such as WarmupCosine"):
        check_factory(partial(kind))


def test_a_sequence_made_in_python_is_taken() -> None:
    def both(optimizer: Any) -> LRScheduler:
        parts = [torchs.ConstantLR(optimizer, 0.5, 2), torchs.ExponentialLR(optimizer, 0.5)]
        return torchs.SequentialLR(optimizer, parts, [2])

    factory: Any = both
    assert flat(make_scheduler(factory, optimizer(), 10), 4) == [1, 1, 2, 1]


@pytest.mark.parametrize(
    "factory",
    [
        partial(torchs.StepLR, step_size=0),
        partial(torchs.LambdaLR, lr_lambda="x"),  # type: ignore[arg-type]
        partial(torchs.StepLR, 3, last_epoch=2),  # type: ignore[arg-type]
    ],
    ids=["division", "no function", "position"],
)
def test_options_that_a_scheduler_chokes_on_are_one_line(factory: Any) -> None:
    with pytest.raises(ValueError, match=r"model\.lr_scheduler: (StepLR|LambdaLR): "):
        advance(make_scheduler(factory, optimizer(), 10), 1)


@pytest.mark.parametrize(
    "factory",
    [
        partial(WarmupCosine, warmup_steps=5),
        partial(torchs.CosineAnnealingWarmRestarts, T_0=4),
        partial(torchs.CyclicLR, base_lr=0.1, max_lr=1.0, step_size_up=3, cycle_momentum=False),
    ],
    ids=["ours", "restarts", "cyclic"],
)
def test_advancing_is_stepping(factory: Any) -> None:
    whole = flat(make_scheduler(factory, optimizer(), 20), 20)
    late = make_scheduler(factory, optimizer(), 20)
    advance(late, 8)
    assert flat(late, 12) == whole[8:]
