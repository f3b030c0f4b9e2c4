"""LearnedLogSNR: variance preserving, λ = −γ(t) with γ learned,  α² = sigmoid(λ),  σ² = sigmoid(−λ).

    λ(t) = λ_max − (λ_max − λ_min) s(t),   s(t) = (m(t) − m(0)) / (m(1) − m(0)),
    m(t) = t + 1/K Σ_k |w_k| sigmoid(|u_k| (2t − 1) + b_k)

Both ends and the shape s between them are parameters; m has positive weights only, so λ always falls.

Reference: Kingma et al., "Variational diffusion models", arXiv 2107.00630, App. H.
"""

import torch
from torch import Tensor, nn

from .base import Kernel, Schedule, check
from .linear_logsnr import LinearLogSNR


class LearnedLogSNR(Schedule):
    """A noise schedule that is trained together with the network, by `losses.BoundLoss`.

    The same t means another noise level after every step: ``noise_input`` should be LogSNR.

    Args:
        logsnr_max: λ(0) at the start of training.
        logsnr_min: λ(1) at the start of training.
        features: K of the shape; 0: s(t) = t, the ends alone are learned, as VDM's published configurations do.
    """

    def __init__(self, logsnr_max: float = 13.3, logsnr_min: float = -5.0, features: int = 0) -> None:
        super().__init__()
        LinearLogSNR(logsnr_max, logsnr_min)  # raises for ends that are none
        check(features >= 0, f"LearnedLogSNR: features must be at least 0, got {features}")
        self.start, self.fall = (nn.Parameter(torch.tensor(v)) for v in (logsnr_max, logsnr_max - logsnr_min))
        self.features = features
        if features:
            # Steps spread over [0, 1], small at first.
            generator = torch.Generator().manual_seed(0)
            slopes = 4 + 4 * torch.rand(features, generator=generator)
            self.slopes = nn.Parameter(slopes)
            self.offsets = nn.Parameter(slopes * torch.linspace(-1, 1, features))
            self.weights = nn.Parameter(torch.full((features,), 0.01))

    @property
    def shape_parameters(self) -> tuple[str, ...]:
        """Names of the parameters that change λ between its ends alone."""
        return ("slopes", "offsets", "weights") if self.features else ()

    def forward(self, t: Tensor) -> Kernel:
        shape, rate = self._shape(t)
        speed = self.fall.abs().to(t.dtype)
        logsnr, d_logsnr = self.start.to(t.dtype) - speed * shape, -speed * rate
        alpha, sigma = torch.sigmoid(logsnr).sqrt(), torch.sigmoid(-logsnr).sqrt()
        return Kernel(alpha, sigma, 0.5 * d_logsnr * alpha * sigma**2, -0.5 * d_logsnr * sigma * alpha**2)

    def _shape(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """s and ds/dt, shaped like t."""
        if not self.features:
            return t, torch.ones_like(t)
        ends = torch.stack([torch.zeros_like(t), t, torch.ones_like(t)])
        slopes, weights = self.slopes.abs().to(t.dtype), self.weights.abs().to(t.dtype) / self.features
        steps = torch.sigmoid(slopes * (2 * ends[..., None] - 1) + self.offsets.to(t.dtype))
        first, middle, last = (ends + (weights * steps).sum(-1)).unbind(0)
        at_t = steps[1]
        rate = 1 + (2 * slopes * weights * at_t * (1 - at_t)).sum(-1)
        return (middle - first) / (last - first), rate / (last - first)
