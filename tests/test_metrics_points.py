"""Distances between sets of points, against closed forms and brute force."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch_fidelity.metric_prc import prc_features_to_metric

from diffusion_pl.metrics import points
from diffusion_pl.metrics.points import energy_distance, mmd, precision_recall


def normal(n: int, seed: int, dims: int = 2) -> Tensor:
    return torch.randn(n, dims, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_the_energy_distance_of_two_points_and_of_equal_sets() -> None:
    assert energy_distance(torch.zeros(1, 2), torch.tensor([[3.0, 4.0]])) == pytest.approx(10)
    assert energy_distance(normal(50, 0), normal(50, 0)) == pytest.approx(0, abs=1e-12)


def test_the_energy_distance_of_gaussians_on_a_line() -> None:
    """E|N(m, 2)| = 2 φ(m/√2)·√2… in closed form: √(4/π) e^{−m²/4} + m erf(m/2)."""
    shift = 1.5

    def mean(m: float) -> float:
        return math.sqrt(4 / math.pi) * math.exp(-m * m / 4) + m * math.erf(m / 2)

    result = energy_distance(normal(4000, 0, 1), normal(4000, 1, 1) + shift)
    assert result == pytest.approx(2 * mean(shift) - 2 * mean(0), rel=0.05)


def test_mmd_is_unbiased_and_separates_distributions() -> None:
    same = [mmd(normal(60, 2 * k), normal(60, 2 * k + 1)) for k in range(40)]
    error = np.std(same, ddof=1) / math.sqrt(40)
    assert abs(np.mean(same)) < 4 * error
    assert min(same) < 0 < mmd(normal(60, 0), normal(60, 1) + 2)


def test_mmd_of_gaussians_in_closed_form() -> None:
    """E exp(−d²/2h²) for d ~ N(m, 2 I): (h²/(h² + 2))^{D/2} exp(−|m|²/2(h² + 2))."""
    x, y = normal(3000, 0), normal(3000, 1) + 1
    h = float(torch.pdist(y[::3]).median())

    def kernel(m_sq: float) -> float:
        return h**2 / (h**2 + 2) * math.exp(-m_sq / (2 * (h**2 + 2)))

    assert mmd(x, y, (1.0,)) == pytest.approx(2 * kernel(0) - 2 * kernel(2), rel=0.08)


def test_precision_and_recall_are_torch_fidelitys() -> None:
    x, y = normal(200, 0, 5), 0.7 * normal(150, 1, 5)
    theirs = prc_features_to_metric(x, y, prc_neighborhood=3, prc_batch_size=1000, verbose=False)
    assert precision_recall(x, y) == pytest.approx((theirs["precision"], theirs["recall"]))
    assert precision_recall(x, x) == (1, 1)
    assert precision_recall(x, y + 100) == (0, 0)


def test_pieces_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = normal(50, 0), normal(70, 1) + 0.3
    whole = energy_distance(x, y), mmd(x, y), *precision_recall(x, y)
    monkeypatch.setattr(points, "CHUNK", 7)
    assert (energy_distance(x, y), mmd(x, y), *precision_recall(x, y)) == pytest.approx(whole, rel=1e-12)


def test_bad_sets_are_refused() -> None:
    for bad in (torch.zeros(0, 2), torch.full((2, 2), math.nan)):
        with pytest.raises(ValueError, match="at least one, and finite"):
            energy_distance(bad, normal(3, 0))
    with pytest.raises(ValueError, match="two points or more"):
        mmd(normal(1, 0), normal(3, 0))
    with pytest.raises(ValueError, match="need more than 3 points"):
        precision_recall(normal(3, 0), normal(9, 0))
