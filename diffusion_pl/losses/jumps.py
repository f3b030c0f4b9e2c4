"""A batch of jumps of a flow map in training: what the rules compute with, all without gradients.

The network is called as in the pass with gradients, with the same dropout.  Scalars of the schedule are in float64.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..denoisers import Denoiser, NetworkDenoiser, Prediction
from ..schedules import Kernel

#: F: (n, *) of x_t: (n, *), t and r: (n, 1, …, 1).
Output = Callable[[Tensor, Tensor, Tensor], Tensor]


def velocity(kernel: Kernel, prediction: Prediction | tuple[Tensor, Tensor]) -> Tensor:
    """dx/dt = α' x_0 + σ' ε: (B, *), of (x_0, ε) or a prediction."""
    x_0, eps = prediction[0], prediction[1]
    return kernel.d_alpha.to(x_0) * x_0 + kernel.d_sigma.to(eps) * eps


@dataclass(frozen=True, eq=False)
class Jumps:
    """Jumps from t to r ≤ t.

    Args:
        denoiser: in training.
        x_t, t, r: (n, *), and (n, 1, …, 1) each.
        output: F at them, from the pass with gradients, without them.
        velocity: dx/dt at (x_t, t), of the pair or the teacher: (n, *).
        diagonal: F that an ordinary denoiser of this velocity has: (n, *).
        x_0, eps: the pair: (n, *) each.
        cond: of the network.
        batches: of training so far: (), int64.
        dropout: context in which the network drops out the same as in the pass with gradients.
        teacher: None: none.
        weights: of the target network, by the names of its parameters; None: the network's own.
        differences: step in t of central differences; None: forward-mode differentiation.
    """

    denoiser: NetworkDenoiser
    x_t: Tensor
    t: Tensor
    r: Tensor
    output: Tensor
    velocity: Tensor
    diagonal: Tensor
    x_0: Tensor
    eps: Tensor
    cond: Mapping[str, Tensor]
    batches: Tensor
    dropout: "SameDropout"
    teacher: Denoiser | None = None
    weights: Mapping[str, Tensor] | None = None
    differences: float | None = None

    @cached_property
    def at_t(self) -> Kernel:
        """The schedule's kernel at t, in float64."""
        return self.denoiser.schedule(self.t.double())

    @cached_property
    def at_r(self) -> Kernel:
        """The schedule's kernel at r, in float64."""
        return self.denoiser.schedule(self.r.double())

    @property
    def noise_ratio(self) -> Tensor:
        """σ/α at t, float64: (n, 1, …, 1)."""
        return self.at_t.sigma / self.at_t.alpha

    def _map(self, x: Tensor, output: Tensor, at: Kernel, to: Kernel) -> Tensor:
        a, b = self.denoiser.parameterization.jump(at, to)
        return a.to(x) * x + b.to(x) * output

    def raw(self, x: Tensor, t: Tensor, r: Tensor) -> Tensor:
        """F: (n, *) of the target network."""
        if self.weights is None:
            return self._own(x, t, r)
        weights = {f"network.{name}": value for name, value in self.weights.items()}
        with self.dropout():
            made: Prediction = torch.func.functional_call(self.denoiser, weights, (x, t, r), dict(self.cond))
        return self.denoiser.parameterization.target(self.denoiser.schedule(t), made.x_0, made.eps)

    def _own(self, x: Tensor, t: Tensor, r: Tensor) -> Tensor:
        with self.dropout():
            output, _ = self.denoiser.raw(x, t, self.denoiser.schedule(t), r, **self.cond)
        return output

    def taught(self, x: Tensor, t: Tensor, r: Tensor) -> Tensor:
        """F of the teacher: of its flow map, or of its step of DDIM."""
        assert self.teacher is not None
        target = {"r": r} if self.teacher.flow_map else {}
        kernel = self.denoiser.schedule(t)
        prediction: Prediction = self.teacher(x, t, **target, **self.cond)
        return self.denoiser.parameterization.target(kernel, prediction.x_0, prediction.eps)

    def own_velocity(self) -> Tensor:
        """dx/dt at (x_t, t) of the model itself: (n, *)."""
        output = self._own(self.x_t, self.t, self.t)
        kernel = self.denoiser.schedule(self.t)
        return velocity(kernel, self.denoiser.parameterization.predict(kernel, self.x_t, output))

    def along_ode(self, v: Tensor) -> Tensor:
        """Derivative of F along (v, 1) in (x_t, t): (n, *)."""
        if self.differences is not None:
            # A step that would leave [r, 1] ends there: the difference is then one-sided.
            back, ahead = torch.maximum(self.t - self.differences, self.r), (self.t + self.differences).clamp(max=1)
            ends = [self._own(self.x_t + (end - self.t) * v, end, self.r) for end in (back, ahead)]
            return (ends[1] - ends[0]) / (ahead - back)
        return self._forward_mode(lambda x, t: self._own(x, t, self.r), (self.x_t, self.t), v)

    def along_target(self) -> Tensor:
        """∂F/∂r: (n, *)."""
        if self.differences is not None:
            back, ahead = (self.r - self.differences).clamp(min=0), torch.minimum(self.r + self.differences, self.t)
            ends = [self._own(self.x_t, self.t, end) for end in (back, ahead)]
            return (ends[1] - ends[0]) / (ahead - back)
        return self._forward_mode(lambda r: self._own(self.x_t, self.t, r), (self.r,))

    def _forward_mode(self, f: Callable[..., Tensor], at: tuple[Tensor, ...], *tangents: Tensor) -> Tensor:
        """Derivative of f in the direction of the tangents, and of 1 in the last argument."""
        try:
            _, change = derivative(f, at, (*tangents, torch.ones_like(at[-1])))
        except (NotImplementedError, RuntimeError) as error:
            raise ValueError(_unsupported(self.denoiser.network, f, at, error)) from error
        moved: Tensor = change.to(self.x_t)
        return moved

    def euler(self, tangent: Tensor) -> tuple[Tensor, Tensor]:
        """dM/dt along the ODE: (n, *), where dF/dt is taken along `tangent`; and c = B'/max(|b|, |B'|)²: (n, 1, …, 1).

        F − c dM/dt is the output with which dM/dt would be 0, or is on the way to it, where |B'| < |b|.
        """
        (a, b), (d_a, d_b) = self._scalars(self.t, lambda t: (self.denoiser.schedule(t), self.at_r))
        change = d_a * self.x_t + a * self.velocity + d_b * self.output + b * self.along_ode(tangent)
        return change, d_b / torch.maximum(d_b.abs(), self.slope_at_t().abs()).square()

    def slope_at_t(self) -> Tensor:
        """b = ∂B/∂t at r = t: (n, 1, …, 1)."""
        alpha, sigma, d_alpha, d_sigma = self.at_t
        p, q = self.denoiser.parameterization.coefficients(self.at_t)
        return ((d_alpha * sigma - alpha * d_sigma) / (alpha * q - sigma * p)).to(self.x_t)

    def lagrange(self) -> Tensor:
        """The output with which the jump's end moves with the velocity there, see `Lagrangian`: (n, *)."""
        (_, b), (d_a, d_b) = self._scalars(self.r, lambda r: (self.at_t, self.denoiser.schedule(r)))
        x_r = self._map(self.x_t, self.output, self.at_t, self.at_r)
        at_r = self.denoiser.schedule(self.r)
        if self.teacher is None:
            predicted = self.denoiser.parameterization.predict(at_r, x_r, self.raw(x_r, self.r, self.r))
        else:
            predicted = self.teacher(x_r, self.r, **self.cond)
        arriving = velocity(self.at_r, predicted)
        return (arriving - d_a * self.x_t - b * self.along_target()) / d_b

    def halved(self, half: Output) -> Tensor:
        """The output whose jump is that of two jumps over half the time each: (n, *)."""
        s = (self.t + self.r) / 2
        at_s = self.denoiser.schedule(s.double())
        jump = self.denoiser.parameterization.jump
        (a, b), (a_1, b_1), (a_2, b_2) = jump(self.at_t, self.at_r), jump(self.at_t, at_s), jump(at_s, self.at_r)
        first = half(self.x_t, self.t, s)
        second = half(self._map(self.x_t, first, self.at_t, at_s), s, self.r)
        # x_r = A₂ (A₁ x + B₁ F₁) + B₂ F₂, solved for F; the scalars in float64, since all of them are small at once.
        distinct = b != 0
        b = torch.where(distinct, b, 1.0)
        of_x, of_1, of_2 = ((part / b).to(self.x_t) for part in (a_1 * a_2 - a, a_2 * b_1, b_2))
        return torch.where(distinct, of_x * self.x_t + of_1 * first + of_2 * second, first)

    def joined(self, noise_ratio: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The output with which the jump ends where that of an earlier time s does.

        Args:
            noise_ratio: σ/α at s, float64: (n, 1, …, 1).

        Returns:
            F*: (n, *); B: (n, 1, …, 1); and σ/α at the s that there is, float64: (n, 1, …, 1).
        """
        s = torch.maximum(self.denoiser.schedule.time(-2 * torch.log(noise_ratio)).to(self.t), self.r)
        at_s = self.denoiser.schedule(s.double())
        if self.teacher is None:
            x_s = at_s.alpha.to(self.x_0) * self.x_0 + at_s.sigma.to(self.eps) * self.eps
        else:
            x_s = self._map(self.x_t, self.taught(self.x_t, self.t, s), self.at_t, at_s)
        # Where s = r the jump ends at once; there F may not be defined, and another time stands in.
        arrived = s == self.r
        there = torch.where(arrived, self.t, s)
        output = self.raw(x_s, there, self.r)
        end = torch.where(arrived, x_s, self._map(x_s, output, self.denoiser.schedule(there.double()), self.at_r))
        a, b = (part.to(self.x_t) for part in self.denoiser.parameterization.jump(self.at_t, self.at_r))
        return (end - a * self.x_t) / b, b, at_s.sigma / at_s.alpha

    def _scalars(
        self, time: Tensor, kernels: Callable[[Tensor], tuple[Kernel, Kernel]]
    ) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """A and B, and their derivatives with respect to a time: (n, 1, …, 1) each."""
        time = time.double()
        values, changes = derivative(
            lambda at: self.denoiser.parameterization.jump(*kernels(at)), (time,), (torch.ones_like(time),)
        )
        (a, b), (d_a, d_b) = ([part.to(self.x_t) for part in parts] for parts in (values, changes))
        return (a, b), (d_a, d_b)


class SameDropout:
    """Remembers torch's random state when it is made; within its context, every time, that is the state.

    Args:
        device: of the network.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.devices = [device] if device.type == "cuda" else []
        self.cpu = torch.get_rng_state()
        self.cuda = [torch.cuda.get_rng_state(device) for device in self.devices]

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with torch.random.fork_rng(self.devices):
            torch.set_rng_state(self.cpu)
            for device, state in zip(self.devices, self.cuda, strict=True):
                torch.cuda.set_rng_state(state, device)
            yield


def derivative(f: Callable[..., Any], at: tuple[Tensor, ...], tangents: tuple[Tensor, ...]) -> tuple[Any, Any]:
    """f and its derivative in a direction, in forward mode: attention by the kernel that has one, nothing compiled."""
    with sdpa_kernel(SDPBackend.MATH), torch.compiler.set_stance("force_eager"):
        made: Any = torch.func.jvp(f, at, tangents)
    return made[0], made[1]


def _unsupported(network: torch.nn.Module, f: Callable[..., Tensor], at: tuple[Tensor, ...], error: Exception) -> str:
    """A message that names the layer whose forward-mode derivative failed."""
    entered = [type(network).__name__]
    hooks = [
        module.register_forward_pre_hook(
            lambda module, _, name=name: entered.append(f"{name} ({type(module).__name__})")
        )
        for name, module in network.named_modules()
        if name
    ]
    try:
        derivative(f, at, tuple(torch.ones_like(part) for part in at))
    except (NotImplementedError, RuntimeError):
        pass
    finally:
        for hook in hooks:
            hook.remove()
    reason = str(error).splitlines()[0]
    fix = "Fix: set model.loss.differences to 0.005"
    return f"FlowMapLoss: {entered[-1]} has no forward-mode derivative ({reason}). {fix}"
