"""Metrics of samples: from features to results with their protocol."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from numpy.typing import NDArray

from ..data import DataModule
from ..metrics import FeatureStatistics, fields, generation, points
from ..metrics.generation import GivenStatistics
from .features import Features
from .results import SampleResult

#: The metrics of samples by the kind of data.
NAMES = {"images": generation.NAMES, "fields": fields.NAMES, "points": points.NAMES}
#: Those that are measured where none are chosen.
DEFAULTS = {**NAMES, "images": generation.DEFAULT}


def kind_of(data: DataModule) -> str:
    """What examples are, a key of NAMES."""
    return "images" if data.is_image else "fields" if data.is_field else "points"


def check_features(names: Sequence[str], features: Features) -> None:
    """Raise ValueError if a metric needs logits, spatial features or embeddings that the extractor does not give."""
    _, logits, spatial = features.widths if {"is", "sfid"} & set(names) else (0, 1, 1)
    name = type(features.extractor).__name__
    if "is" in names and not logits:
        raise ValueError(f"is needs logits, and {name} gives features only. Fix: leave is out of --metrics")
    if "sfid" in names and not spatial:
        raise ValueError(f"sfid needs spatial features, and {name} gives none. Fix: {generation.SPATIAL}")
    if "cmmd" in names:
        generation.check_lengths(features(torch.zeros(1, *features.shape)))


def keeps_rows(names: Sequence[str]) -> bool:
    """Whether these metrics need every row, not moments alone."""
    return not set(names) <= set(generation.OF_MOMENTS)


def scores(
    names: Sequence[str], samples: FeatureStatistics, reference: FeatureStatistics | GivenStatistics, features: Features
) -> dict[str, dict[str, Any]]:
    """{metric: {"value", and what it depends on}} of samples; prc is two of them, precision and recall.

    Args:
        names: of the metrics.
        samples: statistics of the samples.
        reference: those of the data.
        features: of which both are.
    """
    if features.extractor is None:
        assert isinstance(reference, FeatureStatistics)
        return points.scores(names, samples.kept()[0], reference.kept()[0])
    return generation.scores(names, samples, reference)


def sample_results(
    names: Sequence[str],
    rows: NDArray[Any],
    features: Features,
    reference: FeatureStatistics | GivenStatistics,
    protocol: Mapping[str, Any],
    model: Mapping[str, Any],
) -> dict[str, SampleResult]:
    """Results of samples.

    Args:
        names: of the metrics.
        rows: of the samples, (repeats, N, F + K + S).
        features: of which the rows are.
        reference: of the data, from the same features.
        protocol, model: see Result.
    """
    if "fid" in names:
        warn_of_few(rows.shape[1], features)
    values: dict[str, list[float]] = {}
    notes: dict[str, dict[str, Any]] = {}
    bad = 0
    for some in rows:
        samples = features.statistics(some, keeps_rows(names))
        bad += int(samples.bad)
        for name, score in scores(names, samples, reference, features).items():
            values.setdefault(name, []).append(score.pop("value"))
            notes[name] = {key: value for key, value in score.items() if not key.startswith("std")}
    return {
        name: SampleResult.of(each, unit="", protocol={**protocol, **notes[name]}, model=dict(model), not_finite=bad)
        for name, each in values.items()
    }


def warn_of_few(num_samples: int, features: Features) -> None:
    """Print a warning on stderr if FID would be of too few samples for so many features."""
    warning = generation.enough(num_samples, features.widths[0])
    if warning:
        print(f"diffusion_pl: warning: {warning}", file=sys.stderr)
