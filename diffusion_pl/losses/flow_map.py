"""The loss of a flow map  D(x_t, t, r):  a denoiser that also takes the time to go to, r ≤ t, and jumps there at once.

    E  w(t) c_out² ‖F(x_t, t, r) − F*‖²,     F* by a rule (`rules`) where r < t;  where r = t that of a denoiser

F* is computed without gradients from the network itself, from the pair (x_0, ε) or a teacher.

Reference: Kim et al., "Consistency trajectory models", arXiv 2310.02279 (a model of two times); Sun et al., "Unified
continuous generative models", arXiv 2505.07447 (the same scalars for several methods).
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..conditions import Conditions
from ..denoisers import Denoiser, NetworkDenoiser
from ..schedules import Schedule
from ..tensors import mean_data
from .base import Loss, Losses
from .couplings import Coupling
from .dropout import check_dropout, check_dropped, dropped
from .jumps import Jumps, SameDropout, velocity
from .pairs import PairSampler
from .rules import Rule, Target
from .uncertainty import Uncertainty
from .weightings import Plain, Weighting


class FlowMapLoss(Loss):
    """Loss of a flow map.

    The network needs an input for the length of the jump: its option flow_map.

    Args:
        rule: what the output of a jump should be, such as MeanFlow, Consistency or Lagrangian.
        pairs: distribution of the times t and r: ToData for consistency models, TwoTimes for others.
        weighting: w(t); None: Plain, the squared error of the network's output.
        coupling: pairs noise with examples; None: independently.
        dropout: {condition: probability that an example's value is replaced by its null}, see DenoisingLoss.
        teacher: a trained model whose ODE is to be followed, in place of the pairs' directions; on the command line
            the path of a checkpoint or run.  None: the model learns from the data alone.
        averaged_target: compute what targets need of the network, but for derivatives, with the first EMA weights.
        uncertainty: a learned weight by noise level; None: none.
        differences: step in t of central differences, 0.005 for networks without forward-mode derivatives; None: these.
    """

    batches: Tensor

    def __init__(
        self,
        rule: Rule,
        pairs: PairSampler,
        weighting: Weighting | None = None,
        coupling: Coupling | None = None,
        dropout: dict[str, float] | None = None,
        teacher: Denoiser | None = None,
        averaged_target: bool = False,
        uncertainty: Uncertainty | None = None,
        differences: float | None = None,
    ) -> None:
        super().__init__()
        check_dropout("FlowMapLoss", dropout or {})
        if differences is not None and not 0 < differences <= 0.1:
            raise ValueError(f"FlowMapLoss: differences must be in (0, 0.1], got {differences}")
        if getattr(rule, "halves", "model") == "teacher" and teacher is None:
            raise ValueError("FlowMapLoss: the rule's halves are the teacher's, but there is no teacher. Fix: give one")
        self.rule, self.pairs, self.times, self.consistency = rule, pairs, pairs.times, pairs.to_data
        self.weighting, self.coupling, self.dropout = weighting or Plain(), coupling, dict(dropout or {})
        self.averaged_target, self.uncertainty, self.differences = averaged_target, uncertainty, differences
        # In a tuple: its weights are no part of this model, not in its checkpoints, and not averaged.
        self._teacher = () if teacher is None else (teacher.eval().requires_grad_(False),)
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))  # of training so far

    @property
    def teacher(self) -> Denoiser | None:
        """The trained model that is followed; None: none."""
        return next(iter(self._teacher), None)

    def check(self, denoiser: NetworkDenoiser, shape: Sequence[int], conditions: Conditions) -> None:
        check_dropped(self.dropout, conditions)
        name = type(denoiser.network).__name__
        if not denoiser.flow_map:
            raise ValueError(
                f"FlowMapLoss: {name} has no input for the length of a jump. Fix: set flow_map to true in the "
                "options of model.network"
            )
        if denoiser.self_conditioned:
            raise ValueError(f"FlowMapLoss: {name} is conditioned on its own estimate: set self_condition to false")
        ends = torch.tensor([1e-3, 1.0], dtype=torch.float64)
        kernel = denoiser.schedule(ends)
        jump = torch.stack(denoiser.parameterization.jump(kernel, denoiser.schedule(torch.zeros_like(ends))))
        if not jump.isfinite().all():
            what, where = type(denoiser.parameterization).__name__, type(denoiser.schedule).__name__
            raise ValueError(
                f"FlowMapLoss: {what} cannot jump from t = 1, where {where} has α = {kernel.alpha[-1]:.3g}. Fix: set "
                "model.parameterization to Velocity, V, Data or EDM"
            )
        self.rule.check(denoiser, self.pairs)
        if self.teacher is not None:
            self.teacher.check_data(shape, conditions)
            check_same_schedule("FlowMapLoss: the teacher", self.teacher.schedule, denoiser.schedule)

    def forward(
        self,
        denoiser: NetworkDenoiser,
        x_0: Tensor,
        cond: Mapping[str, Tensor] | None = None,
        generator: torch.Generator | None = None,
        observed: Tensor | None = None,
        target: Mapping[str, Tensor] | None = None,
    ) -> Losses:
        pairs = self.pairs.draw(denoiser.schedule, len(x_0), x_0.device, generator)
        t, r = (time.reshape(-1, *[1] * (x_0.ndim - 1)) for time in (pairs.t, pairs.r))
        eps = torch.randn(x_0.shape, dtype=x_0.dtype, device=x_0.device, generator=generator)
        cond = dropped(self.dropout, cond or {}, generator)
        if self.coupling is not None:
            x_0, eps = self.coupling(x_0, eps, cond)
        # Apart, since only jumps need more than this pass: their dropout is repeated.
        parts = []
        for part in (slice(0, pairs.jumps), slice(pairs.jumps, len(x_0))):
            if part.start < part.stop:
                some = {name: value[part] for name, value in cond.items()}
                jumps = part.start == 0
                parts.append(self._part(denoiser, x_0[part], eps[part], t[part], r[part], some, target, jumps))
        error, weight = (torch.cat([part[k] for part in parts]) for k in (0, 1))
        kernel = denoiser.schedule(t)
        c_out = denoiser.parameterization.c_out(kernel)
        weight = weight * (self.weighting(denoiser.schedule, t, kernel, c_out) * c_out.square()).flatten()
        square = error.square()
        summed = torch.where(observed, square, 0) if observed is not None else square
        loss = weight * self.rule.adaptive(summed.detach().flatten(1).sum(1)) * mean_data(square, observed)
        if self.uncertainty is not None:
            u = self.uncertainty(t.flatten())
            loss = loss / u.exp() + u
        if denoiser.training:
            self.batches += 1
        return Losses(loss, t.flatten())

    def _part(
        self,
        denoiser: NetworkDenoiser,
        x_0: Tensor,
        eps: Tensor,
        t: Tensor,
        r: Tensor,
        cond: Mapping[str, Tensor],
        weights: Mapping[str, Tensor] | None,
        jumps: bool,
    ) -> tuple[Tensor, Tensor]:
        """F − F*: (n, *), and the rule's weight: (n,), of examples that are all jumps, or none of them."""
        kernel = denoiser.schedule(t)
        x_t = kernel.alpha * x_0 + kernel.sigma * eps
        dropout = SameDropout(x_t.device)
        output, _ = denoiser.raw(x_t, t, kernel, r, **cond)
        with torch.no_grad():
            pair = x_0, eps
            if self.teacher is not None:
                x_teacher, eps_teacher, _ = self.teacher(x_t, t, **cond)
                pair = x_teacher, eps_teacher
            diagonal = denoiser.parameterization.target(kernel, *pair)
            target = Target(diagonal)
            if jumps:
                moving = velocity(kernel, pair)
                problem = Jumps(
                    denoiser, x_t, t, r, output.detach(), moving, diagonal, x_0, eps, cond, self.batches, dropout,
                    self.teacher, weights, self.differences,
                )  # fmt: skip
                target = self.rule.target(problem)
        weight = torch.ones_like(t.flatten()) * (
            target.weight.flatten().to(t) if isinstance(target.weight, Tensor) else target.weight
        )
        return output - target.output, weight


def check_same_schedule(owner: str, one: Schedule, other: Schedule) -> None:
    """Raise ValueError unless two schedules have the same α and σ."""
    t = torch.linspace(0.01, 0.99, 9, dtype=torch.float64)
    a, b = one(t), other(t)
    same = all(torch.allclose(x, y, rtol=1e-4, atol=1e-6) for x, y in ((a.alpha, b.alpha), (a.sigma, b.sigma)))
    if not same:
        raise ValueError(
            f"{owner} has another noise schedule, {type(one).__name__} with λ from {_ends(one)}, the model's is "
            f"{type(other).__name__} with λ from {_ends(other)}. Fix: give the model the same model.schedule"
        )


def _ends(schedule: Schedule) -> str:
    first, last = schedule(torch.tensor([0.0, 1.0], dtype=torch.float64)).logsnr.tolist()
    return " to ".join("∞" if math.isinf(value) else f"{value:.4g}" for value in (first, last))
