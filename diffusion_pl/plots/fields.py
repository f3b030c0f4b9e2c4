"""Plots of fields (C, *sizes): curves along one axis, colour-mapped images with a scale, central slices of volumes.

Everything is drawn in the user's units.  All rows of a plot share the limits of each channel, which are those of the
data where there are some; where values have both signs the colours diverge from white at 0.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .style import (
    DATA,
    FAINT,
    HEADLINE,
    INK,
    SAMPLES,
    WIDTH,
    Array,
    colorbar,
    headline,
    new_figure,
    plain_axes,
    sequential,
    to_image,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = 8  # examples side by side, at most
MOST = 16  # examples of a row, at most
CHANNELS = 6  # that are drawn
SCALE = 1.2  # inches that the colour bar takes

Rows = Mapping[str, Array]


def fields_panel(rows: Rows, limits: Array | None = None, title: str = "", across: bool = False) -> "Figure":
    """Fields in rows with names, such as data and samples, channel by channel.

    Args:
        rows: (N, C, *sizes) each, of 1 to 3 spatial axes; of more than 16 fields the first are drawn, of more than 6
            channels the first.
        limits: (C, 2), smallest and largest value of each channel's scale; None: those of the first row.
        title: above all.
        across: put the first field of each row next to those of the others, its name above it.
    """
    return _Panel(rows, limits, title, across).figure


def field_film(frames: Sequence[tuple[str, Rows]], limits: Array | None = None) -> list[NDArray[np.uint8]]:
    """Frames of a film, (height, width, 3) each: the rows of `fields_panel`, with a title each.

    Args:
        frames: title and rows, of the same shapes in all frames.
        limits: see `fields_panel`; None: those of the last frame.
    """
    panel = _Panel(frames[0][1], field_limits(*frames[-1][1].values()) if limits is None else limits, frames[0][0])
    images = []
    for title, rows in frames:
        panel.show(rows, title)
        images.append(to_image(panel.figure))
    return images


def field_limits(*fields: Array) -> Array:
    """Limits of each channel: the 0.5th and 99.5th percentile of its finite values, ± the larger if these have both
    signs: (C, 2).

    Args:
        fields: (N, C, *sizes) each.
    """
    limits = []
    for channel in range(fields[0].shape[1]):
        values = np.concatenate([part[:, channel].ravel() for part in fields])
        values = values[np.isfinite(values)]
        low, high = np.percentile(values, (0.5, 99.5)) if len(values) else (0.0, 1.0)
        if low < 0 < high:
            low, high = -max(-low, high), max(-low, high)
        if low == high:
            low, high = low - 0.5, high + 0.5
        limits.append((low, high))
    return np.array(limits)


class _Panel:
    """A figure whose fields can be replaced by others of the same shapes."""

    def __init__(self, rows: Rows, limits: Array | None, title: str, across: bool = False) -> None:
        first = next(iter(rows.values()))
        if not rows or not 3 <= first.ndim <= 5:
            raise ValueError(f"fields_panel: needs fields (N, C, *sizes) of 1 to 3 spatial axes, got {first.shape}")
        self.channels = min(CHANNELS, first.shape[1])
        self.limits = field_limits(first) if limits is None else limits
        self.names = [f"channel {k} of {first.shape[1]}" if first.shape[1] > 1 else "" for k in range(self.channels)]
        if first.ndim == 5:
            self.names = [f"{name}{', ' if name else ''}three central slices of each" for name in self.names]
        self.across = [*rows] if across else []
        self.artists: list[list[object]] = []
        self.figure = (
            self._curves(rows, title) if first.ndim == 3 else self._images(_joined(rows) if across else rows, title)
        )

    def show(self, rows: Rows, title: str) -> None:
        """Draw other fields in the same axes."""
        if title:
            self.figure.suptitle(title, **HEADLINE)
        for channel, artists in enumerate(self.artists):
            drawn = _curves_of(rows, channel) if self._curved else [_mosaic(rows, channel)[0]]
            for artist, values in zip(artists, drawn, strict=True):
                artist.set_ydata(values) if self._curved else artist.set_data(values)  # type: ignore[attr-defined]

    def _images(self, rows: Rows, title: str) -> "Figure":
        self._curved = False
        first = next(iter(rows.values()))
        mosaic, places, columns = _mosaic(rows, 0)
        wide = 4.0 if first.ndim == 5 else 1.5
        width = min(WIDTH, 1.0 + SCALE + wide * columns)
        height = (width - 1.0 - SCALE) * mosaic.shape[0] / mosaic.shape[1]
        total = self.channels * (height + 0.35) + (0.4 if title else 0) + 0.1
        missing = any(not np.isfinite(fields).all() for fields in rows.values())
        figure, axes = new_figure(self.channels, 1, width, total, title)
        for channel, ax in enumerate(axes[:, 0]):
            low, high = self.limits[channel]
            values, cmap = _mosaic(rows, channel)[0], _colors(low == -high, missing)
            image = ax.imshow(values, cmap=cmap, vmin=low, vmax=high, interpolation="nearest")
            self._frame(ax, places, self.names[channel])
            if self.across and channel == 0:
                self._name_columns(ax, columns, mosaic.shape[1] / columns)
            colorbar(figure, image, [ax], "", location="right", extend="both")
            self.artists.append([image])
        return figure

    @staticmethod
    def _frame(ax: "Axes", places: Mapping[str, float], name: str) -> None:
        ax.set_xticks([])
        ax.set_yticks(list(places.values()), list(places))
        ax.tick_params(length=0, labelcolor=INK, labelsize=9)
        ax.spines[:].set_visible(False)
        if name:
            headline(ax, name)

    def _name_columns(self, ax: "Axes", columns: int, width: float) -> None:
        if len(self.across) <= columns:
            ax.set_yticks([])
            ax.set_xticks([(k + 0.5) * width - 0.5 for k in range(len(self.across))], self.across)
            ax.xaxis.tick_top()
        else:  # the names of the fields in each line, at its left
            lines = [self.across[k : k + columns] for k in range(0, len(self.across), columns)]
            height = (ax.get_ylim()[0] + 0.5) / len(lines)
            ax.set_yticks([(k + 0.5) * height - 0.5 for k in range(len(lines))], ["\n".join(line) for line in lines])

    def _curves(self, rows: Rows, title: str) -> "Figure":
        self._curved = True
        height = 2.2 * self.channels + (0.4 if title else 0) + 0.2
        figure, axes = new_figure(self.channels, len(rows), WIDTH, height, title)
        for channel in range(self.channels):
            self.artists.append([])
            low, high = self.limits[channel]
            margin = 0.15 * (high - low)
            for ax, (name, fields) in zip(axes[channel], rows.items(), strict=True):
                plain_axes(ax)
                color = DATA if name == "data" else SAMPLES
                shown = fields[:COLUMNS, channel]
                self.artists[-1] += ax.plot(shown.T, color=color, linewidth=1.1, alpha=0.8)
                ax.set_ylim(low - margin, high + margin)
                ax.set_xlim(0, max(1, shown.shape[1] - 1))
                headline(ax, name if self.across else f"{name}: {len(shown)} curves")
                ax.set_ylabel(self.names[channel], color=INK, fontsize=9)
                ax.label_outer()
        return figure


def _colors(diverging: bool, missing: bool) -> Any:
    """A colour map, in which missing values are grey."""
    import matplotlib

    colors: Any = matplotlib.colormaps["RdBu_r"] if diverging else sequential()
    return colors.with_extremes(bad=FAINT if missing else "white")


def _curves_of(rows: Rows, channel: int) -> list[Array]:
    return [curve for fields in rows.values() for curve in fields[:COLUMNS, channel]]


def _joined(rows: Rows) -> Rows:
    """The first field of each row, in one row without a name."""
    return {"": np.concatenate([fields[:1] for fields in rows.values()])}


def _mosaic(rows: Rows, channel: int) -> tuple[Array, dict[str, float], int]:
    """One image of all fields of a channel with gaps of NaN, the height of the middle of each row, and its columns.

    Of volumes each field is three central slices, side by side.
    """
    tiles = {name: [_tile(field[channel]) for field in fields[:MOST]] for name, fields in rows.items()}
    columns = min(max(map(len, tiles.values())), max(2, COLUMNS // (3 if next(iter(rows.values())).ndim == 5 else 1)))
    height, width = next(iter(tiles.values()))[0].shape
    gap, lines, places, y = max(1, round(0.04 * min(height, width))), [], dict[str, float](), 0
    for name, cells in tiles.items():
        begin = y
        for start in range(0, len(cells), columns):
            line = np.full((height + gap, columns * (width + gap)), np.nan)
            for k, cell in enumerate(cells[start : start + columns]):
                line[:height, k * (width + gap) : k * (width + gap) + width] = cell
            lines.append(line)
            y += height + gap
        places[name] = (begin + y - gap) / 2 - 0.5
        if name != list(tiles)[-1]:
            lines.append(np.full((gap, columns * (width + gap)), np.nan))
            y += gap
    return np.concatenate(lines)[:-gap, :-gap], places, columns


def _tile(field: Array) -> Array:
    """A field (H, W), or the central slices of a volume (D, H, W) next to each other."""
    if field.ndim == 2:
        return field
    slices = [field[field.shape[0] // 2], field[:, field.shape[1] // 2], field[:, :, field.shape[2] // 2]]
    height = max(part.shape[0] for part in slices)
    gap = np.full((height, max(1, round(0.02 * height))), np.nan)
    padded = [np.pad(p, ((0, height - len(p)), (0, 0)), constant_values=np.nan) for p in slices]
    return np.concatenate([padded[0], gap, padded[1], gap, padded[2]], 1)
