"""The files of a folder of latents: moments of q(z | x), how they are read, and their statistics."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..conditions import from_plain
from .latent_draws import LatentSource, mirrored, noise
from .latent_record import RECORD
from .loader import Batch


class Rows(LatentSource):
    """Moments of the examples of a split, in files: {"x": (B, views, 1 or 2, c, h, w), and the conditions}.

    Args:
        files: .npy file of each name.
        images: names of conditions that are images, which are mirrored too.
    """

    def __init__(self, files: Mapping[str, Path], images: Sequence[str] = ()) -> None:
        self.files, self.images = dict(files), tuple(images)
        self.arrays: dict[str, NDArray[Any]] = {
            name: np.load(path, mmap_mode="r", allow_pickle=False) for name, path in files.items()
        }
        self.views = self.arrays["x"].shape[1]

    def __getstate__(self) -> dict[str, Any]:
        return {"files": self.files, "images": self.images}  # not what is in the files

    def __setstate__(self, state: dict[str, Any]) -> None:
        Rows.__init__(self, **state)

    def __len__(self) -> int:
        return len(self.arrays["x"])

    def __getitems__(self, indices: Tensor) -> Batch:
        places = indices.numpy()
        return {name: torch.from_numpy(array[places]) for name, array in self.arrays.items()}

    def seen(self, batch: Batch, view: Tensor) -> Batch:
        if self.views == 1:
            return {**batch, "x": batch["x"][:, 0]}
        return {**mirrored(batch, self.images, view), "x": batch["x"][torch.arange(len(view)), view]}

    def with_noise(self, batch: Batch, seeds: Sequence[int]) -> Batch:
        mean, *std = batch["x"].unbind(1)
        # In place: such latents are large, and copies of them cost as much as the noise.
        z = noise(seeds, mean.shape[1:]).mul_(std[0]).add_(mean) if std else mean.float()
        return {**batch, "x": z}

    def conditioned(self, batch: Batch) -> Batch:
        return batch

    def latents(self, batch: Batch) -> Batch:
        return batch


def opened(folder: Path, split: str, record: Mapping[str, Any]) -> Rows:
    """The files of a split.

    Raises:
        FileNotFoundError: one is missing.
        ValueError: one is shorter, or of another shape or type, than latents.json says.
    """
    n = record["splits"][split]
    shapes = {"x": (n, record["views"], record["moments"], *record["shape"])}
    shapes |= {name: (n, *condition["shape"]) for name, condition in record["conditions"].items()}
    files = {name: folder / file_name(split, name) for name in shapes}
    for path in files.values():
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file. Fix: encode the data again with `latents`")
    images = [name for name, condition in from_plain(record["conditions"]).items() if condition.kind == "image"]
    try:
        rows = Rows(files, images)
    except (OSError, ValueError, EOFError) as error:  # numpy's word for a file that ends too early is ValueError
        raise ValueError(
            f"{folder}: the {split} latents are truncated or damaged ({error}). Fix: encode them again"
        ) from error
    for name, shape in shapes.items():
        array = rows.arrays[name]
        if array.shape != shape or (name == "x" and array.dtype != record["dtype"]):
            raise ValueError(
                f"{files[name]}: {array.dtype} of shape {array.shape}, expected {shape} by {RECORD}. Fix: encode the "
                "data again with `latents`"
            )
    return rows


def file_name(split: str, name: str) -> str:
    """Of the values of a name in a split."""
    return f"{split}.npy" if name == "x" else f"{split}.{name}.npy"


class Statistics:
    """Mean and standard deviation of each channel of drawn latents:  std² = Var(mean) + E[std²].

    Args:
        state: of statistics that were begun, see `state`; None: of none.
    """

    def __init__(self, state: Mapping[str, Any] | None = None) -> None:
        state = state or {"n": 0, "total": 0.0, "squares": 0.0}
        self._n, self._total, self._squares = state["n"], np.array(state["total"]), np.array(state["squares"])

    @property
    def state(self) -> dict[str, Any]:
        """The sums so far, as plain values."""
        return {"n": self._n, "total": self._total.tolist(), "squares": self._squares.tolist()}

    def update(self, moments: NDArray[Any]) -> None:
        """Add moments of any number type: (B, views, 1 or 2, c, h, w)."""
        block = moments.astype(np.float64)
        mean, std = block[:, :, 0], block[:, :, 1:]
        self._total = self._total + mean.sum((0, 1, 3, 4))
        self._squares = self._squares + (mean**2).sum((0, 1, 3, 4)) + (std**2).sum((0, 1, 2, 4, 5))
        self._n += mean.size // mean.shape[2]

    def compute(self) -> tuple[list[float], list[float]]:
        """Mean and std: c numbers each.

        Raises:
            ValueError: a channel is constant.
        """
        mean = self._total / self._n
        std = np.sqrt(np.maximum(self._squares / self._n - mean**2, 0))
        if not std.all():
            raise ValueError(f"channel {int(std.argmin())} of the latents is constant: the autoencoder does not use it")
        return mean.tolist(), std.tolist()
