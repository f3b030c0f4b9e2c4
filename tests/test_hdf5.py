"""Images in HDF5 files: one read per batch, a file for every process, and what is refused."""

import pickle
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from conftest import by_class

from diffusion_pl.data import HDF5
from diffusion_pl.data.hdf5 import FileStack

RNG = np.random.default_rng(0)
X = RNG.integers(0, 256, (30, 8, 6, 3), dtype=np.uint8)
Y = np.arange(30) % 4


@pytest.fixture
def path(tmp_path: Path) -> str:
    with h5py.File(tmp_path / "x.hdf5", "w") as file:
        file["imgs"], file["group/labels"] = X, Y
        file["deep"] = 257 * X[..., 0].astype(np.uint16)
    return str(tmp_path / "x.hdf5")


def ready(path: str, dataset: str = "imgs", **options: Any) -> HDF5:
    data = HDF5(path, dataset, **({"batch_size": 4} | options))
    data.setup()
    return data


@pytest.mark.parametrize("memory_gb", [1.0, 0.0])
def test_images_and_labels(path: str, memory_gb: float) -> None:
    data = ready(path, labels="group/labels", val_fraction=0.0, memory_gb=memory_gb)
    assert (data.shape, data.conditions, data.units.levels) == ((3, 8, 6), by_class(4), 256)
    indices = torch.tensor([7, 2, 7, 29, 0, 2])
    batch = data.splits[0].__getitems__(indices)
    assert np.array_equal(batch["x"].numpy(), X.transpose(0, 3, 1, 2)[indices])
    assert batch["label"].tolist() == Y[indices].tolist()
    assert isinstance(data.splits[0].source, FileStack) == (memory_gb == 0)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "indices", [[], [5], [3, 4, 5], [29, 28, 0, 1, 1, 14], list(range(30)), [9, 7, 5, 3], [0, 29, 0, 29]]
)
def test_a_batch_equals_its_images_read_one_by_one(path: str, indices: list[int]) -> None:
    source = ready(path, memory_gb=0.0, val_fraction=0.0).splits[0]
    x = source.__getitems__(torch.tensor(indices, dtype=torch.long))["x"]
    assert np.array_equal(x.numpy(), X.transpose(0, 3, 1, 2)[indices])


@pytest.mark.parametrize("options", [{}, {"chunks": (4, 8, 6, 3)}, {"chunks": (4, 8, 6, 3), "compression": "gzip"}])
def test_every_file_layout_is_read_in_any_order(tmp_path: Path, options: Any) -> None:
    with h5py.File(tmp_path / "y.hdf5", "w") as file:
        file.create_dataset("other", data=np.arange(1000))  # so that the images do not start where the file does
        file.create_dataset("imgs", data=X, **options)
    source = ready(str(tmp_path / "y.hdf5"), val_fraction=0.0, memory_gb=0.0).splits[0]
    for indices in ([29], [3, 4, 5, 12, 11], [7, 2, 7, 29, 0, 2, 1], list(range(30))):
        x = source.__getitems__(torch.tensor(indices))["x"]
        assert np.array_equal(x.numpy(), X.transpose(0, 3, 1, 2)[indices])


def test_sixteen_bits_without_channels(path: str) -> None:
    data = ready(path, "deep", val_fraction=0.0)
    assert (data.shape, data.units.levels) == ((1, 8, 6), 65_536)
    x = data.splits[0].__getitems__(torch.arange(30))["x"]
    assert np.array_equal(x[:, 0].numpy(), 257 * X[..., 0].astype(np.int64))


@pytest.mark.parametrize("workers", [0, 2])
def test_streaming_gives_the_batches_that_memory_gives(path: str, workers: int) -> None:
    memory = ready(path, labels="group/labels", size=4, repeats=1).train_dataloader()
    stream = ready(path, labels="group/labels", size=4, repeats=1, memory_gb=0.0, workers=workers).train_dataloader()
    for mine, theirs in zip(stream, memory, strict=True):
        assert torch.equal(mine["x"], theirs["x"])
        assert torch.equal(mine["label"], theirs["label"])


def test_an_open_file_is_not_pickled(path: str) -> None:
    data = ready(path, memory_gb=0.0)
    source = data.splits[0]
    first = source.__getitems__(torch.arange(3))["x"]
    again = pickle.loads(pickle.dumps(source))
    assert again.source.array is None
    assert torch.equal(again.__getitems__(torch.arange(3))["x"], first)


def test_what_is_refused(path: str, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"has no dataset 'images': it has deep \(30, 8, 6\), group/labels \(30,\), imgs"
    ):
        ready(path, "images")
    with pytest.raises(ValueError, match=r"has no dataset 'group': it has deep"):
        ready(path, "group")
    with pytest.raises(ValueError, match="has no dataset 'labels'"):
        ready(path, labels="labels")
    with pytest.raises(ValueError, match="label 3 of image 3 is outside 0 … 2"):
        ready(path, labels="group/labels", classes=3)
    with pytest.raises(
        FileNotFoundError,
        match=r"shoes_64\.hdf5: no such file\. Fix: give --data\.path FILE, .*diffusion_pl\.data\.synthetic shoes$",
    ):
        ready(str(tmp_path / "shoes_64.hdf5"))
    (tmp_path / "no.hdf5").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"no\.hdf5: not an HDF5 file, or damaged \(.*\): create it again"):
        ready(str(tmp_path / "no.hdf5"))
    with h5py.File(tmp_path / "float.hdf5", "w") as file:
        file["imgs"] = X / 255
    with pytest.raises(ValueError, match="images must be uint8 or uint16, got float64"):
        ready(str(tmp_path / "float.hdf5"))


def test_checkpoint_state_does_not_allow_real_values(path: str, tmp_path: Path) -> None:
    state = ready(path).state_dict()
    with h5py.File(tmp_path / "float.hdf5", "w") as file:
        file["imgs"] = X / 255
    data = HDF5(str(tmp_path / "float.hdf5"), "imgs")
    data.load_state_dict(state)
    assert data.shape == (3, 8, 6)
    with pytest.raises(ValueError, match=r"got float64.*0 to 1"):
        data.setup()


def test_a_forked_process_reopens_the_file(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source = ready(path, memory_gb=0.0).splits[0].source  # type: ignore[attr-defined]
    first = source.__getitems__(torch.arange(3))["x"]
    mine = source.rows.array
    assert torch.equal(source.__getitems__(torch.arange(3))["x"], first)
    assert source.rows.array is mine
    monkeypatch.setattr("os.getpid", lambda: -1)  # as in a process forked from this one
    assert torch.equal(source.__getitems__(torch.arange(3))["x"], first)
    assert source.rows.array is not mine


def test_data_sets_that_were_declared_and_not_written(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.hdf5", "w") as file:
        file.create_dataset("imgs", (50_000, 1000, 1000, 3), "u1", chunks=(1, 1000, 1000, 3))
        file.create_dataset("half", (4, 8, 6, 3), "u1", chunks=(2, 8, 6, 3))[:2] = X[:2]
        file.create_dataset("flat", (10**6, 1000, 1000), "u1")
        file.create_dataset("labels", (10**11,), "i8", chunks=(1000,))
        file["few"], file["null"] = X, h5py.Empty("u1")
        file["pairs"] = np.zeros(3, [("a", "u1"), ("b", "f4")])
        file["words"] = ["a", "b"]
        file["wide"] = np.zeros((1, 1), np.uint8)
    path = str(tmp_path / "x.hdf5")
    for name in ("imgs", "half", "flat"):
        with pytest.raises(ValueError, match=rf"{name}.*only a part of it is in the file"):
            ready(path, name)
    with pytest.raises(ValueError, match=r"labels.*only a part of it is in the file"):
        ready(path, "few", labels="labels")
    for name, message in (
        ("null", "no images"),
        ("pairs", "uint8 or uint16"),
        ("words", "uint8 or uint16"),
        ("wide", "axes"),
    ):
        with pytest.raises(ValueError, match=message):
            ready(path, name)
    with pytest.raises(ValueError, match="labels must be one integer"):
        ready(path, "few", labels="words")


def test_values_in_other_files_are_not_read(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(30 * 48))
    with h5py.File(tmp_path / "other.hdf5", "w") as file:
        file["imgs"] = X
    with h5py.File(tmp_path / "x.hdf5", "w") as file:
        file.create_dataset("imgs", (30, 8, 6), "u1", external=[(str(secret), 0, 30 * 48)])
        file["link"] = h5py.ExternalLink(str(tmp_path / "other.hdf5"), "imgs")
        file["group"] = h5py.ExternalLink(str(tmp_path / "other.hdf5"), "/")
        file["soft"] = h5py.SoftLink("/group/imgs")
        file["loop"] = h5py.SoftLink("/loop")
        virtual = h5py.VirtualLayout(X.shape, "u1")
        virtual[:] = h5py.VirtualSource(str(tmp_path / "other.hdf5"), "imgs", X.shape)
        file.create_virtual_dataset("virtual", virtual)
        file["here"], file["alias"] = X, h5py.SoftLink("/here")
    path = str(tmp_path / "x.hdf5")
    for name in ("imgs", "virtual"):
        with pytest.raises(ValueError, match="are in other files"):
            ready(path, name)
    for name in ("link", "group/imgs", "soft"):
        with pytest.raises(ValueError, match="leads to another file"):
            ready(path, name)
    with pytest.raises(ValueError, match="more than 20 links"):
        ready(path, "loop")
    assert ready(path, "alias").shape == (3, 8, 6)
