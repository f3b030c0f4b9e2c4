"""Fréchet distance: closed forms of Gaussians, also without full rank, and torch-fidelity's value."""

import math

import pytest
import torch
from torch import Tensor

from diffusion_pl.metrics.frechet import Moments, frechet_distance


def moments(cov: Tensor, mean: Tensor | None = None) -> Moments:
    return Moments(9, torch.zeros(len(cov), dtype=torch.float64) if mean is None else mean, cov.double())


def random_cov(dim: int, rank: int, seed: int) -> Tensor:
    root = torch.randn(dim, rank, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return root @ root.T / rank


def rotation(dim: int, seed: int = 0) -> Tensor:
    turn: Tensor = torch.linalg.qr(random_cov(dim, 2 * dim, seed))[0]
    return turn


def test_distance_of_points_and_intervals() -> None:
    one, mean = torch.ones(1, 1, dtype=torch.float64), torch.tensor([3.0], dtype=torch.float64)
    # In one dimension (μ₁ − μ₂)² + (σ₁ − σ₂)².
    assert frechet_distance(moments(4 * one), moments(25 * one, mean)) == pytest.approx(9 + 9, abs=1e-12)
    assert frechet_distance(moments(0 * one), moments(4 * one)) == pytest.approx(4, abs=1e-12)
    assert frechet_distance(moments(0 * one), moments(0 * one, mean)) == 9


def test_two_by_two_has_a_closed_form() -> None:
    a, b = random_cov(2, 5, 0), random_cov(2, 5, 1)
    # For 2 x 2 matrices tr √M = √(tr M + 2 √det M).
    common = math.sqrt(torch.trace(a @ b) + 2 * math.sqrt(torch.det(a) * torch.det(b)))
    expected = float(torch.trace(a) + torch.trace(b)) - 2 * common
    assert frechet_distance(moments(a), moments(b)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("ranks", [(40, 40), (7, 40), (7, 11), (0, 7)])
def test_commuting_covariances_without_full_rank(ranks: tuple[int, int]) -> None:
    turn, places = rotation(40), torch.arange(40, dtype=torch.float64)
    roots = [torch.where(places < rank, 1 + places * k, 0.0) for k, rank in enumerate(ranks, 1)]
    a, b = (moments(turn @ torch.diag(root**2) @ turn.T) for root in roots)
    expected = float((roots[0] - roots[1]).square().sum())
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-10, abs=1e-9)


def test_subspaces_at_an_angle() -> None:
    # Two unit variances along lines at an angle φ: 2 − 2 |cos φ|.
    for angle in (0.0, 0.3, math.pi / 2):
        u, v = torch.eye(50, dtype=torch.float64)[0], torch.zeros(50, dtype=torch.float64)
        v[0], v[1] = math.cos(angle), math.sin(angle)
        value = frechet_distance(moments(torch.outer(u, u)), moments(torch.outer(v, v)))
        assert value == pytest.approx(2 - 2 * math.cos(angle), abs=1e-12)


def test_same_features_in_other_coordinates() -> None:
    turn, a, b = rotation(30, 3), random_cov(30, 60, 1), random_cov(30, 10, 2)
    turned = (moments(turn @ cov @ turn.T) for cov in (a, b))
    assert frechet_distance(*turned) == pytest.approx(frechet_distance(moments(a), moments(b)), rel=1e-10)
    assert frechet_distance(moments(b), moments(a)) == pytest.approx(
        frechet_distance(moments(a), moments(b)), rel=1e-12
    )
    assert frechet_distance(moments(b), moments(b)) == pytest.approx(0, abs=1e-12)


def test_value_is_that_of_torch_fidelity() -> None:
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric

    a, b = moments(random_cov(64, 300, 1)), moments(random_cov(64, 200, 2), torch.full((64,), 0.1, dtype=torch.float64))
    theirs = fid_statistics_to_metric(*({"mu": m.mean.numpy(), "sigma": m.cov.numpy()} for m in (a, b)), verbose=False)
    assert frechet_distance(a, b) == pytest.approx(theirs[KEY_METRIC_FID], rel=1e-10)


def test_moments_that_cannot_be_compared_are_refused() -> None:
    with pytest.raises(ValueError, match="as many features in both, got 2 and 3"):
        frechet_distance(moments(torch.eye(2)), moments(torch.eye(3)))
    with pytest.raises(ValueError, match="not finite"):
        frechet_distance(moments(torch.eye(2)), moments(torch.eye(2) * math.nan))
