"""Placeholder for the data of a model without any: a shape and the conditions."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from torch import Tensor

from ..conditions import Condition, Conditions, from_plain, to_plain
from .base import DataModule
from .units import ModelUnits, Units


class Unknown(DataModule):
    """Data that are not there: samples stay in model units and are written as one array, samples.npz.

    Args:
        shape: of one example, without the batch axis.
        conditions: by name, such as {"label": {"shape": [], "classes": 2, "names": []}}; None: there are none.
    """

    def __init__(self, shape: Sequence[int], conditions: Mapping[str, dict[str, Any]] | None = None) -> None:
        super().__init__()
        if not shape or min(shape) < 1:
            raise ValueError(f"Unknown: shape must be one or more sizes of at least 1, got {list(shape)}")
        self._shape, self._conditions = tuple(shape), from_plain(conditions or {})

    @property
    def shape(self) -> tuple[int, ...]:
        return self._shape

    @property
    def conditions(self) -> dict[str, Condition]:
        return self._conditions

    @property
    def units(self) -> Units:
        return ModelUnits()

    @property
    def is_field(self) -> bool:
        return False  # nothing is known of the values

    def write(self, x: Tensor, folder: Path) -> list[Path]:
        return self.write_npz(x, folder)

    def setup(self, stage: str | None = None) -> None:
        self._refuse()

    def second_moment(self) -> float:
        self._refuse()

    def training_examples(self, most: int) -> Tensor:
        self._refuse()

    def part(self, split: str) -> Any:
        self._refuse()

    def stored(self, indices: Tensor) -> dict[str, Tensor]:
        self._refuse()

    def read(self, path: Path) -> Tensor:
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise ValueError("the checkpoint was saved without its data. Fix: save it by model.save(path, data)")


def not_given(shape: Sequence[int], conditions: Conditions) -> Unknown:
    """What stands for the data of a model that is saved without them."""
    return Unknown(shape, to_plain(conditions))
