"""The distribution of the training times t.

A distribution that is part of the objective comes with importance 1.  An importance sampler (`LikelihoodTimes`,
`LossSecondMoment`) changes where the estimate is taken but not what it estimates: importance = 1/p(t).

Randomness comes from the `generator` argument; None means torch's global one.
"""

import math
from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
import torch.distributed
from torch import Tensor, nn

from ..samplers.grids import shift_of, shift_time
from ..schedules import Schedule
from ..tensors import Recorded, per_sample


class Times(NamedTuple):
    """t: (B, 1, …, 1) and the factor its loss is multiplied by: shaped like t, or one number."""

    t: Tensor
    importance: Tensor | float = 1.0


class TimeSampler(Recorded, ABC):
    """Draws one time per example."""

    @abstractmethod
    def draw(self, schedule: Schedule, n: int, device: torch.device, generator: torch.Generator | None) -> Times:
        """n times: (n,) in float32."""

    def learn(self, t: Tensor, loss: Tensor) -> None:
        """Gets the losses of a training step, without importance: (B,) each.  Adaptive distributions update here."""

    def __call__(self, schedule: Schedule, x_0: Tensor, generator: torch.Generator | None = None) -> Times:
        """Times for x_0: (B, *), of shape (B, 1, …, 1)."""
        t, importance = self.draw(schedule, len(x_0), x_0.device, generator)
        return Times(per_sample(t, x_0), per_sample(importance, x_0) if isinstance(importance, Tensor) else importance)


class UniformTimes(TimeSampler):
    """t ~ U(t_min, 1).

    Args:
        t_min: keeps σ away from 0 (1e-5 in arXiv 2011.13456).
    """

    def __init__(self, t_min: float = 1e-5) -> None:
        _check_t_min(t_min)
        self.t_min = t_min

    def draw(self, schedule: Schedule, n: int, device: torch.device, generator: torch.Generator | None) -> Times:
        return Times(self.t_min + (1 - self.t_min) * torch.rand(n, device=device, generator=generator))


class StratifiedTimes(TimeSampler):
    """One t in each of B equal slices of (t_min, 1): uniformly distributed, with a lower variance of the batch's mean.

    Reference: Kingma et al., arXiv 2107.00630, App. I.1 (one offset for the batch).

    Args:
        t_min: keeps σ away from 0.
    """

    def __init__(self, t_min: float = 1e-5) -> None:
        _check_t_min(t_min)
        self.t_min = t_min

    def draw(self, schedule: Schedule, n: int, device: torch.device, generator: torch.Generator | None) -> Times:
        offset = torch.rand(1, device=device, generator=generator)
        u = (offset + torch.arange(n, device=device) / n) % 1
        return Times(self.t_min + (1 - self.t_min) * u)


class GridTimes(TimeSampler):
    """t uniform on {1/N, 2/N, …, 1}: DDPM's discrete steps.

    Args:
        steps: N; None: the schedule's, 1,000 where it has none.
    """

    def __init__(self, steps: int | None = None) -> None:
        if steps is not None and steps < 1:
            raise ValueError(f"GridTimes needs at least one step, got steps={steps}")
        self.steps = steps

    def draw(self, schedule: Schedule, n: int, device: torch.device, generator: torch.Generator | None) -> Times:
        steps = schedule.chain_steps(self.steps, "GridTimes", default=1000)
        return Times(torch.randint(1, steps + 1, (n,), device=device, generator=generator) / steps)


class LogNormalTimes(TimeSampler):
    """ln(σ/α) ~ N(mean, std²): EDM's noise levels.

    Reference: Karras et al., arXiv 2206.00364, Table 1.

    Args:
        mean: P_mean.
        std: P_std.
    """

    def __init__(self, mean: float = -1.2, std: float = 1.2) -> None:
        _check_normal(mean, std)
        self.mean, self.std = mean, std

    def draw(self, schedule: Schedule, n: int, device: torch.device, generator: torch.Generator | None) -> Times:
        log_sigma = self.mean + self.std * torch.randn(n, device=device, generator=generator)
        return Times(schedule.time(-2 * log_sigma))


class LogitNormalTimes(TimeSampler):
    """logit t ~ N(mean, std²): more of the middle, for rectified flows.

    Reference: Esser et al., arXiv 2403.03206, Eq. 19.

    Args:
        mean: positive favours noise.
        std: spread of the logit.
        t_min: keeps σ away from 0.
    """

    def __init__(self, mean: float = 0.0, std: float = 1.0, t_min: float = 1e-5) -> None:
        _check_normal(mean, std)
        _check_t_min(t_min)
        self.mean, self.std, self.t_min = mean, std, t_min

    def draw(self, schedule: Schedule, n: int, device: torch.device, generator: torch.Generator | None) -> Times:
        logit = self.mean + self.std * torch.randn(n, device=device, generator=generator)
        return Times(torch.sigmoid(logit).clamp(min=self.t_min))


class LikelihoodTimes(TimeSampler):
    """Importance sampling for the `Likelihood` weighting: p(t) ∝ g²/σ² = −λ', that is, λ uniform.

    The estimate is that of t ~ U(t_min, 1) with its variance much reduced, since E[‖ε̂ − ε‖²] varies little with t.

    Reference: Song et al., arXiv 2101.09258, Sec. 4.2 (VP in closed form; through λ, any schedule).

    Args:
        t_min: keeps σ away from 0.
    """

    def __init__(self, t_min: float = 1e-5) -> None:
        _check_t_min(t_min)
        self.t_min = t_min

    def draw(self, schedule: Schedule, n: int, device: torch.device, generator: torch.Generator | None) -> Times:
        ends = schedule(torch.tensor([self.t_min, 1.0], dtype=torch.float64)).logsnr
        if not ends.isfinite().all():
            name = type(schedule).__name__
            raise ValueError(f"LikelihoodTimes needs a finite log-SNR from t_min to 1, {name} has {ends.tolist()}")
        high, low = ends.tolist()
        u = torch.rand(n, device=device, generator=generator)
        t = schedule.time(high + (low - high) * u).clamp(min=self.t_min)
        # 1/p(t) over (t_min, 1), scaled by the interval's length as a uniform distribution's would be.
        return Times(t, (high - low) / -schedule(t).d_logsnr / (1 - self.t_min))


class ShiftedTimes(TimeSampler):
    """t' = s t/(1 + (s − 1) t), t from another distribution: more noise for s > 1, as data of many values need.

    Reference: Esser et al., arXiv 2403.03206, Eq. 23; s of the number of values: Zheng et al., arXiv 2510.11690.

    Args:
        times: distribution of t, not an adaptive one.
        shift: s, from 0.001 to 1000; None: √(values/4096).
        values: of an example, such as 196608 of latents of 768 x 16 x 16; in place of shift.
    """

    def __init__(self, times: TimeSampler, shift: float | None = None, values: int | None = None) -> None:
        if isinstance(times, nn.Module):
            raise ValueError(f"ShiftedTimes: {type(times).__name__} adapts to the losses and cannot be shifted")
        self.times, self.shift = times, shift_of("ShiftedTimes", shift, values)

    def draw(self, schedule: Schedule, n: int, device: torch.device, generator: torch.Generator | None) -> Times:
        t, importance = self.times.draw(schedule, n, device, generator)
        if isinstance(importance, Tensor):  # 1/p(t') = dt'/dt / p(t)
            importance = importance * self.shift / (1 + (self.shift - 1) * t).square()
        return Times(shift_time(t, self.shift), importance)


class LossSecondMoment(TimeSampler, nn.Module):
    """Importance sampling on the grid i/N with p_i ∝ √E[L_i²], mixed with a little of the uniform one.

    E[L_i²] is the mean over the last `history` losses at i, of all processes; until every i has as many, t is uniform.
    The history is in the checkpoint.

    Reference: Nichol & Dhariwal, arXiv 2102.09672, Sec. 3.3.

    Args:
        steps: N.
        history: losses remembered of each i.
        uniform: share of the uniform distribution.
    """

    history: Tensor
    seen: Tensor

    def __init__(self, steps: int = 1000, history: int = 10, uniform: float = 0.001) -> None:
        super().__init__()
        if steps < 1 or history < 1:
            raise ValueError(f"LossSecondMoment: steps and history must be at least 1, got {steps} and {history}")
        if not 0 < uniform <= 1:
            raise ValueError(f"LossSecondMoment: uniform must be in (0, 1], got {uniform}")
        self.steps, self.uniform = steps, uniform
        self.register_buffer("history", torch.zeros(steps, history))
        self.register_buffer("seen", torch.zeros(steps, dtype=torch.int64))  # losses so far of each i

    def share(self) -> Tensor:
        """p: (N,)."""
        if (self.seen < self.history.shape[1]).any():
            return torch.full_like(self.history[:, 0], 1 / self.steps)
        root = self.history.square().mean(1).sqrt()
        return (1 - self.uniform) * root / root.sum() + self.uniform / self.steps

    def draw(self, schedule: Schedule, n: int, device: torch.device, generator: torch.Generator | None) -> Times:
        share = self.share().to(device)
        index = torch.multinomial(share, n, replacement=True, generator=generator)
        return Times((index + 1) / self.steps, 1 / (self.steps * share[index]))

    @torch.no_grad()
    def learn(self, t: Tensor, loss: Tensor) -> None:
        pairs = torch.stack((t.to(loss), loss)).cpu().double()
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            shares: list[Tensor | None] = [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(shares, pairs)
            pairs = torch.cat([part for part in shares if part is not None], 1)
        size = self.history.shape[1]
        for time, value in pairs.T.tolist():
            i = round(time * self.steps) - 1
            self.history[i, self.seen[i] % size] = value  # the oldest gives way
            self.seen[i] += 1


def _check_t_min(t_min: float) -> None:
    if not 0 < t_min < 1:
        raise ValueError(f"t_min must be in (0, 1), got {t_min}")


def _check_normal(mean: float, std: float) -> None:
    if not (math.isfinite(mean) and 0 < std < math.inf):
        raise ValueError(f"mean must be a finite number and std a positive one, got {mean} and {std}")
