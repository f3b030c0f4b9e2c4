"""Forward processes: one function t ↦ (α, σ, α', σ') each."""

from .base import Kernel, Schedule
from .cosine import Cosine
from .karras import Karras
from .linear_logsnr import LinearLogSNR
from .rectified import Rectified
from .subvp import SubVP
from .table import BetaTable, CosineBetas, LinearBetas, QuadraticBetas, SigmoidAlphaBars, SigmoidBetas, ZeroTerminalSNR
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
    "LinearBetas",
    "LinearLogSNR",
    "QuadraticBetas",
    "Rectified",
    "Schedule",
    "SigmoidAlphaBars",
    "SigmoidBetas",
    "SubVP",
    "ZeroTerminalSNR",
]
