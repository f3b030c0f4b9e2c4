"""Secrets in options: what looks like a password, a key or a token is not written to any file."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

MASK = "********"
_SECRET = re.compile(r"(^|[_.-])(password|passwd|secret|token|api_?key|access_?key|credentials?|auth)($|[_.-])", re.I)
_IN_URL = re.compile(r"(?P<scheme>\b[a-zA-Z][\w+.-]*://)(?P<user>[^\s/@:]*):(?P<password>[^\s/@]+)@")
_IN_QUERY = re.compile(r"(?P<name>[?&;](?:password|token|api_?key|secret|sig|signature|access_token)=)[^&\s]+", re.I)


def masked(value: Any, name: str = "") -> Any:
    """Plain values with every secret replaced by MASK.

    Args:
        value: mappings, lists and plain values.
        name: of the option that has this value.
    """
    if isinstance(value, Mapping):
        return {key: masked(part, str(key)) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [masked(part, name) for part in value]
    if isinstance(value, str) and value and _SECRET.search(name):
        return MASK
    return masked_text(value) if isinstance(value, str) else value


def masked_text(text: str) -> str:
    """A text in which the passwords of its addresses are replaced by MASK."""
    text = _IN_URL.sub(rf"\g<scheme>\g<user>:{MASK}@", text)
    return _IN_QUERY.sub(rf"\g<name>{MASK}", text)


def masked_arguments(arguments: Sequence[str]) -> list[str]:
    """A command line without secrets."""
    shown: list[str] = []
    name = ""
    for argument in arguments:
        option, equals, value = argument.partition("=")
        if argument.startswith("--"):
            name = option.lstrip("-") if not equals else ""
            shown.append(f"{option}={masked(value, option)}" if equals else argument)
        else:
            shown.append(masked(argument, name))
            name = ""
    return shown
