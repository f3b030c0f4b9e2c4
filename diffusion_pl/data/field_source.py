"""Arrays of fields as a source of batches."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .axes import channels_first
from .float_files import Rows
from .loader import Batch, Source, Tensors

BLOCK_BYTES = 2**25  # read at a time


class Column(NamedTuple):
    """An array that batches hold a part of.

    rows: as the file has them;  axes: of fields and images, None: the rows are taken as they are;  dtype: that they
    get;  shape: of one example, (C, *sizes) of a field.
    """

    rows: Rows
    axes: str | None
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def bytes_each(self) -> int:
        """Bytes of one example."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def read(self, sorted_indices: NDArray[np.int64]) -> Tensor:
        """Examples at ascending indices, (n, *shape)."""
        rows = self.rows.read(sorted_indices)
        rows = rows if self.axes is None else channels_first(rows, self.axes)
        return torch.from_numpy(np.ascontiguousarray(rows, dtype=self.dtype)).reshape(len(rows), *self.shape)


class FieldSource:
    """Examples that are read from their files, a batch in one piece.

    Args:
        columns: by the names that they have in a batch, n rows each.
        length: n.
    """

    def __init__(self, columns: Mapping[str, Column], length: int) -> None:
        self.columns, self.length = dict(columns), length

    def __len__(self) -> int:
        return self.length

    @property
    def bytes_each(self) -> int:
        """Bytes of one example in memory."""
        return sum(column.bytes_each for column in self.columns.values())

    @property
    def block(self) -> int:
        """Examples that are read at a time where all are."""
        return max(1, BLOCK_BYTES // max(1, self.bytes_each))

    def __getitems__(self, indices: Tensor) -> Batch:
        # In ascending order and each once: files are read forwards.
        distinct, place = np.unique(indices.numpy(), return_inverse=True)
        order = torch.from_numpy(place)
        return {name: column.read(distinct).index_select(0, order) for name, column in self.columns.items()}


def blocks(source: Source, size: int) -> Iterator[tuple[int, Batch]]:
    """All examples in order, `size` at a time, with the number of the first; a progress bar if it takes long."""
    from tqdm.auto import tqdm

    firsts = range(0, len(source), size)
    for first in tqdm(firsts, "reading", delay=2, leave=False, dynamic_ncols=True):
        yield first, source.__getitems__(torch.arange(first, min(first + size, len(source))))


def in_memory(source: FieldSource) -> Tensors:
    """All examples as tensors."""
    parts = [batch for _, batch in blocks(source, source.block)]
    return Tensors({name: torch.cat([part[name] for part in parts]) for name in source.columns})
