"""Rules by which a flow map is taught:  what the network's output F at (x_t, t, r) should be, given all the rest.

With the scalars of the parameterization the map is linear in F,   M(x_t, t, r) = A x_t + B F(x_t, t, r).   The exact
map obeys

    Eulerian      dM/dt = 0 along the ODE              MeanFlow, ImprovedMeanFlow; with r = 0 ContinuousConsistency
    Lagrangian    ∂M/∂r = velocity at (M, r)           Lagrangian
    semigroup     M(t → r) = M(s → r) ∘ M(t → s)       Semigroup; on a fixed pair (x_0, ε), with r = 0, Consistency

Each rule solves its equation for F where it stands linearly, with everything else as the network gives it now: a target
F*, and the loss is the squared distance to it.  At the exact map F* = F.

Reference: Boffi et al., "How to build a consistency model", arXiv 2505.18825 (the three equations).
"""

from abc import ABC, abstractmethod
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from ..denoisers import EDM, NetworkDenoiser, Parameterization, V, Velocity
from ..schedules import Schedule
from ..tensors import Recorded, per_sample
from .jumps import Jumps, derivative
from .pairs import PairSampler


class Target(NamedTuple):
    """output: F*, (n, *);  weight: of its squared error, (n, 1, …, 1) or one number."""

    output: Tensor
    weight: Tensor | float = 1.0


class Rule(Recorded, nn.Module, ABC):
    """Subclasses define `target`.

    Args:
        power: p of the adaptive weight 1/(‖F − F*‖² + offset)^p, the norm that of a whole example; 0: none.
        offset: keeps it finite.
    """

    #: Whether the target has a derivative of the network with respect to t, in which it must be smooth.
    differentiates: bool = False

    def __init__(self, power: float = 0.0, offset: float = 1e-3) -> None:
        super().__init__()
        if not 0 <= power <= 1 or not 0 < offset < float("inf"):
            raise ValueError(
                f"{type(self).__name__}: power must be in [0, 1] and offset positive, got {power} and {offset}"
            )
        self.power, self.offset = power, offset

    @abstractmethod
    def target(self, jumps: Jumps) -> Target:
        """What the output should be; called without gradients."""

    def check(self, denoiser: NetworkDenoiser, times: PairSampler) -> None:
        """Raise ValueError if the rule is not defined for the parameterization and schedule of a denoiser."""

    def adaptive(self, square: Tensor) -> Tensor:
        """The adaptive weight: (n,), of the squared error summed over each example: (n,)."""
        return (square + self.offset) ** -self.power


class MeanFlow(Rule):
    """F* = F − c dM/dt,  c = B'/max(|b|, |B'|)²,  ' = ∂/∂t,  b = B' at r = t.

    The derivative is taken along the velocity of the pair, or the teacher's.

    With Rectified and Velocity:  F* = v − (t − r) dF/dt.

    Reference: Geng et al., "Mean flows for one-step generative modeling", arXiv 2505.13447, Eq. 10, 11 and Sec. 4.3
    (adaptive weight).

    Args:
        power: p of the adaptive weight.
        offset: keeps it finite.
    """

    differentiates = True

    def __init__(self, power: float = 0.75, offset: float = 1e-3) -> None:
        super().__init__(power, offset)

    def check(self, denoiser: NetworkDenoiser, times: PairSampler) -> None:
        check_slope(self, denoiser, times)

    def target(self, jumps: Jumps) -> Target:
        change, slope = jumps.euler(jumps.velocity)
        return Target(jumps.output - slope * change)


class ImprovedMeanFlow(Rule):
    """As `MeanFlow`, but dF/dt is taken along the model's own velocity, which varies less than the pair's.

    Reference: Geng et al., "Improved mean flows", arXiv 2512.02012, Eq. 9.

    Args:
        power: p of the adaptive weight.
        offset: keeps it finite.
    """

    differentiates = True

    def __init__(self, power: float = 0.75, offset: float = 1e-3) -> None:
        super().__init__(power, offset)

    def check(self, denoiser: NetworkDenoiser, times: PairSampler) -> None:
        check_slope(self, denoiser, times)

    def target(self, jumps: Jumps) -> Target:
        change, slope = jumps.euler(jumps.own_velocity())
        return Target(jumps.output - slope * change)


class ContinuousConsistency(Rule):
    """F* = F − g/(‖g‖ + offset),  g = MeanFlow's step, warmed up:  sCM, for any schedule.

    The change of the map consists of a part that is that of an ordinary denoiser and of the rest, which is unstable at
    first and is let in gradually:  g = k (F − F_pair) + min(1, n/warmup) · rest,  in batch n.

    Reference: Lu & Song, "Simplifying, stabilizing and scaling continuous-time consistency models", arXiv 2410.11081,
    Alg. 1 (there Cosine and V, where g = cos t dM/dt).

    Args:
        warmup: batches until the whole change counts.
        normalize: whether g is divided by its norm.
        offset: added to the norm.
    """

    differentiates = True

    def __init__(self, warmup: int = 10_000, normalize: bool = True, offset: float = 0.1) -> None:
        super().__init__(0.0, offset)
        if warmup < 0:
            raise ValueError(f"ContinuousConsistency: warmup must be at least 0, got {warmup}")
        self.warmup, self.normalize = warmup, normalize

    def check(self, denoiser: NetworkDenoiser, times: PairSampler) -> None:
        check_slope(self, denoiser, times)

    def target(self, jumps: Jumps) -> Target:
        change, slope = jumps.euler(jumps.velocity)
        plain = (slope * jumps.slope_at_t()).square() * (jumps.output - jumps.diagonal)
        share = (jumps.batches.to(plain) / max(1, self.warmup)).clamp(max=1) if self.warmup else 1.0
        g = plain + share * (slope * change - plain)
        if self.normalize:
            g = g / (per_sample(g.flatten(1).norm(dim=1), g) + self.offset)
        return Target(jumps.output - g)


class Lagrangian(Rule):
    """F* = (v(M, r) − A_r x_t − B ∂F/∂r)/B_r,  A_r = ∂A/∂r:  the map's end moves with the velocity where it arrives.

    The velocity is the teacher's, or that of the model itself, which learns it where r = t.

    Reference: Boffi et al., "Flow map matching", arXiv 2406.07507, Eq. 3.5; "How to build a consistency model", arXiv
    2505.18825 (self-distillation).

    Args:
        power: p of the adaptive weight.
        offset: keeps it finite.
    """

    def target(self, jumps: Jumps) -> Target:
        return Target(jumps.lagrange())


class Semigroup(Rule):
    """F* is the output whose jump t → r is that of the two jumps t → s → r,  s half way in time.

    Of the model: shortcut models.  Of a teacher, whose halves are DDIM steps or, of a flow map, jumps: progressive
    distillation.

    Reference: Frans et al., "One step diffusion via shortcut models", arXiv 2410.12557, Eq. 4; Salimans & Ho, arXiv
    2202.00512, Alg. 2.

    Args:
        halves: whose two jumps they are: "model", or "teacher".
        power: p of the adaptive weight.
        offset: keeps it finite.
    """

    def __init__(self, halves: Literal["model", "teacher"] = "model", power: float = 0.0, offset: float = 1e-3) -> None:
        super().__init__(power, offset)
        self.halves = halves

    def target(self, jumps: Jumps) -> Target:
        return Target(jumps.halved(jumps.taught if self.halves == "teacher" else jumps.raw))


class Consistency(Rule):
    """M(x_t, t, r) = M(x_s, s, r) at an earlier time s of the same pair (x_0, ε), or of the teacher's ODE.

    s comes closer to t in stages:  σ_s/α_s = u max(0, 1 − q^(−k−1) (1 + 8 sigmoid(−u))),  u = σ_t/α_t,  in stage k.
    The loss is the distance of the two ends over the difference of noise, ‖M_t − M_s‖/(u_t − u_s).

    Reference: Song et al., "Consistency models", arXiv 2303.01469, Eq. 10; Geng et al., "Consistency models made easy",
    arXiv 2406.14548, Eq. 14 and App. A (the stages, weight and no separate target network).

    Args:
        q: how much closer each stage comes; more than 1.
        every: batches of a stage.
        stages: the last stage k is this one less one.
        power: p of the adaptive weight; 0.5: the distance, 0: its square.
        offset: of the adaptive weight.
    """

    def __init__(
        self, q: float = 2.0, every: int = 10_000, stages: int = 8, power: float = 0.5, offset: float = 1e-6
    ) -> None:
        super().__init__(power, offset)
        if not 1 < q < float("inf") or every < 1 or stages < 1:
            raise ValueError(
                f"Consistency: q must be above 1, every and stages at least 1, got {q}, {every} and {stages}"
            )
        self.q, self.every, self.stages = q, every, stages

    def target(self, jumps: Jumps) -> Target:
        stage = (jumps.batches // self.every).clamp(max=self.stages - 1)
        u = jumps.noise_ratio
        share = 1 - self.q ** (-stage.double() - 1) * (1 + 8 * torch.sigmoid(-u))
        output, gain, earlier = jumps.joined(u * share.clamp(min=0))
        gap = u - earlier
        distinct = gap > 0  # else rounding has made one time of both, close to t = 1, and there is nothing to learn
        weight = gain.abs() ** (2 - 2 * self.power) / torch.where(distinct, gap, 1.0).to(gain)
        return Target(output, torch.where(distinct, weight, 0.0))


def check_slope(rule: Rule, denoiser: NetworkDenoiser, pairs: PairSampler) -> None:
    """Raise ValueError where F does not stand linearly in dM/dt = 0, so that there is nothing to solve for: B' = 0."""
    t = torch.linspace(0.2, 0.8, 7, dtype=torch.float64)
    schedule, r = denoiser.schedule, pairs.earliest(t)
    if grows(denoiser.parameterization, schedule, t, r):
        return
    name = type(denoiser.parameterization).__name__
    others = [type(other).__name__ for other in (Velocity(), V(), EDM()) if grows(other, schedule, t, r)]
    raise ValueError(
        f"FlowMapLoss: {type(rule).__name__} with jumps to r = {float(r[0]):g} is not defined for {name} with "
        f"{type(schedule).__name__}: its share in the jump does not grow with t. Fix: set model.parameterization to "
        f"{' or '.join(others)}"
    )


def grows(parameterization: Parameterization, schedule: Schedule, t: Tensor, r: Tensor) -> bool:
    """Whether the output's share |B| in the jump from t to r grows with t, at all times (n,) given."""

    def gain(t: Tensor) -> Tensor:
        return parameterization.jump(schedule(t), schedule(r))[1]

    b, slope = derivative(gain, (t,), (torch.ones_like(t),))
    return bool(((b * slope) > 1e-6 * b.square()).all())
