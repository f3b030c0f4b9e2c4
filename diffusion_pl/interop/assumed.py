"""Values missing from a file of another package: given as options, or assumed and reported."""

from pathlib import Path
from typing import Any


class Assumptions:
    """Asked for each thing that the file leaves open, by the name of its option on the command line.

    Args:
        given: The user's options; None: not given.
    """

    def __init__(self, **given: Any) -> None:
        self._given = {option: value for option, value in given.items() if value is not None}
        self._asked: set[str] = set()
        self._assumed: dict[str, Any] = {}

    def __call__(self, option: str, default: Any) -> Any:
        """What the user gave, or the other package's default, which `notes` says."""
        self._asked.add(option)
        if option not in self._given:
            self._assumed[option] = default
        return self._given.get(option, default)

    def shown(self, option: str, value: Any, path: Path) -> Any:
        """The value that the file shows.

        Raises:
            ValueError: the user gave another one.
        """
        self._asked.add(option)
        if self._given.get(option, value) != value:
            raise ValueError(f"--{option} {spelled(self._given[option])}: the tensors of {path} show {spelled(value)}")
        return value

    def notes(self, path: Path) -> list[str]:
        """What was assumed, in one sentence, as options to copy and change.

        Raises:
            ValueError: the user gave an option that was not asked for: it would change nothing.
        """
        idle = [option for option in self._given if option not in self._asked]
        if idle:
            raise ValueError(f"--{idle[0]} does not apply to the model in {path}: leave it out")
        if not self._assumed:
            return []
        options = " ".join(f"--{option} {spelled(value)}" for option, value in self._assumed.items())
        return [f"assumed, since the file does not show it: {options} (give an option to change it)"]


def spelled(value: Any) -> str:
    """A value as the command line takes it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(spelled, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)
