"""Figures that say how they came about.

A figure is a plain dictionary: value, unit, std over repeats (None of one), `protocol`, all that must be equal for two
figures to be comparable (how many samples, which features, which data, which bound), and `model`, what may differ
between the things compared (checkpoint, weights, sampler, evaluations).
"""

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from .checkpoints import read_part
from .data import DataModule, Images
from .elbo import ChainBound, ContinuousBound
from .likelihood import FlowLikelihood, bits_per_dim, dequantized, width
from .metrics.extractors import extract, identity
from .metrics.generation import FeatureStatistics
from .metrics.neighbours import Nearest, NearestNeighbours, memorisation
from .module import DiffusionModule
from .tensors import SampleNoise, mix

Figure = dict[str, Any]


def figure(values: Sequence[float], unit: str, protocol: dict[str, Any], model: dict[str, Any], **more: Any) -> Figure:
    """A figure: the mean of its repeats, their standard deviation, and all that it depends on."""
    std = float(np.std(values, ddof=1)) if len(values) > 1 else None
    told = {"value": float(np.mean(values)), "std": std, "values": [float(v) for v in values], "unit": unit}
    return {**told, **more, "protocol": protocol, "model": model}


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
            assert isinstance(data, Images)
            features, logits = extract(extractor, data.to_uint8(torch.nan_to_num(x)))
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

    Those of pictures are kept on disk, filed under the hashes of the pictures and of the extractor.
    """
    convert, digest, n = to_features(data, extractor), hashlib.sha256(), 0
    for batch in data.batches(split, 500):
        shown = data.to_uint8(batch["x"]) if isinstance(data, Images) else batch["x"]
        digest.update(str(tuple(shown.shape[1:])).encode() + shown.contiguous().numpy().tobytes())
        n += len(shown)
    note: dict[str, Any] = {"data": type(data).__name__, "split": split, "n": n, "sha256": digest.hexdigest()}
    if extractor is None:
        return torch.cat([convert(batch["x"]) for batch in data.batches(split, 500)]).numpy(), note
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "diffusion_pl"
    path = folder / f"{note['sha256'][:32]}-{identity(extractor)['sha256'][:32]}.npy"
    if not path.is_file():
        found = []
        for batch in tqdm(data.batches(split, 64), f"features of {split}", -(-n // 64), dynamic_ncols=True):
            found.append(convert(batch["x"]).numpy())
        folder.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}")
        with part.open("wb") as file:
            np.save(file, np.concatenate(found))
        os.replace(part, path)
    return np.load(path, mmap_mode="r"), note


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


class Kept:
    """Results that an interrupted call left, in one file each, within a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, name: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What is filed under the name; computed and filed if nothing is."""
        path = self.folder / f"{name}.pt"
        if path.is_file():
            return read_part(path)
        found = compute()
        self.folder.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}")
        torch.save(found, part)
        os.replace(part, path)
        return found


def blocks(
    model: DiffusionModule, data: DataModule, split: str, most: int | None
) -> Iterator[tuple[range, Tensor, dict[str, Tensor]]]:
    """Numbers, examples (B, *) and conditions of the split, always as many at a time: the last block is filled up.

    So a figure does not change by a bit with what else is evaluated.
    """
    size, seen = model.block, 0
    for batch in data.batches(split, size):
        n = len(batch["x"]) if most is None else min(len(batch["x"]), most - seen)
        if n <= 0:
            return
        fill = torch.arange(size).clamp(max=len(batch["x"]) - 1)
        full = {name: value[fill].to(model.device) for name, value in batch.items()}
        yield range(seen, seen + n), full.pop("x"), full
        seen += n


class Surprise(NamedTuple):
    """values: (repeats, n), −log p per dimension of each example;  nfe: (n,), evaluations that each took."""

    values: Tensor
    nfe: Tensor


def surprise(
    model: DiffusionModule,
    data: DataModule,
    rule: FlowLikelihood,
    numbers: range,
    x: Tensor,
    cond: dict[str, Tensor],
    *,
    repeats: int,
    dequantizations: int,
    seed: int,
) -> Surprise:
    """−log p per dimension of a block of examples, see `blocks`: bits of quantised data, nats of all others."""
    delta = None if data.levels is None else width(data.levels, _range(data))
    dims = math.prod(data.shape)
    indices = range(numbers.start, numbers.start + len(x))
    every, spent = [], torch.zeros(len(x), dtype=torch.long)
    for repeat in range(repeats):
        densities = []
        for k in range(dequantizations):
            noise = SampleNoise(mix(seed, repeat, k), indices)
            point = x.double() if delta is None else dequantized(x, delta, noise)
            density = rule(model.guided(), point, noise, **cond)
            densities.append(density.log_p.cpu())
            spent += density.nfe.cpu()
        log_p = torch.stack(densities).logsumexp(0) - math.log(dequantizations)
        every.append(-log_p / dims if delta is None else bits_per_dim(log_p, dims, delta))
    n = len(numbers)
    return Surprise(torch.stack(every)[:, :n], (spent / (repeats * dequantizations))[:n])


def unit_of(data: DataModule) -> str:
    """Of a likelihood of such data: bits/dim if they were quantised, else nats/dim in model units."""
    return "nats/dim" if data.levels is None else "bits/dim"


def likelihood(
    model: DiffusionModule,
    data: DataModule,
    split: str,
    most: int | None,
    rule: FlowLikelihood,
    *,
    repeats: int,
    dequantizations: int,
    seed: int,
    kept: Kept,
) -> Surprise:
    """−log p per dimension of each example of a split."""
    found = []
    bar = tqdm(total=count(data, split, most), desc="likelihood", dynamic_ncols=True)
    for numbers, x, cond in blocks(model, data, split, most):

        def compute(numbers: range = numbers, x: Tensor = x, cond: dict[str, Tensor] = cond) -> dict[str, Any]:
            options: dict[str, Any] = {"repeats": repeats, "dequantizations": dequantizations, "seed": seed}
            return surprise(model, data, rule, numbers, x, cond, **options)._asdict()

        found.append(kept(f"nll-{numbers.start:08d}", compute))
        bar.update(len(numbers))
    bar.close()
    return Surprise(torch.cat([part["values"] for part in found], 1), torch.cat([part["nfe"] for part in found]))


def bound(
    model: DiffusionModule,
    data: DataModule,
    split: str,
    most: int | None,
    rule: ChainBound | ContinuousBound,
    *,
    seed: int,
    kept: Kept,
) -> tuple[dict[str, Tensor], Tensor, Tensor, int]:
    """The bound on −log p per dimension.

    Returns:
        {"prior", "diffusion", "decoder"}: (N,) each; t: (K,) and the terms of `diffusion` there: (K,), means over the
        examples; evaluations.
    """
    scale = 1 / math.prod(data.shape) / (1 if data.levels is None else math.log(2))
    found: list[dict[str, Any]] = []
    bar = tqdm(total=count(data, split, most), desc="bound", dynamic_ncols=True)
    for numbers, x, cond in blocks(model, data, split, most):

        def compute(numbers: range = numbers, x: Tensor = x, cond: dict[str, Tensor] = cond) -> dict[str, Any]:
            noise = SampleNoise(mix(seed, 1), range(numbers.start, numbers.start + len(x)))
            got = rule(model.guided(), x.double(), noise, data.levels, **cond)
            n = len(numbers)
            parts = {name: getattr(got, name)[:n].cpu() * scale for name in ("prior", "diffusion", "decoder")}
            return {**parts, "t": got.t.cpu(), "terms": got.terms[:, :n].cpu().sum(1) * scale, "nfe": got.nfe}

        found.append(kept(f"elbo-{numbers.start:08d}", compute))
        bar.update(len(numbers))
    bar.close()
    parts = {name: torch.cat([f[name] for f in found]) for name in ("prior", "diffusion", "decoder")}
    terms = torch.stack([f["terms"] for f in found]).sum(0) / len(parts["prior"])
    return parts, found[0]["t"], terms, found[0]["nfe"]


def differences(a: Figure, b: Figure) -> list[str]:
    """Why two figures cannot be compared, in words; empty if they can."""
    found = [] if a["unit"] == b["unit"] else [f"unit: {a['unit']} and {b['unit']}"]
    ours, theirs = _flat(a["protocol"]), _flat(b["protocol"])
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name) != theirs.get(name):
            pair = (str(part.get(name, "unsaid")) for part in (ours, theirs))
            found.append(f"{name}: {' and '.join(p if len(p) < 24 else p[:12] + '…' for p in pair)}")
    return found


def read_figures(path: Path) -> dict[str, Figure]:
    """The figures of an evaluation.json.

    Raises:
        ValueError: no such file, or another one.
    """
    try:
        figures: dict[str, Figure] = json.loads(path.read_text())["figures"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no evaluation.json that `evaluate` wrote: {error}") from error
    return figures


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in tree.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found


def count(data: DataModule, split: str, most: int | None) -> int:
    n = len(data.part(split))
    return n if most is None else min(n, most)


def _range(data: DataModule) -> tuple[float, float]:
    if data.value_range is None:
        raise ValueError(f"{type(data).__name__} tells levels but no value_range: its bits/dim are undefined")
    return data.value_range
