"""Results as rows of a table, and whether two of them can be compared."""

from collections.abc import Mapping
from typing import Any

from .expected import HIGHER, METRICS, NEITHER
from .results import Result


def differences(a: Result, b: Result) -> list[str]:
    """Why two results cannot be compared, in words; empty if they can."""
    reasons = [] if a.unit == b.unit else [f"unit: {a.unit} and {b.unit}"]
    first, second = _flat(a.protocol), _flat(b.protocol)
    for name in sorted(first.keys() | second.keys()):
        if first.get(name) != second.get(name):
            pair = (str(part.get(name, "not given")) for part in (first, second))
            reasons.append(f"{name}: {' and '.join(p if len(p) < 24 else p[:12] + '…' for p in pair)}")
    return reasons


def number(result: Result) -> str:
    """The value ± what is known of its error."""
    return f"{result.value:.5g}" + ("" if result.error is None else f" ± {result.error:.2g}")


def better(name: str) -> str:
    """Which values of a metric are better, "lower" or "higher"; "" if neither or not known."""
    return "higher" if name in HIGHER else "lower" if name in METRICS and name not in NEITHER else ""


def row(name: str, result: Result) -> dict[str, Any]:
    """A result as a row of a table: value, what is known of its error, and what it is of."""
    return {
        "metric": name,
        "value": result.value,
        "error": result.error,
        "unit": result.unit,
        "better": better(name),
        "number": result.count,
        "of": result.counted,
        "data": result.data["data"],
        "split": result.data["split"],
        "nfe": result.nfe,
    }


def short(value: Any) -> str:
    """A part of `Result.model` in a word, such as DPMpp(order=3, KarrasGrid(steps=18)) of a described sampler."""
    if not isinstance(value, Mapping):
        return "-" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
    parts = [
        short(part) if isinstance(part, Mapping) else f"{name}={short(part)}"
        for name, part in value.items()
        if name != "class" and part is not None
    ]
    return f"{value.get('class', '')}({', '.join(parts)})"


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for name, value in tree.items():
        leaves |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return leaves
