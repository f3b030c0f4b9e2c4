"""Plots: what they draw, their axis limits, and their titles."""

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.figure import Figure
from matplotlib.quiver import Quiver

from diffusion_pl import plots

RNG = np.random.default_rng(0)
POINTS = RNG.normal(size=(60, 2)) * [3, 1] + 5


def dots(ax: Any) -> list[Any]:
    """The point clouds of a panel, as (N, 2) arrays."""
    return [np.asarray(c.get_offsets()) for c in ax.collections if isinstance(c, PathCollection)]


def titles(figure: Figure) -> list[str]:
    return [ax.get_title(loc="left") for ax in figure.axes]


def frames(figure: Figure) -> set[tuple[float, ...]]:
    return {(*ax.get_xlim(), *ax.get_ylim()) for ax in figure.axes}


def test_importing_the_module_does_not_import_matplotlib() -> None:
    code = "import sys, diffusion_pl.plots; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_samples_and_data_share_one_scale() -> None:
    samples = POINTS[:40] + 0.1
    figure = plots.samples_panel(POINTS, samples, "Title")
    left, right = figure.axes
    assert np.array_equal(dots(left)[0], POINTS[np.arange(40) * 60 // 40])
    assert np.array_equal(dots(right)[0], samples)
    assert len(frames(figure)) == 1
    assert {ax.get_aspect() for ax in figure.axes} == {1.0}
    assert titles(figure) == ["data: 40 of 60", "samples: 40"]
    assert figure.get_suptitle() == "Title"


def test_data_and_samples_have_as_many_dots_of_one_size() -> None:
    samples = np.concatenate((POINTS, POINTS + 0.2, POINTS - 0.2))
    figure = plots.samples_panel(POINTS, samples)
    assert titles(figure) == ["data: 60", "samples: 60 of 180"]
    clouds = [next(c for c in ax.collections if isinstance(c, PathCollection)) for ax in figure.axes]
    assert [len(np.asarray(cloud.get_offsets())) for cloud in clouds] == [60, 60]
    assert np.array_equal(clouds[0].get_sizes(), clouds[1].get_sizes())


def test_axis_limits_are_the_datas_and_outliers_are_counted() -> None:
    samples = np.concatenate((POINTS, [[1e6, 0], [0, -1e6], [np.nan, 0], [np.inf, 0], [0, -np.inf]]))
    figure = plots.samples_panel(POINTS, samples)
    assert frames(figure) == frames(plots.samples_panel(POINTS, POINTS))
    assert titles(figure)[1] == "samples: 60 of 65 (2 outside, 3 not finite)"
    assert np.array_equal(dots(figure.axes[1])[0], POINTS)


def test_without_data_the_samples_stand_alone() -> None:
    figure = plots.samples_panel(POINTS[:0], POINTS)
    assert titles(figure) == ["samples: 60"]
    assert np.array_equal(dots(figure.axes[0])[0], POINTS)
    hopeless = plots.samples_panel(POINTS[:0], np.full((3, 2), np.nan))
    assert titles(hopeless) == ["samples: 3 (3 not finite)"]
    plots.to_image(hopeless)


def test_of_more_axes_the_first_two_are_drawn_and_named() -> None:
    data = RNG.normal(size=(30, 5))
    figure = plots.samples_panel(data, data)
    assert np.array_equal(dots(figure.axes[0])[0], data[:, :2])
    assert figure.axes[0].get_xlabel() == "axis 1 of 5"
    assert figure.axes[0].get_ylabel() == "axis 2 of 5"
    named = plots.samples_panel(data, data, names=["height", "weight", "age", "x", "y"]).axes[0]
    assert named.get_xlabel() == "height (column 1 of 5)"
    assert named.get_ylabel() == "weight (column 2 of 5)"


def test_numbers_become_densities_in_the_same_bins() -> None:
    data, samples = RNG.normal(size=(400, 1)), RNG.normal(size=(1000, 1))
    samples[:250] = 1e3
    (ax,) = plots.samples_panel(data, samples).axes
    areas, edges = [], []
    for stairs in ax.patches:
        values, bins, _ = stairs.get_data()  # type: ignore[attr-defined]
        areas.append(float((values * np.diff(bins)).sum()))
        edges.append(bins)
    assert areas == pytest.approx([1, 0.75], abs=0.01)  # a quarter of the samples is outside the axes
    assert np.array_equal(*edges)
    labels = [text.get_text() for text in ax.get_legend().get_texts()]  # type: ignore[union-attr]
    assert labels[0] == "data: 400"
    assert labels[1].startswith("samples: 1,000 (25")


def test_samples_of_another_dimension_are_refused() -> None:
    with pytest.raises(ValueError, match=r"shapes \(N, D\) and \(M, D\), got \(60, 2\) and \(5, 3\)"):
        plots.samples_panel(POINTS, np.zeros((5, 3)))


@pytest.mark.parametrize("number", [1, 4, 7])
def test_forward_has_one_panel_for_each_time_in_one_frame(number: int) -> None:
    steps = [(i / 10, POINTS + i * RNG.normal(size=POINTS.shape)) for i in range(number)]
    figure = plots.forward_panel(steps)
    assert titles(figure) == [f"t = {t:.3g}" for t, _ in steps]
    assert len(frames(figure)) == 1
    ((left, right, bottom, top),) = frames(figure)
    for ax, (_, points) in zip(figure.axes, steps, strict=True):
        assert np.array_equal(dots(ax)[0], points)
        assert left < points[:, 0].min() and points[:, 0].max() < right
        assert bottom < points[:, 1].min() and points[:, 1].max() < top


def test_a_point_keeps_its_colour_on_its_way() -> None:
    figure = plots.forward_panel([(0, POINTS), (1, POINTS[:, ::-1])])
    colors = [np.asarray(ax.collections[0].get_array()) for ax in figure.axes]
    assert np.array_equal(colors[0], colors[1])
    assert np.array_equal(np.argsort(colors[0]), np.argsort(POINTS[:, 1]))


def grid() -> Any:
    side = np.linspace(-2, 2, 5)
    return np.stack(np.meshgrid(side, side), -1).reshape(-1, 2)


def test_fields_show_direction_magnitude_and_relative_error() -> None:
    exact = -grid() + 0.01
    figure = plots.field_panel(grid(), [(0.1, 1.25 * exact, exact), (0.5, exact, exact)], POINTS)
    panels = [ax for ax in figure.axes if any(isinstance(c, Quiver) for c in ax.collections)]
    assert [ax.get_title(loc="left") for ax in panels] == [
        "t = 0.1\nerror 25 %",
        "t = 0.5\nerror 0 %",
        "",
        "",
    ]
    assert [ax.get_ylabel() for ax in panels] == ["learned", "", "exact, of the training points", ""]
    assert "‖learned − exact‖ / ‖exact‖" in figure.get_supxlabel()
    arrows: list[Any] = [next(c for c in ax.collections if isinstance(c, Quiver)) for ax in panels]
    magnitude = np.linalg.norm(exact, axis=1)
    assert np.allclose(arrows[0].get_array(), 1.25 * magnitude)
    assert np.allclose(arrows[2].get_array(), magnitude)
    assert np.allclose(np.stack((arrows[0].U, arrows[0].V), 1), exact / magnitude[:, None])
    assert arrows[0].get_clim() == arrows[2].get_clim()


def test_a_field_that_is_zero_everywhere_can_be_drawn() -> None:
    nothing = np.zeros((25, 2))
    assert plots.to_image(plots.field_panel(grid(), [(0.1, nothing, nothing)], POINTS)).min() < 255  # not a blank page


def test_trajectories_run_from_rings_to_dots_through_time() -> None:
    times, paths = np.array([1.0, 0.5, 0.0]), RNG.normal(size=(3, 4, 2))
    figure = plots.trajectories_panel(times, paths, POINTS)
    ax = figure.axes[0]
    assert [cloud.tolist() for cloud in dots(ax)] == [POINTS.tolist(), paths[0].tolist(), paths[2].tolist()]
    lines = next(c for c in ax.collections if isinstance(c, LineCollection))
    segments = np.asarray(lines.get_segments())
    assert np.array_equal(segments[0], paths[:2, 0])
    assert np.array_equal(segments[-1], paths[1:, 3])
    assert np.asarray(lines.get_array()).tolist() == [0.5] * 4 + [1.5] * 4
    assert ax.get_title(loc="left") == "4 paths of 2 steps"
    scale = figure.axes[1]
    assert [text.get_text() for text in scale.get_yticklabels()] == ["0 (t = 1)", "1 (t = 0.5)", "2 (t = 0)"]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["noise", "sample", "data"]  # type: ignore[union-attr]


@pytest.mark.parametrize(("largest", "scale"), [(1.0, "linear"), (80.0, "log")])
def test_schedules_show_their_three_curves(largest: float, scale: str) -> None:
    t = np.linspace(0, 1, 11)
    sigma = 0.01 + t * largest
    logsnr = -2 * np.log(sigma)
    logsnr[0] = np.inf
    figure = plots.schedule_panel(t, np.ones(11), sigma, logsnr)
    scales, levels = figure.axes
    assert [np.asarray(line.get_ydata()).tolist() for line in scales.lines] == [[1.0] * 11, sigma.tolist()]
    assert scales.get_yscale() == scale
    assert np.asarray(levels.lines[0].get_ydata())[1:].tolist() == logsnr[1:].tolist()
    assert np.isnan(np.asarray(levels.lines[0].get_ydata())[0])


def test_a_plot_is_saved_1000_pixels_wide(tmp_path: Path) -> None:
    figure = plots.samples_panel(POINTS, POINTS)
    image = plots.to_image(figure)
    assert image.dtype == np.uint8
    assert image.shape[1:] == (1000, 3)
    assert len(np.unique(image.reshape(-1, 3), axis=0)) > 10
    path = plots.save(figure, tmp_path / "new" / "image.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    assert plots.save(figure, str(tmp_path / "image.svg")).read_text().startswith("<?xml")


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: plots.forward_panel([]), "frames is empty"),
        (lambda: plots.forward_panel([(0, np.zeros((4, 1)))]), r"two or more dimensions, .* shape \(4, 1\)"),
        (lambda: plots.field_panel(grid(), [], POINTS), "fields is empty"),
        (
            lambda: plots.field_panel(grid(), [(0.2, np.zeros((9, 2)), np.zeros((25, 2)))], POINTS),
            r"field at t = 0.2 must have shape \(25, 2\), got \(9, 2\)",
        ),
        (
            lambda: plots.trajectories_panel(np.zeros(3), np.zeros((4, 5, 2)), POINTS),
            r"\(N \+ 1, B, D\) for 3 times, got \(4, 5, 2\)",
        ),
    ],
)
def test_wrong_shapes_are_refused(draw: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw()


def test_a_grid_enlarges_every_image_without_smoothing() -> None:
    images = RNG.integers(0, 255, size=(5, 3, 4, 6), dtype=np.uint8)  # 255 is the background
    grid = plots.image_grid(images, columns=3, scale=4)
    assert grid.shape == (2 + 2 * (4 * 4 + 2), 2 + 3 * (6 * 4 + 2), 3)
    for index, image in enumerate(images):
        y, x = 2 + index // 3 * 18, 2 + index % 3 * 26
        shown = grid[y : y + 16, x : x + 24]
        for dy in range(4):
            for dx in range(4):
                assert np.array_equal(shown[dy::4, dx::4], image.transpose(1, 2, 0))
    assert (grid[20:, 54:] == 255).all()


def test_a_grid_of_grey_or_many_channels_shows_the_first() -> None:
    for channels in (1, 4):
        images = RNG.integers(0, 255, size=(1, channels, 4, 6), dtype=np.uint8)
        shown = plots.image_grid(images, scale=1)[2:6, 2:8]
        assert np.array_equal(shown, images[0, 0][..., None].repeat(3, 2))


def test_a_grid_has_room_for_its_title_and_the_names_of_its_rows() -> None:
    images = np.zeros((6, 1, 8, 8), dtype=np.uint8)
    bare = plots.image_grid(images, columns=2, scale=5)
    titled = plots.image_grid(images, columns=2, scale=5, title="a\nb")
    wide = plots.image_grid(images, columns=2, scale=5, title="words " * 12)
    assert wide.shape[1] > 2 * bare.shape[1]
    named = plots.image_grid(images, columns=2, scale=5, rows_named=["0", "1", "twelve"])
    assert titled.shape[1] == bare.shape[1]
    assert np.array_equal(titled[-bare.shape[0] + 2 :], bare[2:])
    assert (titled[: titled.shape[0] - bare.shape[0]] < 128).any()
    assert named.shape[0] == bare.shape[0]
    assert np.array_equal(named[:, -bare.shape[1] + 2 :], bare[:, 2:])
    assert (named[:, : named.shape[1] - bare.shape[1]] < 128).any()


def test_a_grid_has_names_of_columns_and_a_head_apart() -> None:
    white = np.full((6, 1, 8, 8), 255, dtype=np.uint8)
    bare = plots.image_grid(white, columns=2, scale=5)
    named = plots.image_grid(white, columns=2, scale=5, columns_named=["cat", "a name too long for its column"])
    assert named.shape[1] == bare.shape[1]
    for half in np.split(named, 2, axis=1):
        assert (half < 128).any()
    assert plots.image_grid(white, columns=2, scale=5, head=1).shape[0] == bare.shape[0] + 12


def test_a_grid_of_one_column_is_no_tower() -> None:
    assert max(plots.image_grid(np.zeros((10, 1, 28, 28), np.uint8), columns=1).shape) < 700


@pytest.mark.parametrize("columns", [2, 8])
def test_pairs_are_stacked_vertically_row_by_row(columns: int) -> None:
    images = RNG.integers(0, 255, size=(5, 2, 1, 4, 6), dtype=np.uint8)
    shown = plots.pairs(images, columns=columns, title="words")
    columns = min(columns, 5)
    groups = -(-5 // columns)
    scale = max(1, round(600 / max(columns * 7, 2 * groups * 5)))
    gap = max(2, scale // 2)
    across, down = 6 * scale + gap, 4 * scale + gap
    top = shown.shape[0] - 2 * groups * down - 12 * (groups - 1)
    left = shown.shape[1] - columns * across
    assert left > 40  # the names
    for index, pair in enumerate(images):
        row, column = divmod(index, columns)
        for k, image in enumerate(pair):
            y, x = top + (2 * row + k) * down + 12 * row, left + column * across
            cell = shown[y : y + 4 * scale : scale, x : x + 6 * scale : scale]
            assert np.array_equal(cell, image[0][..., None].repeat(3, 2))
    last = 2 * (groups - 1)
    empty = shown[top + last * down + 12 * (groups - 1) :, left + (5 - columns * (groups - 1)) * across :]
    assert (empty == 255).all()
    assert (shown[: top - gap] < 128).any()


@pytest.mark.parametrize(
    "images", [np.zeros((0, 3, 4, 4), np.uint8), np.zeros((1, 3, 4, 4)), np.zeros((4, 4), np.uint8)]
)
def test_a_grid_of_anything_else_is_refused(images: Any) -> None:
    with pytest.raises(ValueError, match=r"image_grid: needs uint8 images \(N, C, H, W\), got"):
        plots.image_grid(images)


def test_a_sweep_has_a_line_for_each_sampler_in_both_panels() -> None:
    rows = [
        {"sampler": name, "nfe": n, "distance": 1 / n, "error": 2 / n} for name in ("DDIM", "Heun") for n in (5, 10, 20)
    ]
    figure = plots.sweep_panel(rows, "a title")
    for ax, factor in zip(figure.axes, (1, 2), strict=True):
        assert [line.get_label() for line in ax.lines] == ["DDIM", "Heun"]
        assert np.asarray(ax.lines[0].get_xdata()).tolist() == [5, 10, 20]
        np.testing.assert_allclose(np.asarray(ax.lines[1].get_ydata()), [factor / n for n in (5, 10, 20)])
        assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")


def test_a_sweep_within_one_decade_has_labelled_ticks() -> None:
    rows = [{"sampler": "DDIM", "nfe": n, "distance": 0.02 + 0.01 / n, "error": 0.5 / n} for n in (5, 10, 20)]
    figure = plots.sweep_panel(rows)
    plots.to_image(figure)
    for ax in figure.axes:
        low, high = ax.get_ylim()
        inside = [text.get_text() for text in ax.get_yticklabels() if low <= text.get_position()[1] <= high]
        assert len([text for text in inside if text]) >= 2


def test_curves_show_losses_in_one_panel_and_each_metric() -> None:
    steps = np.arange(100.0, 3100, 100)
    losses = {name: np.stack((steps, 1 / steps), 1) for name in ("train_loss/raw", "val_loss/ema0.999")}
    figure = plots.curves_panel(
        losses, {"fid_n1000/ema0.999": np.array([[1000.0, 9.0], [2000.0, np.nan]])}, "digits-vp"
    )
    loss, fid = figure.axes
    assert [text.get_text() for text in loss.get_legend().get_texts()] == [*losses]  # type: ignore[union-attr]
    assert "at step 3,000" in loss.get_title(loc="left")
    assert loss.get_yscale() == "log"
    assert [np.asarray(line.get_xdata()).tolist() for line in fid.lines] == [[1000.0]]
    assert plots.to_image(figure).shape[1] == 1000


def test_curves_of_negative_losses_are_linear() -> None:
    figure = plots.curves_panel({"val_loss/raw": np.array([[10.0, -1.0], [20.0, 2.0]])}, {})
    assert figure.axes[0].get_yscale() == "linear"
    with pytest.raises(ValueError, match="curves_panel"):
        plots.curves_panel({}, {})


def test_a_sweep_of_exact_solutions_without_data_can_be_drawn() -> None:
    figure = plots.sweep_panel([{"sampler": "DDIM", "nfe": n, "distance": math.nan, "error": 0.0} for n in (2, 4)])
    assert plots.to_image(figure).ndim == 3
    assert [ax.get_yscale() for ax in figure.axes] == ["linear", "linear"]


@pytest.mark.parametrize("known", [0, 40])
def test_a_film_shows_both_clouds_in_the_data_limits(known: int, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = list[list[Any]]()

    def look(figure: Figure) -> Any:
        drawn.append([(ax.get_xlim(), dots(ax)) for ax in figure.axes])
        return image(figure)

    image = plots.to_image
    monkeypatch.setattr("diffusion_pl.plots.points.to_image", look)
    rng = np.random.default_rng(0)
    x, x_0, data = 50 * rng.normal(size=(30, 2)), rng.normal(size=(30, 2)), rng.normal(size=(known, 2))
    frames = plots.film_frames([("t = 1", x, x_0), ("t = 0", x_0, x_0)], data)
    assert frames[0].shape == frames[1].shape
    assert (frames[0] != frames[1]).any()
    for shown, clouds in zip(drawn, ((x, x_0), (x_0, x_0)), strict=True):
        for (limits, points), cloud in zip(shown, clouds, strict=True):
            assert np.allclose(points[-1], cloud)
            assert max(np.abs(limits)) < 20  # the noise may be outside
