"""Commands that need no configuration: plain typed functions, one a file, heavy imports inside."""

import inspect
import keyword
import re
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args, get_origin

from jsonargparse import ArgumentParser, auto_cli, auto_parser

from ..runtime.help_pages import PAGES
from ..runtime.output import Report, show, stdout_for
from ..runtime.parsing import RaisingParser
from ..runtime.stopping import stoppable

#: Words of Python cannot name its functions and parameters: `from_` is the option --from.  Nor can what a function
#: computes have the name of a parameter: `data_` is --data.
_UNDERSCORED = (*keyword.kwlist, "data")
#: What may follow an option that is true or false.
_TRUTHS = ("true", "false", "yes", "no", "on", "off", "1", "0", "null", "none")
KEYWORD = re.compile(rf"\b({'|'.join(_UNDERSCORED)})_\b")


class ToolParser(RaisingParser):
    """Knows that from_ is the option --from."""

    def spell(self, text: str) -> str:
        return KEYWORD.sub(r"\1", text)


def run_tool(name: str, args: Sequence[str]) -> None:
    """Call diffusion_pl.commands.NAME.NAME with options parsed from its signature, and show what it returns."""
    function = _function(name)
    parameters = inspect.signature(function).parameters
    several = [name for name, p in parameters.items() if _is_list(p.annotation)]
    required = [name for name, p in parameters.items() if p.default is p.empty or _is_path(p, parameters)]
    options = [name for name, p in parameters.items() if p.annotation is bool]
    renamed = [name[:-1] for name in parameters if name.endswith("_")]
    args = [re.sub(rf"^--({'|'.join(renamed)})(?=[=.]|$)", r"--\1_", arg) if renamed else arg for arg in args]
    kept = "finished samples are kept. Repeat the command to continue"
    stopped = kept if name in ("sample", "evaluate", "latents") else "nothing is kept. Repeat the command to start over"
    as_json = "--json" in args
    with stdout_for(as_json) as stream, stoppable(stopped):
        report = auto_cli(
            function, args=lists(named(switches(args, options), required, several), several), **_parsed(name)
        )
    show(report, stream, as_json)


def parser_of(name: str) -> ArgumentParser:
    """The parser of a command's options."""
    return auto_parser(_function(name), **_parsed(name))


def _function(name: str) -> Callable[..., Report | None]:
    identifier = f"{name}_" if keyword.iskeyword(name) else name
    function: Callable[..., Report | None] = getattr(import_module(f".{identifier}", __package__), identifier)
    return function


def _parsed(name: str) -> dict[str, Any]:
    """How jsonargparse reads the options of a command."""
    return {
        "as_positional": False,
        "parser_class": ToolParser,
        "prog": f"diffusion_pl {name}",
        "allow_abbrev": False,
        "page": PAGES[name],
        "json": name != "completion",
    }


def _is_list(annotation: Any) -> bool:
    return any(get_origin(kind) is list for kind in (annotation, *get_args(annotation)))


def _is_path(parameter: inspect.Parameter, parameters: Mapping[str, inspect.Parameter]) -> bool:
    """Whether a parameter is the first, and a path: it can be given without its option, as in runs FOLDER."""
    first = next(iter(parameters.values()))
    return parameter is first and Path in (parameter.annotation, *get_args(parameter.annotation))


def named(args: Sequence[str], required: Sequence[str], several: Sequence[str]) -> list[str]:
    """Values without an option given those that are required, in order: compare A.json B.json.

    Args:
        args: the command line; an option takes the one value after it, one of `several` all up to the next option.
        required: names of options.
        several: names of options that take lists.
    """
    arguments: list[str] = []
    missing = [name for name in required if not any(arg.partition("=")[0] == f"--{name}" for arg in args)]
    option: str | None = None  # to which the next value belongs
    for arg in args:
        if arg.startswith("--"):
            name, equals, _ = arg[2:].partition("=")
            option = None if equals or name == "json" else name
            arguments.append(arg)
        elif option is None and missing and not arg.startswith("-"):
            arguments += [f"--{missing.pop(0)}", arg]
        else:
            arguments.append(arg)
            option = option if option in several else None
    return arguments


def switches(args: Sequence[str], options: Sequence[str]) -> list[str]:
    """Options that are true or false, where no value follows them, made true: --json is --json true."""
    arguments = []
    for arg, after in pairwise([*args, "--"]):
        arguments.append(arg)
        if arg.startswith("--") and arg[2:] in options and after.lower() not in _TRUTHS:
            arguments.append("true")
    return arguments


def lists(args: Sequence[str], options: Sequence[str]) -> list[str]:
    """The values that follow each of the options, as in --nfe 5 10 20, made one: --nfe [5, 10, 20]."""
    arguments: list[str] = []
    values: list[str] = []
    for arg in [*args, "--"]:
        if not arg.startswith("--"):
            values.append(arg)
            continue
        several = bool(arguments) and arguments[-1].removeprefix("--") in options
        joined = values[0] if len(values) == 1 and values[0].startswith("[") else f"[{', '.join(values)}]"
        arguments += [joined] if several and values else values
        values = []
        arguments.append(arg)
    return arguments[:-1]
