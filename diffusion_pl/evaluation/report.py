"""Print results as a table, or compare two of them."""

from collections.abc import Mapping
from typing import Any

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


def side_by_side(a: Result, b: Result) -> str:
    """Both values, their difference and, where both errors are known, its error, in a line."""
    errors = [result.error for result in (a, b) if result.error is not None]
    known = f" ± {sum(e * e for e in errors) ** 0.5:.2g}" if len(errors) == 2 else ""
    return f"{a.value:>12.5g} {b.value:>12.5g} {b.value - a.value:>+12.5g}{known} {a.unit}"


def number(result: Result) -> str:
    """The value ± what is known of its error."""
    return f"{result.value:.5g}" + ("" if result.error is None else f" ± {result.error:.2g}")


def table(results: Mapping[str, Result]) -> str:
    """The results in lines: metric, value ± what is known of its error, unit, and what it is of."""
    lines = []
    for name, result in results.items():
        nfe = "" if result.nfe is None else f", NFE {result.nfe:.4g}"
        of = f"{result.count:,} {result.counted}, {result.data['data']} {result.data['split']}{nfe}"
        lines.append(f"  {name:<10} {number(result):<20} {result.unit:<9} {of}")
    return "\n".join(lines)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for name, value in tree.items():
        leaves |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return leaves
