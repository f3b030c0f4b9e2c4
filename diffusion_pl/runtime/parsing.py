"""Our parsers: jsonargparse that raises its errors with the types of its options, and prefers our short names."""

from typing import Any, NoReturn

import yaml
from jsonargparse import ArgumentParser, get_loader, set_loader

from ..checkpoints.migrations import migrate_config, migrate_text
from . import help
from .upstream.jsonargparse import HelpAll, Switch, option_types, prefer_package, set_help

BUILT = "built"  # attribute of an error: the class whose construction raised it


class UsageError(ValueError):
    """A mistake in a command line or a configuration file, in the words of jsonargparse.

    Attributes:
        types: type of each option by its dotted name, to suggest the right ones from.
    """

    def __init__(self, message: str, types: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.types = types or {}


def wrong(key: str, text: str) -> UsageError:
    """A UsageError about the value of one key; where it was set is added when the error is printed."""
    return UsageError(f'Parser key "{key}":\n{text}')


def build(cls: type, *args: Any, **kwargs: Any) -> Any:
    """Make an instance for jsonargparse; an error has the class as its attribute BUILT."""
    try:
        return cls(*args, **kwargs)
    except ValueError as error:
        if not hasattr(error, BUILT):
            setattr(error, BUILT, cls)
        raise


#: How configuration files are read: as YAML, those of older versions too.
MODE = "diffusion_pl"


def _load(text: str) -> Any:
    value = get_loader("yaml")(migrate_text(text))
    return migrate_config(value) if isinstance(value, dict) else value


set_loader(MODE, _load, (yaml.YAMLError,))


class RaisingParser(ArgumentParser):
    """A parser that reads files of older versions, raises UsageError, and has a short and a long help.

    Args:
        args, parser_mode, kwargs: as ArgumentParser's.
        page: of the command; None: of a class, whose help lists all its options.
        json: whether the command has the option --json, which `commands` look for.
    """

    def __init__(
        self, *args: Any, parser_mode: str = MODE, page: help.Page | None = None, json: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(*args, parser_mode=parser_mode, **kwargs)
        self._page = page
        if page is not None:
            self.add_argument("--help-all", action=HelpAll)
        if json:
            self.add_argument("--json", action=Switch)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise UsageError(message, option_types(self)) from ex

    def format_help(self, formatter: Any = None) -> str:
        if self._page is None:
            return help.full(self, description=self.description or "")
        set_help(self, self._page.texts)
        return help.short(self, self._page)

    def format_help_all(self) -> str:
        """All options of the command."""
        assert self._page is not None
        set_help(self, self._page.texts)
        return help.full(self, self._page)


prefer_package("diffusion_pl")
