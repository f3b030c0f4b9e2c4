"""Images in a folder that are measured as they are: no options, no split, nothing is changed."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from .decoding import Layout
from .files import first_look, load
from .images import Format
from .listing import list_images
from .loader import Source
from .opening import endings
from .units import Levels

#: What `sample` writes next to its samples.
OVERVIEWS = ("grid.png", "film.gif")
_MEMORY = 2.0  # GB; a larger folder is decoded when it is read


class StoredImages(NamedTuple):
    """shape: (C, H, W) of each;  units: their quantization levels;  source: n of them as integers, in the order of
    their paths."""

    shape: tuple[int, ...]
    units: Levels
    source: Source

    def __len__(self) -> int:
        return len(self.source)

    def batches(self, n: int, size: int) -> Iterator[Tensor]:
        """The first n in model units, `size` at a time: (B, C, H, W)."""
        for first in range(0, n, size):
            yield self.units.encode(self.source.__getitems__(torch.arange(first, min(first + size, n)))["x"])


def read_stored(folder: Path) -> StoredImages:
    """The images of a folder and the folders within, without the grid and the film of `sample`.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it holds no images, or they are not alike, or one cannot be read.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: {'is a file, expected a folder' if folder.exists() else 'no such folder'}")
    overviews = [folder / name for name in OVERVIEWS]
    files = [file for file in list_images(folder).files if file not in overviews]
    if not files:
        raise ValueError(
            f"{folder}: no images in this folder: expected files with the endings {', '.join(sorted(endings()))}"
        )
    layout = Layout()
    shape, levels = first_look(str(folder), files, layout, "fail")
    source = load(str(folder), files, None, layout, Format(shape, {}, levels), "fail", _MEMORY).source
    return StoredImages(shape, Levels(levels), source)
