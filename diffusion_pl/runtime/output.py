"""What a finished command says: a few lines and a table for people, or one JSON document for machines."""

import contextlib
import json
import math
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

from .reading import Kind

SHOWN = 3  # entries of a mapping in a table; JSON has all

#: A report as plain values; those in folders of older versions have the first two and perhaps an error.
KIND: Kind = {
    "done": str,
    "files": [str],
    "facts?": dict,
    "notes?": [str],
    "rows?": [dict],
    "next?": [str],
    "error?": str,
}


def next_command(*args: object) -> str:
    """A command line of this program that can be pasted into a shell."""
    return shlex.join(["python", "-m", "diffusion_pl", *map(str, args)])


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a finished command says.

    Attributes:
        done: what was done, one line.
        facts: values by their names, a line each.
        notes: what else should be known, a line each.
        rows: of a table: values by the names of the columns, the same names in each row.
        files: saved files, or the first and the last of many as one entry.
        next: command lines that can be pasted.
        error: what is wrong with the results, although they are complete; "" if nothing is.
        status: exit status without an error.
    """

    done: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()
    rows: Sequence[Mapping[str, Any]] = ()
    files: Sequence[Path] = ()
    next: Sequence[str] = ()
    error: str = ""
    status: int = 0

    def to_json(self) -> dict[str, Any]:
        """Plain values without NaN and infinities, which are strings, as JSON has none."""
        content: dict[str, Any] = _plain(asdict(self))
        return content

    def __str__(self) -> str:
        return self.text()

    def text(self, columns: int | None = None) -> str:
        """What a person reads; rows of the table end with "…" where they are longer than so many characters."""
        lines = [self.done]
        width = max(map(len, self.facts), default=0)
        lines += [f"  {name:<{width}}  {_text(value)}" for name, value in self.facts.items()]
        lines += [f"  note: {note}" for note in self.notes]
        rows = [f"  {line}" for line in table(self.rows)]
        lines += [row if columns is None or len(row) <= columns else f"{row[: columns - 1]}…" for row in rows]
        lines += ["saved:", *(f"  {file}" for file in self.files)] if self.files else []
        return "\n".join([*lines, *(f"next: {line}" for line in self.next)])


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Rows under the names of their columns, in aligned lines: numbers to the right, text to the left.

    Columns without a value are not shown.
    """
    if not rows:
        return []
    columns = []
    for name in rows[0]:
        values = [row[name] for row in rows]
        if all(value is None or value == "" for value in values):
            continue
        cells = [name.replace("_", " "), *(str(v) if type(v) is int else _text(v) for v in values)]
        width = max(map(len, cells))
        numeric = all(isinstance(value, (int, float, type(None))) for value in values)
        columns.append([cell.rjust(width) if numeric else cell.ljust(width) for cell in cells])
    return ["  ".join(cells).rstrip() for cells in zip(*columns, strict=True)]


def show(report: Report | None, stream: TextIO | None = None, as_json: bool = False) -> None:
    """Print a report, if there is one: only the first process of a call has it.

    Raises:
        ValueError: the report's error.
        SystemExit: with its status, if that is not 0.
    """
    if report is None:
        return
    stream = sys.stdout if stream is None else stream
    text = report.text(shutil.get_terminal_size().columns if stream.isatty() else None)
    print(json.dumps(report.to_json(), indent=2, ensure_ascii=False) if as_json else text, file=stream, flush=True)
    if report.error:
        raise ValueError(report.error)
    if report.status:
        raise SystemExit(report.status)


@contextlib.contextmanager
def stdout_for(as_json: bool) -> Iterator[TextIO]:
    """The stream of the report.  Within, if that is a JSON document, everything else that is printed goes to stderr."""
    stream = sys.stdout
    with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
        yield stream


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.5g}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_text, value))
    if isinstance(value, Mapping):
        return "  ".join(f"{name} {_text(part)}" for name, part in list(value.items())[:SHOWN])
    return str(value)


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(name): _plain(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)
