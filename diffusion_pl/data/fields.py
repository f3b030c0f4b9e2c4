"""Fields: real numbers on a grid, such as weather, microscopy or spectra, from the user's arrays."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..conditions import Condition, as_prediction, from_plain, to_plain
from .arrays import same_values
from .axes import as_stored, axes_of, check_axes, example_shape
from .base import say
from .field_conditions import ConditionColumn, condition_column, find
from .field_measures import Measured, measure
from .field_reading import FieldFormat, read_condition, read_fields, read_mask, real
from .field_source import Column, FieldSource, in_memory
from .float_files import gaps, open_arrays, write_array
from .indexed import Examples, Indexed
from .loader import Batch, Source
from .units import Standardized


class Fields(Indexed):
    """Real numbers on a grid of 1 to 3 spatial axes, from a .npy, .npz or HDF5 file or a zarr folder.

    Each channel gets zero mean and unit variance over the training split (`Standardized`).  Samples are written in the
    format, axes and units of the file.

    Args:
        path: File, or zarr folder.
        key: Name of the array in an .npz, HDF5 or zarr file; None: the only one.
        axes: Axes of the array, a letter each: N (examples) first, C (channels), the others are spatial: NCHW, NHWC,
            NHW, NCL, NL, NCDHW …; None: inferred where one of the second and the last axis has at most 4 entries.
        conditions: Arrays of the conditions, {name: key in the file, or path of another file next to it}. Integers
            (N,): a label; floats (N,) or (N, D): a vector; fields of the same sizes: an image; other (N, L, D): a
            sequence. None: none.
        residual: Name of the condition that is a prediction of the fields, such as a regression's: the network learns
            the difference, and samples are prediction + difference.  It is scaled as the fields are.  None: none.
        missing: Values that are NaN or infinite: refuse, or mask (0 in model units, and not counted in the loss).
        as_float: Take integers as real numbers; false: they are refused.
        memory_gb: Size up to which the data are kept in memory, in GB; larger data are read from the disk as needed.
        batch_size: Examples per batch, over all processes.
        kwargs: Of `Indexed` and `DataModule`: val_fraction, test_fraction, workers, repeats, seed.
    """

    paths = ("path",)

    def __init__(
        self,
        path: str,
        key: str | None = None,
        axes: str | None = None,
        conditions: dict[str, str] | None = None,
        residual: str | None = None,
        missing: Literal["refuse", "mask"] = "refuse",
        as_float: bool = False,
        memory_gb: float = 2.0,
        batch_size: int = 32,
        **kwargs: Any,
    ) -> None:
        super().__init__(str(path), batch_size=batch_size, **kwargs)
        if axes is not None:
            check_axes(axes)
        self.key, self.given_axes, self.given_conditions = key, axes, dict(conditions or {})
        self.residual = residual
        self.missing, self.as_float, self.memory_gb = missing, as_float, memory_gb
        self._format: FieldFormat | None = None
        self._measured: Measured | None = None

    @property
    def format(self) -> FieldFormat:
        """From the checkpoint where one was loaded, else from the data."""
        if self._format is None:
            super().setup()  # refuses what nobody asked for
            self._format = self._open()[0]
        return self._format

    @property
    def shape(self) -> tuple[int, ...]:
        return self.format.shape

    @property
    def conditions(self) -> dict[str, Condition]:
        return dict(self.format.conditions)

    @property
    def units(self) -> Standardized:
        return self._ready().units

    @property
    def image_shape(self) -> None:
        return None  # whatever the units are, which are not known before the data are read

    @property
    def is_field(self) -> bool:
        return True

    def _ready(self) -> Measured:
        if self._measured is None:
            raise RuntimeError(f"{self.source}: the scaling is not known yet: call setup() or load a checkpoint")
        return self._measured

    def setup(self, stage: str | None = None) -> None:
        """Open or read the fields, split them, look for missing values; measure them unless a checkpoint has."""
        if self._splits is not None or stage == "predict":  # samples are drawn without data
            return
        super().setup(stage)
        if self._saved:
            self._same(self._open()[0])
        (source, rows), masked = self.divide(), self.missing == "mask"
        try:
            self._measured = measure(self.source, source, rows, self.format.conditions, masked, self._measured)
        except ValueError:
            self._splits = None
            raise

    def _open(self) -> tuple[FieldFormat, FieldSource, Tensor | None]:
        """Format, all examples, and the labels by which they are split."""
        path = Path(self.source).expanduser()
        file = open_arrays(path)
        key = file.chosen(self.key, *self.given_conditions.values())
        array = file.array(key)
        dtype, axes = real(self.source, array, self.as_float), axes_of(self.source, array.shape, self.given_axes)
        column = Column(array.rows, axes, dtype, example_shape(array.shape, axes))
        others: dict[str, ConditionColumn] = {}
        for name, where in self.given_conditions.items():
            others[name] = condition_column(name, find(name, where, file), array.shape[0], column)
        conditions = {name: other.condition for name, other in others.items()}
        if self.residual is not None:
            conditions = as_prediction("data.residual", self.residual, conditions, column.shape)
        columns = {"x": column, **{name: other.column for name, other in others.items()}}
        format = FieldFormat(column.shape, conditions, axes, str(dtype), file.kind, key)
        return format, FieldSource(columns, array.shape[0]), others["label"].labels if "label" in others else None

    def examples(self) -> Examples:
        _, source, labels = self._open()
        for line in filter(None, (gaps(column.rows) for column in source.columns.values())):
            say(f"{self.source}: {line}")
        fits = len(source) * source.bytes_each <= self.memory_gb * 1e9
        train: Source = in_memory(source) if fits else source
        return Examples(train, labels, groups=same_values(self.source, train, "fields"))

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Scale on the device; of missing values, make a mask."""
        if "x" not in batch:
            return batch
        measured = self._ready()
        scaled = {name: _scaled(value, measured.of(name)) for name, value in batch.items()}
        if self.missing == "mask":
            observed = scaled["x"].isfinite()
            scaled |= {"x": torch.where(observed, scaled["x"], 0), "observed": observed}
        return scaled

    @property
    def readers(self) -> dict[str, Callable[[Any], Tensor]]:
        """By the name of a condition, what makes its value in model units of a file or of numbers in the user's."""
        scales, format = self._ready().conditions, self.format
        return {n: partial(read_condition, n, format.conditions[n], format.axes, units) for n, units in scales.items()}

    def decode_condition(self, name: str, value: Tensor) -> Tensor:
        units = self._ready().of(name)
        return value if units is None else units.decode(value)

    def second_moment(self) -> float:
        """Mean of x_0² over the values that are not missing of up to 10,000 training examples."""
        train, total, count = self.splits[0], 0.0, 0.0
        some = torch.arange(0, len(train), -(-len(train) // 10_000))
        for first in range(0, len(some), 100):
            x = self._encoded(train.__getitems__(some[first : first + 100])["x"]).double()
            there = x.isfinite()
            total += float(torch.where(there, x, 0).square().sum())
            count += float(there.sum())
        return total / max(count, 1)

    def training_examples(self, most: int) -> Tensor:
        train = self.splits[0]
        x = self._encoded(self.stored(torch.arange(0, len(train), -(-len(train) // most)))["x"])
        return torch.where(x.isfinite(), x, 0) if self.missing == "mask" else x

    def _encoded(self, x: Tensor) -> Tensor:
        return _scaled(x, self.units)

    def read(self, path: Path) -> Tensor:
        """Fields of a file of the same axes, in any of the formats: one, or (N, …) of them."""
        x = read_fields(path, self.format, self.as_float)
        if bad := int((~np.isfinite(x)).sum()):
            raise ValueError(f"{path}: {bad:,} values are NaN or infinite. Fix: fill them")
        return self.units.encode(torch.from_numpy(x.astype(np.float64))).float()

    def read_mask(self, path: Path) -> Tensor:
        """One mask of the fields' sizes, with or without channels and N: known where all channels are above 0."""
        return torch.from_numpy(read_mask(path, self.format))

    def array(self, x: Tensor) -> NDArray[Any]:
        return as_stored(self.decode(x.double()).numpy(), self.format.axes).astype(self.format.dtype)

    def write(self, x: Tensor, folder: Path) -> list[Path]:
        """One file of the format, axes and type of the data, samples.npy, .npz, .h5 or .zarr."""
        return [write_array(folder, "samples", self.format.kind, self.format.key, self.array(x))]

    def state_dict(self) -> dict[str, Any]:
        shape, conditions, axes, dtype, kind, key = self.format
        state: dict[str, Any] = {"shape": list(shape), "conditions": to_plain(conditions)}
        state |= {"axes": axes, "dtype": dtype, "kind": kind, "key": key}
        return {**state, **self.record(), **({} if self._measured is None else self._measured.to_plain())}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the format, the scaling and the split of a checkpoint, before or after ``setup``."""
        if not state_dict:
            return
        current, there = self._format, self._splits is not None
        self._format, self._measured = _format_of(state_dict), Measured.from_plain(state_dict)
        self._saved, self._class_counts = state_dict, state_dict.get("class_counts")
        self._turns = {name: torch.as_tensor(value) for name, value in state_dict.get("turns", {}).items()}
        if there:  # split them again, as the checkpoint's were
            self._splits = None
            self.setup()
        elif current is not None:
            self._same(current)

    def check_state(self, state_dict: dict[str, Any]) -> None:
        if state_dict:
            self._same(self.format, _format_of(state_dict))

    def _same(self, current: FieldFormat, saved: FieldFormat | None = None) -> None:
        """Raise ValueError if these fields are not like the checkpoint's."""
        saved = saved or self.format
        if (current.shape, current.conditions) != (saved.shape, saved.conditions):
            raise ValueError(
                f"{self.source}: the checkpoint's fields are {_words(saved)}, these are {_words(current)}. Fix: use "
                "the data the checkpoint was trained on"
            )


def _scaled(x: Tensor, units: Standardized | None) -> Tensor:
    """In model units, float32; labels as they are.  Half precision would round the mean."""
    if units is None:
        return x
    return units.encode(x if x.dtype == torch.float64 else x.float()).float()


def _format_of(state: dict[str, Any]) -> FieldFormat:
    conditions = from_plain(state["conditions"])
    return FieldFormat(tuple(state["shape"]), conditions, *(state[name] for name in ("axes", "dtype", "kind", "key")))


def _words(format: FieldFormat) -> str:
    kinds = {name: "prediction" if c.prediction else c.kind for name, c in format.conditions.items()}
    conditions = ", ".join(f"{name} ({kinds[name]} {list(c.shape)})" for name, c in format.conditions.items())
    return f"{' x '.join(map(str, format.shape))} with {conditions or 'no conditions'}"
