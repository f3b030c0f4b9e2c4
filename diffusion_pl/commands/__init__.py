"""Commands that need a checkpoint only: plain typed functions, one a file, heavy imports inside."""

import inspect
from collections.abc import Sequence
from importlib import import_module
from itertools import chain, takewhile
from typing import Any, NoReturn, get_args, get_origin

from jsonargparse import ArgumentParser, auto_cli

from ..console import our_classes


class ToolParser(ArgumentParser):
    """Raises its errors, to be told in one line like all others."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise ValueError(message)

    def format_help(self, formatter: Any = None) -> str:
        return our_classes(super().format_help(formatter))


def run_tool(name: str, args: Sequence[str]) -> None:
    """Call diffusion_pl.commands.NAME.NAME with options parsed from its signature."""
    function = getattr(import_module(f".{name}", __package__), name)
    parameters = inspect.signature(function).parameters.items()
    # Whatever comes before the first option fills what is required, in order: compare A.json B.json.
    bare = list(takewhile(lambda arg: not arg.startswith("-"), args))
    required = [name for name, p in parameters if p.default is p.empty][: len(bare)]
    args = [*chain(*((f"--{n}", v) for n, v in zip(required, bare, strict=False))), *args[len(required) :]]
    auto_cli(
        function,
        args=lists(args, [name for name, p in parameters if _is_list(p.annotation)]),
        as_positional=False,
        parser_class=ToolParser,
        prog=f"diffusion_pl {name}",
        allow_abbrev=False,
    )


def _is_list(annotation: Any) -> bool:
    return any(get_origin(kind) is list for kind in (annotation, *get_args(annotation)))


def lists(args: Sequence[str], options: Sequence[str]) -> list[str]:
    """The values that follow each of the options, as in --nfe 5 10 20, made one: --nfe [5, 10, 20]."""
    found: list[str] = []
    values: list[str] = []
    for arg in [*args, "--"]:
        if not arg.startswith("--"):
            values.append(arg)
            continue
        several = bool(found) and found[-1].removeprefix("--") in options
        joined = values[0] if len(values) == 1 and values[0].startswith("[") else f"[{', '.join(values)}]"
        found += [joined] if several and values else values
        values = []
        found.append(arg)
    return found[:-1]
