"""log p by the probability-flow ODE, and variational bounds on it."""

from .decoders import decoder_nll
from .elbo import Bound, ChainBound, ContinuousBound
from .flow import FlowLikelihood, LogDensity, bits_per_dim, dequantized, width

__all__ = [
    "Bound",
    "ChainBound",
    "ContinuousBound",
    "FlowLikelihood",
    "LogDensity",
    "bits_per_dim",
    "decoder_nll",
    "dequantized",
    "width",
]
