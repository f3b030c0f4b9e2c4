"""From rows of numbers, as they were drawn, to figures."""

import sys
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..data import DataModule
from ..metrics import FeatureStatistics, generation, points
from .features import Reference, reference_rows, statistics
from .report import Figure, figure


def of_samples(
    names: list[str],
    rows: NDArray[Any],
    data: DataModule,
    extractor: nn.Module | None,
    dim: int,
    split: str,
    given: Reference | None,
    protocol: dict[str, Any],
    model: dict[str, Any],
) -> tuple[dict[str, Figure], FeatureStatistics | None]:
    """Figures of samples, rows (repeats, N, F + K), and the statistics of the data unless a reference is given."""
    theirs, real = None, None
    keep = names != ["fid"]
    if given is not None:
        protocol = {**protocol, "reference": given.note}
    else:
        theirs, note = reference_rows(data, split, extractor)
        protocol = {**protocol, "reference": note}
        real = statistics(theirs, dim, keep)
    warning = generation.enough(rows.shape[1], dim) if "fid" in names else None
    if warning:
        print(f"diffusion_pl: warning: {warning}", file=sys.stderr)
    values: dict[str, list[float]] = {}
    notes: dict[str, dict[str, Any]] = {}
    bad = 0
    for part in rows:
        own = statistics(part, dim, keep)
        bad += int(own.bad)
        if extractor is None:
            measured = points.scores(names, own.kept()[0], torch.from_numpy(np.array(theirs)))
        elif given is not None:
            measured = {"fid": {"value": generation.fid(own.compute(), given.moments)}}
        else:
            assert real is not None
            measured = generation.scores(names, own, real)
        for name, result in measured.items():
            values.setdefault(name, []).append(result.pop("value"))
            notes[name] = {k: v for k, v in result.items() if not k.startswith("std")}
    return {n: figure(v, "", {**protocol, **notes[n]}, model, not_finite=bad) for n, v in values.items()}, real


def nll(rows: NDArray[Any], unit: str, protocol: dict[str, Any], model: dict[str, Any]) -> Figure:
    """Of rows (N, repeats + 1): values and evaluations."""
    each, nfe, n = rows[:, :-1], rows[:, -1], len(rows)
    error = float(each.mean(1).std(ddof=1)) / n**0.5 if n > 1 else None
    middle = float(each.mean())
    interval = None if error is None else [middle - 1.96 * error, middle + 1.96 * error]
    about = {**model, "nfe": float(nfe.mean())}
    return figure(each.mean(0).tolist(), unit, protocol, about, standard_error=error, interval_95=interval)


def elbo(rows: NDArray[Any], t: Tensor, unit: str, protocol: dict[str, Any], model: dict[str, Any]) -> Figure:
    """Of rows (N, 2 + K): prior, decoder, and the terms of the diffusion at t: (K,)."""
    n, total = len(rows), rows.sum(1)
    terms = rows[:, 2:].mean(0)
    parts = {"prior": rows[:, 0].mean(), "diffusion": terms.sum(), "decoder": rows[:, 1].mean()}
    return figure(
        [float(total.mean())],
        unit,
        protocol,
        {**model, "nfe": len(terms) + 1},
        standard_error=float(total.std(ddof=1)) / n**0.5 if n > 1 else None,
        parts={name: float(value) for name, value in parts.items()},
        terms={"t": t.tolist(), "value": terms.tolist()},
    )
