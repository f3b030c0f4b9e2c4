"""log p(x_0) of a model, by the change of variables along its probability-flow ODE.

With φ = atan2(σ, α), r = √(α² + σ²) and u = x_t/r the flow of every schedule is the same,

    du/dφ = v̂ = cos φ ε̂ − sin φ x̂_0,        log p(x_0) = log p_T(u_T) + ∫ div_u v̂ dφ + log |du/dx_0|

smooth at both ends, also where α = 0.  It is integrated in s = √tan(φ/2), dφ = 4s/(1 + s⁴) ds: log φ would spend many
steps on φ → 0, where nothing happens any more, and φ itself would begin with steps too long for fine detail.  The
divergence is exact, Σ_i ∂v̂_i/∂u_i, or Hutchinson's estimate E_z zᵀ(∂v̂/∂u)z, whose z stays the same along the way.

A density of data that were quantised to levels Δ apart becomes a probability of the level by adding uniform noise:

    log P(x_0) ≥ E_w log p(x_0 + w) + D log Δ,    w ~ U(−Δ/2, Δ/2)^D;    log of the mean of K densities is tighter

Reference: Song et al., arXiv 2011.13456, App. D.2; Grathwohl et al., arXiv 1810.01367 (estimate); Theis et al., arXiv
1511.01844, Sec. 3.1 (dequantisation); Ho et al., arXiv 1902.00275 (K of them).
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..denoisers import Denoiser
from ..ode import BOGACKI_SHAMPINE, CASH_KARP, State, check_tolerance, solve
from ..tensors import per_sample

Noise = Callable[[Tensor], Tensor]
PAIRS = {3: BOGACKI_SHAMPINE, 5: CASH_KARP}  # without negative weights


class LogDensity(NamedTuple):
    """log_p: (B,), nats, float64;  latent: (B, *), the noise x_0 comes from, unit variance;  nfe: (B,), evaluations."""

    log_p: Tensor
    latent: Tensor
    nfe: Tensor


class FlowLikelihood:
    """log p(x_0) in nats.

    Args:
        probes: of Hutchinson's estimate; 0: the exact trace, which costs a backward pass for each dimension.
        gaussian: whether probes are normal instead of ±1 (which has the lower variance).
        rtol, atol: of the log density per dimension in each step, and of u as far as it moves that.  The defaults come
            nearer, for a network, than 1e-5 for all parts of the state, as arXiv 2011.13456 has it.
        pair: order of the Runge–Kutta pair, 5 or 3.
        t_min: where the flow begins.
        extend: from t_min on to the data the score is held, of which the density at t = 0 follows; False: the density
            at t_min is taken for it, as in arXiv 2011.13456.
    """

    def __init__(
        self,
        probes: int = 1,
        gaussian: bool = False,
        rtol: float = 3e-5,
        atol: float = 3e-5,
        pair: int = 5,
        t_min: float = 1e-5,
        extend: bool = True,
    ) -> None:
        if probes < 0:
            raise ValueError(f"probes must be at least 1, or 0 for the exact trace, got {probes}")
        if not 0 <= t_min < 1:
            raise ValueError(f"t_min must be in [0, 1), got {t_min}")
        check_tolerance(rtol, atol, pair)
        self.probes, self.gaussian, self.extend = probes, gaussian, extend
        self.rtol, self.atol, self.pair, self.t_min = rtol, atol, pair, t_min

    def __call__(self, denoiser: Denoiser, x_0: Tensor, noise: Noise, **cond: Tensor) -> LogDensity:
        """log p of x_0: (B, *), each independent of the others.

        Args:
            denoiser: any; one that is self-conditioned gets no estimate, for only then it is a function of (x_t, t).
            x_0: model units.
            noise: standard normal like its argument, of the probes; see `tensors.SampleNoise`.
            cond: handed to the denoiser.

        Raises:
            ValueError: the tolerance is out of reach, or t_min is at infinite signal-to-noise ratio.
        """
        x_0 = x_0.double()
        dims = x_0[0].numel()
        schedule = denoiser.schedule
        ends = schedule(torch.tensor([self.t_min, 1.0], dtype=torch.float64))
        phi = torch.atan2(ends.sigma, ends.alpha)
        if not phi[0] > 0:
            raise ValueError(f"t_min={self.t_min:g} is free of noise under {type(schedule).__name__}: raise it")
        begin, end = torch.sqrt(torch.tan(phi / 2)).tolist()
        probes = [self._probe(noise, x_0) for _ in range(self.probes)] or list(_axes(x_0))

        def velocity(u: Tensor, s: Tensor, noise_only: bool = False) -> tuple[Tensor, Tensor]:
            """v̂ (or ε̂) at u: (B, *) and the divergence: (B,)."""
            s = per_sample(s, u)
            sin, cos = _sin_cos(s)
            t = schedule.time(2 * torch.log(cos / sin))
            t = torch.where(s >= end, torch.ones_like(t), torch.where(s <= begin, self.t_min, t))
            kernel = schedule(t)
            r = torch.sqrt(kernel.alpha.square() + kernel.sigma.square())
            with torch.enable_grad():
                u = u.detach().requires_grad_(True)
                x_0_hat, eps, _ = denoiser(r * u, t, **cond)
                v = eps if noise_only else cos * eps - sin * x_0_hat
                div = _divergence(v, u, probes) * (1 if self.probes else len(probes))
            return v.detach(), div

        def field(y: State, s: Tensor) -> State:
            v, div = velocity(y[0], s)
            rate = 4 * s / (1 + s**4)
            return per_sample(rate, v) * v, rate * div / dims

        sin, cos = math.sin(phi[0]), math.cos(phi[0])
        u, grown = cos * x_0, torch.full((len(x_0),), dims * math.log(cos), dtype=torch.float64, device=x_0.device)
        nfe = 0
        if self.extend:
            # d(x/α)/d(σ/α) = ε̂, and ε̂ = −σ ∇log p grows like σ from 0 on: half of its value, all the way.
            eps, div = velocity(u, torch.full_like(grown, begin), noise_only=True)
            u, grown, nfe = u + sin / 2 * eps, grown + sin / 2 * div, 1

        def units(s: Tensor) -> tuple[Tensor, Tensor]:
            # ∇ log p is about −ε/sin φ: an error δ of each of D coordinates moves log p/D by about δ/(√D sin φ).
            return math.sqrt(dims) * _sin_cos(s)[0], torch.ones_like(s)

        start = (u, torch.zeros_like(grown))
        with torch.no_grad():
            solution = solve(field, start, begin, end, self.rtol, self.atol, PAIRS[self.pair], units=units)
        u, change = solution.y
        spread = schedule.prior_std() / float(torch.hypot(ends.alpha[1], ends.sigma[1]))
        latent = u / spread
        prior = -0.5 * (latent.square().flatten(1).sum(1) + dims * math.log(2 * math.pi * spread**2))
        return LogDensity(prior + dims * change + grown, latent, solution.nfe + nfe)

    def _probe(self, noise: Noise, x: Tensor) -> Tensor:
        z = noise(x)
        signs: Tensor = torch.where(z < 0, -1.0, 1.0).to(x)
        return z if self.gaussian else signs


def width(levels: int, value_range: tuple[float, float]) -> float:
    """Δ, distance between neighbouring levels in model units."""
    return (value_range[1] - value_range[0]) / (levels - 1)


def dequantized(x_0: Tensor, delta: float, noise: Noise) -> Tensor:
    """x_0 + w, w ~ U(−Δ/2, Δ/2): (B, *), float64."""
    uniform: Tensor = torch.special.ndtr(noise(x_0.double()))
    return x_0.double() + delta * (uniform - 0.5)


def bits_per_dim(log_p: Tensor, dims: int, delta: float) -> Tensor:
    """−log₂ P(x_0)/D of the level, from log_p: (…) in nats of the density."""
    return -(log_p / dims + math.log(delta)) / math.log(2)


def _sin_cos(s: Tensor) -> tuple[Tensor, Tensor]:
    """sin φ and cos φ at s = √tan(φ/2)."""
    tan = s.square()
    return 2 * tan / (1 + tan.square()), (1 - tan) * (1 + tan) / (1 + tan.square())


def _axes(x: Tensor) -> list[Tensor]:
    """The unit vectors of all dimensions, each (B, *)."""
    basis = torch.eye(x[0].numel(), dtype=x.dtype, device=x.device).view(-1, *x.shape[1:])
    return [axis.expand_as(x) for axis in basis]


def _divergence(v: Tensor, u: Tensor, probes: list[Tensor]) -> Tensor:
    """Mean over the probes of zᵀ(∂v/∂u)z: (B,)."""
    total = torch.zeros(len(u), dtype=torch.float64, device=u.device)
    for k, z in enumerate(probes):
        (back,) = torch.autograd.grad(v, u, z, retain_graph=k < len(probes) - 1)
        total += (back * z).flatten(1).sum(1)
    return total / len(probes)
