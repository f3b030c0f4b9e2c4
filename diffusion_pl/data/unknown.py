"""The data of a model that came without any: nothing but a shape and a number of classes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from .base import DataModule


class Unknown(DataModule):
    """Data that are not there: samples stay in model units and are written as one array, samples.npz.

    Args:
        shape: of one example, without the batch axis.
        classes: of the label; None: there is none.
    """

    def __init__(self, shape: Sequence[int], classes: int | None = None) -> None:
        super().__init__()
        if not shape or min(shape) < 1:
            raise ValueError(f"Unknown: shape must be one or more sizes of at least 1, got {list(shape)}")
        if classes is not None and classes < 1:
            raise ValueError(f"Unknown: classes must be at least 1 or None, got {classes}")
        self._shape, self._classes = tuple(shape), classes

    @property
    def shape(self) -> tuple[int, ...]:
        return self._shape

    @property
    def classes(self) -> int | None:
        return self._classes

    def decode(self, x: Tensor) -> Tensor:
        return x

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

    def frame(self, x: Tensor, x_0: Tensor, title: str) -> NDArray[np.uint8]:
        self._refuse()

    def read(self, path: Path) -> Tensor:
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise ValueError("the checkpoint was saved without its data. Fix: save it by model.save(path, data)")
