"""Networks: ``forward(x, c_noise, **cond) -> F``. They know nothing of schedules, parameterizations or data sets."""

from .embeddings import Blind, Embedding, Fourier, Identity, Sinusoidal
from .mlp import MLP
from .ncsnpp import NCSNpp
from .unet import UNet

__all__ = ["MLP", "Blind", "Embedding", "Fourier", "Identity", "NCSNpp", "Sinusoidal", "UNet"]
