"""Denoisers in closed form, to verify samplers, likelihoods and vector fields.

For x_0 ~ N(μ, C):   x̂_0 = μ + αC (α²C + σ²I)⁻¹ (x_t − αμ)
For a mixture:       x̂_0 = Σ_k r_k x̂_0^{(k)},   r_k ∝ w_k N(x_t; αμ_k, α²s_k² + σ²)

Given y, of (x_0, y) ~ N jointly:  x_0 ~ N(μ_x + K (y − μ_y), C_xx − K C_yx),   K = C_xy C_yy⁻¹

A mixture with s = 0 is the empirical distribution of the points μ_k: its x̂_0 is the exact posterior mean that a network
trained on those points approximates, and its field draws samples back onto them.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..conditions import Conditions
from ..ode import check_tolerance, solve
from ..schedules import Schedule
from ..tensors import per_sample
from .base import Denoiser, check_time
from .parameterizations import Prediction

_LAST = 1e-6  # time up to which `ExactMap` solves the ODE


class Gaussian(Denoiser):
    """x_0 ~ N(mean, cov).

    Args:
        schedule: the noise schedule.
        mean: (D,).
        cov: (D, D), symmetric, positive semi-definite.
    """

    def __init__(self, schedule: Schedule, mean: Tensor, cov: Tensor) -> None:
        super().__init__()
        if cov.shape != (len(mean), len(mean)):
            raise ValueError(f"mean of {len(mean)} needs a {len(mean)}x{len(mean)} covariance, got {tuple(cov.shape)}")
        if not torch.allclose(cov, cov.T):
            raise ValueError(f"cov must be symmetric, got {cov.tolist()}")
        self.schedule, self.mean = schedule, mean
        self.var, self.axes = torch.linalg.eigh(cov)
        if self.var[0] < -1e-6 * self.var[-1].abs():
            raise ValueError(f"cov must be positive semi-definite, got the eigenvalue {self.var[0].item()}")

    def forward(self, x_t: Tensor, t: Tensor, **cond: Tensor) -> Prediction:
        check_time(x_t, t)
        alpha, sigma, *_ = self.schedule(t)
        var_t = alpha.square() * self.var + sigma.square()  # of x_t along each axis
        centred = (x_t - alpha * self.mean) @ self.axes
        x_0 = self.mean + (alpha * self.var / var_t * centred) @ self.axes.T
        # ε̂ = σ (α²C + σ²I)⁻¹ (x_t − αμ): nothing is divided by σ or α.
        return Prediction(x_0, (sigma / var_t * centred) @ self.axes.T)


class GaussianMap(Gaussian):
    """The exact flow map of x_0 ~ N(mean, cov): along each axis of variance c,

        x_r − α_r μ = (s_r/s_t) (x_t − α_t μ),   s² = α²c + σ²

    Args:
        schedule: the noise schedule.
        mean: (D,).
        cov: (D, D), symmetric, positive semi-definite.
    """

    flow_map = True

    def forward(self, x_t: Tensor, t: Tensor, r: Tensor | None = None, **cond: Tensor) -> Prediction:
        check_time(x_t, t)
        (alpha, sigma, *_), at_r = self.schedule(t), self.schedule(t if r is None else r)
        s_t, s_r = ((k[0].square() * self.var + k[1].square()).sqrt() for k in ((alpha, sigma), at_r))
        centred = ((x_t - alpha * self.mean) @ self.axes) / s_t
        # The 2×2 solve for (X, E) with its determinant taken out, which is 0 at r = t.
        both, noise = alpha * at_r.sigma + sigma * at_r.alpha, at_r.sigma * s_t + sigma * s_r
        gain = torch.where(noise > 0, self.var * both / torch.where(noise > 0, noise, 1.0), self.var.sqrt())
        x_0 = self.mean + (gain * centred) @ self.axes.T
        signal = alpha * s_r + at_r.alpha * s_t  # 0 where neither end has any: all is noise there
        gain = torch.where(signal > 0, both / torch.where(signal > 0, signal, 1.0), 1.0)
        return Prediction(x_0, (gain * centred) @ self.axes.T)


class ExactMap(Denoiser):
    """The flow map of any denoiser, by its probability-flow ODE: slow, and exact to the tolerance.

    Args:
        denoiser: whose ODE is solved.
        tolerance: of a step, absolute and relative.
    """

    flow_map = True

    def __init__(self, denoiser: Denoiser, tolerance: float = 1e-8) -> None:
        super().__init__()
        check_tolerance(tolerance, tolerance, 5)
        self.denoiser, self.schedule, self.tolerance = denoiser, denoiser.schedule, tolerance

    def end(self, x_t: Tensor, t: Tensor, r: Tensor, **cond: Tensor) -> Tensor:
        """x_r: (B, *)."""
        t, r = (per_sample(time.expand(len(x_t), *time.shape[1:]).double(), x_t) for time in (t, r))
        # At t = 0 the velocity may be infinite, as that of VP, or 0/0, as that of points: the rest is a step of DDIM.
        last = torch.minimum(r.clamp(min=_LAST), t)

        def field(state: tuple[Tensor, ...], share: Tensor) -> tuple[Tensor, ...]:
            now = t + per_sample(share, x_t) * (last - t)
            kernel, prediction = self.schedule(now), self.denoiser(state[0], now.to(x_t), **cond)
            velocity = kernel.d_alpha * prediction.x_0 + kernel.d_sigma * prediction.eps
            return ((velocity * (last - t)).to(x_t),)

        x = solve(field, (x_t,), 0.0, 1.0, self.tolerance, self.tolerance, max_steps=10_000).y[0]
        if bool((last == r).all()):
            return x
        at_r, prediction = self.schedule(r), self.denoiser(x, last.to(x), **cond)
        return torch.where(last == r, x, (at_r.alpha * prediction.x_0 + at_r.sigma * prediction.eps).to(x))

    def forward(self, x_t: Tensor, t: Tensor, r: Tensor | None = None, **cond: Tensor) -> Prediction:
        check_time(x_t, t)
        plain: Prediction = self.denoiser(x_t, t, **cond)
        if r is None or bool((r == t).all()):
            return plain
        at_t, at_r = self.schedule(t), self.schedule(r)
        x_r = self.end(x_t, t, r, **cond)
        det = at_t.alpha * at_r.sigma - at_t.sigma * at_r.alpha
        distinct = det != 0
        det = torch.where(distinct, det, 1.0)
        x_0 = (at_r.sigma * x_t - at_t.sigma * x_r) / det
        eps = (at_t.alpha * x_r - at_r.alpha * x_t) / det
        return Prediction(torch.where(distinct, x_0, plain.x_0), torch.where(distinct, eps, plain.eps))


class GaussianMixture(Denoiser):
    """x_0 ~ Σ_k weights_k N(means_k, stds_k² I).

    Args:
        schedule: the noise schedule.
        means: (K, D).
        stds: (K,) or one number; 0: point masses.
        weights: (K,), any positive numbers; None: equal.
    """

    def __init__(
        self, schedule: Schedule, means: Tensor, stds: Tensor | float = 0.0, weights: Sequence[float] | None = None
    ) -> None:
        super().__init__()
        if means.ndim != 2 or len(means) == 0:
            raise ValueError(f"means must be (K, D) with K > 0, got {tuple(means.shape)}")
        self.schedule, self.means = schedule, means
        stds = torch.as_tensor(stds, dtype=means.dtype, device=means.device)
        if not (stds >= 0).all():
            raise ValueError(f"stds must be at least 0, got {stds.tolist()}")
        self.var = stds.square().expand(len(means))
        weights = [1.0] * len(means) if weights is None else weights
        if len(weights) != len(means):
            raise ValueError(f"{len(means)} means need {len(means)} weights, got {len(weights)}")
        if not all(0 < w < float("inf") for w in weights):
            raise ValueError(f"weights must be positive numbers, got {list(weights)}")
        share = torch.as_tensor(weights, dtype=means.dtype, device=means.device)
        self.log_weights = torch.log(share / share.sum())

    def forward(self, x_t: Tensor, t: Tensor, **cond: Tensor) -> Prediction:
        check_time(x_t, t)
        alpha, sigma, *_ = self.schedule(t)
        var_t = (alpha.square() * self.var + sigma.square()).expand(len(x_t), -1)  # (B, K)
        centred = x_t[:, None, :] - (alpha * self.means if t.ndim == 0 else alpha[:, :, None] * self.means)  # (B, K, D)
        # Differences are squared, never expanded: |x|² − 2xμ + |μ|² loses all digits at small σ.
        distance = centred.square().sum(-1)
        log_r = self.log_weights - 0.5 * distance / var_t - 0.5 * x_t.shape[1] * torch.log(var_t)
        r = torch.softmax(log_r, dim=1)
        gain = alpha * self.var / var_t  # (B, K)
        x_0 = r @ self.means + torch.einsum("bk,bkd->bd", r * gain, centred)
        eps = torch.einsum("bk,bkd->bd", r * (sigma / var_t), centred)
        return Prediction(x_0, eps)


class JointGaussian(Denoiser):
    """(x_0, y) ~ N(mean, cov) jointly: the exact posterior mean given the conditions y, in part or as a whole.

    What is NaN in y is not known, and integrated out: a whole condition, a token, a pixel.  A condition NAME_noise, of
    shape (1,), is the standard deviation of noise in the condition NAME: that is  y + s ε  (noise augmentation).

    Reference: Bishop, "Pattern Recognition and Machine Learning" (2006), Eq. 2.81, 2.82; Ho et al., arXiv 2106.15282,
    Sec. 4 (noise augmentation).

    Args:
        schedule: the noise schedule.
        mean: (D + E,), of x_0, flat, and then of the conditions, each flat, in their order.
        cov: (D + E, D + E), symmetric, positive definite.
        shape: of x_0, with D numbers.
        conditions: no labels, with E numbers but for the noise levels.
    """

    def __init__(
        self, schedule: Schedule, mean: Tensor, cov: Tensor, shape: Sequence[int], conditions: Conditions
    ) -> None:
        super().__init__()
        self.schedule, self.conditions = schedule, dict(conditions)
        self.levels = {f"{name}_noise": name for name in conditions if f"{name}_noise" in conditions}
        sizes = [math.prod(shape), *(math.prod(c.shape) for name, c in conditions.items() if name not in self.levels)]
        if cov.shape != (len(mean), len(mean)) or len(mean) != sum(sizes):
            raise ValueError(
                f"mean of {sum(sizes)} and its covariance expected, got {tuple(mean.shape)}, {tuple(cov.shape)}"
            )
        self.mean, self.cov, self.size = mean, cov, sizes[0]

    def posterior(self, **cond: Tensor) -> tuple[Tensor, Tensor]:
        """Mean (B, D) and covariance (B, D, D) of x_0 given the conditions, (B, *shape) each."""
        names = [name for name in self.conditions if name not in self.levels]
        y = torch.cat([cond[name].flatten(1) for name in names], 1).to(self.mean)
        var = torch.cat(
            [
                cond.get(f"{name}_noise", torch.zeros(len(y), 1)).to(y).square().expand(-1, cond[name][0].numel())
                for name in names
            ],
            1,
        )
        known, d = ~y.isnan(), self.size
        # Rows of what is not known become those of the identity, uncorrelated with all else.
        both = known[:, :, None] & known[:, None, :]
        precision = torch.where(both, self.cov[d:, d:] + torch.diag_embed(var), torch.eye(y.shape[1]).to(y)).inverse()
        cross = torch.where(known[:, None, :], self.cov[:d, d:], 0.0)
        gain = cross @ precision
        centred = torch.where(known, y - self.mean[d:], 0.0)
        mean = self.mean[:d] + (gain @ centred[:, :, None])[:, :, 0]
        return mean, self.cov[:d, :d] - gain @ cross.mT

    def forward(self, x_t: Tensor, t: Tensor, **cond: Tensor) -> Prediction:
        check_time(x_t, t)
        kernel = self.schedule(t)
        alpha, sigma = (part.reshape(-1, 1) for part in (kernel.alpha, kernel.sigma))
        mean, cov = (part.to(alpha) for part in self.posterior(**cond))
        var, axes = torch.linalg.eigh(cov)
        centred = ((x_t.flatten(1).to(alpha) - alpha * mean)[:, None, :] @ axes)[:, 0]
        var_t = alpha.square() * var + sigma.square()
        x_0 = mean + (axes @ (alpha * var / var_t * centred)[:, :, None])[:, :, 0]
        eps = (axes @ (sigma / var_t * centred)[:, :, None])[:, :, 0]
        return Prediction(x_0.reshape(x_t.shape).to(x_t), eps.reshape(x_t.shape).to(x_t))


def empirical(schedule: Schedule, points: Tensor) -> GaussianMixture:
    """The closed-form denoiser of a data set: equal point masses at points (N, D)."""
    return GaussianMixture(schedule, points)
