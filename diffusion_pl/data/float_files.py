"""Files of arrays: .npy, .npz, HDF5 and zarr, read by rows and written again in the same format."""

import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from .arrays import ArrayRows
from .hdf5_files import HDF5Rows, dataset_of, datasets, open_hdf5
from .numpy_files import NumpyFile
from .opening import Unreadable, regular

Kind = Literal["npy", "npz", "h5", "zarr2", "zarr3"]
LAYOUTS: dict[str, str] = {"npy": ".npy", "npz": ".npz", "h5": ".h5", "zarr2": ".zarr", "zarr3": ".zarr"}


class Rows(Protocol):
    """Rows of an array."""

    def read(self, sorted_indices: NDArray[np.int64]) -> NDArray[Any]:
        """Rows at ascending indices."""
        ...


class Array(NamedTuple):
    """An array of a file.  shape: (N, *);  dtype: of its values;  rows: read as needed."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    rows: Rows


class ArrayFile(ABC):
    """Named arrays of a file that is there.

    Attributes:
        path: of the file, or of a zarr folder.
        kind: its format.
        names: of its arrays; None: it has one without a name.
    """

    path: Path
    kind: Kind
    names: list[str] | None

    @abstractmethod
    def array(self, name: str | None) -> Array:
        """The array of this name; ValueError if it is damaged."""

    def chosen(self, key: str | None, *others: str) -> str | None:
        """The array that `key` names, or the only one besides `others`.

        Raises:
            ValueError: there is no such array, or it is not clear which is meant.
        """
        if self.names is None:
            if key is not None:
                raise ValueError(f"{self.path}: holds one array without a name. Fix: remove data.key ({key})")
            return None
        left = [name for name in self.names if name not in others]
        if key is None and len(left) == 1:
            return left[0]
        if key not in self.names:
            listed = ", ".join(self.names[:20]) or "none"
            problem = "which array holds the fields?" if key is None else f"has no array {key!r}."
            raise ValueError(f"{self.path}: {problem} Fix: give --data.key, one of: {listed}")
        return key


class _Numpy(ArrayFile):
    def __init__(self, path: Path) -> None:
        self.path, self._file = path, NumpyFile(path)
        self.names = self._file.names
        self.kind = "npy" if self.names is None else "npz"
        self._read: dict[str | None, NDArray[Any]] = {}  # of an .npz, whose arrays are read whole

    def array(self, name: str | None) -> Array:
        if name not in self._read:
            self._read[name] = self._file.array(name)
        values = self._read[name]
        return Array(values.shape, values.dtype, ArrayRows(values))


class _HDF5(ArrayFile):
    kind = "h5"

    def __init__(self, path: Path) -> None:
        self.path = path
        with open_hdf5(path) as file:
            self.names = datasets(file)

    def array(self, name: str | None) -> Array:
        assert name is not None
        with open_hdf5(self.path) as file:
            dataset = dataset_of(file, name, str(self.path))
            return Array(dataset.shape or (), dataset.dtype, HDF5Rows(self.path, name))


class _Zarr(ArrayFile):
    def __init__(self, path: Path) -> None:
        self.path, content = path, _opened_zarr(path)
        self.kind = "zarr2" if content.metadata.zarr_format == 2 else "zarr3"
        self.names = None
        if not hasattr(content, "dtype"):  # a group, not a single array
            self.names = sorted(name for name, item in content.members(max_depth=None) if hasattr(item, "dtype"))

    def array(self, name: str | None) -> Array:
        rows = ZarrRows(self.path, name)
        values = rows.opened()
        return Array(values.shape, np.dtype(values.dtype), rows)


class ZarrRows:
    """Rows of an array in a zarr folder, which every process opens for itself.

    Args:
        path: of the folder.
        name: of the array; None: the folder is one array.
    """

    def __init__(self, path: Path, name: str | None) -> None:
        self.path, self.name = path, name
        self._array: Any = None
        self._process = 0  # which has opened it

    def opened(self) -> Any:
        """The array, open in this process."""
        if self._array is None or self._process != os.getpid():
            self._array, self._process = _opened_zarr(self.path, self.name), os.getpid()
        return self._array

    def read(self, sorted_indices: NDArray[np.int64]) -> NDArray[Any]:
        """Rows at ascending indices."""
        array = self.opened()
        first, count = int(sorted_indices[0]) if len(sorted_indices) else 0, len(sorted_indices)
        together = count and sorted_indices[-1] - first == count - 1
        try:
            rows: NDArray[Any] = array[first : first + count] if together else array.oindex[sorted_indices]
        except Exception as error:  # a damaged chunk makes the library raise nearly anything
            name = self.name or "the array"
            raise ValueError(f"{self.path}: a chunk of {name} is damaged ({_reason(error)}): create it again") from None
        return rows

    def gaps(self) -> str:
        """Which chunks are not in the folder, in a line; "" if all are, or if they are read as NaN."""
        array = self.opened()
        missing, fill = array.nchunks - array.nchunks_initialized, array.fill_value or 0
        if not missing or not np.isfinite(fill):
            return ""
        name = self.name or "the array"
        return (
            f"{missing:,} of {array.nchunks:,} chunks of {name} are not in the folder and are read as its fill value "
            f"{fill:g}. If they were never written, set the fill value to NaN"
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_array": None}


def gaps(rows: Rows) -> str:
    """What is not there of rows and is read as a number all the same, in a line; "" if nothing is missing."""
    return rows.gaps() if isinstance(rows, ZarrRows) else ""


def open_arrays(path: Path) -> ArrayFile:
    """The arrays of a file, whose format follows from its content; of a folder, zarr's.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, of another format, or zarr is not installed.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file. Fix: give --data.path FILE")
    if path.is_dir():
        return _Zarr(path)
    try:
        with regular(path).open("rb") as file:
            start = file.read(8)
    except (Unreadable, OSError) as error:
        raise ValueError(f"{path}: cannot be read as arrays ({error}): create it again") from None
    if start == b"\x89HDF\r\n\x1a\n":
        return _HDF5(path)
    if start[:6] != b"\x93NUMPY" and start[:4] != b"PK\x03\x04":
        raise ValueError(f"{path}: expected .npy, .npz, HDF5 or a zarr folder, got another format: convert it")
    return _Numpy(path)


def write_array(folder: Path, stem: str, kind: str, name: str | None, values: NDArray[Any]) -> Path:
    """Write one array into a folder that is there: stem.npy, .npz, .h5 or .zarr.

    Args:
        folder: of the file.
        stem: name of the file without its ending.
        kind: see Kind.
        name: of the array in the file; None: of a .npy, or of zarr's single array.
        values: the array.

    Returns:
        The file, or the folder of zarr.

    Raises:
        ValueError: zarr is not installed.
    """
    path = folder / f"{stem}{LAYOUTS[kind]}"
    if kind == "npy":
        np.save(path, values)
    elif kind == "npz":
        np.savez(path, **{str(name): values})  # type: ignore[arg-type]
    elif kind == "h5":
        import h5py

        with h5py.File(path, "w") as file:
            file[name] = values
    else:
        options = {"data": values, "chunks": (1, *values.shape[1:]), "zarr_format": int(kind[-1])}
        _zarr(path).create_array(path, name=name, **options)
    return path


def _zarr(path: Path) -> Any:
    try:
        import zarr
    except ImportError:
        raise ValueError(
            f"{path}: a zarr folder needs the package zarr. Fix: pip install 'diffusion_pl[zarr]'"
        ) from None
    return zarr


def _opened_zarr(path: Path, name: str | None = None) -> Any:
    """The array or the group of a zarr folder, or an array of the group."""
    zarr = _zarr(path)
    try:
        return zarr.open(path if name is None else path / name, mode="r")
    except Exception as error:  # damage makes the library raise nearly anything
        what = "not a zarr folder, or damaged" if name is None else f"the array {name!r} is damaged"
        raise ValueError(f"{path}: {what} ({_reason(error)}): create it again") from None


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:80] or type(error).__name__
