"""The file of a run card; `callbacks.RunCard`, which writes it, documents its content."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..checkpoints.migrations import migrate_config
from .reading import Number, read_json, reading
from .storage import write_file

CARD = "card.json"
#: The file that `fit` holds a lock on in the folder of its run.
LOCK = ".lock"


#: What every reader of a card can expect; JSON has no infinity, which is a string there.
_NUMBER = (int, float, str)
KIND = {
    "status?": str,
    "sessions": [{"status": str, "wall_seconds": Number}],
    "error?": (str, None),
    "steps?": (int, None),
    "examples_seen?": (int, None),
    "wall_seconds?": (*Number, None),
    "metrics?": (None, {"step": int, "values": {"*": _NUMBER}}),
    "evaluations?": [dict],
    "logged_to?": {"*": str},
    "seeds?": (dict, None),
    "data?": (None, {"examples?": int, "of?": int, "sha256?": {"*": str}}),
    "config?": {"expected?": (None, {"*": dict})},
}


def read_card(path: str | Path) -> dict[str, Any]:
    """The run card at path, or in the folder of a run; its configuration as this version spells it.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged, or another file.
    """
    path = Path(path)
    if path.is_dir() and path.name != CARD:
        path = path / CARD
    try:
        with reading(path, "run card", "move it away"):
            card: dict[str, Any] = read_json(path, KIND)
            if not card["sessions"]:
                raise ValueError("it has no sessions")
            if "config" in card:
                card["config"] = migrate_config(card["config"])
    except FileNotFoundError:
        raise FileNotFoundError(f"no run card at {path}") from None
    return card


def done_in(run: str | Path, step: int) -> tuple[bool, bool]:
    """Whether a validation that is due at a step, and the end of a run that ends with it, were done in a run's folder.

    A folder without a card is not of the run that the step belongs to, and nothing is due there.
    """
    try:
        card = read_card(run)
        steps = int(card["steps"] or 0)
        validated = int(card.get("validated_step", steps))  # version 0.1 wrote none
    except (OSError, ValueError, KeyError, TypeError):
        return True, True
    return validated >= step, steps > step or (steps == step and card.get("status") == "finished")


def write_card(card: Mapping[str, Any], path: Path) -> None:
    """Replace the card at path in one instant.

    Raises:
        OSError: it cannot be written; what was at path before is still there.
    """
    text = json.dumps(plain(card), indent=2, ensure_ascii=False, allow_nan=False)
    try:
        write_file(path, text + "\n")
    except OSError as error:
        raise OSError(f"cannot write {path}: {error.strerror or error}") from error


def plain(value: Any) -> Any:
    """As JSON can hold it, which has no infinity and no NaN."""
    if isinstance(value, Mapping):
        return {str(name): plain(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(value)
    return value if value is None or isinstance(value, (str, bool, int)) else str(value)


def one_line(error: BaseException) -> str:
    """Class and message of an error in at most 300 characters; of a ValueError or OSError the message alone."""
    text = " ".join(str(error).split())
    line = text if isinstance(error, (ValueError, OSError)) and text else f"{type(error).__name__}: {text}"
    return line if len(line) <= 300 else line[:299] + "…"
