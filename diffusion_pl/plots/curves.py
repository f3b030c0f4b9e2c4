"""Curves: of a run over its steps, of a schedule, and of samplers against what they cost."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from .style import ACCENT, DATA, FAINT, INK, SAMPLES, WIDTH, Array, finish, headline, log_ticks, new_figure, plain_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def schedule_panel(t: Array, alpha: Array, sigma: Array, logsnr: Array, title: str = "") -> "Figure":
    """A schedule: signal and noise scales on the left, log-SNR (nats) on the right; each argument is (N,)."""
    figure, axes = new_figure(1, 2, WIDTH, 3.8, title)
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
        plain_axes(ax)
        ax.set_xlabel("t", color=INK)
        ax.set_xlim(float(t.min()), float(t.max()))
        headline(ax, name)
    return figure


def curves_panel(losses: Mapping[str, Array], metrics: Mapping[str, Array], title: str = "") -> "Figure":
    """Losses of a run over its steps in one panel, and each metric in a panel of its own.

    The training loss, of single batches, is drawn faintly, with its running mean over it.

    Args:
        losses: (N, 2) each: step and value, in the order of the steps; by their names, such as val_loss/ema0.999.
        metrics: the same, of other values.
        title: Above all.
    """
    if not losses and not metrics:
        raise ValueError("curves_panel: losses and metrics are empty: give one or more series")
    panels = (1 if losses else 0) + len(metrics)
    columns = min(panels, 3)
    rows = -(-panels // columns)
    figure, axes = new_figure(rows, columns, WIDTH * (0.75 if columns == 1 else 1), 3.9 * rows, title)
    places = iter(axes.flat)
    if losses:
        _losses(next(places), losses)
    for name, series in metrics.items():
        ax = next(places)
        steps, values = _finite(series).T
        ax.plot(steps, values, color=SAMPLES, linewidth=1.8, marker="o", markersize=4)
        headline(ax, name + (f": {values[-1]:.4g} at the end" if len(values) else ": not finite"))
    for ax in axes.flat[:panels]:
        plain_axes(ax)
        ax.set_xlabel("optimizer step", color=INK)
        ax.set_xlim(left=0)
    finish(axes, panels)
    return figure


def _losses(ax: "Axes", losses: Mapping[str, Array]) -> None:
    """All losses on one axis, which is logarithmic if they are positive."""
    colors = {"train_loss": DATA, "seen_loss": ACCENT, "val_loss": SAMPLES}
    drawn = {name: _finite(series) for name, series in losses.items()}
    for k, (name, series) in enumerate(drawn.items()):
        steps, values = series.T
        color = colors.get(name.partition("/")[0], f"C{k + 2}")
        if name.startswith("train_") and len(values) >= 20:
            ax.plot(steps, values, color=color, linewidth=0.7, alpha=0.5)
            values = _running_mean(values, len(values) // 20)
        ax.plot(
            steps, values, color=color, linewidth=1.8, label=name, marker="o" if len(values) < 20 else "", markersize=4
        )
    values = np.concatenate([series[:, 1] for series in drawn.values()])
    if len(values) and values.min() > 0:
        log_ticks(ax, float(values.min()), float(values.max()))
    lowest = [(*min(series.tolist(), key=lambda row: row[1]), name) for name, series in drawn.items() if "val_" in name]
    ends = [f"{name} is lowest, {value:.3g}, at step {step:,.0f}" for step, value, name in lowest[:1]]
    headline(ax, "; ".join(["loss", *ends]))
    ax.legend(frameon=False, labelcolor=INK, fontsize=9)


def _finite(series: Array) -> Array:
    return series[np.isfinite(series).all(1)]


def _running_mean(values: Array, width: int) -> Array:
    """Means over the last ``width`` values, fewer at the beginning."""
    total = np.concatenate(([0.0], values.cumsum()))
    last = np.arange(1, len(values) + 1)
    first = np.maximum(last - width, 0)
    return np.asarray((total[last] - total[first]) / (last - first))


def sweep_panel(rows: Sequence[Mapping[str, str | int | float]], title: str = "") -> "Figure":
    """Distance to the data and error of the solution against NFE, a line for each sampler, log-log.

    Args:
        rows: {"sampler", "nfe", "distance", "error"} each.
        title: Above all.
    """
    from matplotlib.ticker import NullLocator

    figure, axes = new_figure(1, 2, WIDTH, 4.6, title)
    names = list(dict.fromkeys(str(row["sampler"]) for row in rows))
    for ax, key, text in zip(
        axes[0], ("distance", "error"), ("distance to the data", "error of the solution"), strict=True
    ):
        for k, name in enumerate(names):
            pairs = sorted((float(row["nfe"]), float(row[key])) for row in rows if row["sampler"] == name)
            x, y = zip(*pairs, strict=True)
            ax.plot(x, y, marker="osD^vP*X"[k % 8], markersize=5, linewidth=1.8, color=f"C{k % 10}", label=name)
        ax.set_xscale("log")
        if positive := [value for row in rows if (value := float(row[key])) > 0]:  # else exact, or there are no data
            log_ticks(ax, min(positive), max(positive))
        ticks = sorted({int(row["nfe"]) for row in rows if row["sampler"] == names[0]})
        ax.set_xticks(ticks, [str(n) for n in ticks])
        ax.xaxis.set_minor_locator(NullLocator())
        plain_axes(ax)
        ax.set_xlabel("evaluations of the network (NFE)", color=INK)
        headline(ax, text)
    axes[0, 1].legend(frameon=False, labelcolor=INK, fontsize=8)
    return figure
