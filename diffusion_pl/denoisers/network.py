"""The denoiser made from a network.

    F = network(c_in x_t, c_noise),   c_in = 1/√(α²σ_d² + σ²),   (x̂_0, ε̂) = parameterization.predict(F)

c_in keeps the network's input at unit variance; it is 1 for variance-preserving schedules and unit-variance data.

Given a prediction μ of x_0, the network models the residual r = x_0 − μ.  Its x_t is that of x_0 less α μ, and since F
is linear in x_0, what it lacks is p μ:

    F = network(c_in (x_t − α μ), c_noise) + p μ

so that samplers, losses and likelihoods see x_0 alone.

Reference: Karras et al., arXiv 2206.00364, Eq. 7; Mardani et al., arXiv 2309.15214 (residuals).
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..schedules import Kernel, Schedule
from ..tensors import Recorded, check_finite
from .base import Denoiser, check_target, check_time
from .parameterizations import Parameterization, Prediction


class NoiseInput(Recorded, ABC):
    """How the network gets the noise level: c_noise."""

    @abstractmethod
    def __call__(self, schedule: Schedule, t: Tensor, kernel: Kernel) -> Tensor:
        """c_noise, shaped like t; kernel is the schedule's at t."""


class StepIndex(NoiseInput):
    """c_noise = N t − 1: the index 0 … N−1 of a chain's step, which DDPM's networks get.

    Args:
        steps: N; None: the schedule's.
    """

    def __init__(self, steps: int | None = None) -> None:
        if steps is not None and steps < 1:
            raise ValueError(f"StepIndex needs at least one step, got steps={steps}")
        self.steps = steps

    def __call__(self, schedule: Schedule, t: Tensor, kernel: Kernel) -> Tensor:
        return float(schedule.chain_steps(self.steps, "StepIndex")) * t - 1.0


class ScaledTime(NoiseInput):
    """c_noise = scale t + shift; score_sde's continuous nets take scale 999, shift 0."""

    def __init__(self, scale: float = 1.0, shift: float = 0.0) -> None:
        check_finite(scale=scale, shift=shift)
        self.scale, self.shift = scale, shift

    def __call__(self, schedule: Schedule, t: Tensor, kernel: Kernel) -> Tensor:
        return self.scale * t + self.shift


class LogSNR(NoiseInput):
    """c_noise = scale λ + shift; scale = −1/8 is EDM's ¼ ln σ.  Needs a finite λ wherever the network is asked."""

    def __init__(self, scale: float = -0.125, shift: float = 0.0) -> None:
        check_finite(scale=scale, shift=shift)
        self.scale, self.shift = scale, shift

    def __call__(self, schedule: Schedule, t: Tensor, kernel: Kernel) -> Tensor:
        return self.scale * kernel.logsnr + self.shift


class NetworkDenoiser(Denoiser):
    """A network with its schedule and the meaning of its output.

    The network runs in its own precision (and under autocast, where that is on); kernel arithmetic and the prediction
    are in the precision of x_t and t, float32 or float64.

    Args:
        network: forward(x: (B, *), c_noise: (B,), **cond) -> F: (B, *); or twice the channels, the second half of which
            predicts the variance of the reverse step, v = (output + 1)/2.  With an attribute self_condition that is
            true it takes an estimate of x_0 as x_0_hat; with flow_map the length of the jump as jump: (B,), t − r.
        schedule, parameterization: see there.
        noise_input: None: c_noise = t.
        prediction: name of the condition that is a prediction of x_0, of its shape, whose residual the network models;
            where it is not given (NaN) it is 0.  None: there is none.
    """

    def __init__(
        self,
        network: nn.Module,
        schedule: Schedule,
        parameterization: Parameterization,
        noise_input: NoiseInput | None = None,
        prediction: str | None = None,
    ) -> None:
        super().__init__()
        self.network, self.schedule, self.parameterization = network, schedule, parameterization
        self.noise_input = ScaledTime() if noise_input is None else noise_input
        self.prediction = prediction
        self.self_conditioned = bool(getattr(network, "self_condition", False))
        self.flow_map = bool(getattr(network, "flow_map", False))
        # Within a tuple, so that it is not registered twice; it gives the network's type without a search at each call.
        self._first_parameter = tuple(network.parameters())[:1]

    def raw(
        self, x_t: Tensor, t: Tensor, kernel: Kernel, r: Tensor | None = None, **cond: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """F: (B, *) at (x_t, t), the space in which the loss is taken, and v: (B, *) if the network gives one.

        Args:
            x_t, t, r, cond: see `forward`.
            kernel: the schedule's at t.

        Raises:
            ValueError: t is neither () nor (B, 1, …, 1), or a scalar t outside [0, 1]; or r is given to a network that
                does not take it.
        """
        check_time(x_t, t)
        if r is not None:
            check_target(self, t, r)
            cond["jump"] = (t - r).reshape(-1).expand(x_t.shape[0]).to(x_t.device)
        if self.prediction is not None and self.prediction in cond:
            mu = cond[self.prediction].nan_to_num().to(x_t)
            residual, v = self._output(x_t - kernel.alpha * mu, t, kernel, cond)
            return residual + self.parameterization.target(kernel, mu, torch.zeros_like(mu)), v
        return self._output(x_t, t, kernel, cond)

    def _output(
        self, x_t: Tensor, t: Tensor, kernel: Kernel, cond: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor | None]:
        """What the network makes of its input: see `raw`."""
        c_in = self.parameterization.c_in(kernel)
        c_noise = self.noise_input(self.schedule, t, kernel).reshape(-1).expand(x_t.shape[0])
        dtype = self._first_parameter[0].dtype if self._first_parameter else x_t.dtype
        cond = {name: value.to(dtype) if value.is_floating_point() else value for name, value in cond.items()}
        output: Tensor = self.network((c_in * x_t).to(dtype), c_noise.to(x_t.device, dtype), **cond)
        output = output.to(x_t.dtype)
        if output.shape == x_t.shape:
            return output, None
        if output.shape == (x_t.shape[0], 2 * x_t.shape[1], *x_t.shape[2:]):
            mean, variance = output.chunk(2, dim=1)
            return mean, (variance + 1) / 2
        raise ValueError(
            f"the network makes {tuple(output.shape)} of x_t: {tuple(x_t.shape)}; it must keep the shape "
            "(or double the channels, to predict a variance)"
        )

    def forward(self, x_t: Tensor, t: Tensor, r: Tensor | None = None, **cond: Tensor) -> Prediction:
        check_time(x_t, t)  # before a table is indexed with it
        kernel = self.schedule(t)
        output, v = self.raw(x_t, t, kernel, r, **cond)
        return self.parameterization.predict(kernel, x_t, output)._replace(v=v)
