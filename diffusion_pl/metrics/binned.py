"""Mean of a quantity, in total and within equal bins of another one."""

import torch
from torch import Tensor
from torchmetrics import Metric


class BinnedMean(Metric):
    """Mean of values in `bins` equal bins of positions in [0, 1].

    Sums over all processes before dividing, so that it does not matter how the data were distributed to them.

    Args:
        bins: number of bins.
    """

    full_state_update = False
    sums: Tensor
    counts: Tensor

    def __init__(self, bins: int) -> None:
        super().__init__()
        if bins < 1:
            raise ValueError(f"bins must be at least 1, got {bins}")
        self.bins = bins
        self.add_state("sums", torch.zeros(bins), dist_reduce_fx="sum")
        self.add_state("counts", torch.zeros(bins), dist_reduce_fx="sum")

    def update(self, values: Tensor, positions: Tensor) -> None:
        """Add values: (B,) at positions: (B,) in [0, 1]."""
        index = (positions * self.bins).long().clamp(0, self.bins - 1)
        self.sums.index_add_(0, index, values.to(self.sums.dtype))
        self.counts.index_add_(0, index, torch.ones_like(index, dtype=self.counts.dtype))

    def compute(self) -> tuple[Tensor, Tensor]:
        """Total mean: (), and the mean in each bin: (bins,), NaN where a bin is empty."""
        return self.sums.sum() / self.counts.sum(), self.sums / self.counts
