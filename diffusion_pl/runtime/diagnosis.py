"""Find the mistake in a command line that jsonargparse refused, and where it is.

jsonargparse says what is wrong in a text only, without the place.  So the options and configuration files that it has
refused are compared with the types of the options again.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import ScalarNode

from .config_files import SUFFIXES
from .config_walk import Mistake, Source, Walk
from .parsing import UsageError
from .suggestions import option_meant
from .upstream.jsonargparse import SWITCH
from .vocabulary import branches


def find_mistake(error: UsageError) -> str | None:
    """The first mistake in the command line of an error, in one line with its place; None if none is found."""
    return find_in_arguments(error.args_parsed, Walk(error.types, error.required, error.defaults))


def find_in_arguments(args: Sequence[str], walk: Walk) -> str | None:
    """The first mistake in the options of a command; None if none is found."""
    try:
        _command_line(args, walk)
        walk.missing()
    except (Mistake, OSError, ValueError) as mistake:  # a file that cannot be read says so itself
        return str(mistake)
    return None


def mistake_in(config: Mapping[str, Any], types: Mapping[str, Any]) -> str | None:
    """The first mistake in a configuration that is given as plain values, with its key; None if none is found.

    Nothing that the values name is imported or read; within `imports_only`, the texts of functions are not either.
    """
    try:
        node = yaml.compose(yaml.safe_dump(config, sort_keys=False), Loader=yaml.SafeLoader)
        Walk(types, trusted=False).section((), node, 1)
    except Mistake as mistake:
        return str(mistake)
    except yaml.YAMLError:
        return None
    return None


def _command_line(args: Sequence[str], walk: Walk) -> None:
    types, n = walk.types, 0
    while n < len(args):
        token, n = args[n], n + 1
        name, equals, text = token.partition("=")
        if not _is_option(token):
            raise Mistake(_unexpected(token, types))
        key = name.lstrip("-").rstrip("+")
        if not name.startswith("--") or (key not in types and not _begins_option(key, walk)):
            raise Mistake(f"unknown option {name}{option_meant(key, types, walk.children)}")
        following = [text] if equals else []
        while not equals and n < len(args) and not _is_option(args[n]):
            following.append(args[n])
            n += 1
        is_switch = types.get(key) is SWITCH
        if len(following) > (not is_switch):
            raise Mistake(_unexpected(following[0 if is_switch else 1], types))
        if not following and not is_switch:
            value = "true" if bool in branches(types.get(key)) else "VALUE"
            is_negative = n < len(args) and args[n][1:2].isdigit()
            hint = f"; a negative number is written {name}={args[n]}" if is_negative else ""
            raise Mistake(f"{name} needs a value: {name} {value}{hint}")
        if following:
            _option(name, key, following[0], walk)


def _begins_option(key: str, walk: Walk) -> bool:
    """Whether the first parts of a key are an option whose value has parts itself."""
    parts = key.split(".")
    return any(".".join(parts[:n]) in walk.types and not walk.is_group(parts[:n]) for n in range(1, len(parts)))


def _option(name: str, key: str, text: str, walk: Walk) -> None:
    walk.source = Source(name, key)
    if key == "config":
        return walk.file(Path(text), text, ())
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError:
        node = None
    walk.at(tuple(key.split(".")), node or ScalarNode("tag:yaml.org,2002:str", text), 1)


def _is_option(token: str) -> bool:
    return token.startswith("-") and not re.fullmatch(r"-(\d+|\d*\.\d+)?", token)


def _unexpected(token: str, types: Mapping[str, Any]) -> str:
    """A value that belongs to no option."""
    key, equals, value = token.partition("=")
    if token.endswith(SUFFIXES) and "trainer.max_steps" in types:
        hint = f"; did you mean --config {token}?"
    elif token.endswith(".ckpt") and "ckpt_path" in types:
        hint = f"; did you mean --ckpt_path {token}?"
    elif equals and re.fullmatch(r"[\w.]+", key):
        hint = f"; did you mean --{key} {value}?"
    else:
        hint = "; a value needs an option before it, as in --output FOLDER"
    return f"unexpected argument {token}{hint}"
