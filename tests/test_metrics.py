"""Metrics against plain means."""

from typing import Any

import pytest
import torch

from diffusion_pl.metrics import BinnedMean


def test_the_mean_in_each_bin_and_in_total() -> None:
    metric = BinnedMean(4)
    metric.update(torch.tensor([1.0, 2.0, 30.0]), torch.tensor([0.1, 0.2, 0.6]))
    metric.update(torch.tensor([400.0]), torch.tensor([0.7]))
    total, bins = metric.compute()
    assert total.item() == pytest.approx(433 / 4)  # of all values, not of the bins' means
    assert bins[[0, 2]].tolist() == [1.5, 215]
    assert bins[[1, 3]].isnan().all()


def test_bins_include_their_left_edge_and_the_last_includes_1() -> None:
    metric = BinnedMean(2)
    metric.update(torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([0.0, 0.4999, 0.5, 1.0]))
    assert metric.compute()[1].tolist() == [1.5, 3.5]


def test_bins_weighted_by_their_counts_add_up_to_the_total() -> None:
    values, positions = torch.rand(1000, generator=torch.Generator().manual_seed(0)).split(500)
    metric = BinnedMean(7)
    for start in range(0, 500, 37):  # batches of unequal size
        metric.update(values[start : start + 37], positions[start : start + 37])
    total, bins = metric.compute()
    counts = torch.histc(positions, 7, 0, 1)
    assert total.item() == pytest.approx(values.mean().item(), rel=1e-5)
    assert ((bins * counts).sum() / counts.sum()).item() == pytest.approx(total.item(), rel=1e-5)


def test_reset_forgets() -> None:
    metric = BinnedMean(1)
    metric.update(torch.tensor([5.0]), torch.tensor([0.5]))
    metric.reset()
    metric.update(torch.tensor([1.0]), torch.tensor([0.5]))
    assert metric.compute()[0].item() == 1


def test_processes_with_unequal_shares_are_averaged_by_example() -> None:
    """What torchmetrics does over processes: every state is summed."""
    shares = [BinnedMean(2), BinnedMean(2)]
    shares[0].update(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.1, 0.2, 0.9]))
    shares[1].update(torch.tensor([6.0]), torch.tensor([0.3]))
    together = BinnedMean(2)
    reductions: dict[str, Any] = together._reductions
    assert {name: f.__name__ for name, f in reductions.items()} == {"sums": "dim_zero_sum"} | {"counts": "dim_zero_sum"}
    together.sums, together.counts = (sum(getattr(s, name) for s in shares) for name in ("sums", "counts"))
    together._update_count = 1
    assert together.compute()[0].item() == 3
    assert together.compute()[1].tolist() == [3, 3]


def test_values_of_half_precision_are_summed_in_single() -> None:
    metric = BinnedMean(1)
    for _ in range(5000):
        metric.update(torch.ones(1, dtype=torch.bfloat16), torch.zeros(1))
    assert metric.compute()[0].item() == 1


def test_no_bins_is_refused() -> None:
    with pytest.raises(ValueError, match="bins must be at least 1, got 0"):
        BinnedMean(0)
