"""One image: its crops are windows of it, each at its own position."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion_pl.data import Picture


@pytest.fixture
def path(tmp_path: Path) -> str:
    """20x30 pixels that all differ: (row, column, 7)."""
    rows, columns = np.indices((20, 30), dtype=np.uint8)
    Image.fromarray(np.stack((rows, columns, np.full_like(rows, 7)), 2)).save(tmp_path / "p.png")
    return str(tmp_path / "p.png")


def ready(path: str | None, **options: Any) -> Picture:
    data = Picture(path, **({"size": (4, 6), "shorter_side": None, "crops": 2000} | options))
    data.setup()
    return data


def places(source: Any) -> set[tuple[int, int]]:
    return set(map(tuple, source.__getitems__(torch.arange(len(source)))["x"][:, :2, 0, 0].tolist()))


def test_crops_are_windows_that_reach_every_position(path: str) -> None:
    data = ready(path)
    assert data.shape == (3, 4, 6)
    x = data.splits[0].__getitems__(torch.arange(500))["x"]
    corner = x[:, :2, :1, :1]
    expected = corner + torch.stack(torch.meshgrid(torch.arange(4), torch.arange(6), indexing="ij"))
    assert torch.equal(x[:, :2].long(), expected)
    assert (x[:, 2] == 7).all()
    assert places(ready(path, crops=20_000).splits[0]) == {(i, j) for i in range(17) for j in range(25)}


def test_crop_positions_depend_on_seed_split_and_index(path: str) -> None:
    first, again, other = ready(path), ready(path), ready(path, seed=1)
    some = torch.tensor([5, 1, 5])
    for split in (0, 1):
        assert torch.equal(first.splits[split].__getitems__(some)["x"], again.splits[split].__getitems__(some)["x"])
        assert not torch.equal(first.splits[split].__getitems__(some)["x"], other.splits[split].__getitems__(some)["x"])
    assert not torch.equal(first.splits[0].__getitems__(some)["x"], first.splits[1].__getitems__(some)["x"])
    assert [len(split) for split in first.splits] == [2000, 200, 200]


def test_the_image_may_be_downscaled_first(path: str) -> None:
    assert tuple(ready(path, shorter_side=10).whole().shape) == (3, 10, 15)


def test_without_a_path_it_is_the_flower() -> None:
    data = ready(None, size=32, shorter_side=64)
    assert data.shape == (3, 32, 32)
    assert data.splits[0].__getitems__(torch.arange(50))["x"].float().std() > 30


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"size": 24},
            r"p\.png: is 20x30 .*crop of 24x24: .*size .*shorter",
        ),
        ({"size": None}, "Picture: size .*must be given"),
        ({"crops": 9}, "crops must be at least 10 and shorter_side at least 1, got 9 and None"),
        ({"size": 0}, "Picture: size .*got 0"),
    ],
)
def test_what_is_refused(path: str, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ready(path, **options)


def test_a_missing_file_or_one_that_is_not_an_image(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.png: no such file\. Fix: give --data\.path"):
        ready(str(tmp_path / "none.png"))
    (tmp_path / "no.png").write_text("no")
    with pytest.raises(ValueError, match=r"no\.png: cannot be read as an image \(.*\)"):
        ready(str(tmp_path / "no.png"))
