"""The training loss  E_{t, x_0, ε}  w(t) ‖x̂_0 − x_0‖² = w(t) c_out² ‖F − F*‖²,  taken in the network's output space.

In that space the factor w c_out² is tame at small σ (it is 1 for the simple ε-loss), where w alone is huge and the
error of x_0 tiny.

Reference: Ho et al., arXiv 2006.11239, Eq. 14; Karras et al., arXiv 2206.00364, Eq. 8.
"""

import torch
from torch import Tensor, nn

from ..denoisers import NetworkDenoiser
from ..tensors import Recorded, mean_data
from .base import Losses
from .couplings import Coupling
from .learned_variance import VarianceBound
from .timesteps import TimeSampler
from .weightings import Weighting


class DenoisingLoss(Recorded, nn.Module):
    """Weighted denoising loss.

    Args:
        times: law of t.
        weighting: w(t); None: no such loss, `variance` alone teaches mean and variance.
        coupling: pairs noise with examples; None: independently.
        times_per_sample: K, how many (t, ε) each example of a batch is shown with; the expected loss is the same for
            any K.  Where examples are few or dear to load, it buys a larger batch.
        label_dropout: probability with which an example's label is withheld (label −1), so that the network also learns
            the estimate without, for classifier-free guidance (Ho & Salimans, arXiv 2207.12598: 0.1 to 0.2).
        variance: adds the bound that teaches a network of learned variance; None: nothing.

    A network with self_condition gets, in half of the steps, its own estimate of x_0 from a first, untrained pass
    (Chen et al., arXiv 2208.04202, Alg. 1).
    """

    def __init__(
        self,
        times: TimeSampler,
        weighting: Weighting | None,
        coupling: Coupling | None = None,
        times_per_sample: int = 1,
        label_dropout: float = 0.0,
        variance: VarianceBound | None = None,
    ) -> None:
        super().__init__()
        if times_per_sample < 1:
            raise ValueError(f"DenoisingLoss: times_per_sample must be at least 1, got {times_per_sample}")
        if not 0 <= label_dropout < 1:
            raise ValueError(f"DenoisingLoss: label_dropout must be in [0, 1), got {label_dropout}")
        if weighting is None and (variance is None or not variance.mean):
            raise ValueError("DenoisingLoss: without a weighting the mean is taught by VarianceBound with mean: true")
        self.times, self.weighting, self.coupling, self.variance = times, weighting, coupling, variance
        self.times_per_sample, self.label_dropout = times_per_sample, label_dropout

    def forward(
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
        x_t = kernel.alpha * x_0 + kernel.sigma * eps
        cond = self._withheld(cond, generator)
        if denoiser.self_conditioned and _coin(0.5, 1, x_0.device, generator):
            with torch.no_grad():
                cond["x_0_hat"] = denoiser(x_t, t, **cond).x_0
        output, v = denoiser.raw(x_t, t, kernel, **cond)
        loss = torch.zeros_like(t.flatten())
        if self.weighting is not None:
            error = output - denoiser.parameterization.target(kernel, x_0, eps)
            c_out = denoiser.parameterization.c_out(kernel)
            weight = self.weighting(denoiser.schedule, t, kernel, c_out) * c_out.square()
            loss = mean_data(weight * error.square())
        if self.variance is not None:
            prediction = denoiser.parameterization.predict(kernel, x_t, output)._replace(v=v)
            loss = loss + self.variance(denoiser.schedule, x_0, x_t, t, prediction)
        if denoiser.training:
            self.times.learn(t.flatten(), loss.detach())
        return Losses(importance.flatten() * loss if isinstance(importance, Tensor) else importance * loss, t.flatten())

    def _withheld(self, cond: dict[str, Tensor], generator: torch.Generator | None) -> dict[str, Tensor]:
        """The conditions, some labels of which are −1."""
        label = cond.get("label")
        if label is None or self.label_dropout == 0:
            return cond
        dropped = _coin(self.label_dropout, len(label), label.device, generator)
        return {**cond, "label": torch.where(dropped, torch.full_like(label, -1), label)}


def _coin(probability: float, n: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
    return torch.rand(n, device=device, generator=generator) < probability
