"""Metrics: torchmetrics classes that know numbers only, never a model."""

from .binned import BinnedMean
from .sliced import SlicedWasserstein

__all__ = ["BinnedMean", "SlicedWasserstein"]
