"""Variational bounds on −log p(x_0), term by term, in nats per example.

    −log p(x_0) ≤  KL(q(x_1|x_0) ‖ N(0, π²))  +  Σ_t KL(q(x_s|x_t,x_0) ‖ p(x_s|x_t))  +  E −log p(x_0|x_first)
                   prior                          diffusion                             decoder

π² = α² + σ² at t = 1, what sampling starts from; p(x_s|x_t) has the mean of q(x_s|x_t, x̂_0).  The chain has T steps,
s = t − 1/T.  As T → ∞ the sum becomes an integral, which no longer depends on the schedule but for its two ends:

    ½∫ (−dSNR/dt) E‖x_0 − x̂_0‖² dt  =  ½∫ E‖ε − ε̂‖² (−dλ)  =  ∫ tanh τ E‖v − v̂‖² (−dτ),     τ = arsinh(α/σ),

    v − v̂ = (α(ε − ε̂) − σ(x_0 − x̂_0))/r,   r² = α² + σ²,   tanh τ = α/r,   λ = 2 log sinh τ.

In τ nothing is divided by α or σ, the path is finite where α(1) = 0, and equal steps are near the best: the integrand
goes to the number of dimensions as σ → 0 and to 0 as α → 0.

Reference: Ho et al., arXiv 2006.11239, Eq. 5; Kingma et al., arXiv 2107.00630, Eq. 11–17.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..denoisers import Denoiser, Prediction
from ..schedules import Schedule, gaussian_kl, interpolate_variance, posterior, transition
from ..tensors import per_sample
from .decoders import decoder_nll

#: Standard normal noise shaped like its argument; `tensors.SampleNoise` makes it independent of the batch.
Noise = Callable[[Tensor], Tensor]


class Bound(NamedTuple):
    """prior, diffusion, decoder: (B,) in nats; terms: (K, B), what each visited t: (K,) adds to diffusion.

    Where every example visits a time of its own in each of K strata, t are the strata's middles.  nfe: evaluations of
    the denoiser that each example took.
    """

    prior: Tensor
    diffusion: Tensor
    decoder: Tensor
    t: Tensor
    terms: Tensor
    nfe: int

    @property
    def total(self) -> Tensor:
        """The bound on −log p(x_0): (B,)."""
        return self.prior + self.diffusion + self.decoder


class ChainBound:
    """Bound of the chain of T steps:  L_T + Σ_{t=2/T}^{1} L_{t−1} + L_0.

    p(x_s|x_t) has the variance β̃^{1−v} β^v.  At t = 1/T, where β̃ = 0, the mean is x̂_0 and the variance is β̃ of the
    second step for every fixed v, as published also for v = 1; a learned one runs from there to β_1.

    Reference: Ho et al., arXiv 2006.11239, Eq. 5; Nichol & Dhariwal, arXiv 2102.09672, Eq. 4–7 and 15.

    Args:
        steps: T; None: the schedule's.
        variance: v; 0 is β̃ ("fixed small"), 1 is β ("fixed large"); None: as the network learned it.
        times: how many of the steps are visited, t = 1/T always and among them: an unbiased estimate from strata of
            equally many steps, a random one of each; None: all.
    """

    def __init__(self, steps: int | None = None, variance: float | None = 0.0, times: int | None = None) -> None:
        if steps is not None and steps < 2:
            raise ValueError(f"ChainBound: steps must be at least 2, got {steps}")
        if variance is not None and not 0 <= variance <= 1:
            raise ValueError(f"ChainBound: variance must be in [0, 1], or None for a learned one, got {variance}")
        if times is not None:
            _check_times(times, max(times, 2) if steps is None else steps)
        self.steps, self.variance, self.times = steps, variance, times

    def on(self, schedule: Schedule, default: int | None = None) -> "ChainBound":
        """The same bound with T written out.

        Args:
            schedule: gives T, if the bound has none.
            default: T, if neither has one.

        Raises:
            ValueError: none of them has steps, or fewer than are to be visited.
        """
        steps = default if self.steps is None and schedule.steps is None else self.steps
        steps = schedule.chain_steps(steps, "ChainBound")
        return ChainBound(steps, self.variance, self.times)

    def _counts(self, schedule: Schedule) -> tuple[int, int]:
        """T, and how many of the steps are visited."""
        steps = schedule.chain_steps(self.steps, "ChainBound")
        times = steps if self.times is None else self.times
        _check_times(times, steps)
        return steps, times

    def visited(self, schedule: Schedule) -> Tensor:
        """t of the terms, the middles of their strata: (K,), float64."""
        steps, times = self._counts(schedule)
        middle = torch.arange(times - 1, dtype=torch.float64) + 0.5
        return (middle * (steps - 1) / (times - 1) + 1.5) / steps

    @torch.no_grad()
    def __call__(
        self, denoiser: Denoiser, x_0: Tensor, noise: Noise, levels: int | None = None, **cond: Tensor
    ) -> Bound:
        """The bound of each example.

        Args:
            denoiser: any.
            x_0: (B, *).
            noise: standard normal, shaped like its argument.
            levels: of the data in [−1, 1], 256 for 8-bit images: the bound is on the probability of the levels;
                None: on the density.
            cond: handed to the denoiser.

        Raises:
            ValueError: variance None of a network that predicts none; data that are not on the levels.
        """
        _check_levels(x_0, levels)
        steps, times = self._counts(denoiser.schedule)
        count, visited = steps - 1, times - 1
        share, t = count / visited, self.visited(denoiser.schedule)
        levels_of_t = list(t.unbind())
        if visited < count:
            index = (_jittered(noise, x_0, visited) * share).floor().clamp(max=count - 1)
            levels_of_t = [per_sample(column, x_0) for column in ((index + 2) / steps).unbind(1)]
        terms = torch.stack([share * self._kl(denoiser, x_0, time, 1 / steps, noise, cond) for time in levels_of_t])
        decoder = self._decoder(denoiser, x_0, 1 / steps, noise, levels, cond)
        return Bound(_prior(denoiser.schedule, x_0), terms.sum(0), decoder, t, terms, times)

    def _kl(
        self, denoiser: Denoiser, x_0: Tensor, t: Tensor, step: float, noise: Noise, cond: dict[str, Tensor]
    ) -> Tensor:
        """KL(q(x_s|x_t,x_0) ‖ p(x_s|x_t)), s = t − step: (B,).  t: () or (B, 1, …, 1)."""
        at_s, at_t = denoiser.schedule(t - step), denoiser.schedule(t)
        exact, large = posterior(at_s, at_t), _like(x_0, transition(at_s, at_t).sigma_sq)
        _, prediction = _denoised(denoiser, x_0, t, noise, cond)
        small = _like(x_0, exact.var)
        # The difference of the means at once: apart they agree in most of their digits.
        gap = _like(x_0, exact.from_0) * (x_0 - prediction.x_0)
        return _total(gaussian_kl(gap, small, torch.zeros_like(gap), self._var(prediction, small, large)))

    def _decoder(
        self, denoiser: Denoiser, x_0: Tensor, step: float, noise: Noise, levels: int | None, cond: dict[str, Tensor]
    ) -> Tensor:
        """−log p(x_0|x_t) at the first step, t = 1/T: (B,)."""
        t = torch.tensor(step, dtype=torch.float64)
        first, second = denoiser.schedule(t), denoiser.schedule(2 * t)
        _, prediction = _denoised(denoiser, x_0, t, noise, cond)
        small = posterior(first, second).var
        large = first.sigma.square() if self.variance is None else small  # Ho et al.'s and Nichol & Dhariwal's code
        var = self._var(prediction, small, large)
        return _total(decoder_nll(x_0, prediction.x_0, torch.sqrt(var), levels))

    def _var(self, prediction: Prediction, small: Tensor, large: Tensor) -> Tensor:
        if self.variance is not None:
            return small ** (1 - self.variance) * large**self.variance
        if prediction.v is None:
            raise ValueError("ChainBound: the network predicts no variance. Fix: set variance to 0 (β̃) or 1 (β)")
        return interpolate_variance(prediction.v, small, large)


class ContinuousBound:
    """The bound of infinitely many steps:  prior + ∫ tanh τ E‖v − v̂‖² (−dτ) + E −log N(x_0; x̂_0, σ²/α² I) at t_min.

    Unbiased: every example visits a random τ in each of equally long strata.

    Reference: Kingma et al., arXiv 2107.00630, Eq. 11–17.

    Args:
        times: strata, one evaluation each; the decoder takes one more.
        t_min: where the integral ends and the decoder takes over.
    """

    def __init__(self, times: int = 128, t_min: float = 1e-5) -> None:
        if times < 1:
            raise ValueError(f"ContinuousBound: times must be at least 1, got {times}")
        if not 0 < t_min < 1:
            raise ValueError(f"ContinuousBound: t_min must be in (0, 1), got {t_min}")
        self.times, self.t_min = times, t_min

    def on(self, schedule: Schedule, default: int | None = None) -> "ContinuousBound":
        """The same bound: it has no steps; see ChainBound."""
        return self

    def visited(self, schedule: Schedule) -> Tensor:
        """t of the terms, the middles of their strata: (K,), float64."""
        return self._time(schedule, torch.arange(self.times, dtype=torch.float64) + 0.5)

    def _ends(self, schedule: Schedule) -> tuple[float, float]:
        """τ at t_min and at t = 1."""
        ends = schedule(torch.tensor([self.t_min, 1.0], dtype=torch.float64))
        start, end = torch.asinh(ends.alpha / ends.sigma).tolist()
        return start, end

    def _time(self, schedule: Schedule, position: Tensor) -> Tensor:
        """t at a position in [0, K] of the K strata."""
        start, end = self._ends(schedule)
        return schedule.time(2 * torch.log(torch.sinh(start - (start - end) / self.times * position)))

    @torch.no_grad()
    def __call__(
        self, denoiser: Denoiser, x_0: Tensor, noise: Noise, levels: int | None = None, **cond: Tensor
    ) -> Bound:
        """The bound of each example; arguments: see `ChainBound`."""
        _check_levels(x_0, levels)
        schedule = denoiser.schedule
        start, end = self._ends(schedule)
        width, t = (start - end) / self.times, self.visited(schedule)
        own = self._time(schedule, _jittered(noise, x_0, self.times))
        columns = [per_sample(column, x_0) for column in own.unbind(1)]
        terms = torch.stack([width * self._integrand(denoiser, x_0, column, noise, cond) for column in columns])
        _, prediction = _denoised(denoiser, x_0, torch.tensor(self.t_min, dtype=torch.float64), noise, cond)
        kernel = schedule(torch.tensor(self.t_min, dtype=torch.float64))
        std = kernel.sigma / kernel.alpha
        decoder = _total(decoder_nll(x_0, prediction.x_0, std, levels))
        return Bound(_prior(schedule, x_0), terms.sum(0), decoder, t, terms, self.times + 1)

    def _integrand(self, denoiser: Denoiser, x_0: Tensor, t: Tensor, noise: Noise, cond: dict[str, Tensor]) -> Tensor:
        """tanh τ ‖v − v̂‖²: (B,).  t: (B, 1, …, 1)."""
        alpha, sigma, *_ = denoiser.schedule(t)
        norm = torch.sqrt(alpha.square() + sigma.square())
        cos, sin = _like(x_0, alpha / norm), _like(x_0, sigma / norm)
        eps, prediction = _denoised(denoiser, x_0, t, noise, cond)
        error = cos * (eps - prediction.eps) - sin * (x_0 - prediction.x_0)
        return cos.flatten() * _total(error.square())


def _denoised(
    denoiser: Denoiser, x_0: Tensor, t: Tensor, noise: Noise, cond: dict[str, Tensor]
) -> tuple[Tensor, Prediction]:
    """ε and the prediction at x_t = α x_0 + σ ε.  t: () or (B, 1, …, 1)."""
    eps = noise(x_0)
    alpha, sigma, *_ = denoiser.schedule(t)
    return eps, denoiser(_like(x_0, alpha) * x_0 + _like(x_0, sigma) * eps, _like(x_0, t), **cond)


def _prior(schedule: Schedule, x_0: Tensor) -> Tensor:
    """KL(q(x_1|x_0) ‖ N(0, π² I)): (B,)."""
    end = schedule(torch.ones((), dtype=torch.float64))
    mean, var = end.alpha * x_0, torch.tensor(schedule.prior_std(), dtype=torch.float64).square()
    return _total(gaussian_kl(mean, end.sigma.square(), torch.zeros_like(mean), var))


def _jittered(noise: Noise, x_0: Tensor, strata: int) -> Tensor:
    """A random point of each of [0, 1], [1, 2], …, for every example its own, of float64: (B, strata)."""
    # From the same noise as all else, so that an example's points do not depend on its batch.
    uniform: Tensor = torch.special.ndtr(noise(x_0.new_empty(len(x_0), strata)).double())
    # Away from the ends, one of which may be α = 0.
    offsets = torch.arange(strata, dtype=torch.float64, device=x_0.device)
    return offsets + uniform.clamp(1e-9, 1 - 1e-9)


def _like(x: Tensor, value: Tensor) -> Tensor:
    """A value for each example in the type of x; a scalar as it is, which leaves x its type."""
    return value if value.ndim == 0 else value.to(x.dtype)


def _total(x: Tensor) -> Tensor:
    """Sum over all data axes: (B, *) -> (B,)."""
    return x.flatten(1).sum(1)


def _check_times(times: int, steps: int) -> None:
    if not 2 <= times <= steps:
        raise ValueError(f"ChainBound: times must be in 2 … {steps} (its steps), got {times}")


def _check_levels(x_0: Tensor, levels: int | None) -> None:
    """Raise ValueError unless x_0 is on the levels: the probability of a level it does not have means nothing."""
    if levels is None:
        return
    if levels < 2:
        raise ValueError(f"levels must be at least 2, got {levels}")
    index = (x_0 + 1) * ((levels - 1) / 2)
    if not ((index - index.round()).abs() < 0.05).all() or index.min() < -0.5 or index.max() > levels - 0.5:
        raise ValueError(
            f"levels: x_0 must be on the {levels} levels −1, {-1 + 2 / (levels - 1):.4g}, …, 1; got other values "
            f"between {x_0.min().item():.4g} and {x_0.max().item():.4g} (give no levels for a density)"
        )
