"""Figures that say how they came about: of samples, of the likelihood of data, and how they are compared."""

from .expected import Band, check_names, incomparable
from .features import Reference, memory, read_reference, reference_rows, statistics, to_features, width_of
from .likelihood import BoundRows, LikelihoodRows, block_of, count, surprise, unit_of
from .report import Figure, compare_figures, differences, error_of, figure, read_figures, table
from .results import elbo, nll, of_samples

__all__ = [
    "Band",
    "BoundRows",
    "Figure",
    "LikelihoodRows",
    "Reference",
    "block_of",
    "check_names",
    "compare_figures",
    "count",
    "differences",
    "elbo",
    "error_of",
    "figure",
    "incomparable",
    "memory",
    "nll",
    "of_samples",
    "read_figures",
    "read_reference",
    "reference_rows",
    "statistics",
    "surprise",
    "table",
    "to_features",
    "unit_of",
    "width_of",
]
