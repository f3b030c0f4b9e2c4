"""Networks: ``forward(x, c_noise, **cond) -> F``. They know nothing of schedules, parameterizations or data sets."""

from .dit import DiT
from .edm2 import EDM2UNet
from .embeddings import Blind, Embedding, Fourier, Identity, JumpEmbedding, Sinusoidal
from .mlp import MLP
from .ncsnpp import NCSNpp
from .unet import UNet
from .unet_conv import ConvUNet
from .unet_encoder import UNetEncoder
from .unet_linear_attention import LearnedFourier, LinearAttentionUNet

__all__ = [
    "MLP",
    "Blind",
    "ConvUNet",
    "DiT",
    "EDM2UNet",
    "Embedding",
    "Fourier",
    "Identity",
    "JumpEmbedding",
    "LearnedFourier",
    "LinearAttentionUNet",
    "NCSNpp",
    "Sinusoidal",
    "UNet",
    "UNetEncoder",
]
