"""Metrics of ensembles: K samples of one condition against the one example that has it.

All are of single values (a pixel of a channel); a mean over values, then over examples, is the metric.
"""

import torch
from torch import Tensor


def crps(members: Tensor, truth: Tensor) -> Tensor:
    """Continuous ranked probability score of an ensemble, fair: unbiased for the score of infinitely many members.

        1/K Σ_k |x_k − y|  −  1/(2 K (K−1)) Σ_k Σ_l |x_k − x_l|

    The second sum is taken over sorted members, Σ_{k<l} (x_(l) − x_(k)) = Σ_k (2k − K − 1) x_(k).

    Reference: Gneiting & Raftery, "Strictly proper scoring rules" (2007), Eq. 20–21; Ferro, "Fair scores for ensemble
    forecasts" (2014).

    Args:
        members: (K, *), K at least 2.
        truth: (*).

    Returns:
        (*), in units of x; lower is better.

    Raises:
        ValueError: fewer than two members.
    """
    count = _count(members)
    weights = torch.arange(1 - count, count, 2, dtype=members.dtype, device=members.device)
    pairs: Tensor = torch.tensordot(weights, members.sort(0).values, 1) / (count * (count - 1))
    return (members - truth).abs().mean(0) - pairs


def spread_and_error(members: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """The two squares of the spread–skill ratio, equal in expectation if members and truth are exchangeable.

        (1 + 1/K) · 1/(K−1) Σ_k (x_k − x̄)²   and   (x̄ − y)²

    The ratio is the root of the mean of the first by the mean of the second: 1 is reliable, below 1 the ensemble is too
    narrow.

    Reference: Fortin et al., "Why should ensemble spread match the RMSE of the ensemble mean?" (2014), Eq. 15.

    Args:
        members: (K, *), K at least 2.
        truth: (*).

    Returns:
        (*) each.
    """
    count = _count(members)
    return (1 + 1 / count) * members.var(0), (members.mean(0) - truth).square()


def ranks(members: Tensor, truth: Tensor) -> Tensor:
    """How many members are below the truth: (K, *), (*) -> (*), int64 in 0 … K; uniform for a reliable ensemble.

    Reference: Hamill, "Interpretation of rank histograms for verifying ensemble forecasts" (2001).
    """
    return (members < truth).sum(0)


def _count(members: Tensor) -> int:
    if len(members) < 2:
        raise ValueError(f"an ensemble needs at least 2 members, got {len(members)}")
    return len(members)
