"""Checks of a run before step 1.

Each check is a function of the parts that it checks and yields findings: what is wrong, with values, and how to fix
it.  An error ends a run or makes it useless; a warning may do so.  The thresholds are given with their reasons.
"""

from .base import CHECKS, Finding, rows, summary
from .cost import Length, Need, Speed, cost, memory
from .model import (
    Probe,
    classes,
    data,
    draw_times,
    embedding,
    jumps,
    network,
    prior,
    prior_mismatch,
    probe,
    tables,
    times,
)
from .run import disk, ema, learning_rate, metrics, precision, unreachable, validation

__all__ = [
    "CHECKS",
    "Finding",
    "Length",
    "Need",
    "Probe",
    "Speed",
    "classes",
    "cost",
    "data",
    "disk",
    "draw_times",
    "ema",
    "embedding",
    "jumps",
    "learning_rate",
    "memory",
    "metrics",
    "network",
    "precision",
    "prior",
    "prior_mismatch",
    "probe",
    "rows",
    "summary",
    "tables",
    "times",
    "unreachable",
    "validation",
]
