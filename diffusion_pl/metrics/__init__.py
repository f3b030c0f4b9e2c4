"""Metrics: torchmetrics classes that know numbers only, never a model."""

from .binned import BinnedMean
from .extractors import DigitsClassifier, InceptionV3
from .generation import FeatureStatistics
from .sliced import SlicedWasserstein

__all__ = ["BinnedMean", "DigitsClassifier", "FeatureStatistics", "InceptionV3", "SlicedWasserstein"]
