"""Metrics of generated examples in a feature space: FID, IS, KID, precision and recall."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric

NAMES = ("fid", "is", "kid", "prc")


class Moments(NamedTuple):
    """n: number of rows;  mean: (F,);  cov: (F, F), with n − 1; float64."""

    n: int
    mean: Tensor
    cov: Tensor


class FeatureStatistics(Metric):
    """Moments of features, summed in float64 over all batches and processes; memory does not grow with their number.

    Args:
        dim: F.
        keep: also keep every row and its logits, as KID, precision and recall, and IS need.
    """

    full_state_update = False
    count: Tensor
    total: Tensor
    outer: Tensor
    bad: Tensor
    index: list[Tensor]
    rows: list[Tensor]

    def __init__(self, dim: int, keep: bool = False) -> None:
        super().__init__()
        self.dim, self.keep = dim, keep
        self.add_state("count", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("bad", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("total", torch.zeros(dim, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("outer", torch.zeros(dim, dim, dtype=torch.float64), dist_reduce_fx="sum")
        if keep:
            self.add_state("index", [], dist_reduce_fx="cat")
            self.add_state("rows", [], dist_reduce_fx="cat")

    def update(self, features: Tensor, index: Tensor, logits: Tensor | None = None) -> None:
        """Add features: (B, F) of examples number index: (B,); what is not finite is counted but not added."""
        good = features.isfinite().all(1)
        self.bad += (~good).sum()
        features, index = features[good], index[good]
        wide = features.double()
        self.count += len(wide)
        self.total += wide.sum(0)
        self.outer += wide.T @ wide
        if self.keep:
            self.index.append(index)
            self.rows.append(features if logits is None else torch.cat((features, logits[good]), 1))

    def compute(self) -> Moments:
        n = int(self.count)
        if n < 2:
            raise ValueError(
                f"{int(self.bad)} of {n + int(self.bad)} samples are not finite: there is nothing to measure"
            )
        mean = self.total / n
        return Moments(n, mean, (self.outer - n * torch.outer(mean, mean)) / (n - 1))

    def kept(self) -> tuple[Tensor, Tensor]:
        """Features (N, F) and logits (N, K), K = 0 without, in the order of their numbers."""
        with self.sync_context():
            index, rows = (torch.cat(s) if isinstance(s, list) else s for s in (self.index, self.rows))
        rows = rows[index.argsort()]
        return rows[:, : self.dim], rows[:, self.dim :]


def fid(samples: Moments, reference: Moments) -> float:
    """Fréchet distance of two Gaussians, |μ₁ − μ₂|² + tr(C₁ + C₂ − 2 (C₁C₂)^½).

    Reference: Heusel et al., arXiv 1706.08500, Eq. 6.
    """
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric

    both = ({"mu": m.mean.numpy(), "sigma": m.cov.numpy()} for m in (samples, reference))
    return float(fid_statistics_to_metric(*both, verbose=False)[KEY_METRIC_FID])


def inception_score(logits: Tensor, splits: int = 10) -> tuple[float, float]:
    """exp E KL(p(y|x) ‖ p(y)), mean and standard deviation over the splits.

    Reference: Salimans et al., arXiv 1606.03498, Sec. 4.
    """
    from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD, isc_features_to_metric

    scores = isc_features_to_metric(logits, splits)
    return scores[KEY_METRIC_ISC_MEAN], scores[KEY_METRIC_ISC_STD]


def kid(samples: Tensor, reference: Tensor, subsets: int = 100, size: int = 1000) -> tuple[float, float]:
    """Squared MMD under (xᵀy/F + 1)³, unbiased: mean and standard deviation over random subsets.

    Reference: Bińkowski et al., arXiv 1801.01401, Sec. 4.
    """
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric

    scores = kid_features_to_metric(samples, reference, kid_subsets=subsets, kid_subset_size=size, verbose=False)
    return scores[KEY_METRIC_KID_MEAN], scores[KEY_METRIC_KID_STD]


def scores(
    names: Sequence[str],
    samples: FeatureStatistics,
    reference: FeatureStatistics,
) -> dict[str, dict[str, Any]]:
    """{metric: {"value", and what it depends on}} of the named metrics.

    Raises:
        ValueError: the Inception Score of an extractor without logits, or an unknown name.
    """
    from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

    check_names(names)
    results: dict[str, dict[str, Any]] = {}
    if "fid" in names:
        results["fid"] = {"value": fid(samples.compute(), reference.compute())}
    if set(names) == {"fid"}:
        return results
    (x, logits), (y, _) = samples.kept(), reference.kept()
    if "is" in names:
        if not logits.shape[1]:
            raise ValueError("is needs an extractor that also gives logits, this one gives features only")
        splits = min(10, len(x))
        value, std = inception_score(logits, splits)
        results["is"] = {"value": value, "std_over_splits": std, "splits": splits}
    if "kid" in names:
        size = min(1000, len(x), len(y))
        value, std = kid(x, y, size=size)
        results["kid"] = {"value": value, "std_over_subsets": std, "subsets": 100, "subset_size": size}
    if "prc" in names:
        pair = prc_features_to_metric(x, y, prc_neighborhood=3, prc_batch_size=10_000, verbose=False)
        results["precision"] = {"value": pair[KEY_METRIC_PRECISION], "neighbours": 3}
        results["recall"] = {"value": pair[KEY_METRIC_RECALL], "neighbours": 3}
    return results


def check_names(names: Sequence[str]) -> None:
    """Raise ValueError for a name that is no metric of this module."""
    unknown = next((name for name in names if name not in NAMES), None)
    if unknown is not None or not names:
        raise ValueError(f"there is no metric {unknown!r} of images, only {', '.join(NAMES)}")


def enough(n: int, dim: int) -> str | None:
    """A warning if n rows are too few for a reliable Fréchet distance in `dim` dimensions, else None."""
    if n > dim:
        return None
    return (
        f"a Fréchet distance of {n:,} samples in {dim:,} features is far too large: their covariance has no full rank; "
        f"take more than {dim:,}, and 50,000 to compare with published ones"
    )
