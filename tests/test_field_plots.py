"""Plots of fields: limits, colours, rows, and films."""

from typing import Any

import numpy as np
import pytest
from fields_model import fields

from diffusion_pl import plots


def images_of(figure: Any) -> list[Any]:
    """What a plot shows with a colour scale, channel by channel."""
    return [ax.images[0] for ax in figure.axes if ax.images and ax.get_xlim()[1] > 1.5]


def test_limits_are_symmetric_where_values_have_both_signs() -> None:
    x = np.stack([np.linspace(-1, 3, 1001), np.linspace(5, 6, 1001)])[None]
    low, high = plots.field_limits(x)[0]
    assert (low, high) == pytest.approx((-2.98, 2.98))
    assert plots.field_limits(x)[1] == pytest.approx((5.005, 5.995))
    assert plots.field_limits(np.full((2, 1, 5), 7.0)).tolist() == [[6.5, 7.5]]  # a scale needs a width
    missing = np.where(np.arange(1001) % 2, np.nan, x)
    assert plots.field_limits(missing)[0] == pytest.approx((-2.98, 2.98), rel=1e-2)
    assert plots.field_limits(np.full((1, 1, 4), np.nan)).tolist() == [[0.0, 1.0]]


def test_colours_diverge_at_zero_and_rows_share_the_scale() -> None:
    x = fields(6, 2, 8, 8)
    figure = plots.fields_panel({"data": x[:2], "samples": 3 * x[2:]}, title="Samples")
    first, second = images_of(figure)
    limits = plots.field_limits(x[:2])
    for image, (low, high) in zip((first, second), limits, strict=True):
        assert image.get_clim() == pytest.approx((low, high))
    assert limits[0][0] == -limits[0][1] and limits[1][0] > 0
    assert first.cmap(0.5)[:3] == pytest.approx((0.97, 0.97, 0.97), abs=0.01)  # white at 0
    assert first.cmap.name != second.cmap.name
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == ["data", "samples"]


def test_every_field_is_where_its_row_says() -> None:
    x = np.arange(1.0, 5.0)[:, None, None, None] * np.ones((4, 1, 3, 5))
    (image,) = images_of(plots.fields_panel({"data": x[:2], "samples": x[2:]}))
    values = np.ma.filled(image.get_array(), np.nan)
    rows, columns = (~np.isnan(values)).any(1), (~np.isnan(values)).any(0)
    assert values[np.ix_(rows, columns)].reshape(2, 3, 2, 5)[:, 0, :, 0].tolist() == [[1, 2], [3, 4]]


def test_volumes_are_three_central_slices() -> None:
    x = np.zeros((1, 1, 4, 6, 8))
    x[0, 0, 2], x[0, 0, :, 3], x[0, 0, :, :, 4] = 1, 2, 3
    (image,) = images_of(plots.fields_panel({"data": x}))
    values = np.ma.filled(image.get_array(), np.nan)
    assert np.isfinite(values).sum() == 6 * 8 + 4 * 8 + 4 * 6
    counts = {value: int((values == value).sum()) for value in (1, 2, 3)}
    # Where planes cross, the last one written is seen.
    assert counts[3] == 6 + 4 + 4 * 6
    assert counts[2] == 7 + 4 * 7
    assert counts[1] == 5 * 7


def test_curves_have_a_panel_for_each_row_and_channel() -> None:
    x = fields(12, 2, 16)
    figure = plots.fields_panel({"data": x[:3], "samples": x[3:]})
    assert [len(ax.lines) for ax in figure.axes] == [3, 8, 3, 8]
    assert np.array_equal(figure.axes[1].lines[2].get_ydata(), x[5, 0])
    across = plots.fields_panel({"t = 0": x[:1], "t = 1": x[1:2]}, across=True)
    assert [ax.get_title(loc="left") for ax in across.axes] == ["t = 0", "t = 1"] * 2


@pytest.mark.parametrize("sizes", [(16,), (8, 8), (4, 6, 6)], ids=["1-D", "2-D", "3-D"])
def test_a_film_changes_its_fields_and_not_its_size(sizes: tuple[int, ...]) -> None:
    x = fields(2, 1, *sizes)
    frames = plots.field_film([(f"step {k}", {"x_t": k * x, "x_0 estimate": x}) for k in range(3)])
    assert len({frame.shape for frame in frames}) == 1
    assert (frames[0] != frames[2]).any()


def test_other_arrays_are_refused() -> None:
    with pytest.raises(ValueError, match=r"needs fields \(N, C, \*sizes\)"):
        plots.fields_panel({"data": np.zeros((4, 3))})
