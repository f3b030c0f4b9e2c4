"""A table as lines of text, as wide as the terminal."""

import shutil
import sys
from collections.abc import Sequence


def text_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The rows under their head, columns aligned; on a terminal the last column is cut to its width.

    Args:
        head: titles of the columns.
        rows: as many texts each.
    """
    lines = [list(head), *map(list, rows)]
    widths = [max(len(line[k]) for line in lines) for k in range(len(head) - 1)]
    left = sum(widths) + 2 * len(widths)
    width = shutil.get_terminal_size((120, 24)).columns if sys.stdout.isatty() else sys.maxsize
    room = max(20, width - left)
    text = []
    for line in lines:
        last = line[-1] if len(line[-1]) <= room else f"{line[-1][: room - 1].rstrip()}…"
        cells = [f"{cell:<{widths[k]}}" for k, cell in enumerate(line[:-1])]
        text.append("  ".join([*cells, last]).rstrip())
    return "\n".join(text)
