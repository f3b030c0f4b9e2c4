"""Examples as rows of features, what samples are measured against, and how near they lie to what training has seen."""

import hashlib
import json
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from ..data import DataModule
from ..metrics.extractors import extract, identity
from ..metrics.generation import FeatureStatistics, Moments
from ..metrics.neighbours import Nearest, NearestNeighbours, memorisation
from ..runtime.reading import check, reading
from ..runtime.storage import write_file


def to_features(data: DataModule, extractor: nn.Module | None) -> Callable[[Tensor], Tensor]:
    """The map from examples (B, *) in model units to rows (B, F + K): features and logits; NaN where x is not finite.

    Args:
        data: of the model.
        extractor: of features of pictures; None: the examples themselves, for points.
    """

    def rows(x: Tensor) -> Tensor:
        bad = ~x.flatten(1).isfinite().all(1)
        if extractor is None:
            found = x.flatten(1).float()
        else:
            features, logits = extract(extractor, data.units.to_uint8(torch.nan_to_num(x)))
            found = features if logits is None else torch.cat((features, logits), 1)
        found[bad.to(found.device)] = math.nan
        return found

    return rows


def width_of(extractor: nn.Module | None, data: DataModule) -> int:
    """F, how many features there are of an example."""
    if extractor is None:
        return math.prod(data.shape)
    return extract(extractor, torch.zeros(1, *data.shape, dtype=torch.uint8))[0].shape[1]


def reference_rows(data: DataModule, split: str, extractor: nn.Module | None) -> tuple[NDArray[Any], dict[str, Any]]:
    """Rows (N, F + K) of a split, and what they are of: {"data", "split", "n", "sha256"}.

    Those of images are kept in the user's cache, under the hashes of the images and of the extractor.
    """
    convert, digest, n = to_features(data, extractor), hashlib.sha256(), 0
    for batch in data.batches(split, 500):
        shown = data.units.to_uint8(batch["x"]) if data.is_image else batch["x"]
        digest.update(str(tuple(shown.shape[1:])).encode() + shown.contiguous().numpy().tobytes())
        n += len(shown)
    note: dict[str, Any] = {"data": type(data).__name__, "split": split, "n": n, "sha256": digest.hexdigest()}
    if extractor is None:
        return torch.cat([convert(batch["x"]) for batch in data.batches(split, 500)]).numpy(), note
    name = f"{note['sha256'][:32]}-{identity(extractor)['sha256'][:32]}.npy"

    def compute() -> NDArray[Any]:
        batches = tqdm(data.batches(split, 64), f"features of {split}", -(-n // 64), dynamic_ncols=True)
        return np.concatenate([convert(batch["x"]).numpy() for batch in batches])

    return cached(name, n, compute), note


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


class Reference(NamedTuple):
    """moments: of the features of data;  note: what they are of, {"data", "split", "n", "sha256"}."""

    moments: Moments
    note: dict[str, Any]


def write_reference(path: Path, reference: Reference, made_with: dict[str, Any]) -> None:
    """Keep moments where the data are not at hand; `made_with` must be the same where they are read."""
    moments, note = reference
    told = json.dumps({**note, **made_with})
    np.savez(path, n=moments.n, mean=moments.mean.numpy(), cov=moments.cov.numpy(), note=told)


def read_reference(path: Path, made_with: dict[str, Any]) -> Reference:
    """What `write_reference` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or was made with another extractor, of other images, by another transform.
    """
    with reading(path, "reference.npz of `evaluate`"), np.load(path, allow_pickle=False) as file:
        n, mean, cov = int(file["n"]), torch.from_numpy(file["mean"]), torch.from_numpy(file["cov"])
        note = json.loads(str(file["note"]))
        check(note, {"data": str, "split": str, "n": int, "sha256": str})
        if n < 2 or mean.ndim != 1 or cov.shape != (len(mean), len(mean)):
            raise ValueError(f"moments of shape {tuple(mean.shape)} and {tuple(cov.shape)} over {n} examples")
        if not (mean.isfinite().all() and cov.isfinite().all() and torch.allclose(cov, cov.T)):
            raise ValueError("its covariance is not finite and symmetric")
        # Beyond the rounding of sums over examples.
        if len(cov) and torch.linalg.eigvalsh(cov)[0] < -1e-6 * cov.diagonal().abs().max():
            raise ValueError("its covariance has a negative eigenvalue")
        moments = Moments(n, mean, cov)
    for name, ours in made_with.items():
        theirs = note.pop(name, None)
        if theirs != ours:
            raise ValueError(f"{path} was made with another {name} ({theirs}, here {ours}): create it again")
    return Reference(moments, note)


class Memory(NamedTuple):
    """What `memory` finds: nearest training examples of the samples, those themselves, and the ratio of distances."""

    nearest: Nearest
    examples: Tensor
    ratio: float | None


def memory(data: DataModule, x: Tensor, held_out: str = "val") -> Memory:
    """How near samples x: (N, *) in model units are to the training split, beside as many held-out examples.

    The ratio is None where nothing was held out.
    """
    theirs = data.part(held_out)
    new = next(data.batches(held_out, max(1, min(len(theirs), max(len(x), 100)))))["x"] if len(theirs) else None
    ours = NearestNeighbours(x)
    others = None if new is None else NearestNeighbours(new)
    for batch in data.batches("train", 4096):
        ours.update(batch["x"])
        if others is not None:
            others.update(batch["x"])
    # One by one and back into order: __getitems__ of files may want rising numbers without repeats.
    numbers, place = torch.unique(ours.best.place, return_inverse=True)
    found = data.on_after_batch_transfer(data.part("train").__getitems__(numbers), 0)["x"][place]
    ratio = None if others is None else memorisation(ours.best.distance, others.best.distance)
    return Memory(ours.best, found, ratio)


def statistics(rows: NDArray[Any], dim: int, keep: bool) -> FeatureStatistics:
    """Of rows (N, F + K), taken in pieces."""
    found = FeatureStatistics(dim, keep)
    for first in range(0, len(rows), 1000):
        part = torch.from_numpy(np.array(rows[first : first + 1000]))
        found.update(part[:, :dim], torch.arange(first, first + len(part)), part[:, dim:])
    return found
