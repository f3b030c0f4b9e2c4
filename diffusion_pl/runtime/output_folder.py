"""The folder that one call of a command writes: claimed at the start, filled in one go at the end.

Nothing that was there before is overwritten, and a call that is repeated after an interruption ends with the same
files, whenever it was interrupted.
"""

import contextlib
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from .output import KIND, Report
from .reading import Kind, check, read_json, reading
from .startup import say
from .storage import Lock, move_new, sync_folder, sync_tree, write_json

UNFINISHED, _CALL, _READY, _LOCK = ".unfinished", "call.json", "ready.json", "lock"
_DONE = {"call": dict, **KIND}
_PATIENCE = 300.0  # seconds that the other processes of a call wait for the first


class OutputFolder:
    """The folder that one call of a command writes: claimed at once, filled in one go at the end.

        with OutputFolder(folder, call) as output:
            if output.published is None:
                ...                                    # work, which may be kept in output.work to be resumed
                output.publish(write, report)          # write(stage) -> the files it has written into `stage`
            return output.report

    The folder must be new or empty, or hold what an unfinished or finished call with the same content left.  The
    results are written to a hidden folder within and moved into place when they are complete, so a call that is
    repeated after an interruption, at any moment, ends with the same files.  If the work fails before anything was
    kept, all that was made is removed.

    Args:
        folder: of the results.
        call: everything that the results depend on, as plain values.
        leader: whether this process writes; of several that share the work one does, the others wait for its claim.
        remedy: what the user can do if the folder holds something else.

    Attributes:
        work: hidden folder for files that are kept after an interruption; it is removed at the end.
        published: what the finished call says, once the results are in place; None before.

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
        self.published: Report | None = None
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
        """Release the folder for other processes."""
        if self._lock is not None:
            self._lock.release()

    @property
    def report(self) -> Report | None:
        """What the finished call says, in the leading process; None in the others."""
        return self.published if self.leader else None

    def publish(self, write: Callable[[Path], list[Path]], report: Report) -> None:
        """Write the results and move them into place; `published` is set from then on.

        Args:
            write: writes them into the given folder and returns them in the order in which they are shown.
            report: what the call says when it is finished; its files are those that `write` returns.

        Raises:
            OSError: they cannot be written; the same call can be repeated and will finish them.
        """
        say(f"saving to {self.folder} …")
        stage = self.work / "files"
        shutil.rmtree(stage, ignore_errors=True)
        stage.mkdir()
        files = [file.relative_to(stage) for file in write(stage)]
        sync_tree(stage)
        write_json(self.work / _READY, replace(report, files=files).to_json())
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
                if any(path.name != _LOCK for path in self.work.iterdir()):  # of an unknown call
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
            content = next((path.name for path in sorted(self.folder.iterdir()) if path.name != UNFINISHED), None)
            if content is not None:
                raise ValueError(f"{self.folder} is not empty (it holds {content}): {self.remedy}")
        elif self.folder.exists() or self.folder.is_symlink():
            raise ValueError(f"{self.folder} is a file, not a folder: {self.remedy}")

    def _compare(self, earlier: dict[str, Any], state: str) -> None:
        for name in sorted(earlier.keys() | self.call.keys()):
            if earlier.get(name) != self.call.get(name):
                repeat = "repeat that call to finish it, or " if state == "unfinished" else ""
                values = f"{name} {_short(earlier.get(name))}, now {_short(self.call.get(name))}"
                raise ValueError(
                    f"{self.folder} holds the {state} results of another call ({values}): {repeat}{self.remedy}"
                )

    def _finish(self) -> None:
        """Move what is complete into place.  It can be interrupted anywhere and repeated."""
        ready = _read_json(self.work / _READY, KIND)
        stage = self.work / "files"
        for file in sorted(path for path in stage.rglob("*") if not path.is_dir()):
            target = self.folder / file.relative_to(stage)
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                move_new(file, target)
            except FileExistsError:
                raise ValueError(f"{target} appeared meanwhile. Fix: move it away and repeat the call") from None
        sync_folder(self.folder)
        write_json(self.folder / f".{_CALL}", {"call": self.call, **ready})
        self.published = self._shown(ready)
        shutil.rmtree(self.work)

    def _shown(self, note: dict[str, Any]) -> Report:
        shown = {name: note[name] for name in ("done", "facts", "notes", "rows", "next", "error") if name in note}
        return Report(**shown, files=[self.folder / name for name in note["files"]])

    def _discard(self) -> None:
        """Remove what was made, unless the work of this call or a former one is kept there."""
        kept = {path.name for path in self.work.glob("*")} - {_CALL, _LOCK, "files"} if self.work.is_dir() else set()
        if kept:
            return
        shutil.rmtree(self.work, ignore_errors=True)
        if self._made:
            with contextlib.suppress(OSError):  # another process put something there
                self.folder.rmdir()


def _read_json(path: Path, kind: Kind) -> dict[str, Any]:
    with reading(path, "note of an output folder", "remove it, or choose another folder"):
        content: dict[str, Any] = read_json(path, dict)
        if "summary" in content:  # of version 0.1 and earlier
            content["done"] = content.pop("summary").removesuffix(":")
        check(content, kind)
    return content


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:59] + "…"
