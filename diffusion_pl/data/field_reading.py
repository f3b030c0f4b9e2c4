"""The format of fields, and files of fields or a mask in it."""

import re
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..conditions import Condition, Conditions
from .axes import as_stored, channels_first, example_shape, image_axes
from .float_files import Array, ArrayFile, open_arrays
from .units import Standardized


class FieldFormat(NamedTuple):
    """Format of fields.

    shape: (C, *sizes);  conditions: what else batches hold;  axes: of the file's array, such as NHWC;  dtype: of its
    numbers;  kind: format of the file, see float_files;  key: name of the array in it, None: it has none.
    """

    shape: tuple[int, ...]
    conditions: Conditions = MappingProxyType({})
    axes: str = "NCHW"
    dtype: str = "float32"
    kind: str = "npy"
    key: str | None = None


def real(name: str, array: Array, as_float: bool) -> np.dtype[Any]:
    """The type in which an array's numbers are kept: float16, float32 or float64.

    Raises:
        ValueError: it is empty, or not of real numbers.
    """
    kind, size = array.dtype.kind, array.dtype.itemsize
    if 0 in array.shape or not array.shape:
        raise ValueError(f"{name}: holds no fields, its shape is {array.shape}")
    if kind in "iub" and as_float:
        return np.dtype(np.float32 if size <= 2 else np.float64)
    if kind in "iub":
        raise ValueError(
            f"{name}: fields must be real numbers, got {array.dtype}. Fix: set data.as_float to true, or for images "
            "with quantization levels give --data Arrays"
        )
    if kind != "f":
        raise ValueError(f"{name}: fields must be real numbers, got {array.dtype}: save them as float32")
    return np.dtype({2: np.float16, 4: np.float32}.get(size, np.float64))


def read_fields(path: Path, format: FieldFormat, as_float: bool) -> NDArray[Any]:
    """All fields of a file of these axes, (N, C, *sizes); a single one may lack the axis N.

    Raises:
        ValueError: no such file, or its fields are of another shape, or not real numbers.
    """
    array, axes = _only(open_arrays(path), format.key), format.axes
    real(str(path), array, as_float)
    shapes = (array.shape, (1, *array.shape))
    shape = next((s for s in shapes if len(s) == len(axes) and example_shape(s, axes) == format.shape), None)
    if shape is None:
        like = as_stored(np.empty((1, *format.shape), np.uint8), axes).shape[1:]
        expected = f"(N, {', '.join(map(str, like))})"
        raise ValueError(f"{path}: expected fields of shape {expected}, as the model's, got {array.shape}")
    return channels_first(array.rows.read(np.arange(array.shape[0])).reshape(shape), axes)


def read_mask(path: Path, format: FieldFormat) -> NDArray[np.bool_]:
    """One mask of the fields' sizes, with or without channels and N: (1, 1, *sizes), where all channels are above 0.

    Raises:
        ValueError: no such file, or it holds another shape.
    """
    array = _only(open_arrays(path), None)
    for shape in (array.shape, (1, *array.shape)):
        axes = image_axes(shape, format.axes, format.shape[1:])
        if axes is not None and shape[0] == 1:
            rows = array.rows.read(np.arange(array.shape[0])).reshape(shape)
            return np.asarray((channels_first(rows, axes) > 0).all(1, keepdims=True))
    raise ValueError(f"{path}: expected one mask of shape {format.shape[1:]}, got {array.shape}")


def read_condition(name: str, condition: Condition, axes: str, units: Standardized, given: Any) -> Tensor:
    """Values of a condition in model units, of what a person gives in the user's units: (K, *shape), float32.

    Args:
        name: of the condition.
        condition: a vector, a sequence or an image.
        axes: of the fields.
        units: of the condition.
        given: path of a file of arrays with one value or K of them; of a vector also its numbers, "0.3, 1" or [0.3, 1].

    Raises:
        ValueError: no such file, or values of another shape.
    """
    values = None
    if condition.kind == "vector" and not (isinstance(given, (str, Path)) and Path(given).expanduser().exists()):
        try:
            numbers = re.split(r"[,\s]+", given.strip(" []()")) if isinstance(given, str) else given
            values = np.asarray(numbers, dtype=np.float64).reshape(-1, *condition.shape)
        except (TypeError, ValueError):
            what = "a number" if condition.shape == (1,) else f"{condition.shape[0]} numbers"
            raise ValueError(f"cond.{name}: expected {what}, or the path of a file; got {given}") from None
    else:
        array = _only(open_arrays(Path(str(given)).expanduser()), name)
        for shape in (array.shape, (1, *array.shape), (*array.shape, 1)):
            laid = image_axes(shape, axes, condition.shape[1:]) if condition.kind == "image" else None
            if (shape[1:] if laid is None else example_shape(shape, laid)) == condition.shape:
                rows = array.rows.read(np.arange(array.shape[0])).reshape(shape).astype(np.float64)
                values = rows if laid is None else np.ascontiguousarray(channels_first(rows, laid))
                break
        if values is None:
            size = f"{condition.kind} of shape {condition.shape}"
            raise ValueError(f"cond.{name}: {given}: expected the {size}, got an array of shape {array.shape}")
    return units.encode(torch.from_numpy(values)).float()


def _only(file: ArrayFile, key: str | None) -> Array:
    """The array of that name, or the only one."""
    return file.array(file.chosen(key if file.names is not None and key in file.names else None))
