"""Loss weightings: every loss is  E w(t) ‖x̂_0 − x_0‖²,  whatever the network predicts.

An error of ε is −α/σ times an error of x_0, so ε-losses carry SNR = α²/σ², v-losses of a variance-preserving schedule
SNR + 1, EDM's unit-variance loss SNR + 1/σ_d².

Reference: Salimans & Ho, arXiv 2202.00512, Sec. 4; Kingma & Gao, arXiv 2303.00848 (all of these as one family).
"""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from ..schedules import Kernel, Schedule
from ..tensors import Recorded


class Weighting(Recorded, ABC):
    """w(t) on the squared error of x_0."""

    @abstractmethod
    def __call__(self, schedule: Schedule, t: Tensor, kernel: Kernel, c_out: Tensor) -> Tensor:
        """w, shaped like t.

        Args:
            schedule: the noise schedule.
            t: any shape.
            kernel: the schedule's at t.
            c_out: the parameterization's at t, of the network's output.
        """


class Plain(Weighting):
    """w = 1/c_out²: the unweighted squared error ‖F − F*‖² of the network's output.

    For Epsilon it is DDPM's simple loss, SNR; for V of a variance-preserving schedule SNR + 1; for EDM SNR + 1/σ_d²;
    for Velocity flow matching's.

    Reference: Karras et al., arXiv 2206.00364, Table 1: λ(σ) = 1/c_out²; Ho et al., arXiv 2006.11239, Eq. 14.
    """

    def __call__(self, schedule: Schedule, t: Tensor, kernel: Kernel, c_out: Tensor) -> Tensor:
        return c_out.square().reciprocal()


class SNR(Weighting):
    """w = SNR + plus: DDPM's simple loss (0), the v loss of a variance-preserving schedule (1).

    Reference: Ho et al., arXiv 2006.11239, Eq. 14; Salimans & Ho, arXiv 2202.00512, Sec. 4.

    Args:
        plus: constant added to the SNR.
    """

    def __init__(self, plus: float = 0.0) -> None:
        _positive("plus", plus, zero=True)
        self.plus = plus

    def __call__(self, schedule: Schedule, t: Tensor, kernel: Kernel, c_out: Tensor) -> Tensor:
        return kernel.snr + self.plus


class MinSNR(Weighting):
    """w = min(SNR, γ).

    Reference: Hang et al., arXiv 2303.09556, Eq. 8.

    Args:
        gamma: γ.
    """

    def __init__(self, gamma: float = 5.0) -> None:
        _positive("gamma", gamma)
        self.gamma = gamma

    def __call__(self, schedule: Schedule, t: Tensor, kernel: Kernel, c_out: Tensor) -> Tensor:
        return kernel.snr.clamp(max=self.gamma)


class SoftMinSNR(Weighting):
    """w = SNR γ/(SNR + γ), a smooth min(SNR, γ).

    Reference: Crowson et al., arXiv 2401.11605, Sec. 4.2.

    Args:
        gamma: γ.
    """

    def __init__(self, gamma: float = 4.0) -> None:
        _positive("gamma", gamma)
        self.gamma = gamma

    def __call__(self, schedule: Schedule, t: Tensor, kernel: Kernel, c_out: Tensor) -> Tensor:
        return self.gamma * torch.sigmoid(kernel.logsnr - math.log(self.gamma))


class P2(Weighting):
    """w = SNR/(k + SNR)^γ.

    Reference: Choi et al., "Perception prioritized training", arXiv 2204.00227, Eq. 8.

    Args:
        k: k.
        gamma: γ; 0 gives the simple loss.
    """

    def __init__(self, k: float = 1.0, gamma: float = 1.0) -> None:
        _positive("k", k)
        _positive("gamma", gamma, zero=True)
        self.k, self.gamma = k, gamma

    def __call__(self, schedule: Schedule, t: Tensor, kernel: Kernel, c_out: Tensor) -> Tensor:
        snr = kernel.snr
        return snr / (self.k + snr) ** self.gamma


class FlowMatching(Weighting):
    """w = (α' − ασ'/σ)²: the plain squared error of the velocity; below `clip`, σ counts as `clip`.

    With Data it is the v-loss of x-prediction, whose weight 1/σ² would grow without bound: JiT clips at 0.05.

    Reference: Lipman et al., arXiv 2210.02747, Eq. 14; clip: Li & He, arXiv 2511.13720, Table 9.

    Args:
        clip: smallest σ that is divided by; 0: none.
    """

    def __init__(self, clip: float = 0.0) -> None:
        _positive("clip", clip, zero=True)
        self.clip = clip

    def __call__(self, schedule: Schedule, t: Tensor, kernel: Kernel, c_out: Tensor) -> Tensor:
        weight = (kernel.d_alpha - kernel.alpha * kernel.d_sigma / kernel.sigma).square()
        return weight * (kernel.sigma / kernel.sigma.clamp(min=self.clip)).square() if self.clip else weight


class Likelihood(Weighting):
    """w = −½ dSNR/dt = ½ g² α²/σ⁴: the continuous bound on −log p, in nats.

    Reference: Song et al., arXiv 2101.09258, Thm. 1 (weight g² on the score); Kingma et al., arXiv 2107.00630, Eq. 17.
    """

    def __call__(self, schedule: Schedule, t: Tensor, kernel: Kernel, c_out: Tensor) -> Tensor:
        alpha, sigma, d_alpha, d_sigma = kernel
        return alpha / sigma * (alpha * d_sigma / sigma - d_alpha) / sigma  # 0, not 0/0, where α = 0


class ChainELBO(Weighting):
    """w = ½T (SNR(s) − SNR(t)),  s = t − 1/T: the bound of the T-step chain with posterior variance, in nats.

    At the first step (s = 0, where SNR is infinite) the term is a Gaussian decoder of variance 1/SNR(t): w = ½T SNR(t).

    Reference: Ho et al., arXiv 2006.11239, Eq. 8; Kingma et al., arXiv 2107.00630, Eq. 13.

    Args:
        steps: T; None: the schedule's, 1,000 where it has none.
    """

    def __init__(self, steps: int | None = None) -> None:
        if steps is not None:
            _positive("steps", steps)
        self.steps = steps

    def __call__(self, schedule: Schedule, t: Tensor, kernel: Kernel, c_out: Tensor) -> Tensor:
        steps = schedule.chain_steps(self.steps, "ChainELBO", default=1000)
        first = t * steps < 1.5
        at_s = schedule(torch.where(first, t, t - 1 / steps))
        # SNR(s) − SNR(t) = −SNR(s) expm1(λ_t − λ_s), which also holds where α_t = 0.
        share = torch.where(first, torch.ones_like(t), -torch.expm1(kernel.logsnr - at_s.logsnr))
        return 0.5 * steps * at_s.snr * share


def _positive(name: str, value: float, zero: bool = False) -> None:
    if not (0 < value < math.inf or (zero and value == 0)):
        raise ValueError(f"{name} must be {'at least 0' if zero else 'positive'}, got {value}")
