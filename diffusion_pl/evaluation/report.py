"""A figure and what belongs to it.

A figure is a plain dictionary: value, unit, std over repeats (None of one), `protocol`, all that must be equal for two
figures to be comparable (how many samples, which features, which data, which bound), and `model`, what may differ
between the things compared (checkpoint, weights, sampler, evaluations).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..runtime.reading import Number, read_json, reading

Figure = dict[str, Any]


def figure(values: Sequence[float], unit: str, protocol: dict[str, Any], model: dict[str, Any], **more: Any) -> Figure:
    """A figure: the mean of its repeats, their standard deviation, and all that it depends on."""
    std = float(np.std(values, ddof=1)) if len(values) > 1 else None
    told = {"value": float(np.mean(values)), "std": std, "values": [float(v) for v in values], "unit": unit}
    return {**told, **more, "protocol": protocol, "model": model}


def differences(a: Figure, b: Figure) -> list[str]:
    """Why two figures cannot be compared, in words; empty if they can."""
    found = [] if a["unit"] == b["unit"] else [f"unit: {a['unit']} and {b['unit']}"]
    ours, theirs = _flat(a["protocol"]), _flat(b["protocol"])
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name) != theirs.get(name):
            pair = (str(part.get(name, "unsaid")) for part in (ours, theirs))
            found.append(f"{name}: {' and '.join(p if len(p) < 24 else p[:12] + '…' for p in pair)}")
    return found


def error_of(f: Figure) -> float | None:
    """What is known of a figure's error: its spread over repeats, else its standard error over examples."""
    error: float | None = f["std"] if f["std"] is not None else f.get("standard_error")
    return error


def compare_figures(one: Figure, other: Figure) -> str:
    """Both values, their difference and, where both errors are known, its error, in a line."""
    errors = [error for f in (one, other) if (error := error_of(f)) is not None]
    known = f" ± {sum(e * e for e in errors) ** 0.5:.2g}" if len(errors) == 2 else ""
    change = other["value"] - one["value"]
    return f"{one['value']:>12.5g} {other['value']:>12.5g} {change:>+12.5g}{known} {one['unit']}"


def table(figures: dict[str, Figure]) -> str:
    """The figures in lines: name, value ± what is known of its error, unit, and what it is of."""
    lines = []
    for name, f in figures.items():
        error, protocol = error_of(f), f["protocol"]
        number = f"{f['value']:.5g}" + (f" ± {error:.2g}" if error is not None else "")
        kind = "samples" if "num_samples" in protocol else "examples"
        many = protocol["num_samples"] if kind == "samples" else protocol["examples"]
        data = protocol.get("reference") or protocol["data"]
        of = f"{many:,} {kind}, {data['data']} {data['split']}, NFE {f['model']['nfe']:.4g}"
        lines.append(f"  {name:<10} {number:<20} {f['unit']:<9} {of}")
    return "\n".join(lines)


_KIND = {
    "value": (float, int),  # also one that is not finite, of a model that diverges
    "unit": str,
    "std": (*Number, None),
    "protocol": {
        "num_samples?": int,
        "examples?": int,
        "data?": {"data": str, "split": str},
        "reference?": {"data": str, "split": str},
        "extractor?": (None, {"class": str}),
        "estimator?": {"class": str},
        "bound?": {"class": str},
    },
    "model": {"checkpoint?": str, "sha256": str, "weights": str, "nfe": Number, "sampler?": (None, {"class": str})},
    "standard_error?": (*Number, None),
    "not_finite?": int,
}


def read_figures(path: Path) -> dict[str, Figure]:
    """The figures of an evaluation.json.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is another one, or damaged.
    """
    with reading(path, "evaluation.json of `evaluate`"):
        figures: dict[str, Figure] = read_json(path, {"figures": {"*": _KIND}})["figures"]
        for name, found in figures.items():
            protocol = found["protocol"]
            if not ({"num_samples", "reference"} <= protocol.keys() or {"examples", "data"} <= protocol.keys()):
                raise ValueError(f"{name} does not say what it is of")
    return figures


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in tree.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found
