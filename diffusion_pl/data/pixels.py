"""Image files in model units: read at the model's shape or at their own, and written without loss."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .decoding import read_images, save_png
from .units import Levels


def read_pixels(path: Path, shape: tuple[int, ...], units: Levels) -> list[Tensor]:
    """An image, or all of a folder (but grid.png), in [−1, 1].

    Args:
        path: A file or folder.
        shape: (C, H, W), to which images are cropped and resized, or (C,): they keep their sizes.
        units: Of the images.
    """
    bits = (units.levels - 1).bit_length() if units.levels > 256 else None
    arrays = ((torch.tensor(array), deep) for array, deep in read_images(path, shape, bits))
    return [units.encode(v) if deep else v.float() / 127.5 - 1 for v, deep in arrays]


def read_sized(name: str, given: Any, channels: int, sizes: Sequence[tuple[int, ...]], units: Levels) -> list[Tensor]:
    """Images of one of some sizes, (channels, h, w) each, in [−1, 1]; nothing is cropped or resized.

    Args:
        name: Of the condition, for messages.
        given: Path of an image, or of a folder of images.
        channels: 1, 3 or 4, to which images are converted.
        sizes: (height, width) that are allowed.
        units: Of the images.

    Raises:
        ValueError: an image of another size, or a file that is no image.
        FileNotFoundError: no such file.
    """
    images = read_pixels(Path(str(given)).expanduser(), (channels,), units)
    for x in images:
        if tuple(x.shape[1:]) not in sizes:
            expected = " or ".join(dict.fromkeys("x".join(map(str, size)) for size in sizes))
            raise ValueError(
                f"cond.{name}: {given}: expected an image of {expected}, got {x.shape[1]}x{x.shape[2]}. Fix: resize it"
            )
    return images


def write_pixels(exact: NDArray[Any], units: Levels, folder: Path) -> list[Path]:
    """A lossless PNG for each image (N, C, H, W), or samples.npy where PNG has no such images."""
    if exact.shape[1] not in (1, 3) or (units.levels > 256 and exact.shape[1] == 3):
        np.save(folder / "samples.npy", exact)
        return [folder / "samples.npy"]
    names = [f"{i:0{len(str(len(exact) - 1))}d}.png" for i in range(len(exact))]
    for name, image in zip(names, exact, strict=True):
        save_png(image, folder / name)
    return [folder / (names[0] if len(names) == 1 else f"{names[0]} … {names[-1]}")]
