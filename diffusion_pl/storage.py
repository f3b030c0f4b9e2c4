"""Files and folders that a command writes: nothing of the user's is overwritten, and nothing is ever half there.

    write_file      replaces a file in one instant, or creates it if it is new
    claim_folder    makes the first free folder of NAME, NAME-2, NAME-3 …; of several processes each gets its own
    Lock            one process at a time
    OutputFolder    the folder of one call: claimed at the start, filled at the end, finished when the call is repeated

Every file is written under a temporary name that no other process uses, flushed to the disk, then renamed.  Whatever
ends the process in between, the old file is whole, and the next writer removes the rest.
"""

import contextlib
import errno
import fcntl
import json
import os
import shutil
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple, Self

from .reading import Kind, read_json, reading

Content = str | bytes | Callable[[BinaryIO], object]

UNFINISHED, _CALL, _READY, _LOCK = ".unfinished", "call.json", "ready.json", "lock"
_PROCESS = uuid.uuid4().hex[:8]  # beside its number, which is 1 in every container
_SHOWN = {"summary": str, "files": [str]}
_DONE = {"call": dict, **_SHOWN}
_PATIENCE = 300.0  # seconds that the other processes of a call wait for the first
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
                _move_new(part, path)
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
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(number)


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
    """Held by one process at a time, and given back when that ends, however it does.

    On a file system without locks everybody gets it.

    Args:
        path: the file of the lock; it holds the process and the machine of whoever has the lock.
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
            self._file.close()  # whoever had it has removed it since it was opened
        with contextlib.suppress(OSError):  # a full disk: the lock is held all the same
            self._file.truncate(0)
            self._file.write(f"process {os.getpid()} on {socket.gethostname()}")
            self._file.flush()

    def release(self) -> None:
        """Give it back; nothing happens the second time."""
        if not self._file.closed:
            if self._is_there():
                self._path.unlink()
            self._file.close()

    def _is_there(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._file.fileno()), os.stat(self._path))
        except FileNotFoundError:
            return False


class Published(NamedTuple):
    """What a finished call shows.  summary: lines of text;  files: in its folder, as they are printed."""

    summary: str
    files: list[Path]

    def __str__(self) -> str:
        return "\n".join([self.summary, *(f"  {file}" for file in self.files)])


class OutputFolder:
    """The folder that one call of a command writes: claimed at once, filled in one go at the end.

        with OutputFolder(folder, call) as output:
            if output.published is None:
                ...                                    # work, which may be kept in output.work to be resumed
                output.publish(write, summary)         # write(stage) -> the files it has written into `stage`
            print(output.published)

    The folder must be new or empty, or hold what an unfinished or finished call with the same content left.  The
    results are written to a hidden folder within and moved into place when they are complete, so a call that is
    repeated after an interruption, at whatever moment, ends with the same files.  If the work fails before anything was
    kept, all that was made is removed.

    Args:
        folder: of the results.
        call: everything that the results depend on, as plain values.
        leader: whether this process writes; of several that share the work one does, the others wait for its claim.
        remedy: what the user can do if the folder holds something else.

    Attributes:
        work: hidden folder for what shall survive an interruption; it is removed at the end.
        published: the results, once they are in place; None before.

    Raises:
        ValueError: the folder holds other files, results of another call, or another process is writing to it.
    """

    def __init__(
        self,
        folder: Path,
        call: dict[str, Any],
        *,
        leader: bool = True,
        remedy: str = "choose another folder with --output",
    ) -> None:
        self.folder, self.remedy, self.leader = folder, remedy, leader
        self.call: dict[str, Any] = json.loads(json.dumps(call))
        self.work = folder / UNFINISHED
        self.published: Published | None = None
        self._lock: Lock | None = None
        self._made = False
        if leader:
            self._claim()
        else:
            self._wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.leader and error is not None and self.published is None:
            self._discard()
        self.close()

    def close(self) -> None:
        """Let other processes have the folder."""
        if self._lock is not None:
            self._lock.release()

    def publish(self, write: Callable[[Path], list[Path]], summary: str) -> None:
        """Write the results and move them into place; `published` tells of them from then on.

        Args:
            write: writes them into the folder that it is given and returns them as they shall be shown.
            summary: what the call did, to be printed.

        Raises:
            OSError: they cannot be written; the same call can be repeated and will finish them.
        """
        stage = self.work / "files"
        shutil.rmtree(stage, ignore_errors=True)
        stage.mkdir()
        files = [str(file.relative_to(stage)) for file in write(stage)]
        _sync_tree(stage)
        write_json(self.work / _READY, {"summary": summary, "files": files})
        self._finish()

    def _claim(self) -> None:
        folder = self.folder
        if not (self.work / _CALL).is_file() and not (folder / f".{_CALL}").is_file():
            self._check_empty()
        try:
            self._made = not folder.exists()
            self.work.mkdir(parents=True, exist_ok=True)
            self._lock = Lock(self.work / _LOCK, f"another process is writing to {folder}: {self.remedy}, or wait")
        except OSError as error:
            raise ValueError(f"cannot write to the folder {folder}: {error.strerror}; {self.remedy}") from error
        try:
            if (folder / f".{_CALL}").is_file():
                done = _read_json(folder / f".{_CALL}", _DONE)
                self._compare(done["call"], "finished")
                self.published = self._shown(done)
                shutil.rmtree(self.work)
            elif (self.work / _CALL).is_file():
                self._compare(_read_json(self.work / _CALL, dict), "unfinished")
                if (self.work / _READY).is_file():
                    self._finish()
            else:
                self._check_empty()
                if any(path.name != _LOCK for path in self.work.iterdir()):  # who knows of which call
                    raise ValueError(f"{self.work} holds something without a note of its call: {self.remedy}")
                write_json(self.work / _CALL, self.call)
        except BaseException:
            self.close()
            if not (self.work / _CALL).is_file():
                self._discard()
            raise

    def _wait(self) -> None:
        """Until the leader has claimed the folder, or finished what was complete."""
        end = time.monotonic() + _PATIENCE
        while time.monotonic() < end:
            if (self.folder / f".{_CALL}").is_file() and not (self.work / _CALL).is_file():
                self.published = self._shown(_read_json(self.folder / f".{_CALL}", _DONE))
                return
            if (self.work / _CALL).is_file() and not (self.work / _READY).is_file():
                return
            time.sleep(0.05)
        raise OSError(f"the first process of this call did not claim {self.folder} within {_PATIENCE:g} s")

    def _check_empty(self) -> None:
        if self.folder.is_dir():
            there = next((path.name for path in sorted(self.folder.iterdir()) if path.name != UNFINISHED), None)
            if there is not None:
                raise ValueError(f"{self.folder} is not empty (it holds {there}): {self.remedy}")
        elif self.folder.exists() or self.folder.is_symlink():
            raise ValueError(f"{self.folder} is a file, not a folder: {self.remedy}")

    def _compare(self, theirs: dict[str, Any], state: str) -> None:
        for name in sorted(theirs.keys() | self.call.keys()):
            if theirs.get(name) != self.call.get(name):
                repeat = "repeat that call to finish it, or " if state == "unfinished" else ""
                values = f"{name} {_short(theirs.get(name))}, now {_short(self.call.get(name))}"
                raise ValueError(
                    f"{self.folder} holds the {state} results of another call ({values}): {repeat}{self.remedy}"
                )

    def _finish(self) -> None:
        """Move what is complete into place.  It can be interrupted anywhere and begun again."""
        ready = _read_json(self.work / _READY, _SHOWN)
        stage = self.work / "files"
        for file in sorted(path for path in stage.rglob("*") if not path.is_dir()):
            target = self.folder / file.relative_to(stage)
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                _move_new(file, target)
            except FileExistsError:
                raise ValueError(f"{target} appeared meanwhile. Fix: move it away and repeat the call") from None
        sync_folder(self.folder)
        write_json(self.folder / f".{_CALL}", {"call": self.call, **ready})
        self.published = self._shown(ready)
        shutil.rmtree(self.work)

    def _shown(self, note: dict[str, Any]) -> Published:
        return Published(note["summary"], [self.folder / name for name in note["files"]])

    def _discard(self) -> None:
        """Remove what was made, unless the work of this call or a former one is kept there."""
        kept = {path.name for path in self.work.glob("*")} - {_CALL, _LOCK, "files"} if self.work.is_dir() else set()
        if kept:
            return
        shutil.rmtree(self.work, ignore_errors=True)
        if self._made:
            with contextlib.suppress(OSError):  # somebody put something there
                self.folder.rmdir()


def _move_new(source: Path, target: Path) -> None:
    """Rename a file to a name that no other file has, else FileExistsError.  Begun again, it goes on."""
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


def _sync_tree(folder: Path) -> None:
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


def _try_lock(number: int) -> bool | None:
    """Lock an open file: whether that succeeded; None where the file system has no locks."""
    try:
        # Of the process, not of the open file: worker processes that outlive a killed one must not hold it.
        fcntl.lockf(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in (errno.EACCES, errno.EAGAIN) else None
    return True


def remove_stale(path: Path) -> None:
    """Remove what killed writers of the file at path have left beside it."""
    for part in path.parent.glob(f".{_escaped(path.name)}.*-*.part"):
        # Our own process may be writing it in another thread, which its lock would not show.
        if not part.name.removeprefix(f".{path.name}.").startswith(f"{_PROCESS}{os.getpid()}-"):
            with contextlib.suppress(OSError), part.open("r+b") as file:
                if _try_lock(file.fileno()):
                    part.unlink()


def _temporary(path: Path) -> Path:
    """A name beside path that nobody else uses."""
    remove_stale(path)
    return path.with_name(f".{path.name}.{_PROCESS}{os.getpid()}-{uuid.uuid4().hex[:8]}.part")


def _escaped(name: str) -> str:
    return "".join(f"[{letter}]" if letter in "[*?" else letter for letter in name)


def _read_json(path: Path, kind: Kind) -> dict[str, Any]:
    with reading(path, "note of an output folder", "remove it, or choose another folder"):
        content: dict[str, Any] = read_json(path, kind)
    return content


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:59] + "…"
