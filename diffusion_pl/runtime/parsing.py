"""Our parsers: jsonargparse that raises its errors with the types of its options, and prefers our short names."""

import re
import textwrap
from typing import Any, NoReturn

import yaml
from jsonargparse import ArgumentParser, get_loader, set_loader

from ..checkpoints.migrations import migrate_config, migrate_text
from .upstream.jsonargparse import option_types, prefer_package

_INDENT = " " * 24  # of an option's text in the help
_KNOWN = re.compile(r"known\s+subclasses:\s+([^)]*)\)")


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
    """A parser that reads files of older versions, raises UsageError, and whose help names our classes and few others.

    Args:
        args, parser_mode, kwargs: as ArgumentParser's.
    """

    def __init__(self, *args: Any, parser_mode: str = MODE, **kwargs: Any) -> None:
        super().__init__(*args, parser_mode=parser_mode, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise UsageError(message, option_types(self)) from ex

    def format_help(self, formatter: Any = None) -> str:
        return _KNOWN.sub(_ours_only, super().format_help(formatter))


def _ours_only(listing: re.Match[str]) -> str:
    names = listing[1].replace("\n", " ").split(",")
    kept = [n.strip() for n in names if n.strip().startswith(("diffusion_pl.", "torch.optim.A", "torch.optim.lr_"))]
    text = f"known subclasses: {', '.join(kept)})" if kept else "any subclass)"
    return "\n".join(textwrap.wrap(text, 80, initial_indent=_INDENT, subsequent_indent=_INDENT)).removeprefix(_INDENT)


prefer_package("diffusion_pl")
