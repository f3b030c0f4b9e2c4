"""Write files and folders: nothing of the user's is overwritten, and no file is left incomplete.

    write_file      replaces a file in one instant, or creates it if it is new
    claim_folder    makes the first free folder of NAME, NAME-2, NAME-3 …; of several processes each gets its own
    Lock            one process at a time

Every file is written under a temporary name that no other process uses, flushed to the disk, then renamed.  If
the process ends in between, the old file is complete, and the next writer removes the rest.
"""

import contextlib
import errno
import fcntl
import json
import os
import shutil
import socket
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

Content = str | bytes | Callable[[BinaryIO], object]

_PROCESS = uuid.uuid4().hex[:8]  # in addition to its number, which is 1 in every container
_MANY = 100  # files; beyond, one sync of the whole system is faster than one for each file


def write_file(path: Path, content: Content, *, replace: bool = True) -> None:
    """Write a file in one instant.

    Args:
        path: its folder is made if it is missing.
        content: text (UTF-8), bytes, or a function that writes to a binary file.
        replace: whether a file at path may be replaced.

    Raises:
        FileExistsError: there is one, and it may not.
        OSError: it cannot be written; what was at path before is still there.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:  # which here would mean that path itself is there
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path.parent)) from error
    part = _temporary(path)
    try:
        with part.open("xb") as file:
            _try_lock(file.fileno())
            if callable(content):
                content(file)
            else:
                file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
            if replace:
                os.replace(part, path)
            else:
                move_new(part, path)
        sync_folder(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise


def copy_file(source: Path, target: Path) -> None:
    """Replace target by a copy of source in one instant: a second name of the same file where that is possible."""
    part = _temporary(target)
    try:
        os.link(source, part)
    except OSError:  # a file system without links
        with source.open("rb") as file:
            write_file(target, lambda copied: shutil.copyfileobj(file, copied))
        return
    try:
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)  # renaming one name of a file to another of its names leaves both


def write_json(path: Path, content: Any) -> None:
    """Write plain values as JSON, see `write_file`."""
    write_file(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def sync_folder(folder: Path) -> None:
    """Flush the names in a folder to the disk, where the file system can."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def claim_folder(parent: Path, name: str) -> Path:
    """Make the first free folder of parent/name, parent/name-2, parent/name-3 …

    Making a folder either succeeds or fails, so two processes never get the same one.
    """
    for folder in numbered(parent, name):
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder.mkdir()
            return folder
        except FileExistsError:
            if not folder.parent.is_dir():
                raise
    raise AssertionError("unreachable")


def numbered(parent: Path, name: str) -> Iterator[Path]:
    """parent/name, parent/name-2, parent/name-3 …"""
    yield parent / name
    number = 1
    while True:
        number += 1
        yield parent / f"{name}-{number}"


class Lock:
    """Held by one process at a time, and released when that ends, in any way.

    On a file system without locks every process gets it.

    Args:
        path: the file of the lock; it holds the process and the machine that have the lock.
        busy: what to say if another process has it, before "(process 123 on HOST)".

    Raises:
        ValueError: another process has it.
    """

    def __init__(self, path: Path, busy: str) -> None:
        self._path = path
        while True:
            self._file = path.open("a+", encoding="utf-8")
            if _try_lock(self._file.fileno()) is False:
                self._file.seek(0)
                owner = self._file.read(200).strip() or "unknown process"
                self._file.close()
                raise ValueError(f"{busy} ({owner})")
            if self._is_there():
                break
            self._file.close()  # its former owner has removed it since it was opened
        with contextlib.suppress(OSError):  # a full disk: the lock is held all the same
            self._file.truncate(0)
            self._file.write(f"process {os.getpid()} on {socket.gethostname()}")
            self._file.flush()

    def release(self) -> None:
        """Release it; a second call does nothing."""
        if not self._file.closed:
            if self._is_there():
                self._path.unlink()
            self._file.close()

    def _is_there(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._file.fileno()), os.stat(self._path))
        except FileNotFoundError:
            return False


def is_locked(path: Path) -> bool | None:
    """Whether a process holds the lock on a file; None where the file system has no locks, or the file is unreadable.

    Nothing is written.  Not for a lock of this process, which it would release.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        return False if isinstance(error, FileNotFoundError) else None
    with file:
        free = _try_lock(file.fileno(), fcntl.LOCK_SH)
    return None if free is None else not free


def move_new(source: Path, target: Path) -> None:
    """Rename a file to a name that no other file has, else FileExistsError.  A repeated call continues."""
    try:
        os.link(source, target)
    except FileExistsError:
        if not os.path.samefile(source, target):
            raise
    except OSError:  # a file system without links
        if target.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from None
        os.rename(source, target)
        return
    source.unlink()


def sync_tree(folder: Path) -> None:
    paths = [folder, *folder.rglob("*")]
    if len(paths) > _MANY:
        os.sync()
        return
    for path in paths:
        if path.is_dir():
            sync_folder(path)
        else:
            with path.open("rb") as file:
                os.fsync(file.fileno())


def _try_lock(descriptor: int, kind: int = fcntl.LOCK_EX) -> bool | None:
    """Lock an open file: whether that succeeded; None where the file system has no locks."""
    try:
        # Of the process, not of the open file: worker processes that outlive a killed one must not hold it.
        fcntl.lockf(descriptor, kind | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in (errno.EACCES, errno.EAGAIN) else None
    return True


def remove_stale(path: Path) -> None:
    """Remove what killed writers of the file at path have left next to it."""
    for part in path.parent.glob(f".{_escaped(path.name)}.*-*.part"):
        # Our own process may be writing it in another thread, which its lock would not show.
        if not part.name.removeprefix(f".{path.name}.").startswith(f"{_PROCESS}{os.getpid()}-"):
            with contextlib.suppress(OSError), part.open("r+b") as file:
                if _try_lock(file.fileno()):
                    part.unlink()


def _temporary(path: Path) -> Path:
    """A name next to path that no other process uses."""
    remove_stale(path)
    return path.with_name(f".{path.name}.{_PROCESS}{os.getpid()}-{uuid.uuid4().hex[:8]}.part")


def _escaped(name: str) -> str:
    return "".join(f"[{letter}]" if letter in "[*?" else letter for letter in name)
