"""Style of all plots: colours, axes, limits, and conversion to an image or a file.

The figures belong to no window and no global state (never pyplot), so they can be drawn in any process and thread.
matplotlib is imported when a figure is drawn.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import PathCollection
    from matplotlib.figure import Figure

Array = NDArray[Any]
Limits = tuple[tuple[float, float], tuple[float, float]]

# Blue and vermilion of Okabe & Ito, which every kind of colour vision can distinguish.
SAMPLES = "#0072b2"
ACCENT = "#d55e00"
DATA = "#8a949e"
INK = "#26323d"
FAINT = "#dfe3e7"

# Of even lightness steps, so it survives colour blindness and grey printing; its pale end is cut off (`sequential`).
SEQUENTIAL = ("plasma", 0.86)

#: Style of the title of a figure.
HEADLINE: dict[str, Any] = {"color": INK, "fontsize": 14, "fontweight": "bold", "x": 0.01, "ha": "left"}

WIDTH = 10.0  # inches; with the resolution below a figure is 1000 pixels wide
DPI = 100


def new_figure(
    rows: int, columns: int, width: float, height: float, title: str, *, share: bool = False
) -> tuple["Figure", Array]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")
    axes = figure.subplots(rows, columns, squeeze=False, sharex=share, sharey=share)
    if title:
        figure.suptitle(title, **HEADLINE)
    return figure, axes


def new_grid(
    rows: int, columns: int, limits: Limits, title: str, *, wide: float = 1.0, extra: float = 0.0, side: float = 0.0
) -> tuple["Figure", Array]:
    """A figure as high as its panels make it; ``extra`` and ``side`` are the inches that colour bars take."""
    (left, right), (bottom, top) = limits
    width = WIDTH * wide
    panel = (width - side - 0.3 * columns) / columns
    # A cloud that is nearly a line would make a panel of no height, or one higher than a screen.
    height = panel * float(np.clip((top - bottom) / (right - left), 0.3, 1.6))
    return new_figure(rows, columns, width, rows * (height + 0.6) + extra + (0.4 if title else 0), title, share=True)


def plain_axes(ax: "Axes") -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(DATA)
    ax.tick_params(color=DATA, labelcolor=INK, labelsize=9)


def points_axes(ax: "Axes", limits: Limits, dim: int, names: Sequence[str] = ()) -> None:
    """Axes of points in ``dim`` dimensions; labelled if there are more than two or they have names.

    Args:
        ax: changed in place.
        limits: of both axes.
        dim: dimensions of the points, of which the first two are drawn.
        names: of the dimensions; empty: numbers.
    """
    ax.set_aspect("equal")
    ax.set_xlim(*limits[0])
    ax.set_ylim(*limits[1])
    ax.locator_params(nbins=4)
    ax.spines[:].set_color(FAINT)
    ax.tick_params(length=0, labelcolor=DATA, labelsize=8)
    if dim > 2 or names:
        ax.set_xlabel(axis_label(0, dim, names), color=INK, fontsize=9)
        ax.set_ylabel(axis_label(1, dim, names), color=INK, fontsize=9)
        ax.label_outer()


def axis_label(k: int, dim: int, names: Sequence[str]) -> str:
    """Name of dimension ``k``, and of how many it is one if more than two."""
    if not names:
        return f"axis {k + 1} of {dim}"
    return f"{names[k]} (column {k + 1} of {dim})" if dim > 2 else names[k]


def log_ticks(ax: "Axes", low: float, high: float) -> None:
    """A logarithmic y axis with labels also where the values, low to high > 0, are within one decade."""
    from matplotlib.ticker import FixedLocator, MaxNLocator, NullFormatter, NullLocator, StrMethodFormatter

    ax.set_yscale("log")
    pad = max(1.01, (high / low) ** 0.06)
    low, high = low / pad, high * pad
    decades = 10.0 ** np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)) + 1)
    for steps in ((1,), (1, 3), (1, 2, 5)):
        ticks = np.sort(np.outer(decades, steps).ravel())
        inside = ticks[(ticks >= low) & (ticks <= high)]
        if len(inside) >= 3:
            break
    else:
        inside = np.asarray(MaxNLocator(4).tick_values(low, high))
        inside = inside[(inside >= low) & (inside <= high)]
    ax.set_ylim(low, high)
    ax.yaxis.set_major_locator(FixedLocator([float(tick) for tick in inside]))
    ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_minor_formatter(NullFormatter())


def dot_area(number: int) -> float:
    """Area of each of so many dots, in points²."""
    return float(np.clip(7000 / max(1, number), 3, 18))


def scatter(ax: "Axes", points: Array, color: str | Array, size: float | None = None) -> "PathCollection":
    """Dots, smaller and clearer the more there are."""
    area = dot_area(len(points)) if size is None else size
    opacity = 0.9 if len(points) <= 500 else 0.6
    style: dict[str, Any] = {"color": color} if isinstance(color, str) else {"c": color, "cmap": sequential()}
    return ax.scatter(points[:, 0], points[:, 1], s=area, alpha=opacity, linewidths=0, **style)


def headline(ax: "Axes", text: str) -> None:
    ax.set_title(text, loc="left", color=INK, fontsize=10)


def finish(axes: Array, used: int) -> None:
    """Take away the panels that stayed empty."""
    for ax in axes.flat[used:]:
        ax.remove()


def colorbar(figure: "Figure", colored: Any, axes: "list[Axes]", label: str, *, location: str, extend: str) -> Any:
    bar: Any = figure.colorbar(colored, ax=axes, location=location, extend=extend, shrink=0.8, aspect=30, pad=0.02)
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, labelcolor=INK, labelsize=8)
    bar.ax.locator_params(nbins=4)
    bar.set_label(label, color=INK, fontsize=9)
    bar.solids.set_alpha(1)
    return bar


def limits_of(*clouds: Array, margin: float = 0.06) -> Limits:
    """Ranges of the first two axes over all finite points, with a margin relative to the longer."""
    points = np.concatenate([plane(cloud, "plots") for cloud in clouds])
    points = points[np.isfinite(points).all(1)]
    if len(points) == 0:
        return (-1.0, 1.0), (-1.0, 1.0)
    low, high = points.min(0), points.max(0)
    pad = margin * (float((high - low).max()) or 1.0)
    return (float(low[0]) - pad, float(high[0]) + pad), (float(low[1]) - pad, float(high[1]) + pad)


def plane(points: Array, caller: str) -> Array:
    if points.ndim != 2 or points.shape[1] < 2:
        raise ValueError(
            f"{caller}: draws points of two or more dimensions, (N, D), got an array of shape {points.shape}"
        )
    return points[:, :2]


def sequential() -> Any:
    import matplotlib
    from matplotlib.colors import ListedColormap

    name, end = SEQUENTIAL
    return ListedColormap(matplotlib.colormaps[name](np.linspace(0, end, 256)))


def to_image(figure: "Figure") -> NDArray[np.uint8]:
    """The rendered plot: (height, width, 3), uint8."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def save(figure: "Figure", path: str | Path) -> Path:
    """Write the plot in the format of the path's ending, making its folder."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path
