"""Metrics: torchmetrics classes that know numbers only, never a model."""

from .binned import BinnedMean

__all__ = ["BinnedMean"]
