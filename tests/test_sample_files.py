"""Files of samples: which ones are written, and what they show."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion_pl.callbacks.figures import film_images, write_samples
from diffusion_pl.data import DataModule, Datasaurus, Digits, Moons


def described(data: DataModule, state: DataModule) -> DataModule:
    """The data as a checkpoint describes them, not read."""
    state.setup()
    data.load_state_dict(state.state_dict())
    return data


@pytest.mark.parametrize("loaded", [False, True])
def test_points_are_written_as_a_table_and_a_plot(loaded: bool, tmp_path: Path) -> None:
    data = Datasaurus() if loaded else described(Datasaurus(), Datasaurus())
    data.setup() if loaded else None
    files = write_samples(data, torch.zeros(5, 2), tmp_path)
    assert files == [tmp_path / "samples.csv", tmp_path / "samples.png"]
    assert len((tmp_path / "samples.csv").read_text().splitlines()) == 6
    with Image.open(tmp_path / "samples.png") as figure:  # two panels if the data can be shown
        assert (figure.width > 900) == loaded


def test_images_are_a_png_each_and_a_grid(tmp_path: Path) -> None:
    data = Digits(conditional=True)
    files = write_samples(data, torch.full((20, 1, 8, 8), -1.0), tmp_path / "new")
    assert files == [tmp_path / "new" / "grid.png", tmp_path / "new" / "00.png … 19.png"]
    with Image.open(tmp_path / "new" / "grid.png") as grid:
        assert grid.width > 4 * grid.height  # a column for each of ten classes, two rows
    with Image.open(tmp_path / "new" / "19.png") as image:
        assert (image.size, image.mode, image.getextrema()) == ((8, 8), "L", (0, 0))


def test_a_frame_of_images_has_noise_above_estimates() -> None:
    (shown,) = film_images(Digits(), [("t = 1", torch.ones(4, 1, 8, 8), torch.full((4, 1, 8, 8), -1.0))])
    below = shown[-shown.shape[0] // 3 :]
    assert (below == 0).any() and (shown == 255).any()
    assert not (shown[40 : shown.shape[0] // 2, 5:-5] == 0).all(-1).any()


def test_a_frame_of_points_shows_both() -> None:
    data = described(Moons(100), Moons(100))
    (shown,) = film_images(data, [("t = 1", torch.zeros(4, 2), torch.ones(4, 2))])
    assert shown.dtype == np.uint8
    assert shown.shape[1:] == (800, 3)


class Unshown(Moons):
    """Data that are neither images, points nor fields."""

    @property
    def shape(self) -> tuple[int, ...]:
        return (1, 1, 1, 1, 2)


def test_other_data_are_written_without_a_plot(tmp_path: Path) -> None:
    data = described(Unshown(100), Moons(100))
    assert not data.is_image and not data.is_point
    assert not (tmp_path / "samples.png").exists()
    with pytest.raises(ValueError, match="a film shows images, points or fields, not data of shape"):
        film_images(data, [("", torch.zeros(4, 1, 1, 1, 1, 2), torch.zeros(4, 1, 1, 1, 1, 2))])
