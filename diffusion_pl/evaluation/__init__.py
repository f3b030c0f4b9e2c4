"""Evaluation of samples and likelihood; every result records how it was measured.

`diffusion_pl.evaluation.run` makes them all:  samples -> features -> metrics;  examples -> −log p and its bound.
"""

from .expected import Band, check_names, expected_of, incomparable, paper_columns
from .features import Features, memory, note_of, reference_rows
from .fields import EnsembleRows, FieldSamples, ensemble_results, field_results
from .likelihood import BoundRows, LikelihoodRows, bound_result, count, likelihood_result, refuse_consistency, unit_of
from .plan import Plan
from .reference import Reference, read_reference, write_reference
from .report import better, differences, number, row, short
from .results import (
    BoundResult,
    EnsembleResult,
    ExampleResult,
    FieldResult,
    LikelihoodResult,
    Result,
    SampleResult,
    from_json,
    read_results,
)
from .samples import check_features, keeps_rows, kind_of, sample_results, scores, warn_of_few

__all__ = [
    "Band",
    "BoundResult",
    "BoundRows",
    "EnsembleResult",
    "EnsembleRows",
    "ExampleResult",
    "Features",
    "FieldResult",
    "FieldSamples",
    "LikelihoodResult",
    "LikelihoodRows",
    "Plan",
    "Reference",
    "Result",
    "SampleResult",
    "better",
    "bound_result",
    "check_features",
    "check_names",
    "count",
    "differences",
    "ensemble_results",
    "expected_of",
    "field_results",
    "from_json",
    "incomparable",
    "keeps_rows",
    "kind_of",
    "likelihood_result",
    "memory",
    "note_of",
    "number",
    "paper_columns",
    "read_reference",
    "read_results",
    "reference_rows",
    "refuse_consistency",
    "row",
    "sample_results",
    "scores",
    "short",
    "unit_of",
    "warn_of_few",
    "write_reference",
]
