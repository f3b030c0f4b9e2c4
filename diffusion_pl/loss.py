"""The training loss  E_{t, x_0, ε}  w(t) ‖x̂_0 − x_0‖² = w(t) c_out² ‖F − F*‖²,  taken in the network's output space.

In that space the factor w c_out² is tame at small σ (it is 1 for the simple ε-loss), where w alone is huge and the
error of x_0 tiny.

Reference: Ho et al., arXiv 2006.11239, Eq. 14; Karras et al., arXiv 2206.00364, Eq. 8.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .couplings import Coupling
from .denoiser import NetworkDenoiser
from .tensors import mean_data
from .times import TimeSampler
from .weightings import Weighting


class Losses(NamedTuple):
    """Loss of each (example, time), mean over the data axes: (K B,); and its time: (K B,)."""

    loss: Tensor
    t: Tensor


class DenoisingLoss:
    """Weighted denoising loss.

    Args:
        times: law of t.
        weighting: w(t).
        coupling: pairs noise with examples; None: independently.
        times_per_sample: K, how many (t, ε) each example of a batch is shown with; the expected loss is the same for
            any K.  Where examples are few or dear to load, it buys a larger batch.
    """

    def __init__(
        self,
        times: TimeSampler,
        weighting: Weighting,
        coupling: Coupling | None = None,
        times_per_sample: int = 1,
    ) -> None:
        if times_per_sample < 1:
            raise ValueError(f"DenoisingLoss: times_per_sample must be at least 1, got {times_per_sample}")
        self.times, self.weighting, self.coupling = times, weighting, coupling
        self.times_per_sample = times_per_sample

    def __call__(
        self, denoiser: NetworkDenoiser, x_0: Tensor, generator: torch.Generator | None = None, **cond: Tensor
    ) -> Losses:
        """Losses of a batch.

        Args:
            denoiser: in training.
            x_0: (B, *).
            generator: of t and ε; None: torch's global one.
            cond: handed to the network.
        """
        if self.times_per_sample > 1:
            # Whole copies one after the other, so that stratified times spread over each of them.
            x_0 = torch.cat([x_0] * self.times_per_sample)
            cond = {name: torch.cat([value] * self.times_per_sample) for name, value in cond.items()}
        t, importance = self.times(denoiser.schedule, x_0, generator)
        eps = torch.randn(x_0.shape, dtype=x_0.dtype, device=x_0.device, generator=generator)
        if self.coupling is not None:
            eps = self.coupling(x_0, eps)
        kernel = denoiser.schedule(t)
        output = denoiser.raw(kernel.alpha * x_0 + kernel.sigma * eps, t, kernel, **cond)
        error = output - denoiser.parameterization.target(kernel, x_0, eps)
        weight = importance * self.weighting(denoiser.schedule, t, kernel)
        weight = weight * denoiser.parameterization.c_out(kernel).square()
        return Losses(mean_data(weight * error.square()), t.flatten())
