"""Metrics of generated examples in a feature space: FID, sFID, IS, KID, CMMD, precision and recall."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric

from .frechet import Moments, frechet_distance

#: Without a choice of metrics, the first four; the others need features that not every extractor gives.
DEFAULT = ("fid", "is", "kid", "prc")
NAMES = (*DEFAULT, "sfid", "cmmd")
#: How an extractor gets spatial features.
SPATIAL = "give --extractor InceptionV3 --extractor.spatial true, or leave sfid out"
#: Those that need moments of the reference alone, and those that need nothing of it.
OF_MOMENTS, OF_SAMPLES = ("fid", "sfid"), ("is",)


class FeatureStatistics(Metric):
    """Moments of features, summed in float64 over all batches and processes; memory does not grow with their number.

    Args:
        dim: F.
        keep: also keep every row and its logits, as KID, CMMD, precision and recall, and IS need.
        spatial: number S of spatial features, of which moments are kept too, for sFID; 0: none.
    """

    full_state_update = False
    count: Tensor
    total: Tensor
    outer: Tensor
    bad: Tensor
    index: list[Tensor]
    rows: list[Tensor]

    def __init__(self, dim: int, keep: bool = False, spatial: int = 0) -> None:
        super().__init__()
        self.dim, self.keep = dim, keep
        self.spatial = FeatureStatistics(spatial) if spatial else None
        self.add_state("count", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("bad", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("total", torch.zeros(dim, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("outer", torch.zeros(dim, dim, dtype=torch.float64), dist_reduce_fx="sum")
        if keep:
            self.add_state("index", [], dist_reduce_fx="cat")
            self.add_state("rows", [], dist_reduce_fx="cat")

    def update(
        self, features: Tensor, index: Tensor, logits: Tensor | None = None, spatial: Tensor | None = None
    ) -> None:
        """Add features: (B, F) of examples number index: (B,); what is not finite is counted but not added."""
        good = features.isfinite().all(1)
        self.bad += (~good).sum()
        if self.spatial is not None and spatial is not None:
            self.spatial.update(spatial, index)
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


class GivenStatistics(NamedTuple):
    """Statistics of a reference that exist already, in place of a FeatureStatistics.

    moments: of the features;  spatial_moments: of the spatial features, None: not known;  rows: (N, F) features, None:
    not known.
    """

    moments: Moments
    spatial_moments: Moments | None = None
    rows: Tensor | None = None


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


def cmmd(samples: Tensor, reference: Tensor, sigma: float = 10.0, scale: float = 1000.0) -> float:
    """1,000 times the squared MMD of CLIP embeddings under exp(−d²/2σ²), over all pairs, of a row with itself too.

    Reference: Jayasumana et al., arXiv 2401.09603, Sec. 4; the estimator is Eq. 5 of Gretton et al., "A kernel
    two-sample test" (2012).

    Args:
        samples, reference: (N, F) and (M, F), each row of length 1.

    Raises:
        ValueError: the rows are of another length, for which σ is not made.
    """
    a, b = samples.double().cpu(), reference.double().cpu()
    check_lengths(torch.cat((a[:100], b[:100])))

    def mean(p: Tensor, q: Tensor) -> float:
        total = 0.0
        for part in p.split(2000):
            squares = part.square().sum(1)[:, None] + q.square().sum(1) - 2 * part @ q.T
            total += float(torch.expm1(squares.clamp(min=0) / (-2 * sigma**2)).sum())  # the ones cancel in the sum
        return total / (len(p) * len(q))

    return scale * (mean(a, a) + mean(b, b) - 2 * mean(a, b))


def check_lengths(rows: Tensor) -> None:
    """Raise ValueError unless rows of features (B, F) have length 1, as CMMD needs."""
    length = float(rows.norm(dim=1).mean())
    if not abs(length - 1) < 1e-2:
        raise ValueError(
            f"cmmd is for embeddings of length 1, as CLIP's are, and these have {length:.3g}. "
            "Fix: give --extractor CLIP --extractor.folder FOLDER"
        )


def scores(
    names: Sequence[str],
    samples: FeatureStatistics,
    reference: FeatureStatistics | GivenStatistics,
) -> dict[str, dict[str, Any]]:
    """{metric: {"value", and what it depends on}} of the named metrics.

    Raises:
        ValueError: an unknown name, or a metric that needs logits, spatial features or rows that are not there.
    """
    check_names(names)
    known = _given(reference, rows=bool(set(names) - {*OF_MOMENTS, *OF_SAMPLES}))
    results: dict[str, dict[str, Any]] = {}
    if "fid" in names:
        results["fid"] = {"value": frechet_distance(samples.compute(), known.moments)}
    if "sfid" in names:
        if samples.spatial is None or known.spatial_moments is None:
            which = "extractor" if samples.spatial is None else "reference"
            raise ValueError(f"sfid needs spatial features, and the {which} has none. Fix: {SPATIAL}")
        results["sfid"] = {"value": frechet_distance(samples.spatial.compute(), known.spatial_moments)}
    if set(names) <= set(OF_MOMENTS):
        return results
    x, logits = samples.kept()
    if "is" in names:
        if not logits.shape[1]:
            raise ValueError("is needs an extractor that also gives logits, this one gives features only")
        splits = min(10, len(x))
        value, std = inception_score(logits, splits)
        results["is"] = {"value": value, "std_over_splits": std, "splits": splits}
    return results | _of_rows(names, x, known.rows)


def _of_rows(names: Sequence[str], x: Tensor, y: Tensor | None) -> dict[str, dict[str, Any]]:
    """The metrics that compare rows, x: (N, F) of samples with y: (M, F) of the reference."""
    results: dict[str, dict[str, Any]] = {}
    if not set(names) - {*OF_MOMENTS, *OF_SAMPLES}:
        return results
    if y is None:
        raise ValueError(f"{', '.join(names)}: the reference has moments only, expected rows of features")
    if "kid" in names:
        size = min(1000, len(x), len(y))
        value, std = kid(x, y, size=size)
        results["kid"] = {"value": value, "std_over_subsets": std, "subsets": 100, "subset_size": size}
    if "prc" in names:
        precision, recall = precision_recall(x, y)
        results["precision"] = {"value": precision, "neighbours": 3}
        results["recall"] = {"value": recall, "neighbours": 3}
    if "cmmd" in names:
        results["cmmd"] = {"value": cmmd(x, y), "sigma": 10.0, "scale": 1000.0}
    return results


def precision_recall(samples: Tensor, reference: Tensor, neighbours: int = 3) -> tuple[float, float]:
    """Share of samples within reach of the reference, and of the reference within reach of the samples.

    Reference: Kynkäänniemi et al., arXiv 1904.06991, Eq. 1–2.
    """
    from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

    pair = prc_features_to_metric(
        samples, reference, prc_neighborhood=neighbours, prc_batch_size=10_000, save_cpu_ram=True, verbose=False
    )
    return pair[KEY_METRIC_PRECISION], pair[KEY_METRIC_RECALL]


def _given(reference: FeatureStatistics | GivenStatistics, rows: bool) -> GivenStatistics:
    if isinstance(reference, GivenStatistics):
        return reference
    spatial = None if reference.spatial is None else reference.spatial.compute()
    return GivenStatistics(reference.compute(), spatial, reference.kept()[0] if rows else None)


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
