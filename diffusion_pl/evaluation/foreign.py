"""Reference statistics of other packages.

| layout | keys |
|---|---|
| ADM, VIRTUAL_*.npz | mu, sigma, mu_s, sigma_s of all images, and arr_0: some of them, (N, H, W, 3), uint8 |
| EDM, JiT, pytorch-fid, .npz | mu, sigma |
| torch-fidelity's cache, .pt of torch.save | mu, sigma |
| EDM2, .pkl | num_images, and for each extractor, fid and fd_dinov2, a dictionary with mu, sigma |

What a file does not say, such as its number of images, is recorded as not known.
"""

import hashlib
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..metrics.frechet import Moments
from ..runtime.reading import reading

#: What a foreign reference has for the split of the data.
FOREIGN = "foreign"
NOT_STATED = "not stated by the file"
LAYOUTS = "mu and sigma (EDM, JiT, pytorch-fid), with mu_s and sigma_s (ADM), or fid: {mu, sigma} (EDM2)"


class Foreign(NamedTuple):
    """moments, spatial: of features and spatial features;  note: of the file, {"data", "n", "sha256", "layout",
    "extractor"};  images: (N, 3, H, W), uint8, or None."""

    moments: Moments
    note: dict[str, Any]
    spatial: Moments | None = None
    images: NDArray[np.uint8] | None = None


def read_foreign(path: Path, part: str, trust_pickle: bool = False) -> Foreign | None:
    """Statistics that another package wrote; None: the file is reference.npz of `evaluate`.

    Args:
        path: of the file.
        part: of which extractor, where the file has statistics of several: "fid" or "fd_dinov2".
        trust_pickle: also read a pickle, which runs whatever code the file holds.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, of an unknown layout (its keys are listed), or a pickle that is not trusted.
    """
    with reading(path, "file of reference statistics"), path.open("rb") as file:
        pickled = file.read(1) == b"\x80"
        names = zipfile.ZipFile(path).namelist() if zipfile.is_zipfile(path) else []
    if names and all(name.endswith(".npy") for name in names):
        return _of_arrays(path, [name.removesuffix(".npy") for name in names])
    if pickled or names:
        return _of_objects(path, bool(names), part, trust_pickle)
    raise ValueError(f"{path} is no file of reference statistics. Fix: give reference.npz of `evaluate`, or {LAYOUTS}")


def checked(n: int | None, mean: Tensor, cov: Tensor, tolerance: float = 1e-6) -> Moments:
    """Moments in float64.

    Args:
        n: number of examples; None: not known.
        mean, cov: (F,) and (F, F).
        tolerance: of eigenvalues below 0, in units of the largest variance.

    Raises:
        ValueError: they are of other shapes, not finite, or the covariance is none.
    """
    if mean.ndim != 1 or cov.shape != (len(mean), len(mean)):
        raise ValueError(f"moments of shape {tuple(mean.shape)} and {tuple(cov.shape)}")
    mean, cov = mean.double(), cov.double()
    if not (mean.isfinite().all() and cov.isfinite().all() and torch.allclose(cov, cov.T)):
        raise ValueError("its covariance is not finite and symmetric")
    # Beyond the rounding of sums over examples.
    if len(cov) and torch.linalg.eigvalsh(cov)[0] < -tolerance * cov.diagonal().abs().max():
        raise ValueError("its covariance has a negative eigenvalue")
    return Moments(n, mean, cov)


def _of_arrays(path: Path, names: list[str]) -> Foreign | None:
    if {"mean", "cov", "note"} <= set(names):
        return None
    if not {"mu", "sigma"} <= set(names):
        raise _unknown(path, names)
    spatial = images = None
    with reading(path, "file of reference statistics"), np.load(path, allow_pickle=False) as file:
        moments = _moments(None, file)
        if {"mu_s", "sigma_s"} <= set(names):
            spatial = _moments(None, {"mu": file["mu_s"], "sigma": file["sigma_s"]})
        if "arr_0" in names:
            images = file["arr_0"]
            if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8:
                raise ValueError(f"arr_0 is {images.dtype} of shape {images.shape}, expected uint8, (N, H, W, 3)")
            images = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    layout = "mu, sigma" if spatial is None else "ADM"
    made = NOT_STATED if spatial is None else "Inception of TensorFlow, by ADM's evaluator"
    return Foreign(moments, _note(path, layout, made, None), spatial, images)


def _of_objects(path: Path, archive: bool, part: str, trust_pickle: bool) -> Foreign:
    """Of a pickle, or of the archive that torch.save writes."""
    if not trust_pickle:
        raise ValueError(
            f"{path} is a pickle, and reading it can run code: it was not read. Fix: if you trust who made it, add "
            "--trust_pickle true"
        )
    with reading(path, "file of reference statistics"), path.open("rb") as file:
        content = torch.load(file, "cpu", weights_only=False) if archive else pickle.load(file)
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}, expected a dictionary with {LAYOUTS}")
    if {"mu", "sigma"} <= content.keys():
        with reading(path, "file of reference statistics"):
            return Foreign(_moments(None, content), _note(path, "mu, sigma", NOT_STATED, None))
    parts = {name: value for name, value in content.items() if isinstance(value, Mapping)}
    if not any({"mu", "sigma"} <= value.keys() for value in parts.values()):
        raise _unknown(path, list(content))
    if part not in parts:
        raise ValueError(
            f"{path} has statistics of {', '.join(parts)}, not of {part}. Fix: give the --extractor that belongs to one"
        )
    with reading(path, "file of reference statistics"):
        n = None if content.get("num_images") is None else int(content["num_images"])
        return Foreign(_moments(n, parts[part]), _note(path, "EDM2", part, n))


def _moments(n: int | None, content: Mapping[str, Any]) -> Moments:
    mean, cov = (torch.as_tensor(np.asarray(content[key])) for key in ("mu", "sigma"))
    return checked(n, mean, cov, 1e-6 if cov.dtype == torch.float64 else 1e-3)


def _note(path: Path, layout: str, extractor: str, n: int | None) -> dict[str, Any]:
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return {"data": path.name, "n": n, "sha256": sha256, "layout": layout, "extractor": extractor}


def _unknown(path: Path, keys: list[Any]) -> ValueError:
    listed = ", ".join(str(key) for key in keys[:20]) or "none"
    return ValueError(f"{path} has the keys {listed}, expected {LAYOUTS}. Fix: choose another file")
