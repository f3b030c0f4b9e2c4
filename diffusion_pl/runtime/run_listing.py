"""The runs in a folder: state, step, metrics and size, from their cards; no checkpoint is read."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .reading import check, read_json, reading
from .run_card import CARD, KIND, LOCK
from .storage import is_locked

_DEEPEST = 3  # folders below the root, of runs named a/b/c


@dataclass(frozen=True)
class Run:
    """A run.

    name: of its folder below the root;  state: running, finished, stopped (by a signal), failed, or dead: the card says
    running, and no process trains there;  step, max_steps: optimizer steps done and planned, None: not known;  metrics:
    the last logged values by their tags;  size: of all its files, bytes;  problem: why the card cannot be read, "" if
    it can.
    """

    name: str
    state: str
    step: int | None
    max_steps: int | None
    metrics: dict[str, float | str]
    size: int
    problem: str = ""


def list_runs(root: Path) -> list[Run]:
    """The runs below a folder, in the order of their names.

    Args:
        root: folder of the runs.

    Raises:
        FileNotFoundError, NotADirectoryError: there is no such folder.
    """
    if not root.is_dir():
        kind = NotADirectoryError if root.exists() else FileNotFoundError
        raise kind(f"{root}: {'is a file' if root.exists() else 'no such folder'}; expected the folder of runs")
    return [_read(folder, str(folder.relative_to(root))) for folder in _folders(root)]


def state_of(folder: Path, card: Mapping[str, Any]) -> str:
    """The state of a run, see `Run`, from its folder and its card."""
    state = str(card.get("status", "unknown"))
    return "dead" if state == "running" and is_locked(folder / LOCK) is False else state


def _folders(root: Path, depth: int = 1) -> Iterator[Path]:
    """The folders of runs, those with a card or with checkpoints."""
    try:
        inside = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError:  # a folder that this user may not read
        return
    for folder in inside:
        if (folder / CARD).exists() or (folder / "checkpoints").is_dir():
            yield folder
        elif depth < _DEEPEST:
            yield from _folders(folder, depth + 1)


def _read(folder: Path, name: str) -> Run:
    size = _size(folder)
    try:
        with reading(folder / CARD, "run card", "move it away"):
            card: dict[str, Any] = read_json(folder / CARD, KIND)
            check(card, {"config?": {"trainer?": (dict, None)}})
    except (OSError, ValueError) as error:
        return Run(name, "unknown", None, None, {}, size, " ".join(str(error).split()))
    max_steps = (card.get("config", {}).get("trainer") or {}).get("max_steps")
    planned = max_steps if isinstance(max_steps, int) and max_steps > 0 else None
    metrics = (card.get("metrics") or {}).get("values", {})
    return Run(name, state_of(folder, card), card.get("steps"), planned, metrics, size)


def _size(folder: Path) -> int:
    """Bytes of all files; hard links, such as last.ckpt and previous.ckpt of one step, count once."""
    seen: dict[tuple[int, int], int] = {}
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                status = os.lstat(os.path.join(root, name))
            except OSError:  # removed meanwhile
                continue
            seen[status.st_dev, status.st_ino] = status.st_size
    return sum(seen.values())
