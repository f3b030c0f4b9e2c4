"""Images in numpy files: axes, types, labels, sizes, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import by_class

from diffusion_pl.data import Arrays
from diffusion_pl.data.arrays import Stack

RNG = np.random.default_rng(0)
X = RNG.integers(0, 256, (20, 8, 6, 3), dtype=np.uint8)


def npz(folder: Path, **arrays: Any) -> str:
    np.savez(folder / "x.npz", **arrays)
    return str(folder / "x.npz")


def npy(folder: Path, array: Any, name: str = "x.npy") -> str:
    np.save(folder / name, array)
    return str(folder / name)


def ready(path: str, **options: Any) -> Arrays:
    data = Arrays(path, **({"batch_size": 4, "val_fraction": 0.0} | options))
    data.setup()
    return data


def pixels_of(data: Arrays) -> np.ndarray:
    x: np.ndarray = data.splits[0].__getitems__(torch.arange(len(data.splits[0])))["x"].numpy()
    return x


@pytest.mark.parametrize("memory_gb", [1.0, 0.0])
@pytest.mark.parametrize("write", [npy, lambda folder, x: npz(folder, x=x)], ids=["npy", "npz"])
@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (X, X.transpose(0, 3, 1, 2)),
        (X.transpose(0, 3, 1, 2), X.transpose(0, 3, 1, 2)),
        (X[..., :1], X[..., :1].transpose(0, 3, 1, 2)),
        (X[..., 0], X[:, None, :, :, 0]),
        (257 * X[..., 0].astype(np.uint16), 257 * X[:, None, :, :, 0].astype(np.int32)),
    ],
    ids=["NHWC", "NCHW", "NHW1", "NHW", "16 bits"],
)
def test_images_are_channels_first(
    write: Any, array: Any, expected: np.ndarray, memory_gb: float, tmp_path: Path
) -> None:
    data = ready(write(tmp_path, array), memory_gb=memory_gb)
    assert data.shape == expected.shape[1:]
    assert data.units.levels == (65_536 if expected.dtype == np.int32 else 256)
    assert np.array_equal(pixels_of(data), expected)
    assert (pixels_of(data).dtype) == expected.dtype
    x = torch.from_numpy(expected)
    assert torch.equal(data.decode(data.units.encode(x)), x)


def test_an_ambiguous_order_must_be_given(tmp_path: Path) -> None:
    square = RNG.integers(0, 256, (10, 3, 4, 3), dtype=np.uint8)
    path = npy(tmp_path, square)
    with pytest.raises(ValueError, match=r"which axis of \(10, 3, 4, 3\) are the channels\? Give order: NHWC or order"):
        ready(path)
    assert ready(path, order="NHWC").shape == (3, 3, 4)
    assert ready(path, order="NCHW").shape == (3, 4, 3)
    many = npy(tmp_path, RNG.integers(0, 256, (10, 7, 4, 5), dtype=np.uint8))
    with pytest.raises(ValueError, match="are the channels"):
        ready(many)
    assert ready(many, order="NCHW").shape == (7, 4, 5)


def test_reads_in_any_order_and_with_repetitions(tmp_path: Path) -> None:
    for memory_gb in (0.0, 1.0):
        data = ready(npy(tmp_path, X), memory_gb=memory_gb)
        indices = torch.tensor([7, 2, 7, 19, 0, 2])
        assert np.array_equal(data.splits[0].__getitems__(indices)["x"].numpy(), X.transpose(0, 3, 1, 2)[indices])
    asked: list[list[int]] = []

    class Listening(Stack):
        def read(self, sorted_indices: Any) -> Any:
            asked.append(sorted_indices.tolist())
            return super().read(sorted_indices)

    Listening(X, "NHWC", None, None).__getitems__(indices)
    assert asked == [[0, 2, 7, 19]]


def test_labels_from_the_same_file_or_another(tmp_path: Path) -> None:
    y = np.arange(20) % 3
    (tmp_path / "both").mkdir()
    for path, labels in (
        (npz(tmp_path / "both", x=X, y=y), "y"),
        (npz(tmp_path, x=X), npy(tmp_path, y, "y.npy")),
        (npy(tmp_path, X), npy(tmp_path, y, "y.npy")),
    ):
        for memory_gb in (0.0, 1.0):
            data = ready(path, labels=labels, memory_gb=memory_gb)
            assert data.conditions == by_class(3)
            batch = next(iter(data.train_dataloader()))
            for x, label in zip(batch["x"], batch["label"], strict=True):
                assert label == y[next(i for i in range(20) if np.array_equal(X[i].transpose(2, 0, 1), x))]
    assert ready(path, labels=labels, classes=5).conditions == by_class(5)


@pytest.mark.parametrize(
    ("labels", "classes", "message"),
    [
        (np.arange(20), 10, r"label 10 of image 10 is outside 0 … 9"),
        (np.arange(20) - 1, None, r"label -1 of image 0 is outside 0 … 999999"),
        (np.arange(19), None, r"labels must be one integer for each of 20 images, got int64 \(19,\)"),
        (np.arange(20.0), None, r"labels must be one integer for each of 20 images, got float64 \(20,\)"),
    ],
)
def test_bad_labels_are_refused(labels: Any, classes: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        ready(npz(tmp_path, x=X, y=labels), labels="y", classes=classes)


@pytest.mark.parametrize("memory_gb", [1.0, 0.0])
def test_resizing(memory_gb: float, tmp_path: Path) -> None:
    fine = ((np.indices((64, 64)).sum(0) % 2) * 255).astype(np.uint8)
    data = ready(npy(tmp_path, np.stack([fine] * 10)), size=9, memory_gb=memory_gb)
    assert data.shape == (1, 9, 9)
    assert np.abs(pixels_of(data).astype(int) - 127).max() < 20


class Evil:
    """Would leave a file behind if it were unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (open, (self.path, "w"))


@pytest.mark.parametrize("write", [npy, lambda folder, x: npz(folder, x=x)], ids=["npy", "npz"])
def test_pickles_are_refused_unread(write: Any, tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    array = np.empty(2, object)
    array[:] = [Evil(str(trap)), 1]
    with pytest.raises(ValueError, match="holds Python objects, which can run code when read and are refused"):
        ready(write(tmp_path, array))
    assert not trap.exists()


def test_floats_are_refused_with_how_to_convert(tmp_path: Path) -> None:
    message = r"uint8 or uint16, got float32.*astype\('uint8'\)"
    with pytest.raises(ValueError, match=message):
        ready(npy(tmp_path, X.astype(np.float32)))


@pytest.mark.parametrize(
    ("arrays", "options", "message"),
    [
        ({"a": X, "b": X}, {}, "which array holds the images? give key, one of 'a', 'b'"),
        ({"a": X}, {"key": "c"}, "has no array 'c': give key, one of 'a'"),
        ({"a": X[0, 0]}, {}, "images need 3 or 4 axes, (N, H, W) or with channels, got shape (6, 3)"),
    ],
)
def test_which_array(arrays: Any, options: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"x\.npz: ") as error:
        ready(npz(tmp_path, **arrays), **options)
    assert message in str(error.value)


def test_files_that_are_none_or_damaged(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError,
        match=r"church\.npz: no such file\. Fix: give --data\.path FILE, or .* python -m diffusion_pl\.data\.synthetic",
    ):
        ready(str(tmp_path / "church.npz"))
    for name, content in (("a.npy", b"no"), ("a.npz", b"no"), ("b.npz", Path(npz(tmp_path, x=X)).read_bytes()[:500])):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=r"not a numpy file, or damaged|holds Python objects"):
            ready(str(tmp_path / name))
    with pytest.raises(ValueError, match=r"a \.npy file holds one array: leave key = 'x' out"):
        ready(npy(tmp_path, X), key="x")


def test_checkpoint_state_does_not_allow_real_values(tmp_path: Path) -> None:
    state = ready(npy(tmp_path, X)).state_dict()
    data = Arrays(npy(tmp_path, X / np.float32(255)))
    data.load_state_dict(state)
    with pytest.raises(ValueError, match=r"got float32.*0 to 1"):
        data.setup()


def test_a_checkpoints_state_serves_where_the_file_is_not(tmp_path: Path) -> None:
    state = ready(npy(tmp_path, X)).state_dict()
    data = Arrays(str(tmp_path / "none.npy"))
    data.load_state_dict(state)
    assert (data.shape, data.conditions, data.units.levels) == ((3, 8, 6), {}, 256)


def test_memory_mapped_arrays_are_pickled_by_path(tmp_path: Path) -> None:
    import pickle

    many = np.tile(X, (50, 1, 1, 1))
    source = ready(npy(tmp_path, many), memory_gb=0.0).splits[0].source  # type: ignore[attr-defined]
    pickled = pickle.dumps(source)
    assert len(pickled) < 2000 < many.nbytes
    indices = torch.tensor([999, 3, 3])
    assert torch.equal(pickle.loads(pickled).__getitems__(indices)["x"], source.__getitems__(indices)["x"])


@pytest.mark.parametrize(
    ("array", "advice"),
    [
        (X.astype(np.int64), r"x\.astype\('uint8'\)"),
        (X.astype(">i4") * 200, r"x\.astype\('uint16'\)"),
        (X.astype(np.float16) / 255, r"\(255 \* x\)"),
        (X / 127.5 - 1, r"\(x \+ 1\) \* 127\.5"),
        (X.astype(np.float32), r"x\.astype\('uint8'\)"),
        (X.astype(np.int16) - 100, r"np\.interp"),
        (X > 100, r"255 \* x\.astype\('uint8'\)"),
        (np.where(X > 9, X, np.nan), "NaN or infinity"),
        (np.zeros((3, 4, 4), "c8"), "save the pixel values as plain numbers"),
        (np.zeros((3, 4, 4), [("a", "u1")]), "save the pixel values as plain numbers"),
    ],
)
def test_advice_for_other_types_is_right(array: Any, advice: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"images must be uint8 or uint16, got .*{advice}"):
        ready(npy(tmp_path, array))


def test_byte_order_and_fortran_order_are_read(tmp_path: Path) -> None:
    deep = (X[..., 0].astype(np.uint16) * 257).astype(">u2")
    for array in (deep, np.asfortranarray(deep)):
        data = ready(npy(tmp_path, array))
        assert data.units.levels == 65_536
        assert np.array_equal(pixels_of(data)[:, 0], deep)


def test_bits_of_uint16(tmp_path: Path) -> None:
    twelve = X[..., 0].astype(np.uint16) * 16
    path = npy(tmp_path, twelve)
    data = ready(path, bits=12)
    assert data.units.levels == 4096
    assert np.array_equal(pixels_of(data)[:, 0], twelve)
    for memory_gb in (1.0, 0.0):
        with pytest.raises(ValueError, match="beyond 11 bits: remove the option bits"):
            pixels_of(ready(path, bits=11, memory_gb=memory_gb))
    with pytest.raises(ValueError, match="remove the option bits"):
        ready(npy(tmp_path, X), bits=12)


def header(shape: str, dtype: str = "|u1") -> bytes:
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


@pytest.mark.parametrize("shape", ["(1000000, 8000, 8000)", "(10000000000000, 10000000000000, 3)", "(-5, 8, 8)"])
def test_headers_that_declare_too_much_are_refused(shape: str, tmp_path: Path) -> None:
    import zipfile

    (tmp_path / "a.npy").write_bytes(header(shape) + bytes(64))
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as file:
        file.writestr("x.npy", header(shape) + bytes(64))
    for name in ("a.npy", "a.npz"):
        with pytest.raises(ValueError, match=r"not a numpy file, or damaged"):
            ready(str(tmp_path / name))


def test_an_npz_of_another_zip_version_is_one_line(tmp_path: Path) -> None:
    path = Path(npz(tmp_path, x=X))
    content = bytearray(path.read_bytes())
    content[content.rindex(b"PK\x01\x02") + 6] = 255  # version needed
    path.write_bytes(content)
    with pytest.raises(ValueError, match="not a numpy file, or damaged"):
        ready(str(path))


def test_an_npz_larger_than_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = npz(tmp_path, x=X)
    monkeypatch.setattr("diffusion_pl.data.numpy_files._free_memory", lambda: 1000)
    with pytest.raises(ValueError, match=r"GiB of memory.*save it as \.npy"):
        ready(path)


@pytest.mark.parametrize(
    ("labels", "fix"),
    [
        (np.arange(20) % 2 == 0, r"astype\('int64'\)"),
        (np.eye(4)[np.arange(20) % 4], r"argmax\(1\)"),
        (np.full(20, np.nan), r"astype\('int64'\), if they are whole"),
        (np.full(20, 2**63, np.uint64), "is outside 0"),
        (np.full(20, 10**12), "is outside 0"),
    ],
)
def test_labels_of_other_kinds_are_advised(labels: Any, fix: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=fix):
        ready(npz(tmp_path, x=X, y=labels), labels="y")


def test_empty_and_ragged_arrays_are_refused(tmp_path: Path) -> None:
    for array in (X[:0], X[:, :0], np.uint8(3)):
        with pytest.raises(ValueError, match=r"x\.np[yz]: "):
            ready(npz(tmp_path, x=array))


def test_copies_in_an_array_stay_in_one_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = ready(npy(tmp_path, np.concatenate((X, X))), val_fraction=0.4)
    train, val, _ = ({x.numpy().tobytes() for x in s.__getitems__(torch.arange(len(s)))["x"]} for s in data.splits)
    assert len(train) + len(val) == 20
    assert "20 of 40 images are copies" in capsys.readouterr().out
