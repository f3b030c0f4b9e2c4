"""A small convolutional U-Net for small images, patches and teaching."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from ..conditions import Conditions
from .conditioning import LabelEmbedding
from .embeddings import Embedding, Sinusoidal
from .layers import image_shape


class ConvBlock(nn.Sequential):
    """3x3 convolution, Mish, group norm."""

    def __init__(self, channels: int, out: int, groups: int) -> None:
        super().__init__(nn.Conv2d(channels, out, 3, padding=1), nn.Mish(), nn.GroupNorm(groups, out))


class StrideConvBlock(nn.Sequential):
    """4x4 convolution of stride 2, or its transpose, which doubles height and width; Mish, group norm."""

    def __init__(self, channels: int, out: int, groups: int, up: bool) -> None:
        layer = nn.ConvTranspose2d if up else nn.Conv2d
        super().__init__(layer(channels, out, 4, stride=2, padding=1), nn.Mish(), nn.GroupNorm(groups, out))


def _project(time_size: int, channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(time_size, channels), nn.Mish(), nn.Linear(channels, channels))


class DownLevel(nn.Module):
    """The time added to every pixel, two convolutions, half the height and width.

    Args:
        channels, out: channels before and after.
        time_size: Length of the time features.
        groups: Of the group norms.
    """

    def __init__(self, channels: int, out: int, time_size: int, groups: int) -> None:
        super().__init__()
        self.time = _project(time_size, channels)
        self.convs = nn.Sequential(ConvBlock(channels, out, groups), ConvBlock(out, out, groups))
        self.shrink = StrideConvBlock(out, out, groups, up=False)

    def forward(self, x: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, H, W) -> what the convolutions make of it, for the bypass, and that at half the height and width."""
        full: Tensor = self.convs(x + self.time(time)[:, :, None, None])
        return full, self.shrink(full)


class UpLevel(nn.Module):
    """Twice the height and width, concatenated with the bypass, the time added to every pixel, two convolutions.

    Args:
        channels, out: channels before and after; the bypass has as many as come in.
        time_size: Length of the time features.
        groups: Of the group norms.
    """

    def __init__(self, channels: int, out: int, time_size: int, groups: int) -> None:
        super().__init__()
        self.enlarge = StrideConvBlock(channels, channels, groups, up=True)
        self.time = _project(time_size, 2 * channels)
        self.convs = nn.Sequential(ConvBlock(2 * channels, channels, groups), ConvBlock(channels, out, groups))

    def forward(self, x: Tensor, bypass: Tensor, time: Tensor) -> Tensor:
        joined = torch.cat((self.enlarge(x), bypass), 1)
        y: Tensor = self.convs(joined + self.time(time)[:, :, None, None])
        return y


class ConvUNet(nn.Module):
    """The U-Net of the French demonstration of DDPM on one image.

    Parameters for (3, 32, 32) with the defaults: 395,763.

    Reference: the French demonstration; the frequencies of its time table are corrected
    (`Sinusoidal`).  Several noise levels for each image are an option of the loss, ``times_per_sample``.

    Args:
        shape: Shape of one example, (C, H, W); height and width divisible by 2 for each level.  Images of other
            sizes so divisible may be given later.
        conditions: Of the data; a label named ``label`` or none. Row ``classes`` of its table means "any class".
        channels: Channels before the first level and after each.
        groups: Of the group norms; must divide all channels.
        time_size: Length of the time features; a ``time_embedding`` brings its own.
        time_embedding: Embedding of the noise level; None: Sinusoidal, for which ``noise_input`` must count steps.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        conditions: Conditions | None = None,
        channels: Sequence[int] = (8, 16, 32, 64),
        groups: int = 4,
        time_size: int = 16,
        time_embedding: Callable[[int], Embedding] | None = None,
    ) -> None:
        super().__init__()
        if len(channels) < 2 or min(channels) < 1:
            raise ValueError(f"ConvUNet: channels must be two or more positive numbers, got {list(channels)}")
        if groups < 1 or any(c % groups for c in channels):
            raise ValueError(f"ConvUNet: groups must divide all channels, got groups {groups} and {list(channels)}")
        if time_size < 2 or time_size % 2:
            raise ValueError(f"ConvUNet: time_size must be an even number from 2 on, got {time_size}")
        self.factor = 2 ** (len(channels) - 1)
        colours, _, _ = image_shape("ConvUNet", shape, self.factor)
        self.embedding = Sinusoidal(1, time_size) if time_embedding is None else time_embedding(1)
        width = self.embedding.width
        self.label = LabelEmbedding("ConvUNet", conditions, width)
        self.stem = ConvBlock(colours, channels[0], groups)
        pairs = list(pairwise(channels))
        self.down = nn.ModuleList(DownLevel(a, b, width, groups) for a, b in pairs)
        self.up = nn.ModuleList(UpLevel(b, a, width, groups) for a, b in reversed(pairs))
        self.output = nn.Conv2d(channels[0], colours, 3, padding=1)

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None) -> Tensor:
        """The raw network output F.

        Args:
            x: Scaled noisy images, (B, C, H, W).
            c_noise: Noise level, (B,).
            label: Classes, int64, (B,); −1 or None means any class.

        Raises:
            ValueError: a height or width that cannot be halved once for each level, or labels for a network without
                conditions.
        """
        image_shape("ConvUNet", x.shape[1:], self.factor)
        time = self.label(self.embedding(c_noise.float().unsqueeze(1)).to(x.dtype), label)
        h = self.stem(x)
        bypass = []
        for level in self.down:
            full, h = level(h, time)
            bypass.append(full)
        for level in self.up:
            h = level(h, bypass.pop(), time)
        output: Tensor = self.output(h)
        return output
