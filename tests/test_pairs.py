"""Pairs of images: partners by file name in a second folder, and by index in a second array."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from diffusion_pl.conditions import Condition
from diffusion_pl.data import Arrays, Folder

EDGES = {"edges": "edges"}


def image_of(number: int, size: tuple[int, ...] = (6, 4)) -> NDArray[np.uint8]:
    return np.random.default_rng(number).integers(0, 256, size, dtype=np.uint8)


def save(path: Path, x: NDArray[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(x).save(path)
    return path


def pairs(root: Path, n: int = 12) -> Path:
    """Images k, and images 100 + k in colour as their edges, in folders of folders, with other endings."""
    for k in range(n):
        save(root / "photos" / str(k % 2) / f"{k}.png", image_of(k))
        save(root / "edges" / str(k % 2) / f"{k}.bmp", image_of(100 + k, (6, 4, 3)))
    return root / "photos"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pairs(tmp_path_factory.mktemp("pairs"))


def folder(photos: Path, **options: Any) -> Folder:
    data = Folder(str(photos), conditions=EDGES, **{"batch_size": 4, "val_fraction": 0.2, **options})
    data.setup("fit")
    return data


def number_of(x: Tensor) -> int:
    """Which image x: (1, 6, 4) is, mirrored or not, in model units."""
    values = ((x[0] + 1) * 127.5).round().to(torch.uint8).numpy()
    return next(k for k in range(20) if (values == image_of(k)).all() or (values[:, ::-1] == image_of(k)).all())


@pytest.mark.parametrize("memory_gb", [2.0, 0.0])
def test_partners_have_the_name_of_the_image(photos: Path, memory_gb: float) -> None:
    data = folder(photos, memory_gb=memory_gb, workers=0)
    assert data.conditions == {"edges": Condition((3, 6, 4))}
    seen = []
    for split in ("train", "val"):
        for batch in data.batches(split, 5):
            for x, edges in zip(batch["x"], batch["edges"], strict=True):
                seen.append(number_of(x))
                expected = image_of(100 + seen[-1], (6, 4, 3)).transpose(2, 0, 1) / 127.5 - 1
                np.testing.assert_allclose(edges.numpy(), expected, atol=1e-6)
    assert sorted(seen) == [*range(12)]


def test_partners_are_mirrored_together(photos: Path) -> None:
    data = folder(photos, horizontal_flip=True, repeats=8, batch_size=32)
    batch = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
    flipped = []
    for x, edges in zip(batch["x"], batch["edges"], strict=True):
        own, other = image_of(number_of(x)), image_of(100 + number_of(x), (6, 4, 3)).transpose(2, 0, 1)
        flipped.append(not np.allclose(x[0].numpy(), own / 127.5 - 1, atol=1e-6))
        np.testing.assert_allclose(edges.numpy(), (other[:, :, ::-1] if flipped[-1] else other) / 127.5 - 1, atol=1e-6)
    assert 0 < sum(flipped) < 32


def test_classes_and_partners_go_together(photos: Path) -> None:
    data = folder(photos, conditional=True)
    assert list(data.conditions) == ["label", "edges"]
    batch = next(data.batches("train", 20))
    assert [number_of(x) % 2 for x in batch["x"]] == batch["label"].tolist()


def test_images_without_a_partner_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = pairs(tmp_path)
    (tmp_path / "edges" / "0" / "4.bmp").unlink()
    save(tmp_path / "edges" / "more.png", image_of(0))
    data = folder(photos)
    line = f"{photos}: 1 image without a partner in edges skipped (the first: {photos / '0' / '4.png'}), 1 partner"
    assert line in capsys.readouterr().out
    assert sum(len(data.part(split)) for split in ("train", "val")) == 11


def test_a_checkpoint_reads_conditions_without_the_data(photos: Path, tmp_path: Path) -> None:
    state = folder(photos).state_dict()
    other = Folder("gone", conditions=EDGES)
    other.load_state_dict(state)
    path = save(tmp_path / "one.png", image_of(7, (6, 4, 3)))
    value = other.readers["edges"](str(path))
    np.testing.assert_allclose(value[0].numpy(), image_of(7, (6, 4, 3)).transpose(2, 0, 1) / 127.5 - 1, atol=1e-6)
    assert other.turns["edges"].shape[1:] == (3, 6, 4)
    with pytest.raises(ValueError, match=r"cond.edges: .*expected an image of 6x4, got 4x6. Fix: resize it"):
        other.readers["edges"](save(tmp_path / "wide.png", image_of(7, (4, 6))))


def broken(root: Path, what: str) -> dict[str, Any]:
    """Options of `Folder` for pairs with a flaw."""
    photos, edges = pairs(root, 4), root / "edges" / "0"
    options: dict[str, Any] = {"path": str(photos), "conditions": EDGES}
    if what == "no folder":
        options["conditions"] = {"edges": "sketches"}
    elif what == "no names":
        for file in (root / "edges").rglob("*.bmp"):
            file.rename(file.with_stem(f"e{file.stem}"))
    elif what == "two":
        save(edges / "0.png", image_of(0))
    elif what == "first size":
        for file in (root / "edges").rglob("*.bmp"):
            save(file, image_of(0, (4, 4, 3)))
    elif what == "one size":
        save(edges / "2.bmp", image_of(0, (4, 4, 3)))
    elif what == "levels":
        for file in (root / "edges").rglob("*.bmp"):
            file.unlink()
            Image.fromarray(image_of(1).astype(np.uint16)).save(file.with_suffix(".png"))
    elif what == "name":
        options["conditions"] = {"low": "edges"}
    elif what == "skip":
        options["corrupt"] = "skip"
    return options


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("no folder", "data.conditions.edges: .*sketches: no such folder. Fix: give a path relative to"),
        ("no names", "data.conditions.edges: no image of .* has a partner in edges: expected 0/0 with any ending"),
        ("two", r"data.conditions.edges: .*0.bmp and 0.png differ in the ending alone. Fix: remove one"),
        ("first size", r"data.conditions.edges: edges: its images are 4x4 \(height x width\), those of the data 6x4"),
        ("one size", r"2.bmp: is 4x4 \(height x width\), .*0.bmp is 6x4: give size"),
        ("levels", "data.conditions.edges: edges: its images have 65536 levels, those of the data 256"),
        ("name", "data.conditions.low: a condition must have a name of letters other than"),
        ("skip", "conditions need one image in each file"),
    ],
)
def test_bad_pairs_are_refused_in_a_line(what: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        Folder(**broken(tmp_path, what)).setup("fit")


# Arrays.


@pytest.mark.parametrize("where", ["edges", "edges.npy"])
def test_arrays_are_paired_by_index(where: str, tmp_path: Path) -> None:
    x, edges = (np.stack([image_of(start + k) for k in range(10)]) for start in (0, 100))
    np.savez(tmp_path / "all.npz", x=x, **({"edges": edges} if where == "edges" else {}))  # type: ignore[arg-type]
    np.save(tmp_path / "edges.npy", edges)
    data = Arrays(str(tmp_path / "all.npz"), conditions={"edges": where}, val_fraction=0.2)
    data.setup("fit")
    assert data.conditions == {"edges": Condition((1, 6, 4))}
    for batch in data.batches("train", 20):
        numbers = [number_of(one) for one in batch["x"]]
        np.testing.assert_allclose(batch["edges"][:, 0].numpy(), edges[numbers] / 127.5 - 1, atol=1e-6)
        assert len(set(numbers)) == len(data.part("train")) > 4


@pytest.mark.parametrize(
    ("edges", "message"),
    [
        (np.zeros((9, 6, 4), np.uint8), "data.conditions.edges: expected 10 images, one for each, got 9"),
        (np.zeros((10, 6, 6), np.uint8), r"edges: its images are 6x6 \(height x width\), those of the data 6x4"),
        (np.zeros((10, 6, 4), np.float32), "data.conditions.edges: images must be uint8 or uint16, got float32"),
        (None, "data.conditions.edges: edges is neither an array of .*all.npz"),
    ],
)
def test_bad_paired_arrays_are_refused(edges: NDArray[Any] | None, message: str, tmp_path: Path) -> None:
    arrays = {"x": np.zeros((10, 6, 4), np.uint8)} | ({} if edges is None else {"edges": edges})
    np.savez(tmp_path / "all.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        Arrays(str(tmp_path / "all.npz"), key="x", conditions={"edges": "edges"}).setup("fit")
