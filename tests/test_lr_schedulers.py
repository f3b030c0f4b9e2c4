"""Learning rates, step by step."""

import math
from itertools import pairwise

import pytest
import torch
from torch.optim.lr_scheduler import LRScheduler

import diffusion_pl.lr_schedulers
from diffusion_pl.lr_schedulers import Warmup, WarmupCosine


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


def test_the_cosine_falls_from_the_end_of_the_warmup_to_the_end_of_the_run() -> None:
    seen = flat(WarmupCosine(optimizer(), 104, warmup_steps=4, final=0.1), 110)
    assert seen[:4] == pytest.approx([0.5, 1, 1.5, 2])
    assert seen[4] == pytest.approx(2)
    assert seen[54] == pytest.approx(2 * 0.55)  # halfway
    assert seen[29] == pytest.approx(2 * (0.1 + 0.9 * (2 + math.sqrt(2)) / 4))  # a quarter of the way
    assert seen[104:] == pytest.approx([0.2] * 6)  # and no rise again beyond the end
    assert all(a > b for a, b in pairwise(seen[4:105]))


def test_every_group_keeps_its_own_rate() -> None:
    assert rates(Warmup(optimizer(1, 3), 10, warmup_steps=2), 2) == [[0.5, 1.5], [1, 3]]


@pytest.mark.parametrize("make", [Warmup, WarmupCosine])
def test_a_resumed_schedule_goes_on_where_it_stopped(make: type[LRScheduler]) -> None:
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
    with pytest.raises(ValueError, match=r"final must lie in \[0, 1\], got 1.5"):
        WarmupCosine(optimizer(), 10, warmup_steps=1, final=1.5)


def test_a_warmup_longer_than_the_run_is_still_a_rise() -> None:
    seen = flat(WarmupCosine(optimizer(), 3, warmup_steps=10), 3)
    assert seen == pytest.approx([0.2, 0.4, 0.6])


def test_all_of_them_are_made_alike() -> None:
    """The module gives the optimizer and the steps of the run."""
    for make in vars(diffusion_pl.lr_schedulers).values():
        if isinstance(make, type) and issubclass(make, LRScheduler) and make is not LRScheduler:
            assert make(optimizer(), 10, 2).get_last_lr()[0] > 0
