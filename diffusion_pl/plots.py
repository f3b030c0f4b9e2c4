"""Pictures of points, fields, paths and schedules: functions of arrays that return figures.

The figures belong to no window and no global state (never pyplot), so they can be drawn in any process and thread.
matplotlib is imported when a picture is drawn. Panels of one figure share their limits and show both axes at one scale.
"""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = NDArray[Any]
Limits = tuple[tuple[float, float], tuple[float, float]]

# Blue and vermilion of Okabe & Ito, which every kind of colour vision tells apart.
SAMPLES = "#0072b2"
ACCENT = "#d55e00"
DATA = "#8a949e"
INK = "#26323d"
FAINT = "#dfe3e7"

# Of even lightness steps, so it survives colour blindness and grey printing; its pale end is cut off (`_sequential`).
SEQUENTIAL = ("plasma", 0.86)

WIDTH = 10.0  # inches; with the resolution below a figure is 1000 pixels wide
DPI = 100


def samples_panel(data: Array, samples: Array, title: str = "") -> "Figure":
    """The data beside the samples, in the frame of the data; what lies outside is counted.

    Of points in more than two dimensions the first two are drawn, and the axes say so; numbers become histograms.

    Args:
        data: (N, D); N may be 0 if the data are not at hand.
        samples: (M, D), in the same units.
        title: Headline of the figure.
    """
    if data.ndim != 2 or samples.ndim != 2 or data.shape[1] != samples.shape[1]:
        raise ValueError(
            f"samples_panel: data and samples must have shapes (N, D) and (M, D), got {data.shape} and {samples.shape}"
        )
    finite = samples[np.isfinite(samples).all(1)]
    if samples.shape[1] == 1:
        return _histograms(data[:, 0], finite[:, 0], len(samples), title)
    limits = _limits(data if len(data) else finite, margin=0.12)
    (left, right), (bottom, top) = limits
    inside = finite[(finite[:, 0] >= left) & (finite[:, 0] <= right) & (finite[:, 1] >= bottom) & (finite[:, 1] <= top)]

    panels = 2 if len(data) else 1
    figure, axes = _grid(1, panels, limits, title, wide=0.5 if panels == 1 else 1.0)
    for ax in axes[0]:
        _points_axes(ax, limits, samples.shape[1])
    if len(data):
        _scatter(axes[0, 0], data, INK)
        _headline(axes[0, 0], f"data: {len(data):,}")
    _scatter(axes[0, -1], inside, SAMPLES)
    _headline(axes[0, -1], f"samples: {len(samples):,}" + _outside(len(samples), len(finite), len(inside)))
    return figure


def forward_panel(frames: Sequence[tuple[float, Array]], title: str = "") -> "Figure":
    """The data on their way to noise: one panel for each time, each point in one colour throughout.

    Args:
        frames: Pairs of a time t and the points (N, D) at that time.
        title: Headline of the figure.
    """
    if not frames:
        raise ValueError("forward_panel: frames is empty: give one or more pairs (t, points)")
    first = _plane(frames[0][1], "forward_panel")
    limits = _limits(*(points for _, points in frames))
    columns = min(len(frames), 6)
    figure, axes = _grid(-(-len(frames) // columns), columns, limits, title)
    height = np.argsort(np.argsort(first[:, 1])) / max(1, len(first) - 1)
    for ax, (t, points) in zip(axes.flat, frames, strict=False):
        _points_axes(ax, limits, points.shape[1])
        same = len(points) == len(first)
        _scatter(ax, points, height if same else SAMPLES)
        _headline(ax, f"t = {t:.3g}")
    _finish(axes, len(frames))
    return figure


def field_panel(grid_xy: Array, fields: Sequence[tuple[float, Array, Array]], data: Array, title: str = "") -> "Figure":
    """A learned vector field above the exact one: arrows show direction, colour shows magnitude.

    The relative error is ‖learned − exact‖ / ‖exact‖ over the whole grid. Both rows of a column have one colour scale.

    Args:
        grid_xy: Where the fields are known, (M, 2).
        fields: Triples of a time t, the learned field (M, 2) and the exact field (M, 2).
        data: Points to draw beneath, (N, 2).
        title: Headline of the figure.
    """
    if not fields:
        raise ValueError("field_panel: fields is empty: give one or more triples (t, learned, exact)")
    for name, array in (("grid_xy", grid_xy), *((f"field at t = {t:g}", f) for t, *pair in fields for f in pair)):
        if array.shape != (len(grid_xy), 2):
            raise ValueError(f"field_panel: {name} must have shape ({len(grid_xy)}, 2), got {array.shape}")
    limits = _limits(grid_xy, margin=0.03)
    figure, axes = _grid(2, len(fields), limits, title, extra=0.55)
    spacing = float(np.sqrt(np.prod(np.ptp(grid_xy, axis=0)) / max(1, len(grid_xy))))
    for column, (t, learned, exact) in enumerate(fields):
        # Corners far from the data have the longest vectors and would leave one colour for all the rest.
        largest = float(np.percentile(np.linalg.norm(exact, axis=1), 90)) or 1.0
        error = np.linalg.norm(learned - exact) / max(float(np.linalg.norm(exact)), 1e-12)
        for ax, field in zip(axes[:, column], (learned, exact), strict=True):
            _points_axes(ax, limits, 2)
            _scatter(ax, data, DATA, size=7)
            magnitude = np.linalg.norm(field, axis=1)
            direction = field / np.maximum(magnitude, 1e-12)[:, None]
            arrows = ax.quiver(
                *grid_xy.T,
                *direction.T,
                magnitude,
                cmap=_sequential(),
                clim=(0, largest),
                pivot="mid",
                angles="xy",
                scale_units="xy",
                scale=1.2 / spacing,
                units="xy",
                width=0.11 * spacing,
            )
        _headline(axes[0, column], f"t = {t:.3g}\nlearned, error {100 * error:.2g} %")
        _headline(axes[1, column], "exact")
        _colorbar(figure, arrows, list(axes[:, column]), "magnitude", location="bottom", extend="max")
    return figure


def trajectories_panel(times: Array, paths: Array, data: Array, title: str = "") -> "Figure":
    """Paths of a sampler over the data, coloured by time, from rings (start) to dots (end).

    Args:
        times: Times of the points of a path, (N + 1,).
        paths: (N + 1, B, D), first the noise, last the samples.
        data: Points to draw beneath, (M, D).
        title: Headline of the figure.
    """
    from matplotlib.collections import LineCollection

    if paths.ndim != 3 or len(paths) != len(times) or len(times) < 2:
        raise ValueError(f"trajectories_panel: paths must be (N + 1, B, D) for {len(times)} times, got {paths.shape}")
    dim = paths.shape[2]
    limits = _limits(data, paths.reshape(-1, dim))
    figure, axes = _grid(1, 1, limits, title, wide=0.8, side=0.8)
    ax = axes[0, 0]
    _points_axes(ax, limits, dim)
    _scatter(ax, data, DATA, size=16)
    flat = paths[:, :, :2]
    segments = np.stack((flat[:-1], flat[1:]), 2).reshape(-1, 2, 2)
    middle = np.repeat((times[:-1] + times[1:]) / 2, paths.shape[1])
    lines = LineCollection(list(segments), array=middle, cmap=_sequential(), linewidths=0.9, alpha=0.8, zorder=2)
    lines.set_clim(float(times.min()), float(times.max()))
    ax.add_collection(lines)
    ax.scatter(*flat[0].T, s=14, facecolors="white", edgecolors=INK, linewidths=0.7, zorder=3)
    ax.scatter(*flat[-1].T, s=16, color=ACCENT, linewidths=0, zorder=4)
    _headline(ax, f"{paths.shape[1]:,} paths of {len(times) - 1:,} steps, from ring to dot")
    _colorbar(figure, lines, [ax], "t", location="right", extend="neither")
    return figure


def schedule_panel(t: Array, alpha: Array, sigma: Array, logsnr: Array, title: str = "") -> "Figure":
    """A schedule: signal and noise scales on the left, log-SNR (nats) on the right; each argument is (N,)."""
    figure, axes = _figure(1, 2, WIDTH, 3.8, title)
    scales, levels = axes[0]
    # Scales that grow to many times the data's would flatten the signal's curve on a linear axis.
    if np.nanmax(sigma) > 5:
        scales.set_yscale("log")
    scales.plot(t, alpha, color=SAMPLES, linewidth=2, label="α, signal")
    scales.plot(t, sigma, color=ACCENT, linewidth=2, linestyle=(0, (5, 1.5)), label="σ, noise")
    scales.legend(frameon=False, labelcolor=INK)
    levels.plot(t, np.where(np.isfinite(logsnr), logsnr, np.nan), color=INK, linewidth=2)
    levels.axhline(0, color=FAINT, linewidth=1, zorder=0)
    for ax, name in ((scales, "scales"), (levels, "λ = log α²/σ²")):
        _plain_axes(ax)
        ax.set_xlabel("t", color=INK)
        ax.set_xlim(float(t.min()), float(t.max()))
        _headline(ax, name)
    return figure


def film_panel(x: Array, x_0: Array, data: Array, title: str = "") -> "Figure":
    """Noisy points and the estimates of x_0 side by side, over the data: (N, D) each, the first two axes."""
    figure, axes = _figure(1, 2, WIDTH, 4.6, title)
    known = _plane(data, "film_panel") if len(data) else x_0[:0, :2]
    limits = _limits(known if len(known) else x_0[:, :2], margin=0.6)
    for ax, points, name in ((axes[0, 0], x, "x_t"), (axes[0, 1], x_0, "estimate of x_0")):
        _points_axes(ax, limits, x.shape[1])
        if len(known):
            _scatter(ax, known, FAINT)
        _scatter(ax, _plane(points, "film_panel"), SAMPLES)
        _headline(ax, name)
    return figure


def sweep_panel(rows: Sequence[Mapping[str, str | int | float]], title: str = "") -> "Figure":
    """Distance to the data and error of the solution against evaluations, a line for each sampler, log-log.

    Args:
        rows: {"sampler", "nfe", "distance", "error"} each.
        title: Above all.
    """
    figure, axes = _figure(1, 2, WIDTH, 4.6, title)
    names = list(dict.fromkeys(str(row["sampler"]) for row in rows))
    for ax, key, headline in zip(
        axes[0], ("distance", "error"), ("distance to the data", "error of the solution"), strict=True
    ):
        for k, name in enumerate(names):
            mine = sorted((float(row["nfe"]), float(row[key])) for row in rows if row["sampler"] == name)
            x, y = zip(*mine, strict=True)
            ax.plot(x, y, marker="osD^vP*X"[k % 8], markersize=5, linewidth=1.8, color=f"C{k % 10}", label=name)
        ax.set_xscale("log")
        ax.set_yscale("log")
        ticks = sorted({int(row["nfe"]) for row in rows if row["sampler"] == names[0]})
        ax.set_xticks(ticks, [str(n) for n in ticks])
        ax.minorticks_off()
        _plain_axes(ax)
        ax.set_xlabel("evaluations of the network (NFE)", color=INK)
        _headline(ax, headline)
    axes[0, 1].legend(frameon=False, labelcolor=INK, fontsize=8)
    return figure


def to_image(figure: "Figure") -> NDArray[np.uint8]:
    """The drawn figure: (height, width, 3), uint8."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def save(figure: "Figure", path: str | Path) -> Path:
    """Write the figure in the format of the path's ending, making its folder."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path


def image_grid(
    pictures: Array,
    columns: int | None = None,
    scale: int | None = None,
    title: str = "",
    rows_named: Sequence[str] = (),
) -> NDArray[np.uint8]:
    """Pictures side by side, row by row, enlarged without smoothing: (height, width, 3), uint8.

    Of pictures with other than one or three channels the first channel is shown.

    Args:
        pictures: (N, C, H, W), uint8.
        columns: Pictures in a row; None: about as many as rows.
        scale: Pixels of the grid for one of the picture; None: so many that the grid is about 600 wide.
        title: Text above, which wraps; its lines are as long as the grid is wide.
        rows_named: Names of the rows, at their left.
    """
    from PIL import Image, ImageDraw, ImageFont

    if pictures.ndim != 4 or not len(pictures) or pictures.dtype != np.uint8:
        raise ValueError(f"image_grid: needs uint8 pictures (N, C, H, W), got {pictures.dtype} {pictures.shape}")
    n, channels, height, width = pictures.shape
    if channels != 3:
        pictures = pictures[:, :1].repeat(3, 1)
    columns = columns or int(np.ceil(np.sqrt(n)))
    scale = scale or max(1, round(600 / (columns * (width + 1))))
    gap = max(2, scale // 2)
    across, down = width * scale + gap, height * scale + gap

    font = ImageFont.load_default(14)
    lines = textwrap.wrap(title, max(24, (columns * across) // 8))
    top = (8 + 19 * len(lines) if lines else 0) + gap
    left = gap + max((round(font.getlength(name)) + 8 for name in rows_named), default=0)
    grid = np.full((top + -(-n // columns) * down, left + columns * across, 3), 255, dtype=np.uint8)
    for index, picture in enumerate(pictures):
        row, column = divmod(index, columns)
        y, x = top + row * down, left + column * across
        large = picture.transpose(1, 2, 0).repeat(scale, 0).repeat(scale, 1)
        grid[y : y + down - gap, x : x + across - gap] = large
    image = Image.fromarray(grid)
    draw = ImageDraw.Draw(image)
    for number, line in enumerate(lines):
        draw.text((gap, 5 + 19 * number), line, fill=INK, font=font)
    for row, name in enumerate(rows_named):
        draw.text((left - 6, top + row * down + (down - gap) / 2), name, fill=INK, font=font, anchor="rm")
    return np.asarray(image)


def save_image(image: Array, path: Path) -> Path:
    """Write a picture (H, W, C) losslessly: uint8 with one or three channels, or int32 with one, of 16 bits."""
    from PIL import Image

    if image.shape[2] == 1:
        image = image[..., 0]
    Image.fromarray(image if image.dtype == np.uint8 else image.astype(np.uint16)).save(path)
    return path


def _histograms(data: Array, samples: Array, total: int, title: str) -> "Figure":
    """Densities of data and samples in the same bins, over the range of the data."""
    (low, high), _ = _limits(np.stack((data if len(data) else samples,) * 2, 1), margin=0.12)
    inside = samples[(samples >= low) & (samples <= high)]
    smaller = min(len(values) for values in (data, inside) if len(values)) if len(data) + len(inside) else 0
    bins = np.linspace(low, high, int(np.clip(2 * np.sqrt(smaller), 10, 80)) + 1)
    figure, axes = _figure(1, 1, WIDTH * 0.75, 4.2, title)
    ax = axes[0, 0]
    _plain_axes(ax)
    # As a density of all samples: those outside the frame count, so the areas are comparable.
    for values, number, style in (
        (data, len(data), {"color": FAINT, "fill": True, "label": f"data: {len(data):,}"}),
        (
            inside,
            total,
            {
                "color": SAMPLES,
                "linewidth": 2,
                "label": f"samples: {total:,}" + _outside(total, len(samples), len(inside)),
            },
        ),
    ):
        counts, _ = np.histogram(values, bins)
        ax.stairs(counts / max(number, 1) / np.diff(bins), bins, **style)
    ax.set_xlim(low, high)
    ax.set_ylabel("density", color=INK)
    ax.legend(frameon=False, labelcolor=INK)
    return figure


def _outside(total: int, finite: int, inside: int) -> str:
    parts = []
    if finite > inside:
        parts.append(f"{finite - inside:,} outside")
    if total > finite:
        parts.append(f"{total - finite:,} not finite")
    return f" ({', '.join(parts)})" if parts else ""


def _plane(points: Array, caller: str) -> Array:
    if points.ndim != 2 or points.shape[1] < 2:
        raise ValueError(
            f"{caller}: draws points of two or more dimensions, (N, D), got an array of shape {points.shape}"
        )
    return points[:, :2]


def _limits(*clouds: Array, margin: float = 0.06) -> Limits:
    """Ranges of the first two axes over all finite points, with a margin relative to the longer."""
    points = np.concatenate([_plane(cloud, "plots") for cloud in clouds])
    points = points[np.isfinite(points).all(1)]
    if len(points) == 0:
        return (-1.0, 1.0), (-1.0, 1.0)
    low, high = points.min(0), points.max(0)
    pad = margin * (float((high - low).max()) or 1.0)
    return (float(low[0]) - pad, float(high[0]) + pad), (float(low[1]) - pad, float(high[1]) + pad)


def _sequential() -> Any:
    import matplotlib
    from matplotlib.colors import ListedColormap

    name, end = SEQUENTIAL
    return ListedColormap(matplotlib.colormaps[name](np.linspace(0, end, 256)))


def _figure(
    rows: int, columns: int, width: float, height: float, title: str, *, share: bool = False
) -> tuple["Figure", Array]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")
    axes = figure.subplots(rows, columns, squeeze=False, sharex=share, sharey=share)
    if title:
        figure.suptitle(title, color=INK, fontsize=14, fontweight="bold", x=0.01, ha="left")
    return figure, axes


def _grid(
    rows: int, columns: int, limits: Limits, title: str, *, wide: float = 1.0, extra: float = 0.0, side: float = 0.0
) -> tuple["Figure", Array]:
    """A figure as high as its panels make it; ``extra`` and ``side`` are the inches that colour bars take."""
    (left, right), (bottom, top) = limits
    width = WIDTH * wide
    panel = (width - side - 0.3 * columns) / columns
    # A cloud that is nearly a line would make a panel of no height, or one higher than a screen.
    height = panel * float(np.clip((top - bottom) / (right - left), 0.3, 1.6))
    return _figure(rows, columns, width, rows * (height + 0.6) + extra + (0.4 if title else 0), title, share=True)


def _plain_axes(ax: "Axes") -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(DATA)
    ax.tick_params(color=DATA, labelcolor=INK, labelsize=9)


def _points_axes(ax: "Axes", limits: Limits, dim: int) -> None:
    ax.set_aspect("equal")
    ax.set_xlim(*limits[0])
    ax.set_ylim(*limits[1])
    ax.locator_params(nbins=4)
    ax.spines[:].set_color(FAINT)
    ax.tick_params(length=0, labelcolor=DATA, labelsize=8)
    if dim > 2:
        ax.set_xlabel(f"axis 1 of {dim}", color=INK, fontsize=9)
        ax.set_ylabel(f"axis 2 of {dim}", color=INK, fontsize=9)


def _scatter(ax: "Axes", points: Array, color: str | Array, size: float | None = None) -> None:
    """Dots, smaller and clearer the more there are."""
    area = float(np.clip(7000 / max(1, len(points)), 3, 18)) if size is None else size
    opacity = 0.9 if len(points) <= 500 else 0.6
    style: dict[str, Any] = {"color": color} if isinstance(color, str) else {"c": color, "cmap": _sequential()}
    ax.scatter(points[:, 0], points[:, 1], s=area, alpha=opacity, linewidths=0, **style)


def _headline(ax: "Axes", text: str) -> None:
    ax.set_title(text, loc="left", color=INK, fontsize=10)


def _finish(axes: Array, used: int) -> None:
    """Take away the panels that stayed empty."""
    for ax in axes.flat[used:]:
        ax.remove()


def _colorbar(figure: "Figure", colored: Any, axes: "list[Axes]", label: str, *, location: str, extend: str) -> None:
    bar: Any = figure.colorbar(colored, ax=axes, location=location, extend=extend, shrink=0.8, aspect=30, pad=0.02)
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, labelcolor=INK, labelsize=8)
    bar.ax.locator_params(nbins=4)
    bar.set_label(label, color=INK, fontsize=9)
    bar.solids.set_alpha(1)
