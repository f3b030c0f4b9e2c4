"""python -m diffusion_pl completion: what a shell needs to complete our command lines."""

import re
from importlib.util import find_spec
from typing import Literal


def completion(shell: Literal["bash", "zsh", "tcsh"]) -> None:
    """Print a completion script of the program diffusion_pl for a shell.

    Args:
        shell: Shell of the script: bash, zsh or tcsh.
    """
    if find_spec("shtab") is None:
        raise ValueError("completion needs the package shtab: pip install 'diffusion_pl[completion]'")
    from jsonargparse import ArgumentParser, capture_parser

    from ..cli import DiffusionCLI
    from ..runtime.help_pages import PAGES
    from ..runtime.run_folder import RunFolder
    from ..runtime.upstream.jsonargparse import completed_classes
    from ..runtime.vocabulary import classes_at
    from . import KEYWORD, parser_of

    program = ArgumentParser(prog="diffusion_pl")
    commands = program.add_subcommands()
    of_trainer = ("fit", "doctor", "validate", "test", "predict")
    for name in PAGES:
        if name in of_trainer:
            args = ("fit" if name == "doctor" else name, [], RunFolder(), name == "doctor")
            parser = capture_parser(DiffusionCLI, *args)
        else:
            parser = parser_of(name)
        commands.add_subcommand(name, parser)
    with completed_classes(lambda kind: classes_at(["network"], {"network": kind})):
        script = program.get_completion_script(f"shtab-{shell}")
    script = re.sub(r"\bdiffusion_pl\.[a-z_0-9.]+\.([A-Z]\w*)", r"\1", script)  # short names
    print(KEYWORD.sub(r"\1", script))
