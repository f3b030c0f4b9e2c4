"""The variational bound on −log p(x_0) itself as a loss, in nats per value, which also trains the noise schedule.

    KL(q(x_1|x_0) ‖ N(0, I))  +  E −log N(x_0; x_t/α, σ²/α²) at t = 0  +  ½∫ (−dSNR/dt) E‖x_0 − x̂_0‖² dt

The integral does not depend on the schedule between its ends, but the variance of its estimate does.  The ends learn by
the bound, what is between them by the square of each term, which is the variance up to a constant.

Reference: Kingma et al., "Variational diffusion models", arXiv 2107.00630, Eq. 11, 17, and App. H (the schedule).
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..conditions import Conditions
from ..denoisers import NetworkDenoiser
from ..likelihood.decoders import decoder_nll
from ..schedules import Kernel, Schedule, gaussian_kl
from ..tensors import mean_data
from .base import Loss, Losses
from .dropout import check_dropout, check_dropped, dropped
from .timesteps import TimeSampler
from .weightings import Likelihood


class BoundLoss(Loss):
    """The bound of infinitely many steps, for variance-preserving schedules.

    Of a schedule without parameters it trains as DenoisingLoss with the weighting Likelihood does, and its value is a
    bound.  The decoder is that of VDM, without the network.

    Args:
        times: distribution of t.
        levels: of the data in [−1, 1], 256 for 8-bit images: the decoder's probability of them; None: its density.
        dropout: {condition: probability that an example's value is replaced by its null}, see DenoisingLoss.
    """

    def __init__(self, times: TimeSampler, levels: int | None = None, dropout: dict[str, float] | None = None) -> None:
        super().__init__()
        check_dropout("BoundLoss", dropout or {})
        if levels is not None and levels < 2:
            raise ValueError(f"BoundLoss: levels must be at least 2, got {levels}")
        self.times, self.levels, self.dropout = times, levels, dict(dropout or {})
        self.weighting = Likelihood()

    def check(self, denoiser: NetworkDenoiser, shape: Sequence[int], conditions: Conditions) -> None:
        check_dropped(self.dropout, conditions)
        if denoiser.self_conditioned:
            name = type(denoiser.network).__name__
            raise ValueError(f"BoundLoss: {name} is conditioned on its own estimate: set self_condition to false")
        start = denoiser.schedule(torch.zeros((), dtype=torch.float64))
        if abs((start.alpha.square() + start.sigma.square()).item() - 1) > 1e-6 or not start.sigma > 0:
            raise ValueError(
                f"BoundLoss: {type(denoiser.schedule).__name__} does not preserve the variance, or has no noise at t = "
                "0. Fix: set model.schedule to LearnedLogSNR or LinearLogSNR"
            )

    def forward(
        self,
        denoiser: NetworkDenoiser,
        x_0: Tensor,
        cond: Mapping[str, Tensor] | None = None,
        generator: torch.Generator | None = None,
        observed: Tensor | None = None,
    ) -> Losses:
        cond = dropped(self.dropout, cond or {}, generator)
        t, importance = self.times(denoiser.schedule, x_0, generator)
        eps = torch.randn(x_0.shape, dtype=x_0.dtype, device=x_0.device, generator=generator)
        squares: list[Tensor] = []
        kernel = _kernel(denoiser.schedule, t, squares)
        output, _ = denoiser.raw(kernel.alpha * x_0 + kernel.sigma * eps, t, kernel, **cond)
        error = output - denoiser.parameterization.target(kernel, x_0, eps)
        c_out = denoiser.parameterization.c_out(kernel)
        weight = self.weighting(denoiser.schedule, t, kernel, c_out) * c_out.square()
        loss = mean_data(weight * error.square(), observed)
        diffusion = importance * loss.reshape(t.shape)
        squares.append(2 * diffusion.detach())
        ends = self._ends(denoiser.schedule, x_0, generator)
        if denoiser.training:
            self.times.learn(t.flatten(), loss.detach())
        return Losses(diffusion.flatten() + mean_data(ends, observed), t.flatten())

    def _ends(self, schedule: Schedule, x_0: Tensor, generator: torch.Generator | None) -> Tensor:
        """Prior and decoder of each value: (B, *)."""
        first, last = (schedule(torch.tensor(t, dtype=torch.float64, device=x_0.device)) for t in (0.0, 1.0))
        eps = torch.randn(x_0.shape, dtype=x_0.dtype, device=x_0.device, generator=generator)
        std = (first.sigma / first.alpha).to(x_0)
        decoder = decoder_nll(x_0, x_0 + std * eps, std, self.levels)
        mean, zero = last.alpha.to(x_0) * x_0, torch.zeros_like(x_0)
        return decoder + gaussian_kl(mean, last.sigma.square().to(x_0), zero, torch.ones_like(std))


def _kernel(schedule: Schedule, t: Tensor, squares: list[Tensor]) -> Kernel:
    """The schedule at t; gradients to its shape are multiplied by squares[0], which is known before they are taken."""
    names: Sequence[str] = getattr(schedule, "shape_parameters", ())
    if not names or not torch.is_grad_enabled():
        return schedule(t)
    parts = dict(schedule.named_parameters())
    fixed = torch.func.functional_call(schedule, {name: parts[name].detach() for name in names}, (t,))
    others = {name: p.detach() for name, p in parts.items() if name not in names}
    moving = torch.func.functional_call(schedule, others, (t,))

    def scaled(ends: Tensor, shape: Tensor) -> Tensor:
        change = shape - shape.detach()  # apart from what the others are computed from, such as σ' from σ
        change.register_hook(lambda gradient: gradient * squares[0].to(gradient))
        return ends + change

    return Kernel(*(scaled(a, b) for a, b in zip(fixed, moving, strict=True)))
