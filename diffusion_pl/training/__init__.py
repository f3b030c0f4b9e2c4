"""What Lightning trains: modules, learning-rate schedules, resuming."""

from .autoencoder import AutoencoderModule, psnr
from .averages import Average, Averages, ConstantDecay, HalfLife, global_batch
from .base import Trainable, build_network, logs_now
from .classifier import NoisyClassifier
from .history import History
from .lean import LeanCallback, LeanHooks, LeanProfiler
from .lr_schedulers import InverseSqrt, SchedulerFactory, Warmup, WarmupCosine, advance, check_factory, make_scheduler
from .module import DiffusionModule
from .muon import MuonAdamW
from .patch_features import PatchFeatures
from .profiles import PowerFunction
from .step_noise import reseed, run_seed

__all__ = [
    "AutoencoderModule",
    "Average",
    "Averages",
    "ConstantDecay",
    "DiffusionModule",
    "HalfLife",
    "History",
    "InverseSqrt",
    "LeanCallback",
    "LeanHooks",
    "LeanProfiler",
    "MuonAdamW",
    "NoisyClassifier",
    "PatchFeatures",
    "PowerFunction",
    "SchedulerFactory",
    "Trainable",
    "Warmup",
    "WarmupCosine",
    "advance",
    "build_network",
    "check_factory",
    "global_batch",
    "logs_now",
    "make_scheduler",
    "psnr",
    "reseed",
    "run_seed",
]
