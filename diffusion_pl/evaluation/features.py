"""Features of examples, and distances of samples to the training data."""

import hashlib
import math
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..data import DataModule
from ..data.base import spread
from ..data.units import Units
from ..metrics.extractors import extract, identity
from ..metrics.generation import FeatureStatistics
from ..metrics.neighbours import Nearest, NearestNeighbours, memorisation
from ..runtime.storage import write_file


class Features:
    """Examples as rows of features, in which generated ones are compared with real ones.

        (B, *) in model units  ->  (B, F + K + S): features, then logits and spatial features if the extractor gives
        some; NaN where x is not finite

    Args:
        shape: of an example, or of the image that it is decoded to.
        units: of its model units.
        extractor: of features of images; None: the examples themselves, for points.
    """

    def __init__(self, shape: tuple[int, ...], units: Units, extractor: nn.Module | None = None) -> None:
        self.shape, self.units, self.extractor = shape, units, extractor

    def of(self, data: DataModule) -> "Features":
        """The same features of other data, such as the images that latents were made of."""
        return Features(data.image_shape or data.shape, data.units, self.extractor)

    def __call__(self, x: Tensor) -> Tensor:
        bad = ~x.flatten(1).isfinite().all(1)
        if self.extractor is None:
            rows = x.flatten(1).float()
        else:
            device = next((p.device for p in self.extractor.parameters()), x.device)
            rows = extract(self.extractor, self.units.to_uint8(torch.nan_to_num(x).to(device))).rows
        rows[bad.to(rows.device)] = math.nan
        return rows

    @cached_property
    def widths(self) -> tuple[int, int, int]:
        """F, K and S, how many features, logits and spatial features there are of an example."""
        if self.extractor is None:
            return math.prod(self.shape), 0, 0
        return extract(self.extractor, torch.zeros(1, *self.shape, dtype=torch.uint8)).widths

    def empty(self, keep: bool) -> FeatureStatistics:
        """Statistics of no example yet; `keep` rows, as all metrics but FID and sFID need."""
        width, _, spatial = self.widths
        return FeatureStatistics(width, keep, spatial)

    def add(self, statistics: FeatureStatistics, rows: Tensor, first: int) -> None:
        """Add rows (B, F + K + S) of the examples from number `first` on, on the device of the statistics."""
        device = statistics.total.device
        features, logits, spatial = rows.to(device).split(list(self.widths), 1)
        numbers = torch.arange(first, first + len(rows), device=device)
        statistics.update(features, numbers, logits, spatial)

    def statistics(self, rows: NDArray[Any], keep: bool) -> FeatureStatistics:
        """Of rows (N, F + K + S), taken in pieces; see `empty`."""
        statistics = self.empty(keep)
        for first in range(0, len(rows), 1000):
            self.add(statistics, torch.from_numpy(np.array(rows[first : first + 1000])), first)
        return statistics


def note_of(data: DataModule, split: str) -> dict[str, Any]:
    """What identifies a split of data: {"data", "split", "n", "sha256"}."""
    batches = (batch["x"] for batch in data.batches(split, 500))
    n, sha256 = hash_of(data.units.to_uint8(x) if data.is_image else x for x in batches)
    return {"data": type(data).__name__, "split": split, "n": n, "sha256": sha256}


def hash_of(batches: Iterable[Tensor]) -> tuple[int, str]:
    """Number and SHA-256 of the examples in batches, images as uint8."""
    digest, n = hashlib.sha256(), 0
    for shown in batches:
        digest.update(str(tuple(shown.shape[1:])).encode() + shown.contiguous().numpy().tobytes())
        n += len(shown)
    return n, digest.hexdigest()


def reference_rows(features: Features, data: DataModule, note: Mapping[str, Any]) -> NDArray[Any]:
    """Rows (N, F + K + S) of the split that a note is of.

    Those of images are kept in the user's cache, under the hashes of the images and of the extractor.
    """
    split, n, features = note["split"], note["n"], features.of(data)
    if features.extractor is None:
        return torch.cat([features(batch["x"]) for batch in data.batches(split, 500)]).numpy()
    spatial = "-spatial" if features.widths[2] else ""
    name = f"{note['sha256'][:32]}-{identity(features.extractor)['sha256'][:32]}{spatial}.npy"

    def compute() -> NDArray[Any]:
        batches = tqdm(data.batches(split, 64), f"features of {split}", -(-n // 64), dynamic_ncols=True)
        return np.concatenate([features(batch["x"]).numpy() for batch in batches])

    return cached(name, n, compute)


def cached(name: str, length: int, compute: Callable[[], NDArray[Any]]) -> NDArray[Any]:
    """An array of so many rows from the user's cache, computed and kept there if it is missing or damaged.

    Without a folder that can be written it is computed every time, with one warning.
    """
    path = None
    try:
        path = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "diffusion_pl" / name
        with path.open("rb") as file, path.with_suffix(".sha256").open(encoding="ascii") as noted:
            if hashlib.file_digest(file, "sha256").hexdigest() == noted.read().strip():
                rows: NDArray[Any] = np.load(path, mmap_mode="r")
                if len(rows) == length:
                    return rows
    except (OSError, RuntimeError, ValueError):  # not there yet, no home, or damaged
        pass
    rows = compute()
    try:
        if path is None:
            raise OSError("there is no home folder")
        write_file(path, lambda file: np.save(file, rows))
        write_file(path.with_suffix(".sha256"), hashlib.sha256(path.read_bytes()).hexdigest() + "\n")
    except OSError as error:
        warning = (
            f"features are not kept for the next evaluation: {error}. Fix: set XDG_CACHE_HOME to a writable folder"
        )
        print(f"diffusion_pl: warning: {warning}", file=sys.stderr)
    return rows


class Memory(NamedTuple):
    """nearest: of the samples among the training examples;  examples: those;  ratio: of distances, see `memory`."""

    nearest: Nearest
    examples: Tensor
    ratio: float | None


def memory(data: DataModule, x: Tensor, held_out: str = "val", most: int | None = None) -> Memory:
    """How near samples x: (N, *) in model units are to the training split, compared with as many held-out examples.

    The ratio is None where nothing was held out.

    Args:
        data: of the model.
        x: the samples.
        held_out: the split of the other examples.
        most: training examples to search, spread over the split; None: all of them.
    """
    split = data.part(held_out)
    new = next(data.batches(held_out, max(1, min(len(split), max(len(x), 100)))))["x"] if len(split) else None
    of_samples = NearestNeighbours(x)
    of_held_out = None if new is None else NearestNeighbours(new)
    for batch in data.batches("train", 4096, most):
        of_samples.update(batch["x"])
        if of_held_out is not None:
            of_held_out.update(batch["x"])
    # One by one and back into order: __getitems__ of files may need rising numbers without repeats.
    searched = spread(len(data.part("train")), most)
    numbers, place = torch.unique(searched[of_samples.best.place], return_inverse=True)
    examples = data.on_after_batch_transfer(data.part("train").__getitems__(numbers), 0)["x"][place]
    ratio = None if of_held_out is None else memorisation(of_samples.best.distance, of_held_out.best.distance)
    return Memory(of_samples.best, examples, ratio)
