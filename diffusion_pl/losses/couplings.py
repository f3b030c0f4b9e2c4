"""Couplings: pairs of noise and examples.  The marginals of x_0 and ε stay as they are."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..denoisers import Denoiser
from ..samplers import Sampler
from ..tensors import Recorded


class Coupling(Recorded, ABC):
    """Subclasses define `__call__`."""

    @abstractmethod
    def __call__(self, x_0: Tensor, eps: Tensor, cond: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The pairs (x_0, ε), (B, *) each, that are learned in place of the given ones.

        Args:
            x_0, eps: independent, (B, *) each.
            cond: of the examples, (B, *) each.
        """


class MinibatchOT(Coupling):
    """The permutation that minimises Σ‖x_0 − ε‖² over the batch: exact optimal transport between the two samples.

    Costs O(B³) on the CPU; at B = 512 a few milliseconds.

    Reference: Tong et al., arXiv 2302.00482, Alg. 3; Pooladian et al., arXiv 2304.14772.
    """

    def __call__(self, x_0: Tensor, eps: Tensor, cond: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        from scipy.optimize import linear_sum_assignment

        cost = torch.cdist(x_0.flatten(1).float(), eps.flatten(1).float()).square()
        _, columns = linear_sum_assignment(cost.cpu().numpy())
        return x_0, eps[torch.from_numpy(columns).to(eps.device)]


class Reflow(Coupling):
    """The noise, and the teacher's sample that it leads to, in place of the example: the paths become straight.

    Each batch costs the evaluations of the sampler.

    Reference: Liu et al., "Flow straight and fast", arXiv 2209.03003, Alg. 1.

    Args:
        teacher: a trained model, such as Teacher with the path of a checkpoint.
        sampler: a deterministic sampler, such as Heun.
    """

    def __init__(self, teacher: Denoiser, sampler: Sampler) -> None:
        self.teacher, self.sampler = teacher.eval().requires_grad_(False), sampler

    def __call__(self, x_0: Tensor, eps: Tensor, cond: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        x_T = self.sampler.prior(self.teacher.schedule, eps)
        options: dict[str, Any] = dict(cond)
        return self.sampler(self.teacher, x_T, no_noise, **options).x_0, eps


def no_noise(x: Tensor) -> Tensor:
    """Raises ValueError: a deterministic sampler asks for none."""
    raise ValueError("Reflow: the sampler draws noise. Fix: take a deterministic one, such as Heun or DDIM with eta 0")
