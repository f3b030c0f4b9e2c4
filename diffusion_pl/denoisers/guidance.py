"""Guidance: wrappers of denoisers that are denoisers themselves, for use with any sampler.

extrapolation    x̂_0 = x̂_0' + w (x̂_0 − x̂_0'),  ε̂ likewise          w = 1 is the plain model
classifier       ∇log p(x_t) + w ∇log p(y | x_t)                        w = 1 is the posterior, 1/w the temperature
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..conditions import null
from ..schedules import Kernel
from ..tensors import per_sample
from .base import Denoiser
from .parameterizations import Prediction


class Thresholded(Denoiser):
    """Keeps x̂_0 inside the range of the data; ε̂ follows from α x̂_0 + σ ε̂ = x_t.

    Static: clip to [low, high] (DDPM).  Dynamic, when a quantile is given: let r be that quantile of the distance from
    the middle of the range in units of its half-width, at least 1; clip to the range widened r times, then shrink by r.

    Of a flow map only jumps to r = 0 are changed, which give samples.

    Reference: Ho et al., arXiv 2006.11239 (clipping); Saharia et al., arXiv 2205.11487, Sec. 2.3 (dynamic).

    Args:
        denoiser: what is wrapped.
        low, high: range of the data in model units.
        quantile: of |x̂_0| over each example, 0.995 is usual; None clips statically.
        max_r: largest r, as `sample_max_value` of diffusers; only with a quantile.
        keep_eps: leave ε̂ as it was predicted, as diffusers' schedulers do; DDIM then takes other steps.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        low: float = -1.0,
        high: float = 1.0,
        quantile: float | None = None,
        max_r: float = math.inf,
        keep_eps: bool = False,
    ) -> None:
        super().__init__()
        if not low < high:
            raise ValueError(f"need low < high, got {low} and {high}")
        if quantile is not None and not 0 < quantile <= 1:
            raise ValueError(f"quantile must be in (0, 1], got {quantile}")
        if not max_r >= 1:
            raise ValueError(f"max_r must be at least 1, got {max_r}")
        self.denoiser, self.schedule, self.self_conditioned = denoiser, denoiser.schedule, denoiser.self_conditioned
        self.low, self.high, self.quantile, self.max_r, self.keep_eps = low, high, quantile, max_r, keep_eps
        self.flow_map = denoiser.flow_map

    def forward(self, x_t: Tensor, t: Tensor, r: Tensor | None = None, **cond: Tensor) -> Prediction:
        middle, half = (self.low + self.high) / 2, (self.high - self.low) / 2
        prediction: Prediction = self.denoiser(x_t, t, **cond if r is None else {"r": r, **cond})
        unit = (prediction.x_0 - middle) / half
        if self.quantile is None:
            unit = unit.clamp(-1, 1)
        else:
            reach = per_sample(torch.quantile(unit.abs().flatten(1), self.quantile, dim=1).clamp(1, self.max_r), x_t)
            unit = torch.maximum(torch.minimum(unit, reach), -reach) / reach
        kernel = self.schedule(t)
        x_0 = middle + half * unit
        eps = prediction.eps if self.keep_eps else (x_t - kernel.alpha * x_0) / kernel.sigma
        if r is not None:  # of another jump X is not an estimate of x_0, and may be outside the range
            x_0, eps = torch.where(r > 0, prediction.x_0, x_0), torch.where(r > 0, prediction.eps, eps)
        return Prediction(x_0, eps, prediction.v)


class ClassifierFree(Denoiser):
    """Extrapolates from the estimate without some conditions to the one with them, inside an interval of noise levels.

    Reference: Ho & Salimans, arXiv 2207.12598, Eq. 6 (their w is w − 1 here); Kynkäänniemi et al., arXiv 2404.07724
    (interval); Lin et al., arXiv 2305.08891, Sec. 3.4 (rescaling, here of x̂_0).

    Args:
        denoiser: of a model trained with dropout of these conditions; their null (label −1, else NaN) asks it for the
            estimate without.
        scale: w; 1 is the conditional model as it is, 0 the unconditional one.
        sigma_min, sigma_max: range of σ/α in which there is guidance; elsewhere w = 1.
        rescale: how far, from 0 to 1, the guided x̂_0 takes on the standard deviation of the one without guidance.
        drop: names of the conditions that the estimate without guidance lacks; it keeps the others.  None: all.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        scale: float = 1.0,
        sigma_min: float = 0.0,
        sigma_max: float = float("inf"),
        rescale: float = 0.0,
        drop: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        _check_interval(scale, sigma_min, sigma_max)
        if not 0 <= rescale <= 1:
            raise ValueError(f"rescale must be in [0, 1], got {rescale}")
        if isinstance(drop, str) or (drop is not None and not drop):
            raise ValueError(f"ClassifierFree: drop must be a list of one or more conditions, got {drop!r}")
        self.denoiser, self.schedule, self.self_conditioned = denoiser, denoiser.schedule, denoiser.self_conditioned
        self.scale, self.sigma_min, self.sigma_max, self.rescale = scale, sigma_min, sigma_max, rescale
        self.drop = None if drop is None else tuple(drop)

    def forward(self, x_t: Tensor, t: Tensor, **cond: Tensor) -> Prediction:
        drop = self._dropped([name for name in cond if name != "x_0_hat"])
        kernel = self.schedule(t)
        guided = _inside(kernel.sigma / kernel.alpha, self.sigma_min, self.sigma_max)
        if self.scale == 1 or not guided.any():
            return self.denoiser(x_t, t, **cond)  # type: ignore[no-any-return]
        # Both in one call of the network.
        twice = {name: torch.cat((value, null(value) if name in drop else value)) for name, value in cond.items()}
        both: Prediction = self.denoiser(torch.cat((x_t, x_t)), t if t.ndim == 0 else torch.cat((t, t)), **twice)
        (x_0, other_x_0), (eps, other_eps) = both.x_0.chunk(2), both.eps.chunk(2)
        plain = Prediction(x_0, eps, None if both.v is None else both.v.chunk(2)[0])
        prediction = extrapolate(plain, Prediction(other_x_0, other_eps), torch.where(guided, self.scale, 1.0))
        if self.rescale == 0:
            return prediction
        ratio = plain.x_0.flatten(1).std(1) / prediction.x_0.flatten(1).std(1)
        x_0 = prediction.x_0 * (1 + self.rescale * (per_sample(ratio, x_t) - 1))
        return Prediction(x_0, (x_t - kernel.alpha * x_0) / kernel.sigma, plain.v)

    def _dropped(self, names: Sequence[str]) -> Sequence[str]:
        """Which of the conditions that there are to drop."""
        drop = names if self.drop is None else self.drop
        missing = [name for name in drop if name not in names]
        if not drop:
            raise ValueError("ClassifierFree: guidance needs conditions, and got none")
        if missing:
            known = ", ".join(names) or "none"
            raise ValueError(f"ClassifierFree: guidance drops {', '.join(missing)}, the conditions are: {known}")
        return drop


class AutoGuided(Denoiser):
    """Extrapolates from the estimate of a weaker model of the same data: smaller, or trained for less long.

    Reference: Karras et al., "Guiding a diffusion model with a bad version of itself", arXiv 2406.02507, Eq. 4.

    Args:
        denoiser: the model.
        weak: the weaker one; its schedule must give the same α and σ.
        scale: w; 1 is the model as it is.
        sigma_min, sigma_max: range of σ/α in which there is guidance; elsewhere w = 1.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        weak: Denoiser,
        scale: float = 1.0,
        sigma_min: float = 0.0,
        sigma_max: float = float("inf"),
    ) -> None:
        super().__init__()
        _check_interval(scale, sigma_min, sigma_max)
        t = torch.linspace(0.01, 0.99, 9, dtype=torch.float64)
        model_kernel, weak_kernel = denoiser.schedule(t), weak.schedule(t)
        if not (
            torch.allclose(model_kernel.alpha, weak_kernel.alpha)
            and torch.allclose(model_kernel.sigma, weak_kernel.sigma)
        ):
            raise ValueError("AutoGuided: the weak model must have the schedule of the model")
        self.denoiser, self.weak = denoiser, weak
        self.schedule, self.self_conditioned = denoiser.schedule, denoiser.self_conditioned
        self.scale, self.sigma_min, self.sigma_max = scale, sigma_min, sigma_max

    def forward(self, x_t: Tensor, t: Tensor, **cond: Tensor) -> Prediction:
        kernel = self.schedule(t)
        guided = _inside(kernel.sigma / kernel.alpha, self.sigma_min, self.sigma_max)
        plain: Prediction = self.denoiser(x_t, t, **cond)
        if self.scale == 1 or not guided.any():
            return plain
        if not self.weak.self_conditioned:
            cond.pop("x_0_hat", None)
        return extrapolate(plain, self.weak(x_t, t, **cond), torch.where(guided, self.scale, 1.0))


class ClassifierGuided(Denoiser):
    """Adds the gradient of a classifier of noisy data:  score + w ∇log p(y | x_t).

    w = 1 samples p(x_0 | y); w > 1 is p(y | x_t)^w at each noise level (a temperature 1/w of the classifier), which is
    not the distribution p(x_0) p(y | x_0)^w.  Where α = 0 nothing of y is in x_t, and nothing is added.

    Reference: Dhariwal & Nichol, arXiv 2105.05233, Alg. 2; Song et al., arXiv 2011.13456, Eq. 14.

    Args:
        denoiser: of the data as a whole; it does not get the label.
        classifier: (x_t: (B, *), t: () or (B, 1, …, 1)) -> log p(y | x_t) up to a constant: (B, classes).
        scale: w.
    """

    def __init__(self, denoiser: Denoiser, classifier: Callable[[Tensor, Tensor], Tensor], scale: float = 1.0) -> None:
        super().__init__()
        if not scale >= 0:
            raise ValueError(f"scale must be at least 0, got {scale}")
        self.denoiser, self.schedule, self.self_conditioned = denoiser, denoiser.schedule, denoiser.self_conditioned
        self.classifier, self.scale = classifier, scale

    def forward(self, x_t: Tensor, t: Tensor, **cond: Tensor) -> Prediction:
        if "label" not in cond:
            raise ValueError("ClassifierGuided: guidance needs labels, and got none")
        label = cond.pop("label")
        prediction: Prediction = self.denoiser(x_t, t, **cond)
        kernel = self.schedule(t)
        if self.scale == 0 or not (kernel.alpha > 0).all():
            return prediction
        with torch.enable_grad():
            x = x_t.detach().requires_grad_()
            log_p = torch.log_softmax(self.classifier(x, t), 1).gather(1, label[:, None]).sum()
            gradient = torch.autograd.grad(log_p, x)[0]
        return add_score(prediction, kernel, self.scale * gradient)


def extrapolate(plain: Prediction, other: Prediction, scale: Tensor) -> Prediction:
    """other + scale (plain − other): () or (B, 1, …, 1) for scale."""
    x_0 = other.x_0 + scale * (plain.x_0 - other.x_0)
    return Prediction(x_0, other.eps + scale * (plain.eps - other.eps), plain.v)


def add_score(prediction: Prediction, kernel: Kernel, score: Tensor) -> Prediction:
    """The prediction for a distribution whose score is greater by `score`: (B, *).  Needs α > 0."""
    eps = prediction.eps - kernel.sigma * score
    return Prediction(prediction.x_0 + kernel.sigma.square() / kernel.alpha * score, eps, prediction.v)


def _inside(ratio: Tensor, low: float, high: float) -> Tensor:
    return (ratio >= low) & (ratio <= high)


def _check_interval(scale: float, low: float, high: float) -> None:
    if not scale >= 0:
        raise ValueError(f"scale must be at least 0, got {scale}")
    if not 0 <= low <= high:
        raise ValueError(f"need 0 <= sigma_min <= sigma_max, got {low} and {high}")
