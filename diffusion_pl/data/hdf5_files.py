"""Read datasets of HDF5 files that are not trusted: what is missing, elsewhere or only declared is refused."""

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .opening import Unreadable, regular

CHUNK_CACHE = 256 * 2**20  # bytes for each process


class HDF5Rows:
    """Rows of a dataset, which every process opens for itself when it first reads.

    Args:
        path: The file.
        dataset: Name of the dataset.
    """

    def __init__(self, path: Path, dataset: str) -> None:
        self.path, self.dataset = path, dataset
        self.array: Any = None
        self.process = 0  # which has opened the file

    def read(self, sorted_indices: NDArray[np.int64]) -> NDArray[Any]:
        """Rows at ascending indices."""
        # A worker must not read through a file that it has inherited open.
        if self.array is None or self.process != os.getpid():
            file = open_hdf5(self.path)
            self.array, self.process = _rows(dataset_of(file, self.dataset, str(self.path))), os.getpid()
        if isinstance(self.array, np.memmap):
            rows: NDArray[Any] = self.array[sorted_indices]
            return rows
        # One read for each run of neighbours: with a list of indices h5py takes several times as long.
        ends = [*np.flatnonzero(np.diff(sorted_indices) != 1).tolist(), len(sorted_indices) - 1]
        parts, first = [self.array[:0]], 0
        for last in ends if len(sorted_indices) else []:
            begin, end = int(sorted_indices[first]), int(sorted_indices[last]) + 1
            # A lone row by its number, which is h5py's fastest way.
            parts.append(self.array[begin:end] if end - begin > 1 else self.array[begin][None])
            first = last + 1
        return np.concatenate(parts)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "array": None}  # an open file cannot be handed to another process


def _rows(dataset: Any) -> Any:
    """The dataset, past the HDF5 library if its rows follow one another in the file: a gather instead of reads."""
    offset = dataset.id.get_offset()
    if dataset.chunks is not None or offset is None or dataset.external or not dataset.dtype.isnative:
        return dataset
    return np.memmap(dataset.file.filename, dataset.dtype, "r", offset, dataset.shape)


def open_hdf5(path: Path) -> Any:
    import h5py

    try:
        regular(path)
        # Room for many unpacked chunks: a shuffled batch touches most of them, and the next one touches them again.
        return h5py.File(path, "r", rdcc_nbytes=CHUNK_CACHE, rdcc_nslots=100_003)
    except (Unreadable, OSError) as error:
        raise ValueError(f"{path}: not an HDF5 file, or damaged ({str(error)[:80]}): create it again") from None


def dataset_of(file: Any, name: str, where: str) -> Any:
    """The dataset of this name, whose values are all in this file."""
    import h5py

    try:
        entry = _follow(file, name, where)
        if isinstance(entry, h5py.Dataset):
            _check_saved(entry, name, where)
    except ValueError:
        raise
    except Exception as error:  # damage makes the library raise nearly anything
        raise ValueError(f"{where}: dataset {name!r} cannot be read ({str(error)[:80]}): create it again") from None
    if not isinstance(entry, h5py.Dataset):
        there: list[str] = []

        def note(key: str, item: Any) -> int | None:
            if isinstance(item, h5py.Dataset):
                there.append(f"{key} {item.shape}")
            return len(there) if len(there) == 20 else None  # ends the walk

        file.visititems(note)
        raise ValueError(f"{where}: has no dataset {name!r}: it has {', '.join(there) or 'none'}")
    return entry


def datasets(file: Any) -> list[str]:
    """Names of the datasets in an open file."""
    import h5py

    names: list[str] = []
    file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
    return names


def _follow(group: Any, name: str, where: str, links: int = 0) -> Any:
    """What a path within the file leads to, None if to nothing; links to other files are not opened."""
    import h5py

    item = group.file if name.startswith("/") else group
    for part in filter(None, name.split("/")):
        link = item.get(part, getlink=True) if isinstance(item, h5py.Group) else None
        if isinstance(link, h5py.ExternalLink):
            raise ValueError(
                f"{where}: {name!r} leads to another file, {link.filename!r}, which is not read: set path to that file"
            )
        if isinstance(link, h5py.SoftLink):
            if links > 20:
                raise ValueError(f"{where}: {name!r} leads through more than 20 links: name the dataset itself")
            item = _follow(item, link.path, where, links + 1)
        else:
            item = None if link is None else item[part]
    return item


def _check_saved(dataset: Any, name: str, where: str) -> None:
    """Refuse a dataset whose values are elsewhere, or that was declared and not written: they would be made up."""
    if dataset.external or dataset.is_virtual:
        raise ValueError(
            f"{where}: the values of dataset {name!r} are in other files (external storage or a virtual dataset), "
            "which are not read: copy them into one file"
        )
    if dataset.shape is None or dataset.size == 0:
        return  # `describe` and `check_labels` say so
    saved = dataset.id.get_storage_size()
    if dataset.chunks is None:
        missing = saved < dataset.nbytes
    else:
        chunks = math.prod(-(-side // chunk) for side, chunk in zip(dataset.shape, dataset.chunks, strict=True))
        missing = dataset.id.get_num_chunks() < chunks
    if missing:
        raise ValueError(
            f"{where}: dataset {name!r} declares shape {dataset.shape}, {dataset.nbytes / 2**30:,.3g} GiB, and only a "
            f"part of it is in the file ({saved:,} bytes): write all of it"
        )
