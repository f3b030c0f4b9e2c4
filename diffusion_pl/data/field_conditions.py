"""Conditions of fields from arrays: which kind an array is follows from its numbers and its shape."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import Tensor

from ..conditions import Condition, check_own_name, label
from .arrays import ArrayRows, check_labels
from .axes import example_shape, image_axes
from .field_source import Column
from .float_files import Array, ArrayFile, open_arrays


class ConditionColumn(NamedTuple):
    """A condition, the array of its values, and of a label all of them: (N,)."""

    condition: Condition
    column: Column
    labels: Tensor | None = None


def find(name: str, where: str, file: ArrayFile) -> Array:
    """The array of a condition: one of the fields' file, or that of another file, next to it if its path is relative.

    Raises:
        ValueError: there is none, or the other file holds several.
    """
    if file.names is not None and where in file.names:
        return file.array(where)
    other = file.path.parent / Path(where).expanduser()
    if not other.exists():
        there = ", ".join((file.names or [])[:20])
        raise ValueError(
            f"data.conditions.{name}: {where} is neither an array of {file.path} ({there or 'which has no names'}) nor "
            f"a file at {other}"
        )
    arrays = open_arrays(other)
    if arrays.names is not None and len(arrays.names) != 1:
        raise ValueError(f"data.conditions.{name}: {other} holds {len(arrays.names)} arrays, expected one")
    return arrays.array(arrays.chosen(None))


def condition_column(name: str, array: Array, length: int, fields: Column) -> ConditionColumn:
    """What kind of condition an array is.

    Integers (N,) are a label; floats (N,) or (N, D) a vector; floats of the sizes of the fields, with the same axes or
    without channels, an image; other floats (N, L, D) a sequence.

    Args:
        name: of the condition.
        array: its values.
        length: N, of the fields.
        fields: the fields themselves.

    Raises:
        ValueError: it is none of these, or of another length.
    """
    place, shape, assumed = f"data.conditions.{name}", array.shape, fields.axes or ""
    check_own_name(name)
    if not shape or shape[0] != length or 0 in shape:
        raise ValueError(f"{place}: expected one value for each of {length:,} examples, got the shape {shape}")
    if array.dtype.kind in "iu" and len(shape) == 1:
        labels = check_labels(place, np.asarray(array.rows.read(np.arange(length))), length, None)
        rows = ArrayRows(labels.numpy())
        return ConditionColumn(label(int(labels.max()) + 1), Column(rows, None, np.dtype(np.int64), ()), labels)
    if array.dtype.kind != "f":
        raise ValueError(f"{place}: got {array.dtype} {shape}: integers must be (N,), a label; save others as float32")
    dtype = np.dtype({2: np.float16, 4: np.float32}.get(array.dtype.itemsize, np.float64))
    axes = image_axes(shape, assumed, fields.shape[1:])
    if axes is not None:
        image = example_shape(shape, axes)
        return ConditionColumn(Condition(image, image=len(image) == 2), Column(array.rows, axes, dtype, image))
    if len(shape) > 3:
        raise ValueError(
            f"{place}: an image must have the sizes of the fields, {fields.shape[1:]}, got the shape {shape}"
        )
    one = shape[1:] or (1,)
    return ConditionColumn(Condition(one), Column(array.rows, None, dtype, one))
