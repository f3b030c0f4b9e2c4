"""What Lightning trains: modules, learning-rate schedules, resuming."""

from .base import LeanCallback, LeanHooks, LeanProfiler, Trainable, build_network, logs_now
from .classifier import NoisyClassifier
from .lr_schedulers import SchedulerFactory, Warmup, WarmupCosine, advance, check_factory, make_scheduler
from .module import DiffusionModule

__all__ = [
    "DiffusionModule",
    "LeanCallback",
    "LeanHooks",
    "LeanProfiler",
    "NoisyClassifier",
    "SchedulerFactory",
    "Trainable",
    "Warmup",
    "WarmupCosine",
    "advance",
    "build_network",
    "check_factory",
    "logs_now",
    "make_scheduler",
]
