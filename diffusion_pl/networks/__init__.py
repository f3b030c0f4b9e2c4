"""Networks: ``forward(x, c_noise, **cond) -> F``. They know nothing of schedules, parameterizations or data sets."""

from .mlp import MLP, Blind, Embedding, Fourier, Identity

__all__ = ["MLP", "Blind", "Embedding", "Fourier", "Identity"]
