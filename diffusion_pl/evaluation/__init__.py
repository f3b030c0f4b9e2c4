"""Figures that say how they came about: of samples, of the likelihood of data, and how they are compared."""

from .density import BoundRows, LikelihoodRows, block_of, count, surprise, unit_of
from .features import Reference, memory, read_reference, reference_rows, statistics, to_features, width_of
from .figures import Figure, compare_figures, differences, error_of, figure, read_figures, table
from .measured import elbo, nll, of_samples

__all__ = [
    "BoundRows",
    "Figure",
    "LikelihoodRows",
    "Reference",
    "block_of",
    "compare_figures",
    "count",
    "differences",
    "elbo",
    "error_of",
    "figure",
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
