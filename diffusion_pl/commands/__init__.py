"""Commands that need a checkpoint only: plain typed functions, one a file, heavy imports inside."""

from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

from jsonargparse import ArgumentParser, auto_cli


class ToolParser(ArgumentParser):
    """Raises its errors, to be told in one line like all others."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise ValueError(message)


def run_tool(name: str, args: Sequence[str]) -> None:
    """Call diffusion_pl.commands.NAME.NAME with options parsed from its signature."""
    function = getattr(import_module(f".{name}", __package__), name)
    auto_cli(
        function,
        args=lists(args),
        as_positional=False,
        parser_class=ToolParser,
        prog=f"diffusion_pl {name}",
        allow_abbrev=False,
    )


def lists(args: Sequence[str]) -> list[str]:
    """The values that follow one option, as in --nfe 5 10 20, made one list: --nfe [5, 10, 20]."""
    found: list[str] = []
    values: list[str] = []
    for arg in [*args, "--"]:
        if not arg.startswith("--"):
            values.append(arg)
            continue
        found += [f"[{', '.join(values)}]"] if len(values) > 1 else values
        values = []
        found.append(arg)
    return found[:-1]
