"""Units of data: from the user's units to model units, of order one, in which a model is trained and sampled, and back.

The units also say what the data are: quantized (values of a finite set, whose likelihood is in bits per dimension) or
continuous (nats per dimension), bounded or not.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from ..autoencoders import Autoencoder


class Units(ABC):
    """An invertible map between the user's units and model units.

    Attributes:
        value_range: Smallest and largest possible value in model units; None if the data are unbounded.
        levels: How many values quantized data can take, 256 for 8 bits; None for continuous data, such as points.
    """

    value_range: tuple[float, float] | None = None
    levels: int | None = None

    @abstractmethod
    def encode(self, x: Tensor) -> Tensor:
        """User's units -> model units. x: (*, *shape) -> the same shape."""

    @abstractmethod
    def decode(self, x: Tensor) -> Tensor:
        """Model units -> user's units. x: (*, *shape) -> the same shape."""

    def to_uint8(self, x: Tensor) -> Tensor:
        """Model units -> 0 … 255, as images are shown and features extracted. x: (*, *shape) -> the same shape, uint8.

        Raises:
            ValueError: the data are unbounded.
        """
        if self.value_range is None:
            raise ValueError(
                f"{type(self).__name__}: unbounded data cannot be shown as images: they need a value_range"
            )
        low, high = self.value_range
        return ((x - low) * (255 / (high - low))).round().clamp(0, 255).to(torch.uint8)


class Levels(Units):
    """Integers v = 0 … L − 1, in model units  x = 2 v / (L − 1) − 1  in [−1, 1].

    `decode` is the exact inverse of `encode`; for 256 levels it is `to_uint8` itself.

    Args:
        levels: L, the number of quantization levels: 256 for images of 8 bits, 65,536 for 16; at least 2.
    """

    value_range = (-1.0, 1.0)
    levels: int

    def __init__(self, levels: int = 256) -> None:
        if levels < 2:
            raise ValueError(f"Levels: levels must be at least 2, got {levels}")
        self.levels = levels

    def encode(self, x: Tensor) -> Tensor:
        """Integers 0 … L − 1 -> model units in [−1, 1], float32. x: (*, *shape)."""
        return x.float() * (2 / (self.levels - 1)) - 1

    def decode(self, x: Tensor) -> Tensor:
        """Model units -> the nearest integers 0 … L − 1: uint8 up to 256 levels, else int32. x: (*, *shape)."""
        top = self.levels - 1
        v = ((x + 1) * (top / 2)).round().clamp(0, top)
        return v.to(torch.uint8 if top < 256 else torch.int32)


class Standardized(Units):
    """Real numbers, in model units  x = (v − mean) / std  with zero mean and unit variance on each axis or channel.

    `decode` of float64 returns the float32 that `encode` of float64 was given, up to one unit in the last place of the
    larger of value and mean.

    Args:
        mean: float64, in the user's units, of a shape that broadcasts to one example: (D,) of points, (C, 1, …) of
            fields.
        std: the same.
    """

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        self.mean, self.std = mean, std

    def encode(self, x: Tensor) -> Tensor:
        """User's units -> model units, in the type of x. x: (*, *shape)."""
        return (x - self.mean.to(x)) / self.std.to(x)

    def decode(self, x: Tensor) -> Tensor:
        """Model units -> user's units, in the type of x. x: (*, *shape)."""
        return x * self.std.to(x) + self.mean.to(x)


class Latent(Units):
    """Latents z of images, in model units  x = (z − mean) / std  per channel; the user's units are those of the images.

    Latents are continuous (`levels` is None).  Images are encoded and decoded in blocks that are always of the same
    size, so that an image does not depend on those it is decoded with; on the device of x, or, of x on the CPU, where
    the autoencoder is.

    Args:
        codec: gives the autoencoder, when it is needed first.
        mean: (c, 1, 1), of the latents.
        std: (c, 1, 1), of the latents, positive.
        pixels: units of the images.
    """

    def __init__(self, codec: Callable[[], Autoencoder], mean: Tensor, std: Tensor, pixels: Levels) -> None:
        self.codec, self.mean, self.std, self.pixels = codec, mean, std, pixels

    def scale(self, z: Tensor) -> Tensor:
        """Latents -> model units, float32 (of float64 float64). z: (*, c, h, w)."""
        z = z.to(torch.promote_types(z.dtype, torch.float32))
        return (z - self.mean.to(z)) / self.std.to(z)

    def unscale(self, x: Tensor) -> Tensor:
        """Model units -> latents, in the type of x. x: (*, c, h, w)."""
        return x * self.std.to(x) + self.mean.to(x)

    def encode(self, x: Tensor) -> Tensor:
        """Images, integers -> model units: the mean of their latents. x: (*, C, H, W) -> (*, c, h, w)."""
        return self.encode_scaled(self.pixels.encode(x))

    def encode_scaled(self, x: Tensor) -> Tensor:
        """The same of images in [−1, 1]."""
        return self.scale(self._in_blocks(lambda codec, block: codec.encode_mean(block), x))

    def moments(self, x: Tensor) -> Tensor:
        """Images in [−1, 1] -> mean and std of their latents, not scaled. x: (*, C, H, W) -> (*, 2, c, h, w)."""
        return self._in_blocks(lambda codec, block: torch.stack(codec.encode(block), 1), x)

    def images(self, x: Tensor) -> Tensor:
        """Model units -> images in [−1, 1], not clipped: (*, C, H, W). x: (*, c, h, w)."""
        return self._in_blocks(lambda codec, block: codec.decode(block), self.unscale(x.float()))

    def decode(self, x: Tensor) -> Tensor:
        """Model units -> images, integers. x: (*, c, h, w) -> (*, C, H, W)."""
        return self.pixels.decode(self.images(x))

    def to_uint8(self, x: Tensor) -> Tensor:
        """Model units -> images, 0 … 255. x: (*, c, h, w) -> (*, C, H, W), uint8."""
        return self.pixels.to_uint8(self.images(x))

    def differentiable(self, x: Tensor) -> Tensor:
        """The same with gradients, of a batch as it is: (B, C, H, W). x: (B, c, h, w)."""
        return self.codec().to(x.device).decode(self.unscale(x.float()))

    @torch.no_grad()
    def _in_blocks(self, function: Callable[[Autoencoder, Tensor], Tensor], x: Tensor) -> Tensor:
        """function of x: (*, C, H, W), so many examples at a time; the last block is filled with its last example."""
        codec = self.codec()
        device = codec.device if x.device.type == "cpu" else x.device
        codec = codec.to(device)
        every, most = x.reshape(-1, *x.shape[-3:]), _MOST if device.type == "cpu" else _MOST_THERE
        size = 1 << max(0, min(5, (most // math.prod(x.shape[-3:])).bit_length() - 1))
        missing = max(1, -(-len(every) // size)) * size - len(every)
        last = every[-1:] if len(every) else every.new_zeros(1, *every.shape[1:])  # a process may have no example
        padded = torch.cat((every, last.expand(missing, -1, -1, -1)))
        done = [function(codec, block.to(device)).to(x.device) for block in torch.split(padded, size)]
        result = torch.cat(done)[: len(every)]
        return result.reshape(*x.shape[:-3], *result.shape[1:])


# Numbers in a block on the CPU: 32 of 28 x 28 pixels, 16 of 4 x 64 x 64 latents; elsewhere: 16 of 3 x 256 x 256.
_MOST, _MOST_THERE = 1 << 18, 1 << 22


class ModelUnits(Units):
    """Of data whose own units are not known: what the model was trained on."""

    def encode(self, x: Tensor) -> Tensor:
        return x

    def decode(self, x: Tensor) -> Tensor:
        return x
