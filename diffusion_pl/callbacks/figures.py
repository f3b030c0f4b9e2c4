"""Plots of samples, by the kind of data: grids of images, scatter plots of points."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .. import plots
from ..conditions import class_count
from ..data import DataModule
from ..data.base import count

SHOWN = 100  # images in a grid, at most
WIDEST = 20  # classes up to which each has a column of the grid


def write_samples(data: DataModule, x: Tensor, folder: Path) -> list[Path]:
    """Write samples to files in the user's units, with a plot of them: grid.png of images, samples.png of points.

    Args:
        data: of the model.
        x: (N, *shape), in model units.
        folder: of the files; it is made if it is missing.

    Returns:
        The files written, or the first and the last of many as one entry.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if data.is_image:
        grid = plots.image_grid(data.units.to_uint8(x[:SHOWN]).numpy(), _columns(data))
        return [plots.save_image(grid, folder / "grid.png"), *data.write(x, folder)]
    files = data.write(x, folder)
    if data.is_point:
        points = data.units.decode(x.double()).numpy()
        figure = plots.samples_panel(_known(data, points), points, count(len(points), "sample"))
        files.append(plots.save(figure, folder / "samples.png"))
    return files


def frame(data: DataModule, x: Tensor, x_0: Tensor, title: str) -> NDArray[np.uint8]:
    """One frame of a film: noisy examples and the estimates of x_0, (N, *shape) each in model units.

    Raises:
        ValueError: the data are neither images nor points.
    """
    if data.is_image:
        both = torch.cat((x, x_0))
        columns = len(both) // (2 if len(both) <= 16 or len(both) % 4 else 4)
        title = f"{title}    above: x_t    below: estimate of x_0"
        return plots.image_grid(data.units.to_uint8(both).numpy(), columns, title=title)
    if data.is_point:
        noisy, estimate = (data.units.decode(part.double()).numpy() for part in (x, x_0))
        return plots.to_image(plots.film_panel(noisy, estimate, _known(data, noisy), title))
    raise ValueError(f"a film shows images or points, not data of shape {data.shape}: switch it off")


def _columns(data: DataModule) -> int | None:
    """Columns of a grid in which each class has one: samples have the labels of the trained classes in turn."""
    shown = sum(map(bool, data.class_counts)) if data.class_counts else class_count(data.conditions)
    return shown if shown and shown <= WIDEST else None


def _known(data: DataModule, like: NDArray[Any]) -> NDArray[Any]:
    """Training points in the user's units, (N, D); N = 0 if the data were not read."""
    if not data.loaded:
        return like[:0]
    return data.stored(torch.arange(len(data.part("train"))))["x"].numpy()
