"""The files of a folder of latents: how they are read, and how latents are drawn from moments."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..tensors import Recorded, mix
from .loader import Batch

RECORD = "latents.json"
#: What a record must have, and of which type.
_KINDS: dict[str, type | tuple[type, ...]] = {
    "shape": list,
    "image_shape": list,
    "levels": int,
    "mean": list,
    "std": list,
    "conditions": dict,
    "class_counts": (list, type(None)),
    "autoencoder": dict,
    "data": dict,
    "splits": dict,
    "views": int,
    "moments": int,
    "dtype": str,
    "sha256": dict,
}


def read_record(folder: Path) -> dict[str, Any]:
    """The content of latents.json.

    Raises:
        FileNotFoundError: the folder or the file is missing.
        ValueError: it is damaged.
    """
    path = folder / RECORD
    if not path.is_file():
        unfinished = " yet: repeat the command `latents` to finish it" if (folder / ".unfinished").is_dir() else ""
        raise FileNotFoundError(
            f"{folder}: no {RECORD}{unfinished or '. Fix: give --data.path the folder that `latents` wrote'}"
        )
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        wrong = [name for name, kind in _KINDS.items() if not isinstance(record.get(name), kind)]
        if wrong:
            raise ValueError(f"{wrong[0]} is missing or of another type")
        if not len(record["mean"]) == len(record["std"]) == record["shape"][0] or min(record["std"]) <= 0:
            raise ValueError("mean and std do not fit the channels, or a std is not positive")
    except (ValueError, TypeError, AttributeError, OSError) as error:
        raise ValueError(f"{path} is damaged: {error}. Fix: encode the data again with `latents`") from error
    return record


class Rows:
    """Moments of the examples of a split, in files: {"x": (B, views, 1 or 2, c, h, w), and the conditions}.

    Args:
        files: .npy file of each name.
    """

    def __init__(self, files: Mapping[str, Path]) -> None:
        self.files = dict(files)
        self.arrays: dict[str, NDArray[Any]] = {
            name: np.load(path, mmap_mode="r", allow_pickle=False) for name, path in files.items()
        }

    def __getstate__(self) -> dict[str, Any]:
        return {"files": self.files}  # not what is in the files

    def __setstate__(self, state: dict[str, Any]) -> None:
        Rows.__init__(self, state["files"])

    def __len__(self) -> int:
        return len(self.arrays["x"])

    def __getitems__(self, indices: Tensor) -> Batch:
        places = indices.numpy()
        return {name: torch.from_numpy(array[places]) for name, array in self.arrays.items()}


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
    try:
        rows = Rows(files)
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


def draw(moments: Tensor, seeds: Sequence[int]) -> Tensor:
    """z = mean + std · ε: (B, c, h, w), the noise of each example from a seed of its own.

    Args:
        moments: (B, 1 or 2, c, h, w): mean and std, or the mean alone where std is 0.
        seeds: B of them.
    """
    mean = moments[:, 0].float()
    if moments.shape[1] == 1:
        return mean
    generator = torch.Generator()
    eps = torch.empty_like(mean)
    for row, seed in zip(eps, seeds, strict=True):
        torch.randn(row.shape, generator=generator.manual_seed(seed), out=row)
    return torch.addcmul(mean, moments[:, 1].float(), eps)


class Drawn(Recorded):
    """Draws a latent of each example: of the image or of its mirror image, with probability ½ each where both are
    stored, and ε.

    Args:
        images: names of conditions that are images, which are mirrored too.
    """

    draws = 3
    tells: tuple[str, ...] = ()

    def __init__(self, images: Sequence[str] = ()) -> None:
        self.images = tuple(images)

    def __call__(self, batch: Batch, u: Tensor) -> Batch:
        """batch: {"x": (B, views, 1 or 2, c, h, w), …}, u: (B, 3)."""
        x = batch["x"]
        view = (u[:, 0] * x.shape[1]).long()
        numbers = (u[:, 1:].double() * 2**24).long()  # the uniform numbers have 24 bits
        z = draw(x[torch.arange(len(x)), view], (numbers[:, 0] * 2**24 + numbers[:, 1]).tolist())
        mirrored = view == 1
        flipped = {
            name: torch.where(mirrored.reshape(-1, *[1] * (batch[name].ndim - 1)), batch[name].flip(-1), batch[name])
            for name in self.images
        }
        return {**batch, **flipped, "x": z}


class Fixed:
    """A latent of each example, always the same: of the image itself, its ε a function of (seed, number).

    Args:
        rows: the moments.
        seed: of the noise.
    """

    def __init__(self, rows: Rows, seed: int) -> None:
        self.rows, self.seed = rows, seed

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, indices: Tensor) -> Batch:
        batch = self.rows.__getitems__(indices)
        return {**batch, "x": draw(batch["x"][:, 0], [mix(self.seed, i) for i in indices.tolist()])}


def statistics(rows: Rows) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel of drawn latents: std² = Var(mean) + E[std²]; c numbers each."""
    array, n = rows.arrays["x"], 0
    total = squares = np.zeros(array.shape[3])
    for first in range(0, len(array), 256):
        block = array[first : first + 256].astype(np.float64)
        mean = block[:, :, 0]
        total = total + mean.sum((0, 1, 3, 4))
        squares = squares + (mean**2).sum((0, 1, 3, 4)) + (block[:, :, 1:] ** 2).sum((0, 1, 2, 4, 5))
        n += mean.size // mean.shape[2]
    center = total / n
    return center.tolist(), np.sqrt(np.maximum(squares / n - center**2, 0)).tolist()
