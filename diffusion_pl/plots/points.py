"""Plots of points, their forward process, fields and paths.  Panels of one plot share limits and scale."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from .style import (
    ACCENT,
    DATA,
    FAINT,
    INK,
    SAMPLES,
    WIDTH,
    Array,
    colorbar,
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
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def samples_panel(data: Array, samples: Array, title: str = "") -> "Figure":
    """Data and samples next to each other, in the axis limits of the data; what is outside is counted.

    Of points in more than two dimensions the first two are drawn, and the axes say so; numbers become histograms.

    Args:
        data: (N, D); N may be 0 if there are no data.
        samples: (M, D), in the same units.
        title: Title of the plot.
    """
    if data.ndim != 2 or samples.ndim != 2 or data.shape[1] != samples.shape[1]:
        raise ValueError(
            f"samples_panel: data and samples must have shapes (N, D) and (M, D), got {data.shape} and {samples.shape}"
        )
    finite = samples[np.isfinite(samples).all(1)]
    if samples.shape[1] == 1:
        return _histograms(data[:, 0], finite[:, 0], len(samples), title)
    limits = limits_of(data if len(data) else finite, margin=0.12)
    (left, right), (bottom, top) = limits
    inside = finite[(finite[:, 0] >= left) & (finite[:, 0] <= right) & (finite[:, 1] >= bottom) & (finite[:, 1] <= top)]

    panels = 2 if len(data) else 1
    figure, axes = new_grid(1, panels, limits, title, wide=0.5 if panels == 1 else 1.0)
    for ax in axes[0]:
        points_axes(ax, limits, samples.shape[1])
    if len(data):
        scatter(axes[0, 0], data, INK)
        headline(axes[0, 0], f"data: {len(data):,}")
    scatter(axes[0, -1], inside, SAMPLES)
    headline(axes[0, -1], f"samples: {len(samples):,}" + _outside(len(samples), len(finite), len(inside)))
    return figure


def forward_panel(frames: Sequence[tuple[float, Array]], title: str = "") -> "Figure":
    """The data on their way to noise: one panel for each time, each point in one colour throughout.

    Args:
        frames: Pairs of a time t and the points (N, D) at that time.
        title: Title of the plot.
    """
    if not frames:
        raise ValueError("forward_panel: frames is empty: give one or more pairs (t, points)")
    first = plane(frames[0][1], "forward_panel")
    limits = limits_of(*(points for _, points in frames))
    columns = min(len(frames), 6)
    figure, axes = new_grid(-(-len(frames) // columns), columns, limits, title)
    height = np.argsort(np.argsort(first[:, 1])) / max(1, len(first) - 1)
    for ax, (t, points) in zip(axes.flat, frames, strict=False):
        points_axes(ax, limits, points.shape[1])
        same = len(points) == len(first)
        scatter(ax, points, height if same else SAMPLES)
        headline(ax, f"t = {t:.3g}")
    finish(axes, len(frames))
    return figure


def field_panel(grid_xy: Array, fields: Sequence[tuple[float, Array, Array]], data: Array, title: str = "") -> "Figure":
    """A learned vector field above the exact one: arrows show direction, colour shows magnitude.

    The relative error is ‖learned − exact‖ / ‖exact‖ over the whole grid. Both rows of a column have one colour scale.

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
    figure, axes = new_grid(2, len(fields), limits, title, extra=0.55)
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
        headline(axes[0, column], f"t = {t:.3g}\nlearned, error {100 * error:.2g} %")
        headline(axes[1, column], "exact")
        colorbar(figure, arrows, list(axes[:, column]), "magnitude", location="bottom", extend="max")
    return figure


def trajectories_panel(times: Array, paths: Array, data: Array, title: str = "") -> "Figure":
    """Paths of a sampler over the data, coloured by time, from rings (start) to dots (end).

    Args:
        times: Times of the points of a path, (N + 1,).
        paths: (N + 1, B, D), first the noise, last the samples.
        data: Points to draw beneath, (M, D).
        title: Title of the plot.
    """
    from matplotlib.collections import LineCollection

    if paths.ndim != 3 or len(paths) != len(times) or len(times) < 2:
        raise ValueError(f"trajectories_panel: paths must be (N + 1, B, D) for {len(times)} times, got {paths.shape}")
    dim = paths.shape[2]
    limits = limits_of(data, paths.reshape(-1, dim))
    figure, axes = new_grid(1, 1, limits, title, wide=0.8, side=0.8)
    ax = axes[0, 0]
    points_axes(ax, limits, dim)
    scatter(ax, data, DATA, size=16)
    flat = paths[:, :, :2]
    segments = np.stack((flat[:-1], flat[1:]), 2).reshape(-1, 2, 2)
    middle = np.repeat((times[:-1] + times[1:]) / 2, paths.shape[1])
    lines = LineCollection(list(segments), array=middle, cmap=sequential(), linewidths=0.9, alpha=0.8, zorder=2)
    lines.set_clim(float(times.min()), float(times.max()))
    ax.add_collection(lines)
    ax.scatter(*flat[0].T, s=14, facecolors="white", edgecolors=INK, linewidths=0.7, zorder=3)
    ax.scatter(*flat[-1].T, s=16, color=ACCENT, linewidths=0, zorder=4)
    headline(ax, f"{paths.shape[1]:,} paths of {len(times) - 1:,} steps, from ring to dot")
    colorbar(figure, lines, [ax], "t", location="right", extend="neither")
    return figure


def film_panel(x: Array, x_0: Array, data: Array, title: str = "") -> "Figure":
    """Noisy points and the estimates of x_0 side by side, over the data: (N, D) each, the first two axes."""
    figure, axes = new_figure(1, 2, WIDTH, 4.6, title)
    known = plane(data, "film_panel") if len(data) else x_0[:0, :2]
    limits = limits_of(known if len(known) else x_0[:, :2], margin=0.6)
    for ax, points, name in ((axes[0, 0], x, "x_t"), (axes[0, 1], x_0, "estimate of x_0")):
        points_axes(ax, limits, x.shape[1])
        if len(known):
            scatter(ax, known, FAINT)
        scatter(ax, plane(points, "film_panel"), SAMPLES)
        headline(ax, name)
    return figure


def _histograms(data: Array, samples: Array, total: int, title: str) -> "Figure":
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
    ax.legend(frameon=False, labelcolor=INK)
    return figure


def _outside(total: int, finite: int, inside: int) -> str:
    parts = []
    if finite > inside:
        parts.append(f"{finite - inside:,} outside")
    if total > finite:
        parts.append(f"{total - finite:,} not finite")
    return f" ({', '.join(parts)})" if parts else ""
