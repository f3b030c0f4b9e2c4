"""Pictures in an HDF5 file."""

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arrays import Order, Stack, check_labels, describe, in_memory, number_of_classes, order_of
from .images import Examples, Format, Images
from .pictures import Size, check_size
from .stand_ins import stand_in_hint, tell_if_stand_in

CHUNK_CACHE = 256 * 2**20  # bytes for each process


class HDF5(Images):
    """Pictures in a dataset of an HDF5 file: (N, H, W), (N, H, W, C) or (N, C, H, W) of uint8 or uint16.

    Args:
        path: The file.
        dataset: Name of the dataset within it.
        labels: Name of the dataset of labels; None: no labels.
        classes: Number of classes; None: the largest label and one.
        order: NHWC or NCHW; None: found by the number of channels, 1, 3 or 4.
        size: Side, or height and width, to which pictures are cropped in shape and resized; None: as they are.
        horizontal_flip: Mirror training pictures at random.
        batch_size: Pictures per batch, over all processes.
        val_fraction: Fraction of the pictures to hold out for validation.
        test_fraction: Fraction to hold out for testing; with 0 the validation pictures serve.
        repeats: Passes over the training pictures that make one epoch; None: as many as make about 100 batches.
        memory_gb: Keep the pictures in memory if they take no more; else each batch is one read in ascending order.
        workers: Processes that read ahead where pictures are not in memory.
        seed: Chooses the split, the order and the augmentation.
    """

    def __init__(
        self,
        path: str,
        dataset: str,
        labels: str | None = None,
        classes: int | None = None,
        order: Order | None = None,
        size: Size = None,
        horizontal_flip: bool = False,
        batch_size: int = 32,
        val_fraction: float = 0.1,
        test_fraction: float = 0.0,
        repeats: int | None = None,
        memory_gb: float = 2.0,
        workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(
            str(path),
            batch_size=batch_size,
            horizontal_flip=horizontal_flip,
            val_fraction=val_fraction,
            test_fraction=test_fraction,
            repeats=repeats,
            workers=workers,
            seed=seed,
        )
        self.dataset, self.label_name, self.given_classes, self.order = dataset, labels, classes, order
        self.size, self.memory_gb = check_size("HDF5", size), memory_gb

    def _stack(self) -> "FileStack":
        path = Path(self.source).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"{self.source}: no such file: mend path{stand_in_hint(path)}")
        file = _opened(path)
        with file:
            array = _dataset(file, self.dataset, self.source)
            described = describe(self.source, array, self.order, self.size)
            labels = None
            if self.label_name is not None:
                values = _dataset(file, self.label_name, self.source)[()]
                labels = check_labels(self.source, np.asarray(values), len(array), self.given_classes)
            order = order_of(self.source, array.shape, self.order)
            stack = FileStack(path, self.dataset, len(array), *described)
        stack.order, stack.labels, stack.size = order, labels, self.size
        return stack

    def inspect(self) -> Format:
        stack = self._stack()
        return Format(stack.shape, number_of_classes(stack.labels, self.given_classes), stack.levels)

    def examples(self) -> Examples:
        tell_if_stand_in(Path(self.source).expanduser())
        stack = self._stack()
        return Examples(in_memory(stack, self.format, self.memory_gb), stack.labels)


class FileStack(Stack):
    """A stack in a file, which every process opens for itself when it first reads.

    Args:
        path: The file.
        dataset: Name of the dataset.
        length: How many pictures it has.
        shape: (C, H, W) of one, as it is given.
        levels: How many values a channel can take.
    """

    def __init__(self, path: Path, dataset: str, length: int, shape: tuple[int, int, int], levels: int) -> None:
        super().__init__(None, None, None, None)
        self.path, self.dataset, self.length, self.shape, self.levels = path, dataset, length, shape, levels
        self.process = 0  # which has opened the file

    def __len__(self) -> int:
        return self.length

    def read(self, sorted_indices: NDArray[np.int64]) -> NDArray[Any]:
        # A worker must not read through a file that it has inherited open.
        if self.array is None or self.process != os.getpid():
            self.array, self.process = _rows(_dataset(_opened(self.path), self.dataset, str(self.path))), os.getpid()
        if isinstance(self.array, np.memmap):
            return self.array[sorted_indices]
        # One read for each run of neighbours: with a list of indices h5py takes several times as long.
        ends = [*np.flatnonzero(np.diff(sorted_indices) != 1).tolist(), len(sorted_indices) - 1]
        rows, first = [self.array[:0]], 0
        for last in ends if len(sorted_indices) else []:
            begin, end = int(sorted_indices[first]), int(sorted_indices[last]) + 1
            # A lone picture by its number, which is h5py's fastest way.
            rows.append(self.array[begin:end] if end - begin > 1 else self.array[begin][None])
            first = last + 1
        return np.concatenate(rows)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "array": None}  # an open file cannot be handed to another process


def _rows(dataset: Any) -> Any:
    """The dataset, past the HDF5 library if its rows lie one after the other in the file: a gather instead of reads."""
    offset = dataset.id.get_offset()
    if dataset.chunks is not None or offset is None or dataset.external or not dataset.dtype.isnative:
        return dataset
    return np.memmap(dataset.file.filename, dataset.dtype, "r", offset, dataset.shape)


def _opened(path: Path) -> Any:
    import h5py

    try:
        # Room for many unpacked chunks: a shuffled batch touches most of them, and the next one touches them again.
        return h5py.File(path, "r", rdcc_nbytes=CHUNK_CACHE, rdcc_nslots=100_003)
    except OSError as error:
        raise ValueError(f"{path}: not an HDF5 file, or damaged ({str(error)[:80]}): make it anew") from None


def _dataset(file: Any, name: str, where: str) -> Any:
    import h5py

    there: list[str] = []
    file.visititems(lambda key, item: there.append(f"{key} {item.shape}") if isinstance(item, h5py.Dataset) else None)
    if name not in file or not isinstance(file[name], h5py.Dataset):
        raise ValueError(f"{where}: has no dataset {name!r}: it has {', '.join(there) or 'none'}")
    return file[name]
