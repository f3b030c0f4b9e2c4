"""python -m diffusion_pl completion: what a shell needs to complete our command lines."""

import re
from importlib.util import find_spec
from typing import Any, Literal

from jsonargparse import ArgumentParser, capture_parser

_OF_THE_TRAINER = ("fit", "doctor", "validate", "test", "predict")


def completion(shell: Literal["bash", "zsh", "tcsh"]) -> None:
    """Print a completion script of the program diffusion_pl for a shell.

    Args:
        shell: Shell of the script: bash, zsh or tcsh.

    Raises:
        ValueError: the package shtab, which makes it, is not installed.
    """
    if find_spec("shtab") is None:
        raise ValueError("completion needs the package shtab. Fix: pip install 'diffusion_pl[completion]'")
    from torch import nn

    from ..runtime.upstream.jsonargparse import completed_classes
    from ..runtime.vocabulary import classes_at
    from . import KEYWORD

    def classes(kind: Any) -> list[type]:
        place = "network" if kind is nn.Module else "other"
        return classes_at([place], {place: kind})

    program = ArgumentParser(prog="diffusion_pl")
    commands = program.add_subcommands()
    for name, parser in all_parsers().items():
        commands.add_subcommand(name, parser)
    with completed_classes(classes):
        script = program.get_completion_script(f"shtab-{shell}")
    script = re.sub(r"\bdiffusion_pl\.[a-z_0-9.]+\.([A-Z]\w*)", r"\1", script)  # short names
    print(KEYWORD.sub(r"\1", script))


def all_parsers() -> dict[str, ArgumentParser]:
    """The parser of each command."""
    from ..cli import DiffusionCLI
    from ..runtime.help_pages import PAGES
    from ..runtime.run_folder import RunFolder
    from . import parser_of

    parsers = {}
    for name in PAGES:
        if name in _OF_THE_TRAINER:
            diagnose = name == "doctor"
            parsers[name] = capture_parser(DiffusionCLI, "fit" if diagnose else name, [], RunFolder(), diagnose)
        else:
            parsers[name] = parser_of(name)
    return parsers
