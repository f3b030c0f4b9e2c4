"""Axes of an array of fields by their letters: N of the examples, C of the channels, all others are spatial.

In memory every field is (C, *sizes); files may have the channels elsewhere, or none.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

MOST = 4  # entries of an axis that is taken for the channels without asking
SPATIAL = {2: ("NL",), 3: ("NCL", "NLC", "NHW"), 4: ("NCHW", "NHWC", "NDHW"), 5: ("NCDHW", "NDHWC")}


def axes_of(name: str, shape: Sequence[int], given: str | None) -> str:
    """The axes of an array, given or inferred.

    They are inferred if there are two (NL), or if one of the second and the last axis has at most 4 entries and the
    other has more: that one is the channels.

    Args:
        name: of the array, for messages.
        shape: of the array.
        given: such as NHWC; None: to be inferred.

    Raises:
        ValueError: it is no name of axes, or of another number of them, or they cannot be inferred.
    """
    axes = len(shape)
    if given is not None:
        check_axes(given)
        if len(given) != axes:
            raise ValueError(
                f"{name}: data.axes {given} names {len(given)} axes, the array has the shape {_text(shape)}"
            )
        return given
    if axes == 2:
        return "NL"
    if axes not in SPATIAL:
        raise ValueError(
            f"{name}: fields have 2 to 5 axes, examples and channels included, got the shape {_text(shape)}"
        )
    second, last = shape[1] <= MOST, shape[-1] <= MOST
    if second == last:
        choices = ", ".join(SPATIAL[axes])
        raise ValueError(f"{name}: which axes has the shape {_text(shape)}? Fix: give --data.axes, such as {choices}")
    spatial = {3: "L", 4: "HW", 5: "DHW"}[axes]
    return f"NC{spatial}" if second else f"N{spatial}C"


def check_axes(axes: str) -> None:
    """Raise ValueError unless axes are N first, at most one C, and one to three others, all different."""
    spatial = axes.replace("N", "").replace("C", "")
    fine = axes.isascii() and axes.isalpha() and axes.isupper() and len(set(axes)) == len(axes)
    if not fine or not axes.startswith("N") or not 1 <= len(spatial) <= 3:
        raise ValueError(
            f"data.axes must be N (examples) first, C (channels) if there are some, and 1 to 3 spatial axes, such as "
            f"NCHW, NHWC, NHW, NL or NCDHW; got {axes!r}"
        )


def example_shape(shape: Sequence[int], axes: str) -> tuple[int, ...]:
    """(C, *sizes) of one example of an array of this shape."""
    channels = shape[axes.index("C")] if "C" in axes else 1
    return (channels, *(n for n, letter in zip(shape, axes, strict=True) if letter not in "NC"))


def channels_first(rows: NDArray[Any], axes: str) -> NDArray[Any]:
    """Rows of a file as (n, C, *sizes)."""
    return rows[:, None] if "C" not in axes else np.moveaxis(rows, axes.index("C"), 1)


def as_stored(x: NDArray[Any], axes: str) -> NDArray[Any]:
    """The inverse of `channels_first`."""
    return x[:, 0] if "C" not in axes else np.moveaxis(x, 1, axes.index("C"))


def image_axes(shape: Sequence[int], axes: str, sizes: Sequence[int]) -> str | None:
    """The axes of an array that goes with fields, if it is one of images of their sizes; None: it is not.

    Args:
        shape: of the array.
        axes: of the fields.
        sizes: of the fields, without the channels.
    """
    bare = axes.replace("C", "")
    for known in dict.fromkeys((axes, bare, f"NC{bare[1:]}", f"{bare}C")):
        if len(known) == len(shape) and example_shape(shape, known)[1:] == tuple(sizes):
            return known
    return None


def _text(shape: Sequence[int]) -> str:
    return f"({', '.join(map(str, shape))})"
