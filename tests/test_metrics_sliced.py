"""The sliced Wasserstein distance against scipy and against closed forms."""

import numpy as np
import pytest
import torch
from scipy.stats import wasserstein_distance

from diffusion_pl.metrics import SlicedWasserstein


def test_in_one_dimension_it_is_the_distance_of_quantiles() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(60, 1)), rng.normal(1, 2, size=(60, 1))
    result = SlicedWasserstein(torch.from_numpy(a), 5)(torch.from_numpy(b))
    assert result == pytest.approx(np.sqrt(((np.sort(a, 0) - np.sort(b, 0)) ** 2).mean()))
    # Sets of different sizes: repeating each point changes neither distribution.
    again = SlicedWasserstein(torch.from_numpy(a.repeat(3, 0)), 5)(torch.from_numpy(b.repeat(2, 0)))
    assert again == pytest.approx(result)
    # W₁ ≤ W₂, with equality for a shift.
    assert wasserstein_distance(a[:, 0], b[:, 0]) <= result
    shifted = SlicedWasserstein(torch.from_numpy(a), 5)(torch.from_numpy(a[:37] + 100))
    assert shifted == pytest.approx(wasserstein_distance(a[:, 0], a[:37, 0] + 100), rel=1e-3)


def test_a_shift_is_seen_along_the_directions() -> None:
    """W₂ of a shift by v along a unit u is |u·v|: the mean square is |v|²/D."""
    x = torch.randn(200, 3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    shift = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
    assert SlicedWasserstein(x, 4000)(x + shift) == pytest.approx(np.sqrt(9 / 6), rel=0.03)
    assert SlicedWasserstein(x)(x.flip(0)) == pytest.approx(0, abs=1e-12)


def test_what_is_not_finite_is_infinitely_far() -> None:
    x = torch.zeros(3, 2)
    assert SlicedWasserstein(x)(torch.full((3, 2), float("nan"))) == float("inf")
    with pytest.raises(ValueError, match="the reference is empty"):
        SlicedWasserstein(x[:0])
