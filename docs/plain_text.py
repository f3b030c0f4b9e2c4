"""Docstrings are prose with formulas in Unicode, not Markdown: what Markdown would take for markup is escaped."""

import re
from typing import Any

import griffe

SECTIONS = ("Args:", "Returns:", "Raises:", "Yields:", "Attributes:")
CODE = re.compile(r"(``.+?``|`[^`]+`)")
ENTRY = re.compile(r"    (\*{0,2}\w+(?:, \*{0,2}\w+)*): (.*)")  # "x_t: text", or "t, s: text" that holds for both


class PlainText(griffe.Extension):
    """Hands mkdocstrings every docstring as Markdown that shows it as it is written."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = "\n".join(plain(obj.docstring.value.splitlines()))


def plain(lines: list[str]) -> list[str]:
    """Prose and sections escaped; indented blocks, which are formulas, left as they are."""
    found: list[str] = []
    entry: list[str] = []  # of a section: what several names share
    section = ""
    for line in [*lines, "end"]:
        match = ENTRY.fullmatch(line) if section else None
        if entry and (match or not line.startswith("     ")):
            names = entry[0].split(", ")
            found += [text for name in names for text in (f"    {name}: {entry[1]}", *entry[2:])]
            entry = []
        if line and not line.startswith(" "):
            section = line if line in SECTIONS else ""
        if match and section in ("Args:", "Attributes:"):
            entry = [match[1], escaped(match[2])]
        elif entry:
            entry.append(escaped(line))
        elif match:  # the name is a type
            found.append(f"    {match[1]}: {escaped(match[2])}")
        elif line.startswith("    ") and not section:
            found.append(line)
        else:
            found.append(escaped(line))
    return found[:-1]


def escaped(text: str) -> str:
    """No *, _, < or bracket of the text is markup, but ``code`` and `code` are."""
    parts = CODE.split(text)
    return "".join(f"`{p.strip('`')}`" if p.startswith("`") else _prose(p) for p in parts)


def _prose(text: str) -> str:
    return re.sub(r"([*_\[\]])", r"\\\1", text).replace("<", "&lt;")
