"""Curves: of a schedule, and of samplers against what they cost."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from .style import ACCENT, FAINT, INK, SAMPLES, WIDTH, Array, headline, new_figure, plain_axes

if TYPE_CHECKING:
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


def sweep_panel(rows: Sequence[Mapping[str, str | int | float]], title: str = "") -> "Figure":
    """Distance to the data and error of the solution against NFE, a line for each sampler, log-log.

    Args:
        rows: {"sampler", "nfe", "distance", "error"} each.
        title: Above all.
    """
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
        if any(float(row[key]) > 0 for row in rows):  # else all solutions are exact, or there are no data
            ax.set_yscale("log")
        ticks = sorted({int(row["nfe"]) for row in rows if row["sampler"] == names[0]})
        ax.set_xticks(ticks, [str(n) for n in ticks])
        ax.minorticks_off()
        plain_axes(ax)
        ax.set_xlabel("evaluations of the network (NFE)", color=INK)
        headline(ax, text)
    axes[0, 1].legend(frameon=False, labelcolor=INK, fontsize=8)
    return figure
