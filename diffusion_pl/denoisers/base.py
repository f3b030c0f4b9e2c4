"""Denoiser: the interface of a model for samplers, likelihood and guidance.

D(x_t, t) = (x̂_0, ε̂)   with   x̂_0 = E[x_0 | x_t],   α x̂_0 + σ ε̂ = x_t
"""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from ..schedules import Schedule
from ..tensors import Recorded
from .parameterizations import Prediction


class Denoiser(Recorded, nn.Module, ABC):
    """Anything that estimates x_0 from x_t: a trained network, a wrapper that guides one, a closed form.

    Attributes:
        schedule: the noise schedule of its x_t.
        self_conditioned: whether it takes its own last estimate as the condition x_0_hat.
    """

    schedule: Schedule
    self_conditioned: bool = False

    @abstractmethod
    def forward(self, x_t: Tensor, t: Tensor, **cond: Tensor) -> Prediction:
        """(x̂_0, ε̂), both (B, *).

        Args:
            x_t: (B, *).
            t: () or (B, 1, …, 1).
            cond: what the network is conditioned on, (B,) or (B, *) each.
        """


def check_time(x_t: Tensor, t: Tensor) -> None:
    """Raise ValueError unless t is () within [0, 1] or (B, 1, …, 1) for x_t: (B, *)."""
    if t.ndim == 0:
        if t.device.type == "cpu" and not 0 <= t <= 1:  # on an accelerator the check would wait for it
            raise ValueError(f"t must be in [0, 1], got {t.item()}")
    elif t.shape != (x_t.shape[0], *[1] * (x_t.ndim - 1)):
        raise ValueError(f"t must be () or (B, 1, …, 1) for x_t of shape {tuple(x_t.shape)}, got {tuple(t.shape)}")
