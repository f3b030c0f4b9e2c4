"""Sliced Wasserstein distance between two sets."""

import torch
from torch import Tensor


class SlicedWasserstein:
    """√ of the mean over random directions of W₂² between the projections, in units of the data.

    The reference is projected and sorted once.

    Reference: Rabin et al., "Wasserstein barycenter and its application to texture mixing" (2011).

    Args:
        reference: (N, *).
        directions: how many.
        seed: of the directions.
    """

    def __init__(self, reference: Tensor, directions: int = 256, seed: int = 0) -> None:
        flat = reference.flatten(1).double()
        if len(flat) == 0:
            raise ValueError("SlicedWasserstein: the reference is empty")
        axes = torch.randn(
            flat.shape[1], directions, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
        )
        self.axes = axes / axes.norm(dim=0)
        self.sorted = (flat @ self.axes).sort(0).values

    def __call__(self, x: Tensor) -> float:
        """Distance of x: (M, *) to the reference; M and N may differ."""
        projected = (x.flatten(1).double().cpu() @ self.axes).sort(0).values
        if not projected.isfinite().all():
            return float("inf")
        n, m = len(self.sorted), len(projected)
        # Both quantile functions are steps: they are compared on the common refinement of their steps.
        ends = torch.cat([torch.arange(1, n + 1) / n, torch.arange(1, m + 1) / m]).double().sort().values
        weights = torch.diff(ends, prepend=ends.new_zeros(1))
        middle = ends - weights / 2
        reference, samples = (v[(middle * len(v)).long().clamp(max=len(v) - 1)] for v in (self.sorted, projected))
        return float((weights[:, None] * (reference - samples).square()).sum(0).mean().sqrt())
