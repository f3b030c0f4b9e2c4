"""python -m diffusion_pl compare: evaluations side by side, where they can be compared."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..runtime.output import Report

if TYPE_CHECKING:
    from ..evaluation import Result

_OF_THE_MODEL = ("checkpoint", "images", "weights", "sampler", "nfe", "scale", "seed")


def compare(files: list[Path], metrics: list[str] | None = None) -> Report:
    """Show the metrics of evaluations side by side; refuse those that were measured differently, with reasons.

    Args:
        files: Files evaluation.json of `evaluate`, two or more; differences are to the first.
        metrics: Names of metrics, such as fid kid; None: all that every file has.
    """
    from ..evaluation import read_results, short

    if len(files) < 2:
        raise ValueError(f"compare needs two or more files, got {len(files)}")
    results = [read_results(file) for file in files]
    names = [name for name in results[0] if all(name in each for each in results)] if metrics is None else metrics
    for name in names:
        without = next((file for file, each in zip(files, results, strict=True) if name not in each), None)
        if without is not None:
            raise ValueError(f"{without} has no {name}")
    if not names:
        listed = " and ".join(f"{file} ({', '.join(each)})" for file, each in zip(files, results, strict=True))
        raise ValueError(f"{listed} have no metric in common")
    letters = [chr(ord("A") + k) if k < 26 else f"file {k + 1}" for k in range(len(files))]
    rows, refused = [], []
    for name in names:
        of_name = [each[name] for each in results]
        reasons = _reasons(letters, of_name)
        if reasons:
            refused.append(f"{name} ({'; '.join(reasons)})")
        else:
            rows.append(_row(name, letters, of_name))
    models = [each[names[0]].model for each in results]
    facts: dict[str, Any] = {letter: str(file) for letter, file in zip(letters, files, strict=True)}
    for key in _OF_THE_MODEL:
        values = [short(model.get(key)) for model in models]
        if len(set(values)) > 1:
            facts[key] = " | ".join(values)
    error = f"not measured alike: {', '.join(refused)}" if refused else ""
    return Report(done=f"{len(rows)} of {len(names)} metrics can be compared", facts=facts, rows=rows, error=error)


def _reasons(letters: Sequence[str], results: "Sequence[Result]") -> list[str]:
    """Why the results of a metric cannot be compared with the first, in words; empty if they can."""
    from ..evaluation import differences

    reasons = []
    for letter, result in zip(letters[1:], results[1:], strict=True):
        of_pair = differences(results[0], result)
        reasons += [f"{letters[0]} and {letter}: {reason}" if len(letters) > 2 else reason for reason in of_pair]
    return reasons


def _row(name: str, letters: Sequence[str], results: "Sequence[Result]") -> Mapping[str, Any]:
    """A line of the table: values, differences to the first with what is known of their errors, and the direction."""
    from ..evaluation import better

    row: dict[str, Any] = {"metric": name}
    row |= {letter: result.value for letter, result in zip(letters, results, strict=True)}
    for letter, result in zip(letters[1:], results[1:], strict=True):
        row[f"{letter} - {letters[0]}"] = result.value - results[0].value
        errors = (results[0].error, result.error)
        row[f"± {letter}"] = None if None in errors else sum(e * e for e in errors if e is not None) ** 0.5
    direction = better(name)
    best = [letter for letter, r in zip(letters, results, strict=True) if r.value == _best(results, direction)]
    return row | {
        "unit": results[0].unit,
        "direction": f"{direction} is better" if direction else "",
        "best": ", ".join(best) if direction else "",
    }


def _best(results: "Sequence[Result]", direction: str) -> float:
    values = [result.value for result in results]
    return max(values) if direction == "higher" else min(values)
