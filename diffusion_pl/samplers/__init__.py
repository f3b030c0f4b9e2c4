"""Samplers: one file each, the loop in `base`."""

from .adaptive import AdaptiveODE
from .ancestral import Ancestral
from .base import Noise, Path, Run, Sampler, Samples
from .ddim import DDIM
from .deis import DEIS
from .dpmpp import DPMpp, DPMppSingle
from .dps import DPS
from .euler_maruyama import EulerMaruyama
from .grids import (
    ExplicitGrid,
    Grid,
    KarrasGrid,
    LeadingGrid,
    LogSNRGrid,
    RespacedGrid,
    ShiftedGrid,
    TrailingGrid,
    UniformGrid,
    few_steps,
    jump_grid,
    same_ends,
)
from .heun import Heun
from .multistep_consistency import MultistepConsistency
from .predictor_corrector import AnnealedLangevin, Corrector, Langevin, PredictorCorrector
from .replacement import Replacement
from .reverse_diffusion import ReverseDiffusion
from .unipc import UniPC

__all__ = [
    "DDIM",
    "DEIS",
    "DPS",
    "AdaptiveODE",
    "Ancestral",
    "AnnealedLangevin",
    "Corrector",
    "DPMpp",
    "DPMppSingle",
    "EulerMaruyama",
    "ExplicitGrid",
    "Grid",
    "Heun",
    "KarrasGrid",
    "Langevin",
    "LeadingGrid",
    "LogSNRGrid",
    "MultistepConsistency",
    "Noise",
    "Path",
    "PredictorCorrector",
    "Replacement",
    "RespacedGrid",
    "ReverseDiffusion",
    "Run",
    "Sampler",
    "Samples",
    "ShiftedGrid",
    "TrailingGrid",
    "UniPC",
    "UniformGrid",
    "few_steps",
    "jump_grid",
    "same_ends",
]
