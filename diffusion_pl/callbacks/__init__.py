"""Callbacks that Lightning runs during training, validation and sampling."""

from .curves import Curves
from .description import Description
from .doctor import Doctor
from .ema import EMA
from .field_metrics import FieldMetrics
from .field_panels import FieldPanels
from .generation import GenerationMetrics
from .guard import Guard
from .image_panels import ImagePanels
from .likelihood import Likelihood
from .point_panels import PointPanels
from .progress import StepProgress
from .reconstructions import ReconstructionPanels
from .run_card import RunCard
from .sample_writer import SampleWriter
from .saver import Saver
from .seen_loss import SeenLoss

__all__ = [
    "EMA",
    "Curves",
    "Description",
    "Doctor",
    "FieldMetrics",
    "FieldPanels",
    "GenerationMetrics",
    "Guard",
    "ImagePanels",
    "Likelihood",
    "PointPanels",
    "ReconstructionPanels",
    "RunCard",
    "SampleWriter",
    "Saver",
    "SeenLoss",
    "StepProgress",
]
