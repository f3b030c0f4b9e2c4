"""Reference statistics in place of data: those of `evaluate`, and the files that others publish."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..metrics.extractors import extract
from ..metrics.frechet import Moments
from ..metrics.generation import OF_MOMENTS, OF_SAMPLES, GivenStatistics
from ..runtime.reading import check, reading
from .features import Features
from .foreign import FOREIGN, checked, read_foreign


class Reference(NamedTuple):
    """Statistics of data that need not be there.

    moments: of their features;  note: what they are of, {"data", "split", "n", "sha256"}, of a foreign file also
    {"layout", "extractor"};  spatial: moments of spatial features, None: not known;  images: (N, C, H, W), uint8, some
    of the data, for metrics that compare rows of features; None: not known.
    """

    moments: Moments
    note: dict[str, Any]
    spatial: Moments | None = None
    images: Tensor | None = None

    def statistics(self, features: Features, names: Sequence[str]) -> GivenStatistics:
        """What these metrics need of it."""
        rows = None
        if self.images is not None and set(names) - {*OF_MOMENTS, *OF_SAMPLES}:
            assert features.extractor is not None
            rows = torch.cat([extract(features.extractor, part).features for part in self.images.split(64)])
        return GivenStatistics(self.moments, self.spatial, rows)


def write_reference(path: Path, reference: Reference, made_with: dict[str, Any]) -> None:
    """Save moments for where the data are not; `made_with` must be the same where they are read."""
    (n, mean, cov), spatial = reference.moments, reference.spatial
    text = json.dumps({**reference.note, **made_with})
    more: dict[str, Any] = {} if spatial is None else {"mean_s": spatial.mean.numpy(), "cov_s": spatial.cov.numpy()}
    np.savez(path, n=np.array(n), mean=mean.numpy(), cov=cov.numpy(), note=np.array(text), **more)


def read_reference(
    path: Path, made_with: dict[str, Any], features: Features, names: Sequence[str], trust_pickle: bool = False
) -> Reference:
    """What `write_reference` wrote, or a file of another package, see `foreign`.

    Args:
        path: of the file.
        made_with: what must be equal in a file of `evaluate`.
        features: of the samples that will be compared.
        names: of the metrics.
        trust_pickle: also read a pickle, which runs whatever code the file holds.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or was made with another extractor, of other images, by another transform; or it
            lacks what a metric needs.
    """
    if (content := read_foreign(path, getattr(features.extractor, "part", "fid"), trust_pickle)) is not None:
        images = None if content.images is None else torch.from_numpy(content.images)
        reference = Reference(content.moments, {**content.note, "split": FOREIGN}, content.spatial, images)
    else:
        reference = _read_own(path, made_with)
    _check_features(path, reference, features)
    _check_metrics(path, reference, names)
    return reference


def _read_own(path: Path, made_with: dict[str, Any]) -> Reference:
    with reading(path, "reference.npz of `evaluate`"), np.load(path, allow_pickle=False) as file:
        n, mean, cov = int(file["n"]), torch.from_numpy(file["mean"]), torch.from_numpy(file["cov"])
        note = json.loads(str(file["note"]))
        check(note, {"data": str, "split": str, "n": int, "sha256": str})
        if n < 2:
            raise ValueError(f"moments over {n} examples")
        moments = checked(n, mean, cov)
        spatial = None
        if "mean_s" in file:
            spatial = checked(n, torch.from_numpy(file["mean_s"]), torch.from_numpy(file["cov_s"]))
    for name, expected in made_with.items():
        stored = note.pop(name, None)
        if stored != expected:
            raise ValueError(f"{path} was made with another {name} ({stored}, here {expected}): create it again")
    return Reference(moments, note, spatial)


def _check_features(path: Path, reference: Reference, features: Features) -> None:
    """Raise ValueError if the statistics are of other features or images than these."""
    stored, (width, _, spatial) = len(reference.moments.mean), features.widths
    name = type(features.extractor).__name__
    if stored != width:
        fix = "--extractor with the network that the file was made with"
        raise ValueError(f"{path} has statistics of {stored:,} features, {name} makes {width:,}. Fix: give {fix}")
    if spatial and reference.spatial is not None and len(reference.spatial.mean) != spatial:
        there = len(reference.spatial.mean)
        raise ValueError(f"{path} has statistics of {there:,} spatial features, {name} makes {spatial:,}")
    shape = features.shape
    if reference.images is not None and tuple(reference.images.shape[2:]) != shape[1:]:
        sizes = (" x ".join(map(str, each)) for each in (reference.images.shape[2:], shape[1:]))
        raise ValueError("{} is of images of {}, the samples are of {}: expected equal".format(path, *sizes))


def _check_metrics(path: Path, reference: Reference, names: Sequence[str]) -> None:
    """Raise ValueError if the statistics do not suffice for a metric."""
    possible = [name for name in (*OF_MOMENTS, *OF_SAMPLES) if name != "sfid" or reference.spatial is not None]
    missing = [name for name in names if name not in possible]
    if reference.images is not None:
        missing = [name for name in missing if name == "sfid"]
    if missing:
        raise ValueError(
            f"{path}: the reference holds moments only, and {', '.join(missing)} need the data. "
            f"Fix: give --metrics {' '.join(possible)}"
        )
