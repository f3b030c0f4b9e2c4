"""Our parsers: jsonargparse that raises its errors with the parser, and prefers our short names."""

from functools import cached_property
from traceback import walk_tb
from typing import Any, NoReturn, TypeVar

import yaml
from jsonargparse import ArgumentParser, add_instantiator, get_loader, set_loader, set_parsing_settings

from ..checkpoints.migrations import migrate_config, migrate_text
from . import help
from .upstream.jsonargparse import (
    HelpAll,
    Switch,
    default_classes,
    option_types,
    prefer_package,
    required_options,
    set_help,
)
from .vocabulary import STANDARD_LIBRARY

T = TypeVar("T")
BUILT = "built"  # attribute of an error: the class whose construction raised it


class UsageError(ValueError):
    """A mistake in a command line or a configuration file.

    Args:
        message: of jsonargparse, or our own words about `key`.
        parser: that refused the command line; None: the mistake is known.
        key: dotted key of the value that is wrong; where it was set is added when the error is printed.
    """

    def __init__(self, message: str, parser: "RaisingParser | None" = None, key: str = "") -> None:
        super().__init__(f"{key}: {message}" if key else message)
        self.parser, self.key = parser, key

    @cached_property
    def types(self) -> dict[str, Any]:
        """Type of each option of the command by its dotted name."""
        return {self._spelled(name): kind for name, kind in option_types(self.parser).items()} if self.parser else {}

    @cached_property
    def required(self) -> list[str]:
        """Dotted names of the options that must be given."""
        return [self._spelled(name) for name in required_options(self.parser)] if self.parser else []

    @cached_property
    def defaults(self) -> dict[str, str]:
        """Class paths of the options that have one by default."""
        return default_classes(self.parser) if self.parser else {}

    @property
    def args_parsed(self) -> list[str]:
        """The command line after the command, as it was parsed."""
        args = getattr(self.parser, "args", [])
        return [self._spelled(arg) if arg.startswith("--") else arg for arg in args]

    def _spelled(self, name: str) -> str:
        return name if self.parser is None else self.parser.spell(name)


def wrong(key: str, text: str) -> UsageError:
    """A UsageError about the value of one key."""
    return UsageError(text, key=key)


def _build(class_type: type[T], *args: Any, **kwargs: Any) -> T:
    """Make an instance for jsonargparse; an error has the class as its attribute BUILT."""
    try:
        return class_type(*args, **kwargs)
    except ValueError as error:
        if not hasattr(error, BUILT):
            setattr(error, BUILT, class_type)
        raise


def refusal_in(error: BaseException) -> BaseException:
    """The error that jsonargparse repeats among its own words, as of a class that is built; else the error itself."""
    inner: BaseException | None = error
    while inner is not None and inner.__traceback__ is not None:
        *_, (frame, _) = walk_tb(inner.__traceback__)
        if frame.f_globals.get("__name__", "").partition(".")[0] != "jsonargparse":
            return inner
        inner = inner.__cause__
    return error


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
        raise UsageError(message, self) from ex

    def spell(self, text: str) -> str:
        """Names of options as they are typed."""
        return text

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
# A function of the standard library, such as os.system, is no part of a model: a configuration must not call one.
set_parsing_settings(import_path_denylist=sorted(STANDARD_LIBRARY))
add_instantiator(_build, object)
