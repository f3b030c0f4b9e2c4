"""Metrics: torchmetrics classes that know numbers only, never a model."""

from .binned import BinnedMean
from .extractors import DigitsClassifier, InceptionV3
from .generation import FeatureStatistics
from .sliced import SlicedWasserstein
from .vision_transformers import CLIP, DINOv2

__all__ = [
    "CLIP",
    "BinnedMean",
    "DINOv2",
    "DigitsClassifier",
    "FeatureStatistics",
    "InceptionV3",
    "SlicedWasserstein",
]
