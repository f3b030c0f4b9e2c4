"""Plots of points, their forward process, fields and paths.  Panels of one plot share limits and scale."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

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
    dot_area,
    finish,
    headline,
    limits_of,
    new_figure,
    new_grid,
    plain_axes,
    plane,
    points_axes,
    scatter,
    sequential,
    to_image,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def samples_panel(data: Array, samples: Array, title: str = "", names: Sequence[str] = ()) -> "Figure":
    """The data and the samples side by side: the same limits, the same number of dots of the same size.

    The limits are those of the data; the samples outside are counted.  Of points in more than two dimensions the first
    two are drawn, and the axes say so; numbers become histograms.

    Args:
        data: (N, D); N may be 0 if there are no data.  Of more than there are samples some are drawn, evenly spaced.
        samples: (M, D), in the same units.  Of more than there are data the first are drawn.
        title: Title of the plot.
        names: Names of the D axes; empty: numbers.
    """
    if data.ndim != 2 or samples.ndim != 2 or data.shape[1] != samples.shape[1]:
        raise ValueError(
            f"samples_panel: data and samples must have shapes (N, D) and (M, D), got {data.shape} and {samples.shape}"
        )
    finite: Array = np.asarray(np.isfinite(samples).all(1))
    if samples.shape[1] == 1:
        return _histograms(data[:, 0], samples[finite, 0], len(samples), title, names)
    limits = limits_of(data if len(data) else samples[finite], margin=0.12)
    low, high = np.transpose(limits)
    inside: Array = finite & ((samples[:, :2] >= low) & (samples[:, :2] <= high)).all(1)
    number = min(len(data) or len(samples), len(samples))

    panels = 2 if len(data) else 1
    figure, axes = new_grid(1, panels, limits, title, wide=0.5 if panels == 1 else 1.0)
    for ax in axes[0]:
        points_axes(ax, limits, samples.shape[1], names)
    size = dot_area(number)
    if len(data):
        scatter(axes[0, 0], data[np.arange(number) * len(data) // number], INK, size)
        headline(axes[0, 0], f"data: {_part(number, len(data))}")
    scatter(axes[0, -1], samples[:number][inside[:number]], SAMPLES, size)
    outside = _outside(len(samples), int(finite.sum()), int(inside.sum()))
    headline(axes[0, -1], f"samples: {_part(number, len(samples))}{outside}")
    return figure


def forward_panel(frames: Sequence[tuple[float, Array]], title: str = "", names: Sequence[str] = ()) -> "Figure":
    """The data on their way to noise: one panel for each time, each point in one colour throughout.

    Args:
        frames: Pairs of a time t and the points (N, D) at that time.
        title: Title of the plot.
        names: Names of the D axes; empty: numbers.
    """
    if not frames:
        raise ValueError("forward_panel: frames is empty: give one or more pairs (t, points)")
    first = plane(frames[0][1], "forward_panel")
    limits = limits_of(*(points for _, points in frames))
    columns = min(len(frames), 6)
    figure, axes = new_grid(-(-len(frames) // columns), columns, limits, title)
    height = np.argsort(np.argsort(first[:, 1])) / max(1, len(first) - 1)
    for ax, (t, points) in zip(axes.flat, frames, strict=False):
        points_axes(ax, limits, points.shape[1], names)
        same = len(points) == len(first)
        scatter(ax, points, height if same else SAMPLES)
        headline(ax, f"t = {t:.3g}")
    finish(axes, len(frames))
    return figure


def field_panel(grid_xy: Array, fields: Sequence[tuple[float, Array, Array]], data: Array, title: str = "") -> "Figure":
    """A learned vector field above the exact one: arrows show direction, colour shows magnitude.

    The error is ‖learned − exact‖ / ‖exact‖ over the whole grid, and is explained below the panels.  Both rows of a
    column have one colour scale.

    Args:
        grid_xy: Where the fields are known, (M, 2).
        fields: Triples of a time t, the learned field (M, 2) and the exact field (M, 2).
        data: Points to draw beneath, (N, 2).
        title: Title of the plot.
    """
    if not fields:
        raise ValueError("field_panel: fields is empty: give one or more triples (t, learned, exact)")
    for name, array in (("grid_xy", grid_xy), *((f"field at t = {t:g}", f) for t, *pair in fields for f in pair)):
        if array.shape != (len(grid_xy), 2):
            raise ValueError(f"field_panel: {name} must have shape ({len(grid_xy)}, 2), got {array.shape}")
    limits = limits_of(grid_xy, margin=0.03)
    figure, axes = new_grid(2, len(fields), limits, title, extra=0.5)
    spacing = float(np.sqrt(np.prod(np.ptp(grid_xy, axis=0)) / max(1, len(grid_xy))))
    for column, (t, learned, exact) in enumerate(fields):
        # Corners far from the data have the longest vectors and would leave one colour for all the rest.
        largest = float(np.percentile(np.linalg.norm(exact, axis=1), 90)) or 1.0
        error = np.linalg.norm(learned - exact) / max(float(np.linalg.norm(exact)), 1e-12)
        for ax, field in zip(axes[:, column], (learned, exact), strict=True):
            points_axes(ax, limits, 2)
            scatter(ax, data, DATA, size=7)
            magnitude = np.linalg.norm(field, axis=1)
            direction = field / np.maximum(magnitude, 1e-12)[:, None]
            arrows = ax.quiver(
                *grid_xy.T,
                *direction.T,
                magnitude,
                cmap=sequential(),
                clim=(0, largest),
                pivot="mid",
                angles="xy",
                scale_units="xy",
                scale=1.2 / spacing,
                units="xy",
                width=0.11 * spacing,
            )
        headline(axes[0, column], f"t = {t:.3g}\nerror {100 * error:.2g} %")
        colorbar(figure, arrows, list(axes[:, column]), "magnitude", location="bottom", extend="max")
    for row, name in enumerate(("learned", "exact, of the training points")):
        axes[row, 0].set_ylabel(name, color=INK, fontsize=10)
    figure.supxlabel("error: ‖learned − exact‖ / ‖exact‖ over all arrows", color=INK, fontsize=9, x=0.01, ha="left")
    return figure


def trajectories_panel(times: Array, paths: Array, data: Array, title: str = "", names: Sequence[str] = ()) -> "Figure":
    """Paths of a sampler over the data, from rings (noise) to dots (samples), coloured by the step.

    A grid of times is mostly uneven, so that colours by time would be all alike; the scale gives the time of a step.

    Args:
        times: Times of the points of a path, (N + 1,).
        paths: (N + 1, B, D), first the noise, last the samples.
        data: Points to draw beneath, (M, D).
        title: Title of the plot.
        names: Names of the D axes; empty: numbers.
    """
    from matplotlib.collections import LineCollection

    if paths.ndim != 3 or len(paths) != len(times) or len(times) < 2:
        raise ValueError(f"trajectories_panel: paths must be (N + 1, B, D) for {len(times)} times, got {paths.shape}")
    dim = paths.shape[2]
    limits = limits_of(data, paths.reshape(-1, dim))
    figure, axes = new_grid(1, 1, limits, title, wide=0.8, side=1.1)
    ax = axes[0, 0]
    points_axes(ax, limits, dim, names)
    known = scatter(ax, data, DATA, size=16)
    flat, steps = paths[:, :, :2], len(times) - 1
    segments = np.stack((flat[:-1], flat[1:]), 2).reshape(-1, 2, 2)
    step = np.repeat(np.arange(steps) + 0.5, paths.shape[1])
    lines = LineCollection(list(segments), array=step, cmap=sequential(), linewidths=0.9, alpha=0.8, zorder=2)
    lines.set_clim(0, steps)
    ax.add_collection(lines)
    start = ax.scatter(*flat[0].T, s=14, facecolors="white", edgecolors=INK, linewidths=0.7, zorder=3)
    end = ax.scatter(*flat[-1].T, s=16, color=SAMPLES, linewidths=0, zorder=4)
    ax.legend((start, end, known), ("noise", "sample", "data"), frameon=False, labelcolor=INK, fontsize=9)
    headline(ax, f"{paths.shape[1]:,} paths of {steps:,} steps")
    ticks = np.unique(np.linspace(0, steps, 5).round().astype(int))
    bar = colorbar(figure, lines, [ax], "step of the sampler", location="right", extend="neither")
    bar.set_ticks(ticks, labels=[f"{k} (t = {times[k]:.2g})" for k in ticks])
    return figure


def film_frames(
    steps: Sequence[tuple[str, Array, Array]], data: Array, names: Sequence[str] = ()
) -> list[NDArray[np.uint8]]:
    """A film: noisy points and the estimates of x_0 side by side, over the data, at each step.

    Args:
        steps: A headline, x_t and the estimate of x_0 each, (N, D) both; the first two axes are drawn.
        data: Points to draw beneath, (M, D); M may be 0.
        names: Names of the D axes; empty: numbers.

    Returns:
        Images of one size, (height, width, 3) each.
    """
    if not steps:
        raise ValueError("film_frames: steps is empty: give one or more triples (headline, x_t, x_0)")
    _, x, x_0 = steps[-1]
    known = plane(data, "film_frames") if len(data) else x_0[:0, :2]
    limits = limits_of(known if len(known) else x_0[:, :2], margin=0.25)
    figure, axes = new_grid(1, 2, limits, " ", wide=0.8)
    head, clouds = figure.suptitle(" ", **HEADLINE), []
    for ax, points, name in ((axes[0, 0], x, "x_t, noisy"), (axes[0, 1], x_0, "estimate of x_0")):
        points_axes(ax, limits, x.shape[1], names)
        scatter(ax, known, FAINT)
        clouds.append(scatter(ax, plane(points, "film_frames"), SAMPLES))
        headline(ax, name)
    frames = []
    for title, *both in steps:
        # Only the dots move: a new figure for each frame would take ten times as long.
        head.set_text(title)
        for cloud, points in zip(clouds, both, strict=True):
            cloud.set_offsets(plane(points, "film_frames"))
        frames.append(to_image(figure))
        figure.set_layout_engine("none")
    return frames


def _histograms(data: Array, samples: Array, total: int, title: str, names: Sequence[str]) -> "Figure":
    """Densities of data and samples in the same bins, over the range of the data."""
    (low, high), _ = limits_of(np.stack((data if len(data) else samples,) * 2, 1), margin=0.12)
    inside = samples[(samples >= low) & (samples <= high)]
    smaller = min(len(values) for values in (data, inside) if len(values)) if len(data) + len(inside) else 0
    bins = np.linspace(low, high, int(np.clip(2 * np.sqrt(smaller), 10, 80)) + 1)
    figure, axes = new_figure(1, 1, WIDTH * 0.75, 4.2, title)
    ax = axes[0, 0]
    plain_axes(ax)
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
    if names:
        ax.set_xlabel(names[0], color=INK)
    ax.legend(frameon=False, labelcolor=INK)
    return figure


def _part(number: int, total: int) -> str:
    return f"{total:,}" if number == total else f"{number:,} of {total:,}"


def _outside(total: int, finite: int, inside: int) -> str:
    parts = []
    if finite > inside:
        parts.append(f"{finite - inside:,} outside")
    if total > finite:
        parts.append(f"{total - finite:,} not finite")
    return f" ({', '.join(parts)})" if parts else ""
