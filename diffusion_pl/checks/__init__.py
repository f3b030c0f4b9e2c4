"""Before step 1: what can be known of a run that has not begun.

Each check is a function of what it looks at and yields findings: what was found, with its numbers, and how to fix it.
An error spoils a run or ends it; a warning is worth a thought.  The thresholds are given with their reasons.
"""

from .base import CHECKS, Finding, table
from .model import Probe, classes, data, draw_times, embedding, network, prior, prior_mismatch, probe, tables, times
from .run import disk, ema, learning_rate, metrics, precision, unreachable, validation

__all__ = [
    "CHECKS",
    "Finding",
    "Probe",
    "classes",
    "data",
    "disk",
    "draw_times",
    "ema",
    "embedding",
    "learning_rate",
    "metrics",
    "network",
    "precision",
    "prior",
    "prior_mismatch",
    "probe",
    "table",
    "tables",
    "times",
    "unreachable",
    "validation",
]
