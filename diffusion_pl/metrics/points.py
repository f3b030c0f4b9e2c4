"""Distances between two sets of points: energy distance, MMD, precision and recall by neighbours.

Sums over pairs are taken in pieces, so memory stays bounded; x: (N, *) and y: (M, *) may differ in number.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from .sliced import SlicedWasserstein

NAMES = ("energy", "mmd", "sliced", "prc")

CHUNK = 1000  # rows of the matrix of distances at a time


def energy_distance(x: Tensor, y: Tensor) -> float:
    """2 E|x − y| − E|x − x'| − E|y − y'| over all pairs, of a point with itself too; 0 for equal sets.

    Reference: Székely & Rizzo, "Energy statistics" (2013).
    """
    a, b = _checked(x), _checked(y)

    def mean(p: Tensor, q: Tensor) -> float:
        return sum(float(d.sum()) for d in _distances(p, q)) / (len(p) * len(q))

    return 2 * mean(a, b) - mean(a, a) - mean(b, b)


def mmd(x: Tensor, y: Tensor, bandwidths: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0)) -> float:
    """Squared maximum mean discrepancy, unbiased: mean over Gaussian kernels exp(−d²/2h²).

    Reference: Gretton et al., "A kernel two-sample test" (2012), Eq. 3.

    Args:
        x, y: points; y is the reference.
        bandwidths: h, in units of the median distance between (up to 1,000) points of y.
    """
    a, b = _checked(x), _checked(y)
    if min(len(a), len(b)) < 2:
        raise ValueError("mmd needs two points or more in each set")
    some = b[:: -(-len(b) // 1000)]
    median = torch.pdist(some).median() if len(some) > 1 else torch.tensor(1.0)
    scales = [float(h * median) or 1.0 for h in bandwidths]

    def total(p: Tensor, q: Tensor) -> float:
        kernels = (sum(torch.exp(-0.5 * (d / h).square()).sum() for h in scales) for d in _distances(p, q))
        return sum(float(k) for k in kernels) / len(scales)

    n, m = len(a), len(b)
    return (total(a, a) - n) / (n * (n - 1)) + (total(b, b) - m) / (m * (m - 1)) - 2 * total(a, b) / (n * m)


def precision_recall(x: Tensor, y: Tensor, neighbours: int = 3) -> tuple[float, float]:
    """Share of x within reach of y, and of y within reach of x; a point's reach is its distance to its k-th neighbour.

    Reference: Kynkäänniemi et al., arXiv 1904.06991, Eq. 1–2.
    """
    a, b = _checked(x), _checked(y)
    if neighbours < 1 or min(len(a), len(b)) <= neighbours:
        raise ValueError(f"precision and recall by {neighbours} neighbours need more than {neighbours} points")
    return _covered(a, b, _reach(b, neighbours)), _covered(b, a, _reach(a, neighbours))


def scores(names: Sequence[str], x: Tensor, y: Tensor) -> dict[str, dict[str, Any]]:
    """{metric: {"value", and what it depends on}} of the named metrics of x: (N, *) against y: (M, *)."""
    results: dict[str, dict[str, Any]] = {}
    if "energy" in names:
        results["energy"] = {"value": energy_distance(x, y)}
    if "mmd" in names:
        results["mmd"] = {"value": mmd(x, y)}
    if "sliced" in names:
        results["sliced"] = {"value": SlicedWasserstein(y)(x)}
    if "prc" in names:
        precision, recall = precision_recall(x, y)
        results["precision"] = {"value": precision, "neighbours": 3}
        results["recall"] = {"value": recall, "neighbours": 3}
    return results


def _reach(p: Tensor, neighbours: int) -> Tensor:
    return torch.cat([d.kthvalue(neighbours + 1, dim=1).values for d in _distances(p, p)])  # itself is the first


def _covered(p: Tensor, q: Tensor, reach: Tensor) -> float:
    return sum(int((d <= reach).any(1).sum()) for d in _distances(p, q)) / len(p)


def _distances(p: Tensor, q: Tensor) -> Iterator[Tensor]:
    # Differences, not |p|² − 2pq + |q|², which would lose the small distances.
    parts = (p[first : first + CHUNK] for first in range(0, len(p), CHUNK))
    return (torch.cdist(part, q, compute_mode="donot_use_mm_for_euclid_dist") for part in parts)


def _checked(x: Tensor) -> Tensor:
    flat = x.flatten(1).double().cpu()
    if not len(flat) or not flat.isfinite().all():
        raise ValueError("the points to compare must be at least one, and finite")
    return flat
