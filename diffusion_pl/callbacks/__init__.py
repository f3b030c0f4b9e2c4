"""What Lightning runs beside the training loop."""

from .description import Description
from .ema import EMA, judged_weights
from .generation import GenerationMetrics
from .image_panels import ImagePanels
from .point_panels import PointPanels
from .prior_check import PriorCheck
from .progress import StepProgress
from .sample_writer import SampleWriter
from .saver import Saver
from .step_seed import StepSeed

__all__ = [
    "EMA",
    "Description",
    "GenerationMetrics",
    "ImagePanels",
    "PointPanels",
    "PriorCheck",
    "SampleWriter",
    "Saver",
    "StepProgress",
    "StepSeed",
    "judged_weights",
]
