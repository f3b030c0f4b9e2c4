"""Variational bound for learning the variance of the reverse step.

    log var = (1 − v) log β̃ + v log β,     β̃ = σ²_ts σ_s²/σ_t²,  β = σ²_ts,  s = t − 1/N

    L_vlb = N E_t KL(q(x_s | x_t, x_0) ‖ N(mean of (x_t, x̂_0), var)),  and at t = 1/N  −log p(x_0 | x_t)

in bits per dimension.  In the hybrid loss x̂_0 is held fixed in it: the simple loss trains the mean, this one v.

Reference: Nichol & Dhariwal, arXiv 2102.09672, Sec. 3.1, Eq. 15–16.
"""

import math

import torch
from torch import Tensor

from ..denoisers import Prediction
from ..likelihood import decoder_nll
from ..schedules import Schedule, gaussian_kl, interpolate_variance, posterior, transition
from ..tensors import Recorded, mean_data


class VarianceBound(Recorded):
    """λ L_vlb of each example, to be added to the simple loss.

    Args:
        steps: N of the chain; None: the schedule's, 1,000 where it has none.  The training times are to be those of its
            grid (GridTimes).
        weight: λ.
        levels: of the data in [−1, 1], 256 for 8-bit images: the last step counts the probability of their level;
            None: the density.
        mean: let the bound train the mean too: with weight 1 and no other loss, the objective L_vlb.
    """

    def __init__(
        self, steps: int | None = None, weight: float = 0.001, levels: int | None = None, mean: bool = False
    ) -> None:
        if steps is not None and steps < 2:
            raise ValueError(f"VarianceBound: steps must be at least 2, got {steps}")
        if not weight > 0:
            raise ValueError(f"VarianceBound: weight must be positive, got {weight}")
        if levels is not None and levels < 2:
            raise ValueError(f"VarianceBound: levels must be at least 2, got {levels}")
        self.steps, self.weight, self.levels, self.mean = steps, weight, levels, mean

    def __call__(self, schedule: Schedule, x_0: Tensor, x_t: Tensor, t: Tensor, prediction: Prediction) -> Tensor:
        """λ N × the term of t, in bits per dimension: (B,).

        Args:
            schedule: of the denoiser.
            x_0, x_t: (B, *).
            t: (B, 1, …, 1), multiples of 1/N.
            prediction: at x_t; its v is differentiated, and with `mean` its x_0.
        """
        if prediction.v is None:
            raise ValueError("VarianceBound: the network predicts no variance. Fix: set its learned_variance to true")
        steps = schedule.chain_steps(self.steps, "VarianceBound", default=1000)
        first = t * steps < 1.5
        # The first step has β̃ = 0; that of the second stands in for it (Nichol & Dhariwal's clipping).
        end = torch.where(first, t + 1 / steps, t)
        at_s, at_t = schedule(end - 1 / steps), schedule(end)
        exact = posterior(at_s, at_t)
        large = torch.where(first, schedule(t).sigma.square(), transition(at_s, at_t).sigma_sq)
        var = interpolate_variance(prediction.v, exact.var, large)
        x_0_hat = prediction.x_0 if self.mean else prediction.x_0.detach()
        mean, guess = (exact.from_t * x_t + exact.from_0 * x for x in (x_0, x_0_hat))
        nats = torch.where(first, self._decoder(x_0, x_0_hat, var), gaussian_kl(mean, exact.var, guess, var))
        return self.weight * steps / math.log(2) * mean_data(nats)

    def _decoder(self, x_0: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        """−log p(x_0 | x_t) in nats, elementwise."""
        nats = decoder_nll(x_0, mean, torch.sqrt(var), self.levels)
        # A level less likely than 1e-12 says no more of v (Nichol & Dhariwal's code).
        return nats if self.levels is None else nats.clamp(max=12 * math.log(10))
