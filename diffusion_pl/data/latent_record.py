"""latents.json: what a folder of latents holds, and what a checkpoint keeps of it."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from ..conditions import class_count, from_plain, to_plain

RECORD = "latents.json"
#: What a checkpoint keeps of latents.json.
KEPT = ("shape", "image_shape", "levels", "conditions", "class_counts", "mean", "std", "autoencoder", "data", "sha256")
OPTIONAL = ("second_moment",)  # where the latents were multiplied by a number
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


def check_same(source: str, current: dict[str, Any], saved: dict[str, Any]) -> None:
    """Raise ValueError if the latents of a folder are not a checkpoint's.

    Args:
        source: what to call the folder.
        current: its record.
        saved: the checkpoint's.
    """
    pairs = {
        "autoencoder": (saved["autoencoder"]["sha256"][:12], current["autoencoder"]["sha256"][:12]),
        "shape": (saved["shape"], current["shape"]),
        "images": (saved["image_shape"], current["image_shape"]),
        "classes": tuple(class_count(from_plain(record["conditions"])) for record in (saved, current)),
        "mean": (_rounded(saved["mean"]), _rounded(current["mean"])),
        "std": (_rounded(saved["std"]), _rounded(current["std"])),
    }
    for name, (before, now) in pairs.items():
        if before != now:
            raise ValueError(
                f"{source}: {name} of the latents differ: {now}, in the checkpoint {before}. Fix: give the "
                "latents it was trained on as --data.path, or start a new run"
            )
    names = [to_plain(from_plain(record["conditions"])) for record in (saved, current)]
    if names[0] != names[1]:
        raise ValueError(f"{source}: the conditions differ from the checkpoint's. Fix: start a new run")


def _rounded(values: list[float]) -> list[float]:
    return [float(np.float32(value)) for value in values]
