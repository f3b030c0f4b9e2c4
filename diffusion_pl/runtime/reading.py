"""Read the package's own files; errors are one line."""

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

#: What a value must be: a type, several of them, a list of one kind, {name: kind} with "name?" for what may be missing,
#: or {"*": kind} for any names.
Kind = Any

Number = (int, float)
MOST_BYTES = 256 * 2**20  # of a JSON file


@contextmanager
def reading(path: str | Path, what: str, fix: str = "choose another file") -> Iterator[None]:
    """Within, every exception but that of a missing or unreadable file means that the file is another one or damaged.

    Raises:
        OSError: it is missing or cannot be read.
        ValueError: it is something else, or damaged.
    """
    try:
        yield
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: file not found (expected: {what})") from None
    except (PermissionError, IsADirectoryError) as error:
        raise OSError(f"{path} cannot be read: {error.strerror}") from error
    except Exception as error:  # of many kinds, all of which mean the same
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        if isinstance(error, (KeyError, AttributeError, TypeError)):
            reason = f"{type(error).__name__}: {reason}"
        raise ValueError(f"{path} is damaged or no {what} ({reason}). Fix: {fix}") from error


def read_json(path: Path, kind: Kind) -> Any:
    """The content of a JSON file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not JSON, or not of this kind.
    """
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(f"it is larger than {MOST_BYTES >> 20} MiB")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    check(content, kind)
    return content


def check(value: Any, kind: Kind, name: str = "the content") -> None:
    """Raise ValueError if a value is not of this kind, see `Kind`."""
    if isinstance(kind, dict):
        if not isinstance(value, Mapping):
            raise ValueError(f"{name}: expected an object, got {_short(value)}")
        for key, inner in kind.items():
            if key == "*":
                for any_key, part in value.items():
                    check(part, inner, str(any_key))
            elif key.removesuffix("?") in value:
                check(value[key.removesuffix("?")], inner, key.removesuffix("?"))
            elif not key.endswith("?"):
                raise ValueError(f"{key} is missing")
    elif isinstance(kind, list):
        if not isinstance(value, list):
            raise ValueError(f"{name}: expected a list, got {_short(value)}")
        for part in value:
            check(part, kind[0], name)
    elif isinstance(kind, tuple) and any(isinstance(option, (dict, list)) for option in kind):
        plain = tuple(option for option in kind if not isinstance(option, (dict, list)))
        if plain and _is(value, plain):
            return
        check(value, next(option for option in kind if isinstance(option, (dict, list))), name)
    elif not _is(value, kinds := kind if isinstance(kind, tuple) else (kind,)):
        expected = " or ".join("null" if option is None else option.__name__ for option in kinds)
        raise ValueError(f"{name}: expected {expected}, got {_short(value)}")
    elif isinstance(value, float) and not math.isfinite(value) and kind == Number:
        raise ValueError(f"{name} is not finite")


def _is(value: Any, kinds: tuple[Any, ...]) -> bool:
    if isinstance(value, bool):
        return bool in kinds
    return isinstance(value, tuple(type(None) if kind is None else kind for kind in kinds))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:39] + "…"
