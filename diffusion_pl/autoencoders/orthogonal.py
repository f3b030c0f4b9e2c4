"""An autoencoder without loss and without training: patches in an orthonormal basis."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from ..tensors import Recorded
from .base import Autoencoder, Moments, Shape


class Orthogonal(Recorded, Autoencoder):
    """z = Q · patch of f × f pixels, Q orthogonal: the discrete cosine transform of every patch, all of its values.

    It loses nothing, so a model of its latents is a model of the images: log p(z) = log p(x).  For tests, and to see
    what a change of coordinates alone does.

    Args:
        shape: of the images, (C, H, W).
        factor: f, height and width of a patch; it divides those of the images.

    Raises:
        ValueError: it does not.
    """

    patchwise = True

    def __init__(self, shape: Shape, factor: int = 2) -> None:
        super().__init__()
        self.image_channels, self.factor = shape[0], factor
        self.latent_channels = shape[0] * factor**2
        self.latent_shape(tuple(shape))
        self.basis: Tensor
        self.register_buffer("basis", cosine_basis(factor))

    def encode(self, x: Tensor) -> Moments:
        patches = F.pixel_unshuffle(x, self.factor)
        patches = patches.reshape(len(x), self.image_channels, -1, *patches.shape[2:])
        z = torch.einsum("ij,bcjhw->bcihw", self.basis.to(x), patches).flatten(1, 2)
        return Moments(z, torch.zeros_like(z))

    def decode(self, z: Tensor) -> Tensor:
        coefficients = z.reshape(len(z), self.image_channels, -1, *z.shape[2:])
        patches = torch.einsum("ij,bcihw->bcjhw", self.basis.to(z), coefficients).flatten(1, 2)
        return F.pixel_shuffle(patches, self.factor)


def cosine_basis(n: int) -> Tensor:
    """The orthonormal cosine transform (DCT-II) of n × n pixels: (n², n²), float64; its rows are the basis."""
    k, place = torch.arange(n, dtype=torch.float64)[:, None], torch.arange(n, dtype=torch.float64)
    line = torch.cos(math.pi * k * (place + 0.5) / n) * math.sqrt(2 / n)
    line[0] /= math.sqrt(2)
    return torch.kron(line, line)
