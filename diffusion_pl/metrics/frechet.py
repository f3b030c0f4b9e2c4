"""Fréchet distance of two Gaussians, exact for covariances without full rank."""

from typing import NamedTuple

import torch
from torch import Tensor


class Moments(NamedTuple):
    """n: number of rows, None where it is not known;  mean: (F,);  cov: (F, F), with n − 1; float64."""

    n: int | None
    mean: Tensor
    cov: Tensor


def frechet_distance(a: Moments, b: Moments) -> float:
    """|μ₁ − μ₂|² + tr C₁ + tr C₂ − 2 tr (C₁^½ C₂ C₁^½)^½.

    With C = F Fᵀ from the eigenvalues of C, the last trace is the sum of the singular values of F₁ᵀ F₂.  No root of a
    matrix is taken: that of a product of two covariances is not symmetric, and where it has no full rank its computed
    root can be wrong in the first digit.  Everything is in float64.

    Reference: Heusel et al., arXiv 1706.08500, Eq. 6; Dowson & Landau, "The Fréchet distance between multivariate
    normal distributions" (1982).

    Raises:
        ValueError: the numbers of features differ, or a moment is not finite.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"Fréchet distance: expected as many features in both, got {len(a.mean)} and {len(b.mean)}")
    for each in (a, b):
        if not (each.mean.isfinite().all() and each.cov.isfinite().all()):
            raise ValueError("Fréchet distance: the mean or covariance of features is not finite")
    common = torch.linalg.svdvals(_factor(a.cov).T @ _factor(b.cov)).sum()
    shift = (a.mean.double().cpu() - b.mean.double().cpu()).square().sum()
    traces = a.cov.diagonal().double().sum().cpu() + b.cov.diagonal().double().sum().cpu()
    return max(0.0, float(shift + traces - 2 * common))


def _factor(cov: Tensor) -> Tensor:
    """F: (F, rank) with F Fᵀ = cov; eigenvalues within rounding of 0, also negative ones, are 0."""
    values, vectors = torch.linalg.eigh(cov.double().cpu())
    kept = values > len(values) * torch.finfo(values.dtype).eps * values[-1:].clamp(min=0)
    factor: Tensor = vectors[:, kept] * values[kept].sqrt()
    return factor
