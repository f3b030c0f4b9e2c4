"""Options of another package's JSON file, each checked as it is read; those that nobody read can be named."""

import json
from pathlib import Path
from typing import Any

_LARGEST = 1 << 24  # bytes of a file of options
_SHOWN = 60  # characters of a value in a message


class Options:
    """The dictionary in a JSON file.

    Args:
        path: of the file; None: there is none, every option has its default.
        where: name of the file for messages; None: the path.

    Raises:
        ValueError: not JSON, not a dictionary, or unreasonably large.
    """

    def __init__(self, path: Path | None, where: str | None = None) -> None:
        self.where = where or str(path)
        self.given: dict[str, Any] = {} if path is None else _load(path)
        self._read: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self.given

    def get(self, name: str, default: Any) -> Any:
        """The value as it is."""
        self._read.add(name)
        return self.given.get(name, default)

    def choice(self, name: str, *values: Any) -> Any:
        """One of the values; the first is the default."""
        value = self.get(name, values[0])
        for known in values:  # 1 is 1.0, but neither is true
            if value == known and isinstance(value, bool) == isinstance(known, bool):
                return known
        raise self.wrong(name, " or ".join(_shown(known) for known in values))

    def flag(self, name: str, default: bool) -> bool:
        """true or false."""
        return bool(self.choice(name, default, not default))

    def whole(self, name: str, default: int, low: int, high: int) -> int:
        """A whole number in [low, high]."""
        value = self.get(name, default)
        if not is_whole(value, low, high):
            raise self.wrong(name, f"a whole number from {low} to {high}")
        return int(value)

    def number(self, name: str, default: float, low: float, high: float) -> float:
        """A number in [low, high]."""
        value = self.get(name, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
            raise self.wrong(name, f"a number from {low:g} to {high:g}")
        return value

    def items(self, name: str, default: list[Any], most: int) -> list[Any]:
        """A list of at least one thing and at most so many."""
        value = self.get(name, default)
        if not isinstance(value, list) or not 1 <= len(value) <= most:
            raise self.wrong(name, f"a list of 1 to {most} values")
        return value

    def left(self) -> dict[str, Any]:
        """What was not read and may matter: neither null nor false nor private to the package that wrote it."""
        return {
            name: value
            for name, value in self.given.items()
            if name not in self._read and not name.startswith("_") and value is not None and value is not False
        }

    def wrong(self, name: str, expected: str) -> ValueError:
        """The error for an option with another value than expected."""
        if name not in self.given:
            return ValueError(f"{self.where}: {name} is missing, expected {expected}")
        return ValueError(f"{self.where}: {name}: expected {expected}, got {_shown(self.given[name])}")


def is_whole(value: Any, low: int, high: int) -> bool:
    """Whether it is a whole number in [low, high]."""
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def listed(options: dict[str, Any]) -> str:
    """Names and values in one line: clip true, order 2."""
    return ", ".join(f"{_shown(name, bare=True)} {_shown(value)}" for name, value in options.items())


def _shown(value: Any, bare: bool = False) -> str:
    try:
        text = value if isinstance(value, str) and bare else json.dumps(value)
    except RecursionError:
        text = f"a {type(value).__name__}"
    text = "".join(character if character.isprintable() else "?" for character in text)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]} …"


def _load(path: Path) -> dict[str, Any]:
    if path.stat().st_size > _LARGEST:
        raise ValueError(f"{path} has {path.stat().st_size:,} bytes: it is no file of options")
    try:
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON ({str(error).splitlines()[0]})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no configuration: expected a dictionary, got {_shown(content)}")
    return content


def _refuse(name: str) -> float:
    raise ValueError(f"{name} is no number")
