"""Findings of the checks, and how they are printed."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

#: In the order in which they are printed.
CHECKS = (
    "prior",
    "data",
    "classes",
    "network",
    "embedding",
    "times",
    "jumps",
    "tables",
    "validation",
    "lr",
    "ema",
    "precision",
    "disk",
    "metrics",
    "memory",
    "cost",
)


class Finding(NamedTuple):
    """One line of the result: level, name of the check, the finding, and how to fix it ("" if nothing is wrong)."""

    level: Literal["fine", "warning", "error"]
    name: str
    what: str
    fix: str = ""

    def __str__(self) -> str:
        return f"{self.what}. Fix: {self.fix}" if self.fix else self.what


def rows(findings: Sequence[Finding]) -> list[dict[str, str]]:
    """A row of a table for each finding."""
    return [{"check": f.name, "level": "ok" if f.level == "fine" else f.level, "finding": str(f)} for f in findings]


def summary(findings: Sequence[Finding]) -> str:
    """A line that sums up."""
    errors, warnings = (sum(f.level == level for f in findings) for level in ("error", "warning"))
    count = f"{errors or 'no'} error{'s' * (errors != 1)}, {warnings or 'no'} warning{'s' * (warnings != 1)}"
    return f"{count}: {'fix the errors first' if errors else 'ready for fit'}"
