"""Couplings: permutations of the noise, the optimal one by brute force."""

from itertools import permutations

import numpy as np
import pytest
import torch
from conftest import array, instances
from scipy.optimize import linear_sum_assignment

from diffusion_pl.losses import Coupling, MinibatchOT

every_coupling = pytest.mark.parametrize("coupling", instances(Coupling))


@every_coupling
@pytest.mark.parametrize("shape", [(9, 2), (9, 3, 4, 4), (1, 2)], ids=str)
def test_couplings_permute_the_noise(coupling: Coupling, shape: tuple[int, ...], device: torch.device) -> None:
    x_0, eps = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0)).to(device)
    _, paired = coupling(x_0, eps, {})
    assert paired.shape == eps.shape
    assert paired.device == eps.device
    rows = {tuple(row) for row in eps.reshape(len(eps), -1).tolist()}
    assert {tuple(row) for row in paired.reshape(len(eps), -1).tolist()} == rows


@pytest.mark.parametrize("seed", range(5))
def test_minibatch_ot_is_the_best_of_all_permutations(seed: int) -> None:
    x_0, eps = torch.randn(2, 6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    costs = {p: sum(((x_0[i] - eps[j]) ** 2).sum().item() for i, j in enumerate(p)) for p in permutations(range(6))}
    best = min(costs, key=costs.__getitem__)
    assert torch.equal(MinibatchOT()(x_0, eps, {})[1], eps[list(best)])
    assert costs[best] < costs[tuple(range(6))]


def test_minibatch_ot_of_a_large_batch() -> None:
    """256 images with a large common offset, where |x|² − 2xy + |y|² in single precision would lose the costs."""
    x_0, eps = torch.randn(2, 256, 2, generator=torch.Generator().manual_seed(0))
    x_0, eps = x_0 + 100, eps + 100
    cost = ((array(x_0)[:, None] - array(eps)[None]) ** 2).sum(-1)
    best = cost[linear_sum_assignment(cost)].sum()
    result = ((array(x_0) - array(MinibatchOT()(x_0, eps, {})[1])) ** 2).sum()
    assert result == pytest.approx(best, rel=1e-3)


def test_sorted_noise_is_optimal_on_the_line() -> None:
    x_0, eps = torch.randn(2, 40, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    _, paired = MinibatchOT()(x_0, eps, {})
    np.testing.assert_array_equal(np.argsort(array(x_0).ravel()), np.argsort(array(paired).ravel()))
