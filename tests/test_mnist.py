"""MNIST and Fashion-MNIST in torchvision's files: colours, choices of classes, splits, and no network."""

import colorsys
import gzip
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from diffusion_pl.conditions import label
from diffusion_pl.data import MNIST, FashionMNIST, mnist, synthetic
from diffusion_pl.data.mnist import colored


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mnist")
    for name in ("mnist", "fashion_mnist"):
        assert synthetic.main([name, "--root", str(folder), "--count", "200"]) == 0
    return folder


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise OSError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def ready(root: Path, kind: Any = MNIST, **options: Any) -> Any:
    data = kind(str(root), **({"batch_size": 16} | options))
    data.prepare_data()
    data.setup()
    return data


def everything(source: Any) -> dict[str, torch.Tensor]:
    batch: dict[str, torch.Tensor] = source.__getitems__(torch.arange(len(source)))
    return batch


def raw(root: Path, kind: str, split: str) -> tuple[np.ndarray, np.ndarray]:
    folder = root / kind / "raw"
    x = np.frombuffer((folder / f"{split}-images-idx3-ubyte").read_bytes(), np.uint8, offset=16)
    y = np.frombuffer((folder / f"{split}-labels-idx1-ubyte").read_bytes(), np.uint8, offset=8)
    return x.reshape(-1, 28, 28), y


@pytest.mark.parametrize(("kind", "name"), [(MNIST, "MNIST"), (FashionMNIST, "FashionMNIST")])
def test_the_files_are_read_as_they_are_without_a_network(root: Path, kind: Any, name: str) -> None:
    data = ready(root, kind, conditional=True, val_fraction=0.0)
    assert (data.shape, data.conditions["label"].classes, data.units.levels) == ((1, 28, 28), 10, 256)
    for split, file in ((data.splits[0], "train"), (data.splits[2], "t10k")):
        x, y = raw(root, name, file)
        assert np.array_equal(everything(split)["x"][:, 0].numpy(), x)
        assert np.array_equal(everything(split)["label"].numpy(), y)


def packed(root: Path, folder: Path) -> Path:
    """The raw files of Fashion-MNIST as Debian's package has them."""
    folder.mkdir()
    for file in (root / "FashionMNIST/raw").iterdir():
        (folder / f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
    return folder


def test_fashion_mnist_reads_debians_files(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mnist, "DEBIAN", packed(root, tmp_path / "debian"))
    data = ready(tmp_path, FashionMNIST, conditional=True, val_fraction=0.0)
    for split, file in ((data.splits[0], "train"), (data.splits[2], "t10k")):
        x, y = raw(root, "FashionMNIST", file)
        assert np.array_equal(everything(split)["x"][:, 0].numpy(), x)
        assert np.array_equal(everything(split)["label"].numpy(), y)
    assert not (tmp_path / "FashionMNIST").exists()


def test_files_in_the_root_go_before_debians(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    debian = packed(root, tmp_path / "debian")
    for file in debian.iterdir():
        file.write_bytes(b"damaged")
    monkeypatch.setattr(mnist, "DEBIAN", debian)
    assert len(ready(root, FashionMNIST, val_fraction=0.0).splits[0]) == 200
    with pytest.raises(ValueError, match="FashionMNIST: its files are not in"):
        ready(tmp_path, FashionMNIST)


@pytest.mark.skipif(not mnist.DEBIAN.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
def test_debians_files_are_the_whole_set(tmp_path: Path) -> None:
    data = ready(tmp_path, FashionMNIST, conditional=True, val_fraction=0.0)
    train, test = everything(data.splits[0]), everything(data.splits[2])
    assert [train["label"].bincount().tolist(), test["label"].bincount().tolist()] == [[6000] * 10, [1000] * 10]
    # Mean and deviation that are in use for this set everywhere.
    x = train["x"].double() / 255
    assert (round(x.mean().item(), 4), round(x.std().item(), 4)) == (0.2860, 0.3530)


def test_validation_is_a_stratified_part_of_training(root: Path) -> None:
    data = ready(root, conditional=True, val_fraction=0.2)
    assert [len(split) for split in data.splits] == pytest.approx([160, 40, 40], abs=4)
    whole = torch.from_numpy(raw(root, "MNIST", "train")[1]).long().bincount()
    held = everything(data.splits[1])["label"].bincount()
    assert (held - 0.2 * whole).abs().max() <= 0.5


def test_chosen_classes_are_counted_from_0_in_the_given_order(root: Path) -> None:
    data = ready(root, classes=[7, 2], conditional=True, val_fraction=0.0)
    x, y = raw(root, "MNIST", "train")
    kept = np.isin(y, [7, 2])
    assert data.conditions == {"label": label(2, "72")}
    assert np.array_equal(everything(data.splits[0])["x"][:, 0].numpy(), x[kept])
    assert np.array_equal(everything(data.splits[0])["label"].numpy(), (y[kept] == 2).astype(int))
    assert "label" not in everything(ready(root, classes=[7, 2]).splits[0])


@pytest.mark.parametrize(
    "hue", [0, 29, 30, 31, 59.9, 60, 90, 119, 120, 150, 179, 180, 210, 240, 270, 299, 300, 330, 359]
)
def test_hues_are_those_of_hsv(hue: float) -> None:
    """The VP-SDE seminar rounds H/60 and has half of all hues in the wrong sector: 30 … 59 first among them."""
    grey = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    shown = colored(grey, torch.tensor([float(hue)]))[0].reshape(3, 256)
    for value in (0, 1, 100, 255):
        expected = np.array(colorsys.hsv_to_rgb(hue / 360, 1, value / 255)) * 255
        assert np.abs(shown[:, value].numpy() - expected).max() <= 0.51


def test_colours_depend_on_the_image_not_on_chosen_classes(root: Path) -> None:
    whole = ready(root, colored=True, conditional=True, val_fraction=0.0)
    twos = ready(root, classes=[2], colored=True, val_fraction=0.0)
    assert (twos.shape, twos.conditions) == ((3, 28, 28), {})
    for k in (0, 2):
        batch = everything(whole.splits[k])
        assert torch.equal(everything(twos.splits[k])["x"], batch["x"][batch["label"] == 2])


def test_hues_depend_on_split_and_seed_only(root: Path) -> None:
    states = torch.get_rng_state(), np.random.get_state(legacy=False)["state"]["key"].copy()

    def first_colours(split: int, seed: int) -> list[list[float]]:
        x = everything(ready(root, colored=True, val_fraction=0.0, seed=seed).splits[split])["x"][:20].float()
        brightest = x.flatten(2).amax(2)
        return (brightest / brightest.amax(1, keepdim=True)).round(decimals=1).tolist()

    kinds = [first_colours(split, seed) for split, seed in ((0, 0), (2, 0), (0, 1), (2, 1))]
    assert all(a != b for i, a in enumerate(kinds) for b in kinds[:i])
    assert first_colours(0, 0) == kinds[0]
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state(legacy=False)["state"]["key"], states[1])


def test_black_stays_black_and_the_value_is_the_grey(root: Path) -> None:
    grey = everything(ready(root, val_fraction=0.0).splits[0])["x"]
    bright = everything(ready(root, colored=True, val_fraction=0.0).splits[0])["x"]
    assert torch.equal(bright.amax(1, keepdim=True), grey)
    assert (bright.amin(1) == 0).all()


@pytest.mark.parametrize(
    ("name", "classes", "is_colored"),
    [
        ("MNIST", None, False),
        ("MNIST-colored", None, True),
        ("MNIST-colored_2", [2], True),
        ("MNIST_2_3", [2, 3], False),
        ("MNIST-colored_9_0", [9, 0], True),
    ],
)
def test_names_as_in_the_seminar(root: Path, name: str, classes: Any, is_colored: bool) -> None:
    short = ready(root, name=name, conditional=True)
    long = ready(root, classes=classes, colored=is_colored, conditional=True)
    assert short.shape == long.shape
    for key in ("x", "label"):
        assert torch.equal(everything(short.splits[0])[key], everything(long.splits[0])[key])


def test_resizing_comes_before_colour(root: Path) -> None:
    grey = everything(ready(root, size=16, val_fraction=0.0).splits[0])["x"]
    bright = everything(ready(root, size=16, colored=True, val_fraction=0.0).splits[0])["x"]
    assert grey.shape[1:] == (1, 16, 16)
    assert torch.equal(bright.amax(1, keepdim=True), grey)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "MNIST-coloured"}, "name must be MNIST, -colored if so, and _digit for each class, got 'MNIST-colou"),
        ({"name": "MNIST_2", "classes": [3]}, "name 'MNIST_2' contradicts classes or colored"),
        ({"name": "MNIST_2", "colored": True}, "contradicts classes or colored"),
        ({"classes": [2, 2]}, r"classes must be different numbers from 0 to 9, got \[2, 2\]"),
        ({"classes": [10]}, r"classes must be different numbers from 0 to 9, got \[10\]"),
        ({"classes": []}, r"classes must be different numbers from 0 to 9, got \[\]"),
    ],
)
def test_bad_choices_are_refused(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MNIST(**options)


@pytest.mark.parametrize(("download", "how"), [(True, "and cannot be fetched"), (False, "and download is false")])
def test_files_that_are_not_there_and_cannot_be_had(tmp_path: Path, download: bool, how: str) -> None:
    with pytest.raises(
        ValueError, match=rf"MNIST: its files are not in '.*none' {how} \(.*\)\. Fix: give --data\.root"
    ):
        MNIST(str(tmp_path / "none"), download=download).prepare_data()


def test_a_stand_in_is_called_one(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ready(root)
    assert "MNIST/raw is a synthetic stand-in, not the real data" in capsys.readouterr().out
