"""Read and write checkpoint files.

Written by `storage.write_file`: whatever happens in between, the old file is intact.  Read with weights_only=True, so
that a file can hold no code, after its checksums were verified.
"""

import contextlib
import copy
import errno
import hashlib
import os
import pickle
import zipfile
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import torch
from lightning.pytorch.plugins.io import CheckpointIO
from torch import Tensor

from ..runtime.reading import check, reading
from ..runtime.storage import copy_file, write_file
from .exported import CONFIG, WEIGHTS, is_exported, read_exported, sha256_of_exported, zoo_folder
from .migrations import migrate_checkpoint

#: Names of a run's newest checkpoint and of the one before: what replaces the first makes it the second.
LAST, PREVIOUS = "last.ckpt", "previous.ckpt"
FOREIGN = "Fix: bring a model of another package in with `python -m diffusion_pl import`"


class AtomicCheckpointIO(CheckpointIO):
    """Lightning's plugin for both.

    A checkpoint is on the disk when saving returns, except `in_background`: there a thread writes a copy, one at a
    time.  Whatever is saved, loaded or removed next, and the end of training however it comes, waits for it.
    """

    def __init__(self) -> None:
        self._later = False
        self._writing: Future[None] | None = None

    @contextlib.contextmanager
    def in_background(self) -> Iterator[None]:
        """Saving within takes as long as a copy to host memory, which needs as much memory as the file will be long."""
        self._later = True
        try:
            yield
        finally:
            self._later = False

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        self.wait()
        if not self._later:
            write(checkpoint, Path(path))
            return
        # The thread is not a daemon: it finishes also where nobody waits for it, at the exit of the process.
        writer = ThreadPoolExecutor(1, "checkpoint")
        self._writing = writer.submit(write, snapshot(checkpoint), Path(path))
        writer.shutdown(wait=False)

    def wait(self) -> None:
        """Return when what is being written is on the disk.

        Raises:
            OSError: it could not be written.
        """
        if self._writing is not None:
            try:
                self._writing.result()
            finally:
                if self._writing.done():
                    self._writing = None

    def check(self) -> None:
        """Raise the error of a write that has failed meanwhile; does not wait."""
        if self._writing is not None and self._writing.done():
            self.wait()

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        self.wait()
        checkpoint = read(path, map_location)
        if "pytorch-lightning_version" not in checkpoint:
            raise ValueError(f"{path} was not written by `python -m diffusion_pl fit`")
        return checkpoint

    def remove_checkpoint(self, path: str | Path) -> None:
        self.wait()
        Path(path).unlink(missing_ok=True)

    def teardown(self) -> None:
        self.wait()


def snapshot(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """A copy that training does not change, its tensors in host memory.  Tensors that are one stay one."""
    copies: dict[Any, Tensor] = {}
    memo: dict[int, Any] = {}  # what deepcopy is to take for the object of an id

    def visit(value: Any) -> None:
        if isinstance(value, Tensor):
            key = (value.data_ptr(), value.shape, value.stride(), value.dtype, value.device)
            if key not in copies or value.numel() == 0:
                copies[key] = value.detach().to("cpu", copy=True)
            memo[id(value)] = copies[key]
        elif isinstance(value, dict):
            for part in value.values():
                visit(part)
        elif isinstance(value, (list, tuple)):
            for part in value:
                visit(part)

    visit(checkpoint)
    return copy.deepcopy(checkpoint, memo)


def write(checkpoint: dict[str, Any], path: Path, *, replace: bool = True) -> None:
    """Replace the file at path by the checkpoint, in one instant; an old last.ckpt stays as previous.ckpt.

    Raises:
        FileExistsError: there is a file, and it may not be replaced.
        OSError: it cannot be written; what was at path before is still there.
    """

    def save(file: BinaryIO) -> None:
        try:
            torch.save(checkpoint, file)
        except RuntimeError:  # so torch reports a full disk, too; a write of our own names the reason
            file.write(bytes(1 << 16))
            file.flush()
            raise
        if path.name == LAST and replace and is_whole(path):  # else the previous one stays the last good one
            file.flush()
            os.fsync(file.fileno())
            copy_file(path, path.with_name(PREVIOUS))

    try:
        write_file(path, save, replace=replace)
    except FileExistsError:
        raise
    except (OSError, RuntimeError) as error:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        reason = os.strerror(errno.ENOSPC) if full else error
        remedy = "free some space" if full else "fix the cause"
        raise OSError(f"cannot write the checkpoint {path}: {reason}; {_what_is_left(path, remedy)}") from error


def read(path: str | Path, map_location: Any = "cpu") -> dict[str, Any]:
    """A checkpoint's content, see `read_hashed`."""
    return read_hashed(path, map_location)[0]


def read_hashed(path: str | Path, map_location: Any = "cpu") -> tuple[dict[str, Any], str]:
    """A checkpoint's content as this version writes it, and the SHA-256 of the very bytes that were read.

    A run may replace the file meanwhile.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, not a checkpoint, of a newer version, or holds objects of classes, none of which is
            made.
    """
    path = checkpoint_at(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}{or_else(path)}")
    if is_exported(path):
        if not path.with_name(CONFIG).is_file():
            raise FileNotFoundError(f"{path}: there is no {CONFIG} of `export --to safetensors` next to it. {FOREIGN}")
        content, sha256 = read_exported(path)
        return migrate_checkpoint(content, path), sha256
    try:
        opened = path.open("rb")
    except OSError as error:
        raise OSError(f"{path} cannot be read: {error.strerror}") from error
    with opened as file:
        try:
            _verify(file)
            file.seek(0)
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(0)
            checkpoint = torch.load(file, map_location=map_location, weights_only=True)
        except pickle.UnpicklingError as error:
            raise ValueError(f"{path} holds more than tensors and plain values, maybe code: it was not read") from error
        except Exception as error:  # a damaged file shows itself in a dozen ways, all of which mean the same
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ValueError(f"{path} is damaged or not a checkpoint ({reason}){or_else(path)}") from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise ValueError(f"{path} is not a checkpoint of a training run: it has no state_dict. {FOREIGN}")
    return migrate_checkpoint(checkpoint, path), sha256


def read_part(path: Path) -> dict[str, Any]:
    """Tensors and plain values that an interrupted call left.

    Raises:
        ValueError: it is damaged, or holds anything else.
    """
    with reading(path, "part of an interrupted call", "remove it; it will be made again"):
        content: dict[str, Any] = torch.load(path, weights_only=True)
        check(content, {"block": Tensor, "index": Tensor, "x": Tensor, "nfe": (int, float)})
        block, index = content["block"], content["index"]
        if block.ndim != 1 or index.ndim != 1 or len(index) != len(content["x"]) or (len(index) and index.min() < 0):
            raise ValueError("its parts do not fit each other")
    return content


def last_checkpoint(run: str | Path) -> Path:
    """Where a run's newest checkpoint is."""
    return Path(run) / "checkpoints" / LAST


def previous_checkpoint(run: str | Path) -> Path:
    """Where the one before is."""
    return Path(run) / "checkpoints" / PREVIOUS


def checkpoint_at(path: str | Path) -> Path:
    """The checkpoint at path; of a run's folder its newest good one; of an exported model or zoo:NAME its weights.

    Raises:
        FileNotFoundError: the folder holds none, or there is no shipped model of this name.
    """
    path = zoo_folder(Path(path))
    if not path.is_dir():
        return path
    if (path / WEIGHTS).is_file():
        return path / WEIGHTS
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    first = [folder / LAST, folder / PREVIOUS]
    others = sorted(folder.glob("*.ckpt"), key=lambda file: file.stat().st_mtime_ns, reverse=True)
    for file in [*first, *others]:
        if file.is_file() and is_whole(file):
            return file
    hint = f". {FOREIGN}" if (path / "model_index.json").is_file() or (path / "config.json").is_file() else ""
    raise FileNotFoundError(f"no checkpoint in {path}: give a run's folder, such as runs/NAME, or a file{hint}")


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, of the newest checkpoint in the folder of a run, or of an exported model; hexadecimal."""
    path = checkpoint_at(path)
    if is_exported(path) and path.with_name(CONFIG).is_file():
        return sha256_of_exported(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def or_else(path: Path) -> str:
    """For a message about path: "; the newest good one is …", of the others in its folder, or nothing if none is."""
    others = [file for file in path.parent.glob("*.ckpt") if file.is_file() and file.name != path.name]
    for other in sorted(others, key=lambda file: file.stat().st_mtime_ns, reverse=True):
        if _is_checkpoint(other):
            return f"; the newest good one is {other}: give it as --ckpt_path"
    return ""


def _is_checkpoint(path: Path) -> bool:
    """Whether the file is complete and of a training run, not any archive of this name."""
    if not is_whole(path):
        return False
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception:  # of a dozen kinds
        return False
    return isinstance(content, dict) and "state_dict" in content


def is_whole(path: Path) -> bool:
    """Whether the checksums within the file say that it is as it was written."""
    try:
        with path.open("rb") as file:
            _verify(file)
    except Exception:  # of a dozen kinds
        return False
    return True


def _verify(file: BinaryIO) -> None:
    with zipfile.ZipFile(file) as archive:
        if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
            raise ValueError("its parts are compressed, which torch never does")
        damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"the checksum of {damaged} does not match")
        if not any(name.endswith("/data.pkl") for name in archive.namelist()):
            raise ValueError("an archive of something else")


def _what_is_left(path: Path, remedy: str) -> str:
    if not path.is_file():
        return f"there was none before{or_else(path)}"
    if is_whole(path):
        return f"the previous checkpoint is intact: {remedy} and resume with --ckpt_path {path}"
    return f"the one before is untouched, but damaged{or_else(path)}"
