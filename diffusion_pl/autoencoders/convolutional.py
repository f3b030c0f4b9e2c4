"""The convolutional encoder and decoder of trained autoencoders."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from ..tensors import Recorded
from .base import Autoencoder, Shape


class Reconstruction(NamedTuple):
    """x: images, (B, C, H, W);  penalty: of the latents, per dimension of the images, (B,)."""

    x: Tensor
    penalty: Tensor


class Trained(Recorded, Autoencoder):
    """An autoencoder that `fit` trains; its constructor takes the shape of the images first."""

    @abstractmethod
    def reconstruct(self, x: Tensor, eps: Tensor) -> Reconstruction:
        """What training needs. x: (B, C, H, W) in [−1, 1]; eps: standard normal noise, (B, c, h, w)."""

    @property
    @abstractmethod
    def last_layer(self) -> nn.Parameter:
        """Weight of the decoder's last layer, at which losses are balanced."""


class Convolutional(Trained):
    """Residual blocks at L = len(ch_mult) sizes, each half the one before: f = 2^(L−1).

    Reference: Rombach et al., arXiv 2112.10752, App. G, without its attention.

    Args:
        shape: of the images, (C, H, W); the command line takes it from the data.
        latent_channels: c.
        nf: channels at the size of the images, a multiple of 8.
        ch_mult: channels at each size, as multiples of nf.
        num_res_blocks: residual blocks at each size.
        moments: arrays of c channels that the encoder gives.

    Raises:
        ValueError: nf is no multiple of 8, or f does not divide height and width.
    """

    def __init__(
        self, shape: Shape, latent_channels: int, nf: int, ch_mult: Sequence[int], num_res_blocks: int, moments: int
    ) -> None:
        super().__init__()
        if nf % 8 or nf < 8:
            raise ValueError(f"{type(self).__name__}: nf must be a multiple of 8, got {nf}")
        self.image_channels, self.latent_channels = shape[0], latent_channels
        self.factor = 2 ** (len(ch_mult) - 1)
        self.latent_shape(tuple(shape))
        widths = [nf * multiple for multiple in ch_mult]
        self.encoder = _encoder(shape[0], widths, num_res_blocks, moments * latent_channels)
        self.decoder = _decoder(latent_channels, widths, num_res_blocks, shape[0])

    def decode(self, z: Tensor) -> Tensor:
        x: Tensor = self.decoder(z)
        return x

    @property
    def last_layer(self) -> nn.Parameter:
        weight = self.decoder[-1].weight
        assert isinstance(weight, nn.Parameter)
        return weight


class Residual(nn.Module):
    """x + two convolutions of 3 × 3, each after a group norm and SiLU; 1 × 1 on x where channels differ."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.block = nn.Sequential(*_activated(channels, out), *_activated(out, out))
        self.skip = nn.Identity() if channels == out else nn.Conv2d(channels, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.skip(x) + self.block(x)
        return result


class Larger(nn.Module):
    """Twice the height and width, nearest neighbours, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return result


def _activated(channels: int, out: int) -> list[nn.Module]:
    return [nn.GroupNorm(8, channels), nn.SiLU(), nn.Conv2d(channels, out, 3, padding=1)]


def _encoder(channels: int, widths: Sequence[int], blocks: int, out: int) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(channels, widths[0], 3, padding=1)]
    width = widths[0]
    for level, wide in enumerate(widths):
        if level:
            layers.append(nn.Conv2d(width, width, 3, stride=2, padding=1))
        for _ in range(blocks):
            layers.append(Residual(width, wide))
            width = wide
    return nn.Sequential(*layers, Residual(width, width), *_activated(width, out))


def _decoder(channels: int, widths: Sequence[int], blocks: int, out: int) -> nn.Sequential:
    width = widths[-1]
    layers: list[nn.Module] = [nn.Conv2d(channels, width, 3, padding=1), Residual(width, width)]
    for level, wide in enumerate(reversed(widths)):
        if level:
            layers.append(Larger(width))
        for _ in range(blocks):
            layers.append(Residual(width, wide))
            width = wide
    return nn.Sequential(*layers, *_activated(width, out))
