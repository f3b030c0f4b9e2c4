"""Grids of images."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .style import INK, Array


def image_grid(
    images: Array,
    columns: int | None = None,
    scale: int | None = None,
    title: str = "",
    rows_named: Sequence[str] = (),
    together: int = 1,
) -> NDArray[np.uint8]:
    """Images side by side, row by row, enlarged without smoothing: (height, width, 3), uint8.

    Of images with other than one or three channels the first channel is shown.

    Args:
        images: (N, C, H, W), uint8.
        columns: Images in a row; None: about as many as rows.
        scale: Pixels of the grid for one of the image; None: so many that the grid is about 600 wide.
        title: Text above, which wraps; its lines are as long as the grid is wide.
        rows_named: Names of the rows, at their left.
        together: Rows that belong together; beyond 1 a wider gap parts them from the next.
    """
    from PIL import Image, ImageDraw, ImageFont

    if images.ndim != 4 or not len(images) or images.dtype != np.uint8:
        raise ValueError(f"image_grid: needs uint8 images (N, C, H, W), got {images.dtype} {images.shape}")
    n, channels, height, width = images.shape
    if channels != 3:
        images = images[:, :1].repeat(3, 1)
    columns = columns or int(np.ceil(np.sqrt(n)))
    scale = scale or max(1, round(600 / (columns * (width + 1))))
    gap = max(2, scale // 2)
    across, down = width * scale + gap, height * scale + gap
    apart = 12 if together > 1 else 0

    font = ImageFont.load_default(14)
    left = gap + max((round(font.getlength(name)) + 8 for name in rows_named), default=0)
    lines = textwrap.wrap(title, max(24, (left + columns * across) // 8))
    rows = -(-n // columns)
    tops = [(8 + 19 * len(lines) if lines else 0) + gap + row * down + row // together * apart for row in range(rows)]
    grid = np.full((tops[-1] + down, left + columns * across, 3), 255, dtype=np.uint8)
    for index, cell in enumerate(images):
        row, column = divmod(index, columns)
        y, x = tops[row], left + column * across
        large = cell.transpose(1, 2, 0).repeat(scale, 0).repeat(scale, 1)
        grid[y : y + down - gap, x : x + across - gap] = large
    image = Image.fromarray(grid)
    draw = ImageDraw.Draw(image)
    for number, line in enumerate(lines):
        draw.text((gap, 5 + 19 * number), line, fill=INK, font=font)
    for row, name in enumerate(rows_named):
        draw.text((left - 6, tops[row] + (down - gap) / 2), name, fill=INK, font=font, anchor="rm")
    return np.asarray(image)


def pairs(images: Array, columns: int = 8, title: str = "") -> NDArray[np.uint8]:
    """Samples, each above its nearest image, pairs side by side: (height, width, 3), uint8.

    Args:
        images: (N, 2, C, H, W), uint8.
        columns: Pairs in a row.
        title: Text above.
    """
    n, _, channels, height, width = images.shape
    columns = min(columns, n)
    whole = np.full((-(-n // columns) * columns, *images.shape[1:]), 255, dtype=np.uint8)
    whole[:n] = images
    # Row of firsts, row of seconds, row of firsts …
    rows = whole.reshape(-1, columns, 2, channels, height, width).swapaxes(1, 2)
    names = ["sample", "nearest"] * len(rows)
    cells = rows.reshape(-1, channels, height, width)
    return image_grid(cells, columns, title=title, rows_named=names, together=2)


def save_image(image: Array, path: Path) -> Path:
    """Write an image (height, width, 3), uint8, losslessly."""
    from PIL import Image

    Image.fromarray(image).save(path)
    return path
