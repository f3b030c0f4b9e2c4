"""Plots of metrics of fields: radial power spectra, rank histograms."""

from typing import TYPE_CHECKING

import numpy as np

from .style import DATA, FAINT, INK, SAMPLES, WIDTH, Array, finish, headline, log_ticks, new_figure, plain_axes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST = 6  # channels that have a panel


def spectrum_panel(k: Array, samples: Array, data: Array, title: str = "") -> "Figure":
    """Radial power spectra of samples and data, log-log, a panel for each of the first 6 channels.

    Args:
        k: (S,), wave numbers from 0; 0, the mean of a field, has no place on a logarithmic axis.
        samples, data: (C, S), mean power of a mode.
        title: Above all.
    """
    figure, axes, channels = _panels(len(data), title)
    shown = k > 0
    for c, ax in zip(range(channels), axes.flat, strict=False):
        ax.plot(k[shown], data[c, shown], color=DATA, linewidth=5, alpha=0.6, label="data")
        ax.plot(k[shown], samples[c, shown], color=SAMPLES, linewidth=1.8, label="samples")
        ax.set_xscale("log")
        positive = np.concatenate([data[c, shown], samples[c, shown]])
        positive = positive[positive > 0]
        if len(positive):
            log_ticks(ax, float(positive.min()), float(positive.max()))
        ax.set_xlabel("wave number, cycles per longest axis", color=INK)
        plain_axes(ax)
        headline(ax, f"power, channel {c}" if len(data) > 1 else "power")
    axes[0, 0].legend(frameon=False, labelcolor=INK)
    finish(axes, channels)
    return figure


def ranks_panel(ranks: Array, title: str = "") -> "Figure":
    """Rank histograms, a panel for each of the first 6 channels; a reliable ensemble is flat at the line.

    Args:
        ranks: (C, K + 1), share of the data's values that are above so many of the K samples.
        title: Above all.
    """
    from matplotlib.ticker import MaxNLocator

    figure, axes, channels = _panels(len(ranks), title)
    count = ranks.shape[1]
    for c, ax in zip(range(channels), axes.flat, strict=False):
        ax.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        ax.bar(np.arange(count), ranks[c], width=0.9, color=SAMPLES)
        ax.axhline(1 / count, color=INK, linewidth=1, linestyle=(0, (5, 1.5)))
        ax.set_xlabel("samples below the data", color=INK)
        plain_axes(ax)
        ax.spines["bottom"].set_color(FAINT)
        headline(ax, f"share, channel {c}" if len(ranks) > 1 else "share")
    finish(axes, channels)
    return figure


def _panels(channels: int, title: str) -> tuple["Figure", Array, int]:
    """A figure with a panel for each channel, up to MOST, and how many those are."""
    shown = min(channels, MOST)
    columns = min(shown, 3)
    rows = -(-shown // columns)
    figure, axes = new_figure(rows, columns, WIDTH * (0.65 if columns == 1 else 1), 3.9 * rows, title)
    return figure, axes, shown
