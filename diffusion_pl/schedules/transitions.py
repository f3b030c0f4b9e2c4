"""The chain between two times s < t of one schedule, and the KL divergence of Gaussians.

    q(x_t | x_s)      = N(α_ts x_s, σ²_ts I)         α_ts = α_t/α_s,   σ²_ts = −σ_t² expm1(λ_t − λ_s)
    q(x_s | x_t, x_0) = N(α_ts σ_s²/σ_t² x_t + α_s σ²_ts/σ_t² x_0,  σ²_ts σ_s²/σ_t² I)

On the grid i/N of a beta schedule: σ²_ts = β_i, the posterior variance is β̃_i and the two coefficients are DDPM's.

Reference: Kingma et al., arXiv 2107.00630, App. A; Ho et al., arXiv 2006.11239, Eq. 6–7.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .base import Kernel


class Transition(NamedTuple):
    """q(x_t | x_s) = N(alpha x_s, sigma_sq I)."""

    alpha: Tensor
    sigma_sq: Tensor


class Posterior(NamedTuple):
    """q(x_s | x_t, x_0) = N(from_t x_t + from_0 x_0, var I)."""

    from_t: Tensor
    from_0: Tensor
    var: Tensor


def transition(at_s: Kernel, at_t: Kernel) -> Transition:
    """Forward kernel from s to t > s.

    Args:
        at_s, at_t: the schedule's kernels at both times, shapes that broadcast.
    """
    return Transition(at_t.alpha / at_s.alpha, -at_t.sigma.square() * torch.expm1(at_t.logsnr - at_s.logsnr))


def posterior(at_s: Kernel, at_t: Kernel) -> Posterior:
    """Reverse kernel from t to s < t when x_0 is known.

    Args:
        at_s, at_t: the schedule's kernels at both times, shapes that broadcast.
    """
    gain = -torch.expm1(at_t.logsnr - at_s.logsnr)  # σ²_ts/σ_t², in (0, 1]
    from_t = at_t.alpha / at_s.alpha * (at_s.sigma / at_t.sigma).square()
    return Posterior(from_t, at_s.alpha * gain, at_s.sigma.square() * gain)


def gaussian_kl(mean_1: Tensor, var_1: Tensor, mean_2: Tensor, var_2: Tensor) -> Tensor:
    """KL(N(mean_1, var_1) ‖ N(mean_2, var_2)) in nats, elementwise."""
    ratio = var_1 / var_2
    # x − 1 − log x, accurate where the variances agree.
    return 0.5 * (ratio - 1 - torch.log1p(ratio - 1) + (mean_1 - mean_2).square() / var_2)


def interpolate_variance(v: Tensor, small: Tensor, large: Tensor) -> Tensor:
    """β̃^{1−v} β^v: (B, *), the variance that a network predicts as v (Nichol & Dhariwal, arXiv 2102.09672, Eq. 15)."""
    return torch.exp((1 - v) * torch.log(small) + v * torch.log(large))
