"""Pictures in a numpy file."""

import zipfile
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .images import Examples, Format, Images
from .loader import Batch, Source, Tensors
from .pictures import Size, check_size, resize_array
from .stand_ins import stand_in_hint, tell_if_stand_in

Order = Literal["NHWC", "NCHW"]


class Stack:
    """Pictures along the first axis of anything indexed like an array, read in one piece for a batch.

    Args:
        array: (N, H, W), (N, H, W, C) or (N, C, H, W), integers.
        order: Which of these; None for (N, H, W).
        labels: (N,), or None.
        size: To resize to, or None.
    """

    def __init__(self, array: Any, order: Order | None, labels: Tensor | None, size: tuple[int, int] | None) -> None:
        self.array, self.order, self.labels, self.size = array, order, labels, size

    def __getstate__(self) -> dict[str, Any]:
        # What another process is given: of an array on the disk, where it lies; pickled, it would be all of its values.
        mapped = isinstance(self.array, np.memmap) and self.array.filename is not None
        return {**self.__dict__, "array": Path(self.array.filename) if mapped else self.array}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if isinstance(self.array, Path):
            self.array = np.load(self.array, mmap_mode="r", allow_pickle=False)

    def __len__(self) -> int:
        return int(self.array.shape[0])

    def read(self, sorted_indices: NDArray[np.int64]) -> NDArray[Any]:
        """Rows at ascending indices."""
        rows: NDArray[Any] = self.array[sorted_indices]
        return rows

    def __getitems__(self, indices: Tensor) -> Batch:
        # In ascending order and each once: files are read forwards, and HDF5 insists on it.
        wanted, place = np.unique(indices.numpy(), return_inverse=True)
        x = torch.from_numpy(prepared(self.read(wanted), self.order, self.size)).index_select(
            0, torch.from_numpy(place)
        )
        return {"x": x} if self.labels is None else {"x": x, "label": self.labels[indices]}


class Arrays(Images):
    """Pictures in a .npy or .npz file: (N, H, W), (N, H, W, C) or (N, C, H, W) of uint8 or uint16.

    Args:
        path: The file.
        key: Name of the array within an .npz; None: the only one.
        labels: Name of the array of labels within the .npz, or path of another .npy; None: no labels.
        classes: Number of classes; None: the largest label and one.
        order: NHWC or NCHW; None: found by the number of channels, 1, 3 or 4.
        size: Side, or height and width, to which pictures are cropped in shape and resized; None: as they are.
        horizontal_flip: Mirror training pictures at random.
        batch_size: Pictures per batch, over all processes.
        val_fraction: Fraction of the pictures to hold out for validation.
        test_fraction: Fraction to hold out for testing; with 0 the validation pictures serve.
        repeats: Passes over the training pictures that make one epoch; None: as many as make about 100 batches.
        memory_gb: Keep the pictures in memory if they take no more; a larger .npy is read from the disk as needed.
        workers: Processes that read ahead where pictures are not in memory.
        seed: Chooses the split, the order and the augmentation.
    """

    def __init__(
        self,
        path: str,
        key: str | None = None,
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
        self.key, self.label_name, self.given_classes, self.order = key, labels, classes, order
        self.size, self.memory_gb = check_size("Arrays", size), memory_gb
        self._loaded: tuple[NDArray[Any], Tensor | None] | None = None

    def _load(self) -> tuple[NDArray[Any], Tensor | None]:
        """The array, on the disk if it is a .npy, and the labels."""
        if self._loaded is None:
            path = Path(self.source).expanduser()
            content = _numpy_file(path)
            array = content
            if not isinstance(content, np.ndarray):
                array = content[choose(self.source, self.key, list(content), self.label_name)]
            elif self.key is not None:
                raise ValueError(f"{self.source}: a .npy file holds one array: leave key = {self.key!r} out")
            labels = None
            if self.label_name is not None:
                if not isinstance(content, np.ndarray) and self.label_name in content:
                    values = content[self.label_name]
                else:
                    values = _numpy_file(Path(self.label_name).expanduser())
                labels = check_labels(self.source, np.asarray(values), len(array), self.given_classes)
            self._loaded = array, labels
        return self._loaded

    def inspect(self) -> Format:
        array, labels = self._load()
        shape, levels = describe(self.source, array, self.order, self.size)
        return Format(shape, number_of_classes(labels, self.given_classes), levels)

    def examples(self) -> Examples:
        tell_if_stand_in(Path(self.source).expanduser())
        array, labels = self._load()
        # Also where a checkpoint has told the format: real numbers would become zeros.
        describe(self.source, array, self.order, self.size)
        self._loaded = None  # or what is in memory would stay there twice
        order = order_of(self.source, array.shape, self.order)
        stack = Stack(array, order, labels, self.size)
        return Examples(in_memory(stack, self.format, self.memory_gb), labels)


def in_memory(stack: Stack, format: Format, memory_gb: float) -> Source:
    """The pictures as tensors if these take no more than memory_gb, else the stack as it is."""
    if len(stack) * np.prod(format.shape) * (1 if format.levels <= 256 else 4) > memory_gb * 1e9:
        return stack
    parts = [stack.__getitems__(torch.arange(i, min(i + 1000, len(stack)))) for i in range(0, len(stack), 1000)]
    return Tensors({name: torch.cat([part[name] for part in parts]) for name in parts[0]}) if parts else stack


def prepared(rows: NDArray[Any], order: Order | None, size: tuple[int, int] | None) -> NDArray[Any]:
    """Pictures as (N, C, H, W), uint8 or int32, resized."""
    if order is None:
        rows = rows[:, None]
    elif order == "NHWC":
        rows = rows.transpose(0, 3, 1, 2)
    if rows.dtype != np.uint8:
        rows = rows.astype(np.int32)
    if size is not None and rows.shape[2:] != size:
        rows = np.stack([resize_array(row, size) for row in rows])
    return np.ascontiguousarray(rows)


def order_of(name: str, shape: tuple[int, ...], order: Order | None) -> Order | None:
    """NHWC or NCHW, given or found; None for pictures without an axis of channels."""
    if len(shape) == 3:
        return None
    if len(shape) != 4:
        raise ValueError(f"{name}: pictures need 3 or 4 axes, (N, H, W) or with channels, got shape {tuple(shape)}")
    if order is not None:
        return order
    last, second = shape[3] in (1, 3, 4), shape[1] in (1, 3, 4)
    if last == second:
        raise ValueError(f"{name}: which axis of {tuple(shape)} are the channels? Give order: NHWC or order: NCHW")
    return "NHWC" if last else "NCHW"


def describe(
    name: str, array: Any, order: Order | None, size: tuple[int, int] | None
) -> tuple[tuple[int, int, int], int]:
    """(C, H, W) and levels of an array of pictures, or of a dataset of HDF5."""
    shape, dtype = array.shape, array.dtype
    if dtype not in (np.uint8, np.uint16):
        some = np.asarray(array[:100]) if len(shape) and dtype.kind in "iufb" else np.empty(0)
        values = f" (the first go from {some.min():g} to {some.max():g})" if some.size else ""
        raise ValueError(
            f"{name}: pictures must be uint8 or uint16, got {dtype}: convert them{values}, for instance "
            "(255 * x).round().astype('uint8') for x in [0, 1]"
        )
    found = order_of(name, shape, order)
    axes = {None: (1, 2), "NHWC": (1, 2), "NCHW": (2, 3)}[found]
    channels = {None: 1, "NHWC": shape[-1], "NCHW": shape[1]}[found]
    height, width = size or (shape[axes[0]], shape[axes[1]])
    return (channels, height, width), 256 if dtype == np.uint8 else 65_536


def check_labels(name: str, values: NDArray[Any], length: int, classes: int | None) -> Tensor:
    """Labels as (N,), int64.

    Raises:
        ValueError: not one integer for each picture, or one outside 0 … classes − 1.
    """
    if values.shape != (length,) or not np.issubdtype(values.dtype, np.integer):
        raise ValueError(
            f"{name}: labels must be one integer for each of {length} pictures, got {values.dtype} {values.shape}"
        )
    wrong = np.flatnonzero((values < 0) | (values >= (classes or np.inf)))
    if len(wrong):
        allowed = f"0 … {classes - 1}" if classes else "0 and up"
        raise ValueError(
            f"{name}: label {values[wrong[0]]} of picture {wrong[0]} is outside {allowed}: mend the labels"
        )
    return torch.from_numpy(values.astype(np.int64))


def number_of_classes(labels: Tensor | None, classes: int | None) -> int | None:
    """As given, or the largest label and one; None without labels."""
    return None if labels is None else classes or int(labels.max()) + 1


def choose(name: str, key: str | None, there: list[str], *others: str | None) -> str:
    """Which of the named arrays holds the pictures."""
    candidates = [k for k in there if k not in others]
    if key is None and len(candidates) == 1:
        return candidates[0]
    if key is None or key not in there:
        problem = "which array holds the pictures?" if key is None else f"has no array {key!r}:"
        raise ValueError(f"{name}: {problem} give key, one of {', '.join(map(repr, there))}")
    return key


def _numpy_file(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file: mend path{stand_in_hint(path)}")
    try:
        if path.suffix == ".npy":
            return np.load(path, mmap_mode="r", allow_pickle=False)
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except ValueError as error:
        if "pickle" in str(error).lower() or "object" in str(error).lower():
            raise ValueError(
                f"{path}: holds Python objects, which can run code when read and are refused: save it as plain uint8"
            ) from None
        raise ValueError(f"{path}: not a numpy file, or damaged ({str(error)[:80]}): make it anew") from None
    except (OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: not a numpy file, or damaged ({str(error)[:80]}): make it anew") from None
