"""Autoencoders: from images to smaller arrays, in which a diffusion model is trained, and back.

    encode   x ↦ q(z | x) = N(mean, std²)        x: images in [−1, 1], (B, C, H, W);  z: latents, (B, c, H/f, W/f)
    decode   z ↦ x̂

Reference: Rombach et al., arXiv 2112.10752, Sec. 3.1.
"""

import hashlib
from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn

Shape = tuple[int, ...]


class Moments(NamedTuple):
    """Mean and standard deviation of q(z | x), (B, c, h, w) each; std is 0 where the latent is a function of x."""

    mean: Tensor
    std: Tensor


class Autoencoder(nn.Module, ABC):
    """Images (C, H, W) in [−1, 1] and their latents (c, H/f, W/f).

    Attributes:
        image_channels: C.
        latent_channels: c.
        factor: f, by which height and width are divided.
        patchwise: whether the latents at a place are those of the f × f pixels there alone, and give them back exactly.
        name: what it was opened as: a folder, a name of the hub or a checkpoint; "": made in this process.
    """

    image_channels: int
    latent_channels: int
    factor: int
    patchwise: bool = False
    name: str = ""

    @property
    def device(self) -> torch.device:
        """Where its weights are; the CPU if it has none."""
        return next((tensor.device for tensor in self.state_dict().values()), torch.device("cpu"))

    @abstractmethod
    def encode(self, x: Tensor) -> Moments:
        """Moments of the latents. x: (B, C, H, W) in [−1, 1]."""

    @abstractmethod
    def decode(self, z: Tensor) -> Tensor:
        """Images, not clipped: (B, C, H, W). z: (B, c, h, w)."""

    def encode_mean(self, x: Tensor) -> Tensor:
        """The mean of q(z | x): (B, c, h, w). x: (B, C, H, W)."""
        return self.encode(x).mean

    def latent_shape(self, shape: Shape) -> Shape:
        """Shape of the latents of images of a shape.

        Raises:
            ValueError: other channels, or a height or width that the factor does not divide.
        """
        f, what = self.factor, self.name or type(self).__name__
        if len(shape) != 3:
            raise ValueError(f"autoencoder {what}: encodes images (C, height, width), got data of shape {shape}")
        channels, height, width = shape
        if channels != self.image_channels:
            raise ValueError(
                f"autoencoder {what}: expected images of {self.image_channels} channels, got {channels}. Fix: choose "
                "an autoencoder for such images"
            )
        if height % f or width % f:
            near = f"{max(1, round(height / f)) * f} x {max(1, round(width / f)) * f}"
            raise ValueError(
                f"autoencoder {what}: divides height and width by {f}, got {height} x {width}. Fix: set the size of "
                f"the images to {near}"
            )
        return self.latent_channels, height // f, width // f


def weights_hash(module: nn.Module) -> str:
    """SHA-256 of the names, types, shapes and values of a module's state, hexadecimal: the same in any file format."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        value = value.detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.flatten().view(dtype=torch.uint8).numpy().tobytes() if value.numel() else b"")
    return digest.hexdigest()
