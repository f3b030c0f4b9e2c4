"""What an evaluation gives, of a model or of a folder of images: its results, and how those of samples are made."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import nn

from .. import __version__
from ..callbacks.sample_writer import not_finite_error
from ..data import DataModule
from ..metrics import FeatureStatistics, InceptionV3
from ..metrics.generation import GivenStatistics
from ..runtime.output import table
from ..runtime.storage import write_json
from .classes import Classes
from .features import Features, note_of, reference_rows
from .fields import field_plots
from .plan import Plan
from .reference import Reference, write_reference
from .report import row
from .results import EnsembleResult, Result, SampleResult
from .samples import keeps_rows, sample_results


@dataclass(frozen=True)
class Results:
    """The results of a plan.

    Attributes:
        metrics: each result by its metric; prc is two, precision and recall.
        reference: of the data, where fid was measured against them; None: no fid, or a reference was given.
        made_with: what must be the same where the reference is used.
    """

    metrics: Mapping[str, Result]
    reference: Reference | None
    made_with: Mapping[str, Any]

    def __getitem__(self, name: str) -> Result:
        return self.metrics[name]

    def __str__(self) -> str:
        return "\n".join(table(self.rows))

    @property
    def rows(self) -> list[dict[str, Any]]:
        """A row of a table for each metric."""
        return [row(name, result) for name, result in self.metrics.items()]

    @property
    def problem(self) -> str:
        """What is wrong with the samples, in a line; "" if all are finite."""
        for result in self.metrics.values():
            if isinstance(result, SampleResult) and result.not_finite:
                return not_finite_error(result.not_finite, result.count * len(result.values))
            if isinstance(result, EnsembleResult) and result.not_finite:
                return not_finite_error(result.not_finite, result.count, "ensembles of samples")
        return ""

    def write(self, folder: Path) -> list[Path]:
        """Write evaluation.json, plots of fields and, if there is one, reference.npz; the files written."""
        results = {name: result.to_json() for name, result in self.metrics.items()}
        write_json(folder / "evaluation.json", {"version": __version__, "figures": results})
        files = [folder / "evaluation.json", *field_plots(self.metrics, folder)]
        if self.reference is None:
            return files
        write_reference(folder / "reference.npz", self.reference, dict(self.made_with))
        return [*files, folder / "reference.npz"]


def measure(
    names: list[str],
    rows: NDArray[Any],
    features: Features,
    against: DataModule | Reference,
    split: str,
    made_with: Mapping[str, Any],
    model: Mapping[str, Any],
    classes: Classes | None = None,
) -> tuple[dict[str, SampleResult], Reference | None]:
    """The results of samples, and the reference if fid was measured against data.

    Args:
        names: of the metrics.
        rows: of the samples, (repeats, N, F + K + S).
        features: of which the rows are.
        against: data, or the moments of their features.
        split: of the data.
        made_with: extractor and levels, for the record.
        model: of the samples, for the record.
        classes: for metrics of each class; None: of all samples only.
    """
    by_class: dict[str, dict[str, float]] = {}
    protocol: dict[str, Any] = {"num_samples": rows.shape[1]}
    if made_with["extractor"] is None:
        protocol["units"] = "model units: unit variance per axis"
    else:
        protocol["extractor"] = made_with["extractor"]
        protocol["quantisation"] = f"uint8, lossless, from {made_with['levels']} levels"
    statistics: FeatureStatistics | GivenStatistics
    made = None
    if isinstance(against, Reference):
        statistics, note = against.statistics(features, names), against.note
    else:
        note = note_of(against, split)
        real = reference_rows(features, against, note)
        statistics = features.statistics(real, keeps_rows(names))
        if classes is not None:
            by_class = classes.scores(names, rows, real, features)
        if "fid" in names:
            spatial = None if statistics.spatial is None else statistics.spatial.compute()
            made = Reference(statistics.compute(), note, spatial)
    protocol["reference"] = note
    results = sample_results(names, rows, features, statistics, protocol, model)
    return {name: replace(result, classes=by_class.get(name, {})) for name, result in results.items()}, made


def extractor_on(plan: Plan, device: torch.device) -> nn.Module:
    """The extractor of a plan on a device, which nothing trains."""
    extractor = plan.extractor or InceptionV3(spatial="sfid" in (plan.metrics or ()))
    return extractor.eval().requires_grad_(False).to(device)
