"""The training loss  E_{t, x_0, ε}  w(t) ‖x̂_0 − x_0‖² = w(t) c_out² ‖F − F*‖²,  taken in the network's output space.

In that space the factor w c_out² is of order one at small σ (it is 1 for the simple ε-loss), where w alone is huge and
the error of x_0 tiny.

Reference: Ho et al., arXiv 2006.11239, Eq. 14; Karras et al., arXiv 2206.00364, Eq. 8.
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.nn import functional as F

from ..conditions import Conditions
from ..denoisers import NetworkDenoiser, Prediction
from ..schedules import Kernel
from ..tensors import mean_data
from .alignment import Alignment
from .base import Loss, Losses
from .couplings import Coupling
from .dropout import check_dropout, check_dropped, coin, dropped
from .jumps import velocity
from .learned_variance import VarianceBound
from .timesteps import TimeSampler
from .uncertainty import Uncertainty
from .weightings import Weighting


class DenoisingLoss(Loss):
    """Weighted denoising loss.

    Args:
        times: distribution of t.
        weighting: w(t); None: no such loss, `variance` alone teaches mean and variance.
        coupling: pairs noise with examples; None: independently.
        times_per_sample: K, how many (t, ε) each example of a batch is shown with; the expected loss is the same for
            any K.  Where examples are few or slow to load, it gives a larger batch.
        dropout: {condition: probability that an example's value is replaced by its null}, so that the network also
            learns the estimate without it, for classifier-free guidance (Ho & Salimans, arXiv 2207.12598: label 0.1 to
            0.2); each is drawn by itself.  None: no condition is dropped.
        variance: adds the bound that teaches a network of learned variance; None: nothing.
        cosine: factor of an added 1 − cos of the angle between the velocities dx/dt of the estimate and of the pair,
            over the channels, mean over places (Yao et al., arXiv 2501.01423, Sec. 4: 1); 0: nothing.
        alignment: adds the alignment of a hidden layer with features of an image encoder, in training; None: nothing.
        uncertainty: a learned weight by noise level, L/e^u + u for the weighted loss L; None: none.

    A network with self_condition gets, in half of the steps, its own estimate of x_0 from a first, untrained pass
    (Chen et al., arXiv 2208.04202, Alg. 1).
    """

    def __init__(
        self,
        times: TimeSampler,
        weighting: Weighting | None,
        coupling: Coupling | None = None,
        times_per_sample: int = 1,
        dropout: dict[str, float] | None = None,
        variance: VarianceBound | None = None,
        cosine: float = 0.0,
        alignment: Alignment | None = None,
        uncertainty: Uncertainty | None = None,
    ) -> None:
        super().__init__()
        if times_per_sample < 1:
            raise ValueError(f"DenoisingLoss: times_per_sample must be at least 1, got {times_per_sample}")
        check_dropout("DenoisingLoss", dropout or {})
        if weighting is None and (variance is None or not variance.mean):
            raise ValueError(
                "DenoisingLoss: without a weighting the mean is taught by VarianceBound. Fix: set its mean to true"
            )
        if not 0 <= cosine < math.inf:
            raise ValueError(f"DenoisingLoss: cosine must be at least 0 and finite, got {cosine}")
        if alignment is not None and coupling is not None:
            raise ValueError("DenoisingLoss: alignment and coupling exclude each other. Fix: remove one of them")
        self.cosine, self.alignment, self.sees_images = cosine, alignment, alignment is not None
        if weighting is None and uncertainty is not None:
            raise ValueError(
                "DenoisingLoss: uncertainty weighs the weighted loss. Fix: give a weighting, such as Plain"
            )
        self.times, self.weighting, self.coupling, self.variance = times, weighting, coupling, variance
        self.uncertainty = uncertainty
        self.times_per_sample, self.dropout = times_per_sample, dict(dropout or {})

    def check(self, denoiser: NetworkDenoiser, shape: Sequence[int], conditions: Conditions) -> None:
        check_dropped(self.dropout, conditions)
        if self.alignment is not None:
            self.alignment.check(denoiser.network)

    def forward(
        self,
        denoiser: NetworkDenoiser,
        x_0: Tensor,
        cond: Mapping[str, Tensor] | None = None,
        generator: torch.Generator | None = None,
        observed: Tensor | None = None,
        images: Tensor | None = None,
    ) -> Losses:
        cond = dict(cond or {})
        if self.times_per_sample > 1:
            # Whole copies one after the other, so that stratified times spread over each of them.
            x_0 = torch.cat([x_0] * self.times_per_sample)
            cond = {name: torch.cat([value] * self.times_per_sample) for name, value in cond.items()}
            observed = None if observed is None else torch.cat([observed] * self.times_per_sample)
        t, importance = self.times(denoiser.schedule, x_0, generator)
        eps = torch.randn(x_0.shape, dtype=x_0.dtype, device=x_0.device, generator=generator)
        if self.coupling is not None:
            x_0, eps = self.coupling(x_0, eps, cond)
        kernel = denoiser.schedule(t)
        x_t = kernel.alpha * x_0 + kernel.sigma * eps
        cond = dropped(self.dropout, cond, generator)
        if denoiser.self_conditioned and coin(0.5, 1, x_0.device, generator):
            with torch.no_grad():
                cond["x_0_hat"] = denoiser(x_t, t, **cond).x_0
        aligned = self.alignment if denoiser.training else None
        listening: AbstractContextManager[list[Tensor]] = nullcontext([])
        if aligned is not None:
            listening = aligned.listen(denoiser.network)
        with listening as hidden:
            output, v = denoiser.raw(x_t, t, kernel, **cond)
        loss = torch.zeros_like(t.flatten())
        if self.weighting is not None:
            error = output - denoiser.parameterization.target(kernel, x_0, eps)
            c_out = denoiser.parameterization.c_out(kernel)
            weight = self.weighting(denoiser.schedule, t, kernel, c_out) * c_out.square()
            loss = mean_data(weight * error.square(), observed)
        if self.uncertainty is not None:
            u = self.uncertainty(t.flatten())
            loss = loss / u.exp() + u
        if self.cosine:
            prediction = denoiser.parameterization.predict(kernel, x_t, output)
            loss = loss + self.cosine * _angle(kernel, prediction, (x_0, eps), observed)
        if self.variance is not None:
            if observed is not None:
                raise ValueError("VarianceBound counts all values of an example: take it out, or fill missing values")
            prediction = denoiser.parameterization.predict(kernel, x_t, output)._replace(v=v)
            loss = loss + self.variance(denoiser.schedule, x_0, x_t, t, prediction)
        if denoiser.training:
            self.times.learn(t.flatten(), loss.detach())
        if aligned is not None:
            if images is None:
                raise ValueError("DenoisingLoss: alignment needs images: (B, C, H, W) in [-1, 1], and got none")
            loss = loss + aligned(hidden, images, denoiser.network)
        return Losses(importance.flatten() * loss if isinstance(importance, Tensor) else importance * loss, t.flatten())


def _angle(kernel: Kernel, prediction: Prediction, pair: tuple[Tensor, Tensor], observed: Tensor | None) -> Tensor:
    """1 − cos of the angle between dx/dt of an estimate and of a pair (x_0, ε), over the channels: (B,)."""
    if observed is not None:
        raise ValueError("DenoisingLoss: cosine counts all channels. Fix: set it to 0, or fill missing values")
    cosine = F.cosine_similarity(velocity(kernel, prediction), velocity(kernel, pair), dim=1)
    return 1 - cosine.flatten(1).mean(1) if cosine.ndim > 1 else 1 - cosine
