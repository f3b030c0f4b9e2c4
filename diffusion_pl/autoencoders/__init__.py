"""Autoencoders: images to latents and back; trained ones, those of diffusers, and one without loss."""

from .base import Autoencoder, Moments, weights_hash
from .convolutional import Trained
from .diffusers import Diffusers
from .kl import KL
from .opening import open_autoencoder, save_autoencoder
from .orthogonal import Orthogonal
from .vq import VQ

__all__ = [
    "KL",
    "VQ",
    "Autoencoder",
    "Diffusers",
    "Moments",
    "Orthogonal",
    "Trained",
    "open_autoencoder",
    "save_autoencoder",
    "weights_hash",
]
