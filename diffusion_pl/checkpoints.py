"""The one reader and writer of checkpoint files.

Written beside the target, flushed, then renamed over it: whatever happens in between, the old file is whole.  Read with
weights_only=True, so that a file can hold no code, after its checksums were verified.
"""

import contextlib
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import CheckpointIO


class AtomicCheckpointIO(CheckpointIO):
    """Lightning's plugin for both."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        write(checkpoint, Path(path))

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        checkpoint = read(path, map_location)
        if "pytorch-lightning_version" not in checkpoint:
            raise ValueError(f"{path} was not written by `python -m diffusion_pl fit`")
        return checkpoint

    def remove_checkpoint(self, path: str | Path) -> None:
        Path(path).unlink(missing_ok=True)


def write(checkpoint: dict[str, Any], path: Path) -> None:
    """Replace the file at path by the checkpoint, in one instant.

    Raises:
        OSError: it cannot be written; what was at path before is still there.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        with contextlib.suppress(OSError):
            part.unlink()
        raise OSError(f"cannot write the checkpoint {path}: {error}; the previous one, if any, is untouched") from error


def read(path: str | Path, map_location: Any = "cpu") -> dict[str, Any]:
    """A checkpoint's content.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, not a checkpoint, or holds objects of classes, none of which is made.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"the checksum of {damaged} does not match")
        checkpoint = torch.load(path, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path} holds more than tensors and plain values, maybe code: it was not read") from error
    except Exception as error:  # a damaged file shows itself in a dozen ways, all of which mean the same
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} is damaged or not a checkpoint ({reason})") from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise ValueError(f"{path} is not a checkpoint of a training run: it has no state_dict")
    return checkpoint
