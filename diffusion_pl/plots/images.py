"""Grids of images."""

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
    columns_named: Sequence[str] = (),
    head: int = 0,
) -> NDArray[np.uint8]:
    """Images side by side, row by row, enlarged without smoothing: (height, width, 3), uint8.

    Of images with other than one or three channels the first channel is shown.

    Args:
        images: (N, C, H, W), uint8.
        columns: Images in a row; None: about as many as rows.
        scale: Pixels of the grid for one of the image; None: so many that the grid is about 600 wide, or high if it is
            higher than wide.
        title: Text above, of one or more lines; the grid is as wide as the longest.
        rows_named: Names of the rows, at their left.
        together: Rows that belong together; beyond 1 a wider gap parts them from the next.
        columns_named: Names of the columns, above them; the end of a name that is too long is cut off.
        head: Rows at the top, such as real data, that a wider gap parts from the others.
    """
    from PIL import Image, ImageDraw, ImageFont

    if images.ndim != 4 or not len(images) or images.dtype != np.uint8:
        raise ValueError(f"image_grid: needs uint8 images (N, C, H, W), got {images.dtype} {images.shape}")
    n, channels, height, width = images.shape
    if channels != 3:
        images = images[:, :1].repeat(3, 1)
    columns = columns or int(np.ceil(np.sqrt(n)))
    rows = -(-n // columns)
    scale = scale or max(1, round(600 / max(columns * (width + 1), rows * (height + 1))))
    gap = max(2, scale // 2)
    across, down = width * scale + gap, height * scale + gap

    font, small = ImageFont.load_default(14), ImageFont.load_default(12)
    lines = title.splitlines()
    left = gap + max((round(font.getlength(name)) + 8 for name in rows_named), default=0)
    wide = max([left + columns * across, *(round(font.getlength(line)) + 2 * gap for line in lines)])
    top = gap + (8 + 19 * len(lines) if lines else 0) + (18 if columns_named else 0)
    tops = [top + row * down + 12 * _wide_gaps(row, together, head) for row in range(rows)]
    grid = np.full((tops[-1] + down, wide, 3), 255, dtype=np.uint8)
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
    for column, name in enumerate(columns_named):
        while name and small.getlength(name) > across:
            name = name[:-1]
        draw.text((left + column * across + (across - gap) / 2, top - 4), name, fill=INK, font=small, anchor="ms")
    return np.asarray(image)


def _wide_gaps(row: int, together: int, head: int) -> int:
    """Wider gaps above a row of a grid."""
    if row < head:
        return 0
    return (1 if head else 0) + ((row - head) // together if together > 1 else 0)


def pairs(
    images: Array, columns: int = 8, title: str = "", names: tuple[str, str] = ("sample", "nearest")
) -> NDArray[np.uint8]:
    """Samples, each above its nearest image, pairs side by side: (height, width, 3), uint8.

    Args:
        images: (N, 2, C, H, W), uint8.
        columns: Pairs in a row.
        title: Text above.
        names: Of the first and the second of a pair.
    """
    n, _, channels, height, width = images.shape
    columns = min(columns, n)
    whole = np.full((-(-n // columns) * columns, *images.shape[1:]), 255, dtype=np.uint8)
    whole[:n] = images
    # Row of firsts, row of seconds, row of firsts …
    rows = whole.reshape(-1, columns, 2, channels, height, width).swapaxes(1, 2)
    named = [*names] * len(rows)
    cells = rows.reshape(-1, channels, height, width)
    return image_grid(cells, columns, title=title, rows_named=named, together=2)


def save_image(image: Array, path: Path) -> Path:
    """Write an image (height, width, 3), uint8, losslessly."""
    from PIL import Image

    Image.fromarray(image).save(path)
    return path
