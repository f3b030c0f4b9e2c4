"""Our parsers: jsonargparse that raises its errors with the parser, and prefers our short names."""

import re
import textwrap
from functools import cached_property
from typing import Any, NoReturn, TypeVar

import yaml
from jsonargparse import ArgumentParser, add_instantiator, get_loader, set_loader

from ..checkpoints.migrations import migrate_config, migrate_text
from .upstream.jsonargparse import default_classes, option_types, prefer_package, required_options

_INDENT = " " * 24  # of an option's text in the help
_KNOWN = re.compile(r"known\s+subclasses:\s+([^)]*)\)")


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


_refused = list[ValueError]()  # the last error of `_build`


def _build(class_type: type[T], *args: Any, **kwargs: Any) -> T:
    """Make an instance for jsonargparse; an error has the class as its attribute BUILT."""
    try:
        return class_type(*args, **kwargs)
    except ValueError as error:
        if not hasattr(error, BUILT):
            setattr(error, BUILT, class_type)
            _refused[:] = [error]
        raise


def refusal_in(error: BaseException) -> BaseException:
    """The error of a class that was being built, if jsonargparse repeats it among its words; else the error itself."""
    text = " ".join(str(error).split())
    return next((inner for inner in _refused if " ".join(str(inner).split()) in text), error)


#: How configuration files are read: as YAML, those of older versions too.
MODE = "diffusion_pl"


def _load(text: str) -> Any:
    value = get_loader("yaml")(migrate_text(text))
    return migrate_config(value) if isinstance(value, dict) else value


set_loader(MODE, _load, (yaml.YAMLError,))


class RaisingParser(ArgumentParser):
    """A parser that reads files of older versions, raises UsageError, and whose help names our classes and few others.

    Args:
        args, parser_mode, kwargs: as ArgumentParser's.
    """

    def __init__(self, *args: Any, parser_mode: str = MODE, **kwargs: Any) -> None:
        super().__init__(*args, parser_mode=parser_mode, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise UsageError(message, self) from ex

    def spell(self, text: str) -> str:
        """Names of options as they are typed."""
        return text

    def format_help(self, formatter: Any = None) -> str:
        return _KNOWN.sub(_ours_only, super().format_help(formatter))


def _ours_only(listing: re.Match[str]) -> str:
    names = listing[1].replace("\n", " ").split(",")
    kept = [n.strip() for n in names if n.strip().startswith(("diffusion_pl.", "torch.optim.A", "torch.optim.lr_"))]
    text = f"known subclasses: {', '.join(kept)})" if kept else "any subclass)"
    return "\n".join(textwrap.wrap(text, 80, initial_indent=_INDENT, subsequent_indent=_INDENT)).removeprefix(_INDENT)


prefer_package("diffusion_pl")
add_instantiator(_build, object)
