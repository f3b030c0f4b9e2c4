"""Denoiser: the interface of a model for samplers, likelihood and guidance.

D(x_t, t) = (x̂_0, ε̂)   with   x̂_0 = E[x_0 | x_t],   α x̂_0 + σ ε̂ = x_t

A flow map also takes the time to go to, r ≤ t:  D(x_t, t, r) = (X, E)  with  α_t X + σ_t E = x_t, and
x_r = α_r X + σ_r E  is the exact solution of the probability-flow ODE.  D(x_t, t, t) = D(x_t, t).
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn

from ..conditions import Conditions
from ..schedules import Schedule
from ..tensors import Recorded
from .parameterizations import Prediction


class Denoiser(Recorded, nn.Module, ABC):
    """Anything that estimates x_0 from x_t: a trained network, a wrapper that guides one, a closed form.

    Attributes:
        schedule: the noise schedule of its x_t.
        self_conditioned: whether it takes its own last estimate as the condition x_0_hat.
        flow_map: whether it takes a target time r, shaped like t, and is then a flow map.
    """

    schedule: Schedule
    self_conditioned: bool = False
    flow_map: bool = False

    @abstractmethod
    def forward(self, x_t: Tensor, t: Tensor, **cond: Tensor) -> Prediction:
        """(x̂_0, ε̂), both (B, *).

        Args:
            x_t: (B, *).
            t: () or (B, 1, …, 1).
            cond: what the network is conditioned on, (B,) or (B, *) each; of a flow map also r, at most t.
        """

    def check_data(self, shape: Sequence[int], conditions: Conditions) -> None:
        """Raise ValueError if it is known not to be a model of examples of this shape, with these conditions."""


def check_time(x_t: Tensor, t: Tensor) -> None:
    """Raise ValueError unless t is () within [0, 1] or (B, 1, …, 1) for x_t: (B, *)."""
    if t.ndim == 0:
        if t.device.type == "cpu" and not 0 <= t <= 1:  # on an accelerator the check would wait for it
            raise ValueError(f"t must be in [0, 1], got {t.item()}")
    elif t.shape != (x_t.shape[0], *[1] * (x_t.ndim - 1)):
        raise ValueError(f"t must be () or (B, 1, …, 1) for x_t of shape {tuple(x_t.shape)}, got {tuple(t.shape)}")


def check_target(denoiser: Denoiser, t: Tensor, r: Tensor) -> None:
    """Raise ValueError unless the denoiser is a flow map and r is shaped like t, and not later."""
    if not denoiser.flow_map:
        raise ValueError(
            "the model takes no target time r: its network has no input for it. Fix: set model.network's flow_map to "
            "true and train it with FlowMapLoss"
        )
    if r.shape != t.shape:
        raise ValueError(f"r must be of the shape of t, {tuple(t.shape)}, got {tuple(r.shape)}")
    if r.ndim == 0 and r.device.type == "cpu" and not 0 <= r <= t:
        raise ValueError(f"r must be in [0, t], got r = {r.item():.4g} and t = {t.item():.4g}")
