"""Read numbers from the columns of CSV and TSV files."""

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def read_columns(path: Traversable, columns: Sequence[str], where: Mapping[str, str] | None = None) -> Tensor:
    """Numbers in the named columns of a delimited text file with a header line: (rows, columns), float64.

    Args:
        path: The file.
        columns: Names of the columns to read.
        where: Keep only the rows in which each of these columns has this text.
    """
    where = where or {}
    if not path.is_file():  # reading a pipe would wait for ever
        if isinstance(path, Path) and path.exists():
            raise ValueError(f"{path}: not a regular file: give a table in a file")
        raise FileNotFoundError(f"{path}: no such file. Fix: give --data.path FILE")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}): convert the file") from None

    first_line = text.partition("\n")[0]
    # The first of equals wins, so a tab beats a comma in a name, and a single column is read as comma-separated.
    delimiter = "\t" if "\t" in first_line else max(",;|", key=first_line.count)
    reader = csv.reader(io.StringIO(text), delimiter=delimiter)
    rows = _rows(reader, path)
    header = [name.strip() for name in next(rows, [])]
    for name in (*columns, *where):
        if header.count(name) != 1:
            problem = "no column" if name not in header else "more than one column"
            raise ValueError(f"{path}, line 1: {problem} {name!r}; the columns are {', '.join(map(repr, header))}")
    positions = {name: header.index(name) for name in columns}
    conditions = {header.index(name): value for name, value in where.items()}

    points = []
    rejected: list[list[str]] = []  # what the rows that do not match have in the columns of ``where``
    for row in rows:
        if not any(row):
            continue
        if len(row) != len(header):
            raise ValueError(
                f"{path}, line {reader.line_num}: {len(row)} fields where the header has {len(header)}: correct it"
            )
        if [row[at].strip() for at in conditions] == list(conditions.values()):
            place = f"{path}, line {reader.line_num}, column"
            points.append([_number(row[at], f"{place} {name!r}") for name, at in positions.items()])
        else:
            rejected.append([row[at].strip() for at in conditions])
    if not points and not rejected:
        raise ValueError(f"{path}: no rows below the header: give a file with data")
    if not points:
        condition = " and ".join(f"{name} = {value!r}" for name, value in where.items())
        values = ", ".join(map("/".join, sorted({tuple(texts) for texts in rejected})[:20]))
        raise ValueError(f"{path}: none of {len(rejected)} rows has {condition}: correct where; the file has {values}")
    return torch.tensor(points, dtype=torch.float64)


def _rows(reader: Any, path: Traversable) -> Iterator[list[str]]:
    try:
        yield from reader
    except csv.Error as error:
        problem = str(error)
        if "field" in problem and "limit" in problem:
            problem = f"a field of more than {csv.field_size_limit():,} characters, is a quotation mark not closed?"
        raise ValueError(f"{path}, line {reader.line_num}: not a table ({problem}): correct the line") from None


def _number(text: str, place: str) -> float:
    try:
        number = float(text.replace("_", "?"))  # Python would read 1_000 as a thousand
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{place}: {text!r} is not a finite number: correct the cell or remove the row")
    return number
