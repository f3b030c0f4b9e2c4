"""Couplings: pairs of noise and examples.  The marginals of x_0 and ε stay as they are."""

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

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
