"""Noise schedules: one function t ↦ (α, σ, α', σ') each."""

from .base import Kernel, Schedule
from .cosine import Cosine
from .karras import Karras
from .learned import LearnedLogSNR
from .linear_logsnr import LinearLogSNR
from .rectified import Rectified
from .subvp import SubVP
from .table import BetaTable, CosineBetas, LinearBetas, QuadraticBetas, SigmoidAlphaBars, SigmoidBetas, ZeroTerminalSNR
from .transitions import Posterior, Transition, gaussian_kl, interpolate_variance, posterior, transition
from .ve import VE
from .vp import VP

__all__ = [
    "VE",
    "VP",
    "BetaTable",
    "Cosine",
    "CosineBetas",
    "Karras",
    "Kernel",
    "LearnedLogSNR",
    "LinearBetas",
    "LinearLogSNR",
    "Posterior",
    "QuadraticBetas",
    "Rectified",
    "Schedule",
    "SigmoidAlphaBars",
    "SigmoidBetas",
    "SubVP",
    "Transition",
    "ZeroTerminalSNR",
    "gaussian_kl",
    "interpolate_variance",
    "posterior",
    "transition",
]
