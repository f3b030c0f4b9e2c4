"""Images in an HDF5 file."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arrays import ImageArrays, Stack, check_labels, conditions_of, describe, in_memory, order_of, same_values
from .hdf5_files import HDF5Rows, dataset_of, open_hdf5
from .images import Examples, Format
from .stand_ins import stand_in_hint, tell_if_stand_in


class HDF5(ImageArrays):
    """Images in a dataset of an HDF5 file: (N, H, W), (N, H, W, C) or (N, C, H, W) of uint8 or uint16.

    Args:
        path: The file.
        dataset: Name of the dataset within it.
        kwargs: Of `ImageArrays` and `Images`.
    """

    def __init__(self, path: str, dataset: str, **kwargs: Any) -> None:
        super().__init__(path, **kwargs)
        self.dataset = dataset

    def _stack(self) -> "FileStack":
        path = Path(self.source).expanduser()
        if not path.exists():
            raise FileNotFoundError(f"{self.source}: no such file. Fix: give --data.path FILE{stand_in_hint(path)}")
        file = open_hdf5(path)
        with file:
            array = dataset_of(file, self.dataset, self.source)
            described = describe(self.source, array, self.order, self.size, self.bits)
            labels = None
            if self.label_name is not None:
                values = dataset_of(file, self.label_name, self.source)
                labels = check_labels(self.source, values, len(array), self.given_classes)
            order = order_of(self.source, array.shape, self.order)
            stack = FileStack(path, self.dataset, len(array), *described)
        stack.order, stack.labels, stack.size = order, labels, self.size
        return stack

    def inspect(self) -> Format:
        stack = self._stack()
        return Format(stack.shape, conditions_of(stack.labels, self.given_classes), stack.levels)

    def examples(self) -> Examples:
        tell_if_stand_in(Path(self.source).expanduser())
        stack = self._stack()
        source = in_memory(self.source, stack, self.format, self.memory_gb)
        return Examples(source, stack.labels, groups=same_values(self.source, source))


class FileStack(Stack):
    """A stack in a file.

    Args:
        path: The file.
        dataset: Name of the dataset.
        length: How many images it has.
        shape: (C, H, W) of one, as it is given.
        levels: How many values a channel can take.
    """

    def __init__(self, path: Path, dataset: str, length: int, shape: tuple[int, int, int], levels: int) -> None:
        super().__init__(None, None, None, None)
        self.rows = HDF5Rows(path, dataset)
        self.length, self.shape, self.levels = length, shape, levels

    def __len__(self) -> int:
        return self.length

    def read(self, sorted_indices: NDArray[np.int64]) -> NDArray[Any]:
        return self.rows.read(sorted_indices)
