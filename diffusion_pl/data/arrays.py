"""Images in a numpy file."""

import hashlib
import math
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..conditions import Condition, label
from .base import say
from .decoding import Size, check_bits, check_size, resize_array
from .images import Examples, Format, Images
from .loader import Batch, Source, Tensors
from .numpy_files import NumpyFile
from .opening import MAX_PIXELS
from .pairs import as_condition, check_pairs, equal_length, paired
from .stand_ins import stand_in_hint, tell_if_stand_in

Order = Literal["NHWC", "NCHW"]


class ArrayRows:
    """Rows of an array along its first axis; one on the disk stays there, in other processes too.

    Args:
        array: anything indexed like an array, (N, *).
    """

    def __init__(self, array: Any) -> None:
        self.array = array

    def __getstate__(self) -> dict[str, Any]:
        # What another process is given: of an array on the disk, where it is; pickled, it would be all of its values.
        mapped = isinstance(self.array, np.memmap) and self.array.filename is not None
        return {**self.__dict__, "array": Path(self.array.filename) if mapped else self.array}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if isinstance(self.array, Path):
            self.array = np.load(self.array, mmap_mode="r", allow_pickle=False)

    def read(self, sorted_indices: NDArray[np.int64]) -> NDArray[Any]:
        """Rows at ascending indices."""
        rows: NDArray[Any] = self.array[sorted_indices]
        return rows


class Stack(ArrayRows):
    """Images along the first axis of anything indexed like an array, read in one piece for a batch.

    Args:
        array: (N, H, W), (N, H, W, C) or (N, C, H, W), integers.
        order: Which of these; None for (N, H, W).
        labels: (N,), or None.
        size: To resize to, or None.
    """

    name, top = "", 65_535  # what to call it in messages, and white

    def __init__(self, array: Any, order: Order | None, labels: Tensor | None, size: tuple[int, int] | None) -> None:
        super().__init__(array)
        self.order, self.labels, self.size = order, labels, size

    def __len__(self) -> int:
        return int(self.array.shape[0])

    def __getitems__(self, indices: Tensor) -> Batch:
        # In ascending order and each once: files are read forwards, and HDF5 insists on it.
        distinct, place = np.unique(indices.numpy(), return_inverse=True)
        rows = self.read(distinct)
        if self.top < 65_535 and rows.size and rows.max() > self.top:
            raise ValueError(
                f"{self.name}: has the value {rows.max()}, beyond {self.top.bit_length()} bits: remove the option bits "
                "or raise it"
            )
        prepared_rows = torch.from_numpy(prepared(rows, self.order, self.size, self.top))
        x = prepared_rows.index_select(0, torch.from_numpy(place))
        return {"x": x} if self.labels is None else {"x": x, "label": self.labels[indices]}


class ImageArrays(Images):
    """Base of images in one array: (N, H, W), (N, H, W, C) or (N, C, H, W) of uint8 or uint16.

    Args:
        path: The file.
        labels: Name of the array of labels in the file, or for `Arrays` also the path of a .npy; None: no labels.
        classes: Number of classes; None: the largest label and one.
        order: NHWC or NCHW; None: inferred from the number of channels, 1, 3 or 4.
        size: Height and width, or one number for both, to which images are cropped in shape and resized; None:
            as they are.
        memory_gb: Keep the images in memory if they take no more; else they are read from the disk as needed.
        bits: How many bits the values of uint16 use, 9 to 16, such as 12: white is 2^bits - 1. None: 16.
        batch_size: Images per batch, over all processes.
        kwargs: Of `Images`: horizontal_flip, val_fraction, test_fraction, workers, repeats, seed.
    """

    def __init__(
        self,
        path: str,
        *,
        labels: str | None = None,
        classes: int | None = None,
        order: Order | None = None,
        size: Size = None,
        memory_gb: float = 2.0,
        bits: int | None = None,
        batch_size: int = 32,
        **kwargs: Any,
    ) -> None:
        super().__init__(str(path), batch_size=batch_size, augment=0.0, **kwargs)
        name = type(self).__name__
        check_bits(name, bits)
        self.label_name, self.given_classes, self.order, self.bits = labels, classes, order, bits
        self.size, self.memory_gb = check_size(name, size), memory_gb


class Arrays(ImageArrays):
    """Images in a .npy or .npz file: (N, H, W), (N, H, W, C) or (N, C, H, W) of uint8 or uint16.

    Args:
        path: The file.
        key: Name of the array within an .npz; None: the only one.
        conditions: Arrays of images that are conditions, {name: key in the file, or path of another file next to it},
            for image-to-image: as many, of the same height and width, in the same order.  None: none.
        kwargs: Of `ImageArrays` and `Images`.
    """

    paths = ("path", "labels", "text_encoder")

    def __init__(
        self, path: str, key: str | None = None, conditions: dict[str, str] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(path, **kwargs)
        self.key, self.pairs = key, check_pairs(conditions or {})
        self._loaded: tuple[NDArray[Any], Tensor | None, dict[str, NDArray[Any]]] | None = None

    def _load(self) -> tuple[NDArray[Any], Tensor | None, dict[str, NDArray[Any]]]:
        """The array, on the disk if it is a .npy, the labels, and the arrays of the conditions."""
        if self._loaded is None:
            file = _numpy_file(Path(self.source).expanduser())
            if file.names is None and self.key is not None:
                raise ValueError(f"{self.source}: a .npy file holds one array: leave key = {self.key!r} out")
            others = self.label_name, *self.pairs.values()
            key = None if file.names is None else choose(self.source, self.key, file.names, *others)
            array = file.array(key)
            labels = None
            if self.label_name is not None:
                if file.names is not None and self.label_name in file.names:
                    values = file.array(self.label_name)
                else:
                    other = _numpy_file(Path(self.label_name).expanduser())
                    values = other.array(None if other.names is None else choose(self.label_name, None, other.names))
                labels = check_labels(self.source, values, array.shape[0] if array.ndim else 0, self.given_classes)
            self._loaded = array, labels, {name: _pair(name, where, file) for name, where in self.pairs.items()}
        return self._loaded

    def inspect(self) -> Format:
        array, labels, pairs = self._load()
        shape, levels = describe(self.source, array, self.order, self.size, self.bits)
        format = Format(shape, conditions_of(labels, self.given_classes), levels)
        conditions = dict(format.conditions)
        for name, pair in pairs.items():
            described = describe(f"data.conditions.{name}", pair, self.order, self.size, self.bits)
            conditions[name] = as_condition(name, self.pairs[name], *described, format)
            equal_length(name, len(pair), len(array))
        return format._replace(conditions=conditions)

    def examples(self) -> Examples:
        tell_if_stand_in(Path(self.source).expanduser())
        self.inspect()  # also where a checkpoint has given the format: real numbers would become zeros
        array, labels, pairs = self._load()
        self._loaded = None  # or what is in memory would stay there twice
        order = order_of(self.source, array.shape, self.order)
        source = in_memory(self.source, Stack(array, order, labels, self.size), self.format, self.memory_gb)
        others: dict[str, Source] = {}
        for name, pair in pairs.items():
            place = f"data.conditions.{name}"
            stack = Stack(pair, order_of(place, pair.shape, self.order), None, self.size)
            format = Format(self.format.conditions[name].shape, levels=self.format.levels)
            others[name] = in_memory(place, stack, format, self.memory_gb)
        return Examples(paired(source, others), labels, groups=same_values(self.source, source))


def in_memory(name: str, stack: Stack, format: Format, memory_gb: float) -> Source:
    """The images as tensors if these take no more than memory_gb, else the stack as it is."""
    stack.name, stack.top = name, format.levels - 1
    if len(stack) * np.prod(format.shape) * (1 if format.levels <= 256 else 4) > memory_gb * 1e9:
        return stack
    parts = [stack.__getitems__(torch.arange(i, min(i + 1000, len(stack)))) for i in range(0, len(stack), 1000)]
    return Tensors({name: torch.cat([part[name] for part in parts]) for name in parts[0]}) if parts else stack


def prepared(rows: NDArray[Any], order: Order | None, size: tuple[int, int] | None, top: int = 65_535) -> NDArray[Any]:
    """Images as (N, C, H, W), uint8 or int32, resized."""
    if order is None:
        rows = rows[:, None]
    elif order == "NHWC":
        rows = rows.transpose(0, 3, 1, 2)
    if rows.dtype != np.uint8:
        rows = rows.astype(np.int32)
    if size is not None and rows.shape[2:] != size:
        rows = np.stack([resize_array(row, size).clip(0, top) for row in rows])
    return np.ascontiguousarray(rows)


def order_of(name: str, shape: tuple[int, ...], order: Order | None) -> Order | None:
    """NHWC or NCHW, given or inferred; None for images without an axis of channels."""
    if len(shape) == 3:
        return None
    if len(shape) != 4:
        raise ValueError(f"{name}: images need 3 or 4 axes, (N, H, W) or with channels, got shape {tuple(shape)}")
    if order is not None:
        return order
    last, second = shape[3] in (1, 3, 4), shape[1] in (1, 3, 4)
    if last == second:
        raise ValueError(f"{name}: which axis of {tuple(shape)} are the channels? Give order: NHWC or order: NCHW")
    return "NHWC" if last else "NCHW"


def describe(
    name: str, array: Any, order: Order | None, size: tuple[int, int] | None, bits: int | None = None
) -> tuple[tuple[int, int, int], int]:
    """(C, H, W) and levels of an array of images, or of a dataset of HDF5."""
    shape, dtype = array.shape, array.dtype
    if shape is None or 0 in shape:
        raise ValueError(f"{name}: holds no images, its shape is {shape}")
    if len(shape) and math.prod(shape[1:]) > 4 * MAX_PIXELS:
        raise ValueError(
            f"{name}: one image of shape {tuple(shape[1:])} is larger than {MAX_PIXELS:,} pixels of 4 channels"
        )
    if dtype.kind != "u" or dtype.itemsize > 2:
        fields = "; or train on the real numbers as they are: --data Fields" if dtype.kind == "f" else ""
        raise ValueError(f"{name}: images must be uint8 or uint16, got {dtype}{_advice(array)}{fields}")
    if bits is not None and dtype.itemsize == 1:
        raise ValueError(f"{name}: bits is for uint16, and these are uint8: remove the option bits")
    axis_order = order_of(name, shape, order)
    axes = {None: (1, 2), "NHWC": (1, 2), "NCHW": (2, 3)}[axis_order]
    channels = {None: 1, "NHWC": shape[-1], "NCHW": shape[1]}[axis_order]
    height, width = size or (shape[axes[0]], shape[axes[1]])
    return (channels, height, width), 256 if dtype.itemsize == 1 else 2 ** (bits or 16)


def _advice(array: Any) -> str:
    """How to make uint8 or uint16 of these values, by their kind and range."""
    kind = array.dtype.kind
    if kind == "b":
        return ": convert them, 255 * x.astype('uint8')"
    if kind not in "iuf" or len(array.shape) < 2:
        return ": save the pixel values as plain numbers"
    some = np.asarray(array[: max(1, min(100, 2**26 // math.prod(array.shape[1:])))])
    if kind == "f" and not np.isfinite(some).all():
        return " with NaN or infinity: replace these, and scale to 0 … 255"
    low, high = float(some.min()), float(some.max())
    if kind == "f" and -1 <= low < 0 and high <= 1:
        fix = "((x + 1) * 127.5).round().astype('uint8')"
    elif kind == "f" and low >= 0 and high <= 1:
        fix = "(255 * x).round().astype('uint8')"
    elif low >= 0 and high <= 65_535 and bool((some == some.round()).all()):
        fix = "x.astype('uint8')" if high <= 255 else "x.astype('uint16')"
    else:
        fix = "np.interp(x, (x.min(), x.max()), (0, 255)).round().astype('uint8')"
    return f": convert them (the first go from {low:g} to {high:g}), for instance {fix}"


_MAX_CLASSES = 1_000_000


def check_labels(name: str, values: Any, length: int, classes: int | None) -> Tensor:
    """Labels as (N,), int64.

    Raises:
        ValueError: not one integer for each image, or one outside 0 … classes − 1.
    """
    shape, kind = values.shape, values.dtype.kind
    if shape != (length,) or kind not in "iu":
        fix = "convert them"
        if shape is not None and len(shape) == 2 and shape[0] == length and kind in "biuf":
            fix = "of one-hot labels take x.argmax(1)" if shape[1] > 1 else "take x[:, 0]"
        elif shape == (length,) and kind in "bf":
            fix = "take x.astype('int64')" + (", if they are whole numbers" if kind == "f" else "")
        raise ValueError(
            f"{name}: labels must be one integer for each of {length} images, got {values.dtype} {shape}: {fix}"
        )
    values = np.asarray(values[()])
    wrong = np.flatnonzero((values < 0) | (values >= (classes or _MAX_CLASSES)))
    if len(wrong):
        allowed = f"0 … {(classes or _MAX_CLASSES) - 1}"
        raise ValueError(
            f"{name}: label {values[wrong[0]]} of image {wrong[0]} is outside {allowed}: correct the labels"
        )
    return torch.from_numpy(values.astype(np.int64))


def conditions_of(labels: Tensor | None, classes: int | None) -> dict[str, Condition]:
    """A label of as many classes as given, or of the largest label and one; {} without labels."""
    return {} if labels is None else {"label": label(classes or int(labels.max()) + 1)}


def choose(name: str, key: str | None, there: list[str], *others: str | None) -> str:
    """Which of the named arrays holds the images."""
    candidates = [k for k in there if k not in others]
    if key is None and len(candidates) == 1:
        return candidates[0]
    if key is None or key not in there:
        problem = "which array holds the images?" if key is None else f"has no array {key!r}:"
        raise ValueError(f"{name}: {problem} give key, one of {', '.join(map(repr, there))}")
    return key


def same_values(name: str, source: Source, what: str = "images") -> Tensor | None:
    """For each example in memory the index of the first with the same values: (n,); None if all differ."""
    if not isinstance(source, Tensors):
        return None  # what is read from the disk as needed is not compared: it would have to be read whole
    first: dict[bytes, int] = {}
    digests = (hashlib.blake2b(row.numpy().tobytes(), digest_size=16).digest() for row in source.tensors["x"])
    groups = torch.tensor([first.setdefault(digest, i) for i, digest in enumerate(digests)])
    copied = len(groups) - len(first)
    if not copied:
        return None
    say(f"{name}: {copied} of {len(groups)} {what} are copies of others and stay in their split")
    return groups


def _pair(name: str, where: str, file: NumpyFile) -> NDArray[Any]:
    """The array of a condition: one of the images' file, or another file's, next to it if its path is relative."""
    if file.names is not None and where in file.names:
        return file.array(where)
    other = file.path.parent / Path(where).expanduser()
    if not other.exists():
        there = ", ".join((file.names or [])[:20]) or "which has no names"
        raise ValueError(
            f"data.conditions.{name}: {where} is neither an array of {file.path} ({there}) nor a file at {other}"
        )
    arrays = NumpyFile(other)
    return arrays.array(None if arrays.names is None else choose(f"data.conditions.{name}", None, arrays.names))


def _numpy_file(path: Path) -> NumpyFile:
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file. Fix: give --data.path FILE{stand_in_hint(path)}")
    return NumpyFile(path)
