"""Plots of samples, by the kind of data: grids of images, scatter plots of points, colour-mapped fields."""

from collections.abc import Sequence
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
from ..pipeline import Pipeline

SHOWN = 100  # images in a grid, at most
WIDEST = 20  # classes up to which each has a column of the grid


def shown_condition(pipeline: Pipeline, indices: Sequence[int]) -> tuple[str, Tensor] | None:
    """Name and values, (N, *shape), of the first condition that is an image like the samples; None: there is none."""
    for name, condition in pipeline.conditions.items():
        if condition.shape == pipeline.shape:
            return name, pipeline.values(indices)[name].cpu().nan_to_num()
    return None


def below_conditions(cond: tuple[str, Tensor], x: Tensor, columns: int) -> tuple[Tensor, list[str]]:
    """Rows of samples x: (N, *shape), each below a row of their conditions, and the names of the rows."""
    name, values = cond
    rows = [torch.cat((values[k : k + columns], x[k : k + columns])) for k in range(0, len(x) - columns + 1, columns)]
    return torch.cat(rows), [name, "samples"] * len(rows)


def write_samples(data: DataModule, x: Tensor, folder: Path, cond: tuple[str, Tensor] | None = None) -> list[Path]:
    """Write samples to files in the user's units, with a plot: grid.png of images, samples.png of points and fields.

    Args:
        data: of the model.
        x: (N, *shape), in model units.
        folder: of the files; it is made if it is missing.
        cond: of the first samples, see `shown_condition`, for the grid; None: it shows samples alone.

    Returns:
        The files written, or the first and the last of many as one entry.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if data.is_image:
        if cond is None:
            grid = plots.image_grid(data.units.to_uint8(x[:SHOWN]).numpy(), _columns(data))
        else:
            columns = min(10, len(x))
            rows, names = below_conditions(cond, x[:SHOWN], columns)
            grid = plots.image_grid(data.units.to_uint8(rows).numpy(), columns, rows_named=names, together=2)
        return [plots.save_image(grid, folder / "grid.png"), *data.write(x, folder)]
    files = data.write(x, folder)
    if data.is_point:
        points = data.units.decode(x.double()).numpy()
        figure = plots.samples_panel(_known(data, points), points, count(len(points), "sample"), data.axes)
        files.append(plots.save(figure, folder / "samples.png"))
    if data.is_field:
        samples = decoded(data, x[: plots.MOST_FIELDS])
        known = decoded(data, data.training_examples(plots.FIELD_COLUMNS)) if data.loaded else samples[:0]
        shown = {"data": known, "samples": samples} if len(known) else {"samples": samples}
        files.append(plots.save(plots.fields_panel(shown, title=count(len(x), "sample")), folder / "samples.png"))
    return files


def decoded(data: DataModule, x: Tensor) -> NDArray[Any]:
    """Fields x: (N, C, *sizes) in model units, in the user's units."""
    return data.units.decode(x.double()).numpy()


def write_restored(data: DataModule, rows: Tensor, columns: Sequence[str], title: str, path: Path) -> None:
    """Write a grid of examples, in each row one, what was kept of it, and its restored samples.

    Args:
        data: of the model.
        rows: (N · len(columns), *shape), in model units.
        columns: names of the columns.
        title: above the grid.
        path: of the PNG.
    """
    if data.is_field:
        parts = rows.unflatten(0, (-1, len(columns)))[: plots.FIELD_COLUMNS].transpose(0, 1)
        figure = plots.fields_panel({n: decoded(data, p) for n, p in zip(columns, parts, strict=True)}, title=title)
        plots.save(figure, path)
        return
    grid = plots.image_grid(data.units.to_uint8(rows).numpy(), len(columns), title=title, columns_named=columns)
    plots.save_image(grid, path)


def film_images(data: DataModule, steps: Sequence[tuple[str, Tensor, Tensor]]) -> list[NDArray[np.uint8]]:
    """The images of a film, (height, width, 3) each.

    Args:
        data: of the model.
        steps: a headline, noisy examples and the estimates of x_0 each, (N, *shape) both, in model units.

    Raises:
        ValueError: the data are neither images, points nor fields.
    """
    if data.is_image:
        return [_images(data, *step) for step in steps]
    if data.is_point:
        decode = data.units.decode
        points = [(title, decode(x.double()).numpy(), decode(x_0.double()).numpy()) for title, x, x_0 in steps]
        return plots.film_frames(points, _known(data, points[0][1]), data.axes)
    if data.is_field:
        frames = [
            (title, {"x_t": decoded(data, x[:8]), "x_0 estimate": decoded(data, x_0[:8])}) for title, x, x_0 in steps
        ]
        return plots.field_film(frames, plots.field_limits(frames[-1][1]["x_0 estimate"]))
    raise ValueError(f"a film shows images, points or fields, not data of shape {data.shape}: switch it off")


def _images(data: DataModule, title: str, x: Tensor, x_0: Tensor) -> NDArray[np.uint8]:
    both = torch.cat((x, x_0))
    columns = len(both) // (2 if len(both) <= 16 or len(both) % 4 else 4)
    rows = len(both) // columns // 2
    names = [*["x_t"] * rows, *["x_0 estimate"] * rows]
    return plots.image_grid(data.units.to_uint8(both).numpy(), columns, title=title, rows_named=names, head=rows)


def _columns(data: DataModule) -> int | None:
    """Columns of a grid in which each class has one: samples have the labels of the trained classes in turn."""
    shown = sum(map(bool, data.class_counts)) if data.class_counts else class_count(data.conditions)
    return shown if shown and shown <= WIDEST else None


def _known(data: DataModule, like: NDArray[Any]) -> NDArray[Any]:
    """Training points in the user's units, (N, D); N = 0 if the data were not read."""
    if not data.loaded:
        return like[:0]
    return data.stored(torch.arange(len(data.part("train"))))["x"].numpy()
