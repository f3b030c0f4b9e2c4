"""Samplers: one file each, the loop in `base`."""

from .ancestral import Ancestral
from .base import Noise, Path, Run, Sampler, Samples
from .ddim import DDIM
from .euler_maruyama import EulerMaruyama
from .heun import Heun

__all__ = ["DDIM", "Ancestral", "EulerMaruyama", "Heun", "Noise", "Path", "Run", "Sampler", "Samples"]
