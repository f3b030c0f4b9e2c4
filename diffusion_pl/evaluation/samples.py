"""Metrics of samples: from features to results with their protocol."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from ..data import DataModule
from ..metrics import FeatureStatistics, fields, generation, points
from ..metrics.generation import Moments
from .features import Features
from .results import SampleResult

#: The metrics of samples by the kind of data.
NAMES = {"images": generation.NAMES, "fields": fields.NAMES, "points": points.NAMES}


def kind_of(data: DataModule) -> str:
    """What examples are, a key of NAMES."""
    return "images" if data.is_image else "fields" if data.is_field else "points"


def keeps_rows(names: Sequence[str]) -> bool:
    """Whether these metrics need every row, not moments alone."""
    return set(names) != {"fid"}


def scores(
    names: Sequence[str], samples: FeatureStatistics, reference: FeatureStatistics | Moments, features: Features
) -> dict[str, dict[str, Any]]:
    """{metric: {"value", and what it depends on}} of samples; prc is two of them, precision and recall.

    Args:
        names: of the metrics.
        samples: statistics of the samples.
        reference: those of the data; moments are enough for fid alone.
        features: of which both are.
    """
    if isinstance(reference, Moments):
        return {"fid": {"value": generation.fid(samples.compute(), reference)}}
    if features.extractor is None:
        return points.scores(names, samples.kept()[0], reference.kept()[0])
    return generation.scores(names, samples, reference)


def sample_results(
    names: Sequence[str],
    rows: NDArray[Any],
    features: Features,
    reference: FeatureStatistics | Moments,
    protocol: Mapping[str, Any],
    model: Mapping[str, Any],
) -> dict[str, SampleResult]:
    """Results of samples.

    Args:
        names: of the metrics.
        rows: of the samples, (repeats, N, F + K).
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
    warning = generation.enough(num_samples, features.width)
    if warning:
        print(f"diffusion_pl: warning: {warning}", file=sys.stderr)
