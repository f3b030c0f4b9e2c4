"""Metrics of continuous fields, and of ensembles of samples under the conditions of held-out examples.

samples  -> FieldStatistics                        -> moments, marginals, spectrum, energy
examples -> K samples under the conditions of each -> crps, spread
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from .. import plots
from ..data import DataModule
from ..metrics import ensembles, fields
from ..metrics.fields import FieldStatistics
from ..pipeline import Pipeline
from .features import note_of
from .likelihood import Block, Rows
from .results import EnsembleResult, FieldResult, Result

KEPT = 2000  # fields of each set, at most, whose energy distance is taken: it goes over all pairs
PIECE = 1 << 22  # values that are measured at a time
UNITS = "model units: unit variance per channel"
ENSEMBLES = ("crps", "spread")


class FieldSamples:
    """Sums over fields for some metrics.

    Args:
        names: of the metrics, see `metrics.fields.scores`.
        shape: (C, *sizes) of a field.
        total: number of fields there will be; at most KEPT of them, evenly spread, are kept for the energy distance.
        device: of the sums.
    """

    def __init__(
        self, names: Sequence[str], shape: Sequence[int], total: int, device: torch.device | str = "cpu"
    ) -> None:
        self.statistics = FieldStatistics(shape).to(device)
        self.every = -(-total // KEPT) if "energy" in names else 0
        if self.every:  # also where this process has no share, or the others could not gather theirs
            self.statistics.rows.append(torch.empty(0, math.prod(shape), device=device))

    def add(self, x: Tensor, first: int) -> None:
        """Add fields x: (B, C, *sizes) in model units, number `first` and those that follow."""
        numbers = torch.arange(first, first + len(x))
        self.statistics.update(x.to(self.statistics.count.device), numbers % self.every == 0 if self.every else None)


def samples_of(names: Sequence[str], x: NDArray[Any]) -> FieldStatistics:
    """The sums over samples x: (N, C, *sizes), taken in pieces."""
    made = FieldSamples(names, x.shape[1:], len(x))
    size = _piece(x.shape[1:])
    for first in range(0, len(x), size):
        made.add(torch.from_numpy(np.array(x[first : first + size])), first)
    return made.statistics


def data_of(names: Sequence[str], data: DataModule, split: str) -> FieldStatistics:
    """The sums over a split of data."""
    n, size = len(data.part(split)), _piece(data.shape)
    made = FieldSamples(names, data.shape, n)
    batches = tqdm(data.batches(split, size), f"fields of {split}", -(-n // size), delay=2, dynamic_ncols=True)
    for k, batch in enumerate(batches):
        made.add(batch["x"], k * size)
    return made.statistics


def field_results(
    names: Sequence[str], samples: NDArray[Any], data: DataModule, split: str, model: Mapping[str, Any]
) -> dict[str, FieldResult]:
    """Results of samples of continuous fields.

    Args:
        names: of the metrics, see `metrics.fields.scores`.
        samples: (repeats, N, C, *sizes), in model units.
        data: what they are compared with.
        split: of the data.
        model: see Result.
    """
    reference = data_of(names, data, split)
    protocol = {"num_samples": samples.shape[1], "units": UNITS, "reference": note_of(data, split)}
    repeats, bad = [], 0
    for some in samples:
        statistics = samples_of(names, some)
        bad += int(statistics.bad)
        repeats.append(fields.scores(names, statistics, reference))
    results = {}
    for name, first in repeats[0].items():
        own = {key: value for key, value in first.items() if key not in ("value", "channels")}
        results[name] = FieldResult.of(
            [scores[name]["value"] for scores in repeats],
            unit="",
            protocol={**protocol, **own},
            model=dict(model),
            not_finite=bad,
            channels=first.get("channels", {}),
        )
    return results


def check_ensemble(name: str, pipeline: Pipeline, examples: int) -> None:
    """Raise ValueError if a model has no conditions, under which an ensemble could be drawn, or for one example."""
    if not pipeline.conditions:
        raise ValueError(f"{name} is of a model with conditions, and this one has none. Fix: remove it from --metrics")
    if examples < 2:
        raise ValueError(f"{name} needs at least 2 examples, got {examples}: raise likelihood_examples")


class EnsembleRows(Rows):
    """Of each example the sums that crps and spread need, from `members` samples under its conditions.

    Of each repeat and channel K + 4 columns: the sums over the channel's values of CRPS, ensemble variance and squared
    error of the ensemble mean (see `metrics.ensembles`), and how many values have the ranks 0 … K.  NaN where a sample
    is not finite.

    Args:
        members: K, at least 2.
        repeats: with other noise each.
    """

    def __init__(self, pipeline: Pipeline, data: DataModule, split: str, members: int, repeats: int = 1) -> None:
        super().__init__(pipeline, data, split)
        self.members, self.repeats = members, repeats
        self.progress: Callable[[range], Iterable[int]] = iter

    def on_predict_start(self) -> None:
        if self.trainer.is_global_zero and self.trainer.progress_bar_callback is not None:
            self.progress = partial(tqdm, desc="members of the ensemble", leave=False, dynamic_ncols=True)

    def rows(self, block: Block) -> Tensor:
        cond: dict[str, Any] = {name: block.cond[name] for name in self.pipeline.conditions}
        columns = []
        for repeat in range(self.repeats):
            drawn = []
            for k in self.progress(range(self.members)):
                # Member k of an example has the same noise whatever the number of members and examples.
                first = (repeat << 48) + (k << 32)
                samples = self.pipeline.samples([first + i for i in block.numbers], **cond)
                self.nfe = max(self.nfe, samples.nfe)
                drawn.append(samples.x_0)
            columns.append(self._measured(torch.stack(drawn).double(), block.x.double(), block.cond.get("observed")))
        return torch.stack(columns, 1).flatten(1)

    def _measured(self, members: Tensor, truth: Tensor, observed: Tensor | None) -> Tensor:
        """(B, C · (K + 4)) of members (K, B, C, *) and truth (B, C, *); observed: (B, C, *) bool, None: all are."""
        size, channels = truth.shape[:2]
        weight = torch.ones_like(truth) if observed is None else observed.to(truth)
        spread, error = ensembles.spread_and_error(members, truth)
        sums = [
            (weight * part).reshape(size, channels, -1).sum(2)
            for part in (ensembles.crps(members, truth), spread, error)
        ]
        rank, weight = (
            part.reshape(size, channels, -1) for part in (ensembles.ranks(members, truth), weight.expand_as(truth))
        )
        counts = truth.new_zeros(size, channels, self.members + 1).scatter_add_(2, rank, weight)
        made = torch.cat([torch.stack(sums, 2), counts], 2)
        made[~members.transpose(0, 1).flatten(1).isfinite().all(1)] = torch.nan
        return made.flatten(1)


def ensemble_results(
    rows: NDArray[Any], protocol: Mapping[str, Any], model: Mapping[str, Any]
) -> dict[str, EnsembleResult]:
    """crps and spread, means over channels, with standard errors over the examples.

    Args:
        rows: of EnsembleRows, (N, repeats, C, K + 4).
        protocol, model: see Result.

    Raises:
        ValueError: fewer than two examples have finite samples.
    """
    good = np.isfinite(rows).all((1, 2, 3))
    if good.sum() < 2:
        raise ValueError(f"{good.sum()} examples have finite samples, expected 2 or more: raise likelihood_examples")
    rows = rows[good]
    parts, counts = rows[..., :3], rows[..., 3:]
    # Of each example: its mean over values and channels, where each channel counts alike.
    each = (parts / counts.sum(3).mean(0)[None, :, :, None]).mean(2)  # (N, repeats, 3)
    crps, spread, error = np.moveaxis(each, 2, 0)
    ratio = np.sqrt(spread.mean(0) / error.mean(0))
    # The ratio of two means, to first order: δr/r = (δS/S − δE/E)/2.
    relative = (spread / spread.mean(0) - error / error.mean(0)).mean(1) / 2
    total, root = parts.sum((0, 1)), len(rows) ** 0.5
    ranks = counts.sum((0, 1)) / counts.sum((0, 1, 3))[:, None]
    channels = {
        "crps": {"crps": (total[:, 0] / counts.sum((0, 1, 3))).tolist()},
        "spread": {"spread": np.sqrt(total[:, 1] / total[:, 2]).tolist(), "ranks": ranks.tolist()},
    }
    errors = {"crps": crps.mean(1).std(ddof=1) / root, "spread": ratio.mean() * relative.std(ddof=1) / root}
    values = {"crps": crps.mean(0), "spread": ratio}
    return {
        name: EnsembleResult.of(
            values[name].tolist(),
            unit="",
            standard_error=float(errors[name]),
            protocol=protocol,
            model=dict(model),
            channels=channels[name],
            not_finite=int((~good).sum()),
        )
        for name in ENSEMBLES
    }


def field_plots(results: Mapping[str, Result], folder: Path) -> list[Path]:
    """Write spectrum.png and ranks.png of the results that have spectra or ranks; the files written."""
    files = []
    for name, result in results.items():
        channels = getattr(result, "channels", {})
        if name == "spectrum":
            title = f"radial power spectrum: log-spectral distance {result.value:.3g}"
            k, samples, real = (np.array(channels[part]) for part in ("k", "samples", "data"))
            files.append(plots.save(plots.spectrum_panel(k, samples, real, title), folder / "spectrum.png"))
        elif "ranks" in channels:
            title = f"ranks of the data among samples: spread over error {result.value:.3g}"
            files.append(plots.save(plots.ranks_panel(np.array(channels["ranks"]), title), folder / "ranks.png"))
    return files


def _piece(shape: Sequence[int]) -> int:
    """Fields that are measured at a time, so that memory stays bounded."""
    return max(1, PIECE // math.prod(shape))
