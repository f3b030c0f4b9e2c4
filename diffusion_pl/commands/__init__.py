"""Commands that need a checkpoint only: plain typed functions, one a file, heavy imports inside."""

import inspect
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn, get_origin

from jsonargparse import ArgumentParser, auto_cli


class ToolParser(ArgumentParser):
    """Raises its errors, to be told in one line like all others."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise ValueError(message)


def run_tool(name: str, args: Sequence[str]) -> None:
    """Call diffusion_pl.commands.NAME.NAME with options parsed from its signature."""
    function = getattr(import_module(f".{name}", __package__), name)
    parameters = inspect.signature(function).parameters.items()
    auto_cli(
        function,
        args=lists(args, [name for name, p in parameters if get_origin(p.annotation) is list]),
        as_positional=False,
        parser_class=ToolParser,
        prog=f"diffusion_pl {name}",
        allow_abbrev=False,
    )


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
