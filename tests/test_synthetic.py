"""Stand-ins: made by the command line, in the real files, called what they are, never over the real ones."""

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from diffusion_pl.data import HDF5, MNIST, Arrays, FashionMNIST, Folder, Images, synthetic

DATA: dict[str, Any] = {
    "mnist": lambda root: MNIST(str(root), download=False),
    "fashion_mnist": lambda root: FashionMNIST(str(root), download=False),
    "shoes": lambda root: HDF5(str(root / "shoes_64.hdf5"), "imgs"),
    "celeba_male": lambda root: Folder(str(root / "celeba_male")),
    "anime": lambda root: Folder(str(root / "anime")),
    "church": lambda root: Arrays(str(root / "church.npz")),
}
SHAPES = {"mnist": (1, 28, 28), "fashion_mnist": (1, 28, 28), "celeba_male": (3, 218, 178)}


def test_there_is_a_stand_in_for_each_original_data_set() -> None:
    assert DATA.keys() == synthetic.MAKERS.keys()


@pytest.mark.parametrize("name", DATA)
def test_it_is_read_as_the_real_one_and_called_a_stand_in(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert synthetic.main([name, "--root", str(tmp_path), "--count", "30"]) == 0
    assert "30 drawings in place of" in capsys.readouterr().out
    data: Images = DATA[name](tmp_path)
    data.setup()
    assert "is a synthetic stand-in, not the real data" in capsys.readouterr().out
    assert data.shape == SHAPES.get(name, (3, 64, 64))
    x = data.splits[0].__getitems__(torch.arange(20))["x"].float()
    assert x.flatten(1).std(1).min() > 5  # something is drawn
    assert torch.cdist(x.flatten(1), x.flatten(1)).add(1e6 * torch.eye(20)).min() > 0  # and each is another


def test_the_drawings_are_a_function_of_the_seed(tmp_path: Path) -> None:
    for folder, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        assert synthetic.main(["church", "--root", str(tmp_path / folder), "--count", "12", "--seed", seed]) == 0
    a, b, c = (np.load(tmp_path / folder / "church.npz")["arr_0"] for folder in "abc")
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)


@pytest.mark.parametrize("name", DATA)
def test_what_is_there_is_left_as_it_is(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert synthetic.main([name, "--root", str(tmp_path), "--count", "10"]) == 0
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert synthetic.main([name, "--root", str(tmp_path), "--count", "10", "--seed", "1"]) == 2
    assert "exists already" in capsys.readouterr().err
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
def test_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["synthetic", "shoes", "--count", "10"])
    with pytest.raises(SystemExit) as end:
        runpy.run_module("diffusion_pl.data.synthetic", run_name="__main__")  # as python -m does
    assert end.value.code == 0
    assert capsys.readouterr() == ("data/shoes_64.hdf5: 10 drawings in place of shoes; not the real data\n", "")


def test_too_few_drawings_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert synthetic.main(["shoes", "--count", "3", "--root", str(tmp_path / "x")]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.endswith("--count must be at least 10 and --seed at least 0, got 3 and 0\n")
