"""Errors as people read them: one line that says what, where and how to mend it."""

import difflib
import inspect
import logging
import re
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from types import ModuleType

# What a person did wrong comes as one of these; anything else is our mistake and keeps its traceback.
EXPECTED = (ValueError, OSError)

#: What jsonargparse says, and what a person wants to hear.
_PHRASES = (
    (r"Expected a dot import path string: (.+)", r"there is no class \1"),
    (r"Option '(.+)' is not accepted", r"unknown key \1"),
    (r"unrecognized arguments: (\S+).*", r"unknown option \1"),
    (r"Subcommand '\w+' does not accept option '(.+)'", r"unknown key \1"),
    (r"the following arguments are required: (.+)", r"missing: \1 (give a --config, or these options)"),
    (r"Expected a <class '(?:\w+\.)*(\w+)'>\. Got value: (.*)", r"expected \1, got \2"),
    (r"Expected a <class '(?:\w+\.)*(\w+)'>", r"expected \1"),
    (r"Expected a typing\.Literal\[(.+)\]", r"expected one of \1"),
)
#: Branches of a union that tell nothing.
_NOISE = re.compile(
    r"Expected a path but|Expected a <class 'NoneType'>|Does not validate|Not a valid subclass"
    r"|a class path \(str\)|a dict with"
)


class Status:
    """Exit status of a guarded command."""

    code = 0


@contextmanager
def guard(debug: bool, args: Sequence[str]) -> Iterator[Status]:
    """Turn an expected error of the block into one line on stderr and exit status 2."""
    status = Status()
    try:
        yield status
    except EXPECTED as error:
        if debug:
            traceback.print_exc()
        print(f"diffusion_pl: error: {one_line(str(error), args)}", file=sys.stderr)
        status.code = 2


def quiet() -> None:
    """Silence what the libraries say about themselves; warnings about the run stay."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*`weights_only` was not set.*")


def one_line(message: str, args: Sequence[str] = ()) -> str:
    """A message of jsonargparse (or any other) in one line, with the place and the likeliest correction.

    Args:
        message: as raised.
        args: the command line, where a wrong key is looked for.
    """
    key = re.search(r'Parser key "([^"]+)"', message)
    given = re.search(r"Given value: (.*)", message)
    causes = [line.strip(" -") for line in message.splitlines() if line.strip().startswith("- ")]
    causes = [cause for cause in causes if not _NOISE.match(cause)]
    if not causes:
        causes = [" ".join(re.sub(r'Parser key "[^"]+":?', "", message).split())]
    text = " or ".join(dict.fromkeys(_phrase(cause) for cause in causes))
    if given and text.startswith("expected") and "got" not in text:
        text += f", got {given[1]}"
    wrong = re.search(r"(?:unknown key|unknown option|there is no class|has no attribute) '?([-\w.]+)", text)
    place = _place(key[1] if key else wrong[1] if wrong else "", args)
    parts = [part for part in (place, text) if part and not (part == place and place in text)]
    return ": ".join(parts) + (_suggestion(wrong[1]) if wrong else "")


def _phrase(cause: str) -> str:
    for pattern, phrase in _PHRASES:
        cause = re.sub(pattern, phrase, cause)
    return cause


def _place(key: str, args: Sequence[str]) -> str:
    """Where the key stands: an option of the command line, or file:line of a configuration; else the key itself."""
    leaf = key.split(".")[-1]
    if not leaf or key.startswith("-"):
        return ""
    for arg in args:
        option = arg.split("=")[0]
        if option.startswith("--") and option.rstrip("+").split(".")[-1].lstrip("-") == leaf:
            return option
    for path in _config_files(args):
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
            if re.search(rf"(^|[\s{{,-]){re.escape(leaf)}\s*:", line):
                return f"{path}:{number}: {key}"
    return key


def _config_files(args: Sequence[str]) -> list[Path]:
    files = [b for a, b in pairwise(args) if a in ("--config", "-c")]
    files += [a.split("=", 1)[1] for a in args if a.startswith("--config=")]
    return [Path(f) for f in files if Path(f).is_file()]


def _suggestion(wrong: str) -> str:
    """ "; did you mean …?" with the nearest known name, if one is near."""
    leaf = wrong.split(".")[-1].lstrip("-")
    close = difflib.get_close_matches(leaf, _vocabulary(), n=1, cutoff=0.7)
    return f"; did you mean {close[0]}?" if close and close[0] != leaf else ""


def _vocabulary() -> set[str]:
    """Names of the classes that a configuration can hold, and of their parameters."""
    modules = [m for name, m in list(sys.modules.items()) if name.split(".")[0] == "diffusion_pl"]
    modules += [
        sys.modules[name] for name in ("torch.optim", "lightning.pytorch.trainer.trainer") if name in sys.modules
    ]
    classes = {c for m in modules if isinstance(m, ModuleType) for _, c in inspect.getmembers(m, inspect.isclass)}
    words = {"model", "data", "trainer", "ema", "saver", "prior_check", "run", "config", "ckpt_path", "seed_everything"}
    for cls in classes:
        words.add(cls.__name__)
        try:
            words.update(inspect.signature(cls).parameters)
        except (ValueError, TypeError):
            continue
    return words
