"""Arithmetic along 1 to 3 spatial axes, and checks shared by the networks of images, sequences and volumes.

Tensors are (B, C, L), (B, C, H, W) or (B, C, D, H, W).  An axis of size 1 is never halved, so a volume of depth 1 is
treated as an image.
"""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

#: Classes and functions by the number of spatial axes.
CONV: dict[int, type[nn.Conv1d | nn.Conv2d | nn.Conv3d]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
AVG_POOL = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
CONVOLVE = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}

SHAPES = {1: "(C, L)", 2: "(C, H, W)", 3: "(C, D, H, W)"}
NAMES = {1: ("length",), 2: ("height", "width"), 3: ("depth", "height", "width")}


def shrink(x: Tensor, strides: tuple[int, ...]) -> Tensor:
    """Means over blocks of so many values along each spatial axis. x: (B, C, *sizes) -> (B, C, *sizes / strides)."""
    y: Tensor = AVG_POOL[len(strides)](x, strides)
    return y


def enlarge(x: Tensor, strides: tuple[int, ...]) -> Tensor:
    """Each value repeated so often along each spatial axis. x: (B, C, *sizes) -> (B, C, *sizes · strides)."""
    return F.interpolate(x, scale_factor=[float(stride) for stride in strides], mode="nearest")


def margins(strides: tuple[int, ...], before: int) -> list[int]:
    """Zeros around x for a convolution of size 3, as `F.pad` takes them.

    Args:
        strides: Of the convolution, along each spatial axis.
        before: Zeros before the first value of an axis that is halved; there is one after the last.  Around an axis
            that is not, there is one on either end.
    """
    return [n for stride in reversed(strides) for n in ((before if stride == 2 else 1), 1)]


def along(features: Tensor, x: Tensor) -> Tensor:
    """Features, to be added to every position of x. features: (B, C) or (C,), x: (B, C, *sizes) -> (…, C, 1, …)."""
    return features[(..., *(None,) * (x.ndim - 2))]


def factors(network: str, shape: tuple[int, ...], factor: int) -> tuple[int, ...]:
    """By what each spatial axis is divided: the factor, or 1 for an axis of size 1.

    Args:
        network: Name for messages.
        shape: Shape of one example.
        factor: Of the axes longer than 1.

    Raises:
        ValueError: not a shape with channels and 1 to 3 spatial axes.
    """
    if len(shape) - 1 not in SHAPES or min(shape) < 1:
        kinds = list(SHAPES.values())
        raise ValueError(
            f"{network}: needs data of shape {', '.join(kinds[:-1])} or {kinds[-1]}, got data of shape {tuple(shape)}"
        )
    return tuple(factor if size > 1 else 1 for size in shape[1:])


def check_sizes(
    network: str, shape: Sequence[int], divisors: tuple[int, ...], remedy: str = "use fewer levels"
) -> None:
    """Raise ValueError unless each size is a multiple of its divisor; the message names the nearest valid size.

    Args:
        network: Name for messages.
        shape: Shape of one example, (C, *sizes).
        divisors: Of each spatial axis.
        remedy: What else than resizing helps, for the message.
    """
    sizes, axes = tuple(shape[1:]), len(divisors)
    if len(sizes) != axes or min(shape) < 1:
        kind = "images" if axes == 2 else "data"
        raise ValueError(f"{network}: needs {kind} of shape {SHAPES[axes]}, got data of shape {tuple(shape)}")
    if any(size % divisor for size, divisor in zip(sizes, divisors, strict=True)):
        nearest = [max(d, round(size / d) * d) for size, d in zip(sizes, divisors, strict=True)]
        names = NAMES[axes]
        of = f" ({' x '.join(names)})" if axes > 1 else ""
        listed = " and ".join([", ".join(names[:-1]), names[-1]] if axes > 1 else names)
        multiple = "a multiple" if axes == 1 else "multiples"
        raise ValueError(
            f"{network}: {listed} must be {multiple} of {max(divisors)}, got {by(sizes)}{of}: "
            f"the nearest valid size is {by(nearest)}; resize the data to it or {remedy}"
        )


def by(sizes: Sequence[int]) -> str:
    """Sizes as in messages: 8x16."""
    return "x".join(map(str, sizes))


def image_shape(
    network: str, shape: tuple[int, ...], factor: int, remedy: str = "use fewer levels"
) -> tuple[int, int, int]:
    """(C, H, W) of a network of images alone, checked.

    Args:
        network: Name for messages.
        shape: Shape of one example.
        factor: Height and width must be multiples of it.
        remedy: What else than resizing helps, for the message.

    Raises:
        ValueError: not the shape of an image, or a height or width that cannot be halved as often as the network
            halves it; the message names the nearest valid size.
    """
    check_sizes(network, shape, (factor, factor), remedy)
    channels, height, width = shape
    return channels, height, width


def attending(
    network: str, shape: tuple[int, ...], strides: tuple[int, ...], levels: int, attn_resolutions: Sequence[int]
) -> list[bool]:
    """Which levels attend: those whose height (of 1-D data, length) is among the given ones.

    Args:
        network: Name for messages.
        shape: Shape of one example, (C, *sizes).
        strides: By what a level divides the sizes of the level before.
        levels: Their number.
        attn_resolutions: See `UNet`.

    Raises:
        ValueError: one that is not the height of a level.
    """
    size, stride = shape[1:][-2:][0], strides[-2:][0]
    heights = [size // stride**level for level in range(levels)]
    unknown = sorted(set(attn_resolutions) - set(heights))
    if unknown:
        name = "heights" if len(strides) > 1 else "lengths"
        raise ValueError(
            f"{network}: attn_resolutions {unknown} are not {name} of a level, which are {heights}: choose among "
            "these, or [] for none outside the middle"
        )
    return [height in attn_resolutions for height in heights]


def check_options(network: str, nf: int, ch_mult: Sequence[int], num_res_blocks: int, dropout: float) -> None:
    """Raise ValueError for numbers of which no U-Net can be built."""
    if nf < 4 or nf % 2:
        raise ValueError(f"{network}: nf must be an even number from 4 on, got {nf}")
    if not ch_mult or min(ch_mult) < 1:
        raise ValueError(f"{network}: ch_mult must be one or more positive numbers, got {list(ch_mult)}")
    if num_res_blocks < 1:
        raise ValueError(f"{network}: num_res_blocks must be at least 1, got {num_res_blocks}")
    if not 0 <= dropout < 1:
        raise ValueError(f"{network}: dropout must be in [0, 1), got {dropout}")
