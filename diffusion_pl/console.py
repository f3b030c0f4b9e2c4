"""Errors as people read them: one line that says what, where and how to mend it."""

import difflib
import inspect
import logging
import re
import sys
import textwrap
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from types import ModuleType

from .launch import let_the_first_speak, place

# What a person did wrong comes as one of these; anything else is our mistake and keeps its traceback.
EXPECTED = (ValueError, OSError)

#: What jsonargparse says, and what a person wants to hear.
_PHRASES = (
    (r"Expected a dot import path string: (.+)", r"there is no class \1"),
    (r"Type .+ a callable class: module '(.+)' has no attribute '(.+?)'.*", r"there is no class \1.\2"),
    (r"Import path (\S+) does not correspond to a subclass of (\w+).*", r"\1 is no \2"),
    (r"Not a valid subclass of (\w+)\. Got value: (.+?) Subclass types.*", r"expected class_path of a \1, got \2"),
    (r"Expected an instantiatable class, but .+ is abstract", "expected class_path and init_args only"),
    (r"Option '(.+)' is not accepted", r"unknown key \1"),
    (r"unrecognized arguments: (\S+).*", r"unknown option \1"),
    (r"Subcommand '\w+' does not accept option '(.+)'", r"unknown key \1"),
    (r"the following arguments are required: (\w+\..+)", r"missing: \1 (give a --config, or these options)"),
    (r"the following arguments are required: (.+)", r"missing: \1"),
    (r"\b(?:fit|validate|test|predict)\.(?=model|data)", ""),
    (r"Expected a <class '(?:\w+\.)*(\w+)'>\. Got value: (.*)", r"expected \1, got \2"),
    (r"Expected a <class '(?:\w+\.)*(\w+)'>", r"expected \1"),
    (r"Expected a typing\.Literal\[(.+)\]", r"expected one of \1"),
    (r"(-?\d+) is not in bounds, numpy accepts from (\d+) to (\d+)", r"seed_everything must lie in [\2, \3], got \1"),
)
#: Branches of a union that tell nothing.
_NOISE = re.compile(
    r"Expected a path but|Expected a <class 'NoneType'>|Does not validate|Not a valid subclass"
    r"|a class path \(str\)|a dict with"
)


_INDENT = " " * 24  # of an option's text in the help
_KNOWN = re.compile(r"known\s+subclasses:\s+([^)]*)\)")


class Status:
    """Exit status of a guarded command."""

    code = 0


@contextmanager
def guard(debug: bool, args: Sequence[str]) -> Iterator[Status]:
    """Turn an expected error of the block into one line on stderr and exit status 2."""
    status = Status()
    try:
        yield status
    except Exception as error:
        # By its name: whoever has to import Lightning for it is slower than need be.
        if not isinstance(error, EXPECTED) and type(error).__name__ != "MisconfigurationException":
            raise
        if debug:
            traceback.print_exc()
        let_the_first_speak()
        where = f"{place()}: " if place() else ""
        print(f"diffusion_pl: error: {where}{one_line(str(error), args)}", file=sys.stderr)
        status.code = 2


def quiet() -> None:
    """Silence what the libraries say about themselves; warnings about the run stay."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*`weights_only` was not set.*")


def our_classes(text: str) -> str:
    """A help text that names, of several hundred subclasses of nn.Module and the like, ours and torch's optimizers."""
    return _KNOWN.sub(_ours_only, text)


def one_line(message: str, args: Sequence[str] = ()) -> str:
    """A message of jsonargparse (or any other) in one line, with the place and the likeliest correction.

    Args:
        message: as raised.
        args: the command line, where a wrong key is looked for.
    """
    key, message = _keys(message)
    given = re.search(r"Given value: (.*)", message)
    causes = _causes(message)
    if len(causes) == 1:
        inner, causes[0] = _keys(causes[0])
        key = ".".join(filter(None, (key, inner)))
    text = " or ".join(dict.fromkeys(map(_phrase, causes))).replace(" or expected ", " or ")
    if given and text.startswith("expected") and "got" not in text:
        text += f", got {given[1]}"
    if "<unicode string>" in text:
        text = re.sub(r' ?in "<unicode string>", (line \d+)', r" at \1", text.removeprefix("Problems parsing config: "))
        return f"{' or '.join(map(str, config_files(args)))}: {text}"
    wrong = re.search(r"(unknown key|unknown option|there is no class) (\S+)", text)
    if wrong is None:
        return ": ".join(filter(None, (_place(key, args), text)))
    kind, name = wrong.groups()
    parts = name.lstrip("-").split(".")
    odd = parts[-1]
    if kind == "there is no class" and odd in _vocabulary():
        text = text.replace(wrong[0], f"{name} is a class, but not of the kind that belongs here")
    elif kind != "there is no class":
        # Of model.netwrok.init_args.width the second part is wrong.
        odd = next((part for part in parts if part not in _vocabulary()), odd)
        if kind == "unknown key":
            key, text = ".".join(filter(None, (key, *parts[: parts.index(odd) + 1]))), kind
    return ": ".join(filter(None, (_place(key, args), text))) + _suggestion(odd)


def _ours_only(listing: re.Match[str]) -> str:
    names = listing[1].replace("\n", " ").split(",")
    kept = [n.strip() for n in names if n.strip().startswith(("diffusion_pl.", "torch.optim.A", "torch.optim.lr_"))]
    text = f"known subclasses: {', '.join(kept)})" if kept else "any subclass)"
    return "\n".join(textwrap.wrap(text, 80, initial_indent=_INDENT, subsequent_indent=_INDENT)).removeprefix(_INDENT)


def _keys(message: str) -> tuple[str, str]:
    """The dotted key that the message begins with, over all its levels, and the rest."""
    keys = []
    while found := re.match(r'\s*Parser key "([^"]+)":\s*', message):
        keys.append(found[1])
        message = message[found.end() :]
    return ".".join(keys), message


def _causes(message: str) -> list[str]:
    """The branches of a union that tell something; the whole message if it has none."""
    told = re.split(r"\n\s*Given value", message)[0]
    causes = [cause for cause in re.split(r"\n\s*- ", "\n" + told)[1:] if not _NOISE.match(cause)]
    if any(re.search(r"<class '(int|float)'>", cause) for cause in causes):  # a number, and so no class
        causes = [cause for cause in causes if "dot import path" not in cause]
    if any(not cause.startswith("Expected a") for cause in causes):  # what went wrong with the type that was given
        causes = [cause for cause in causes if not re.fullmatch(r"Expected a <class '[\w.]+'>\s*", cause)]
    return causes or [message]


def _phrase(cause: str) -> str:
    cause = " ".join(re.sub(r'Parser key "([^"]+)":', r"\1:", cause).split())
    for pattern, phrase in _PHRASES:
        cause = re.sub(pattern, phrase, cause)
    return cause


def _place(key: str, args: Sequence[str]) -> str:
    """Where the key stands: an option of the command line, or file:line of a configuration; else the key itself."""
    parts = [part for part in key.split(".") if part != "init_args"]
    for arg in args:
        option = arg.split("=")[0]
        if key and [p for p in option.lstrip("-").rstrip("+").split(".") if p != "init_args"] == parts:
            return option
    for path in config_files(args) if key else ():
        lines = [line.partition("#")[0] for line in path.read_text(errors="replace").splitlines()]
        found = [n for n, line in enumerate(lines, 1) if re.search(rf"(^|[\s{{,-]){re.escape(parts[-1])}\s*:", line)]
        if len(found) == 1:  # else it is anyone's guess
            return f"{path}:{found[0]}: {key}"
    return key


def config_files(args: Sequence[str]) -> list[Path]:
    """The files that a command line names with --config."""
    files = [b for a, b in pairwise(args) if a in ("--config", "-c")]
    files += [a.split("=", 1)[1] for a in args if a.startswith("--config=")]
    return [Path(f) for f in files if Path(f).is_file()]


def _suggestion(wrong: str) -> str:
    """ "; did you mean …?" with the nearest known name, if one is near."""
    close = difflib.get_close_matches(wrong, sorted(_vocabulary()), n=1, cutoff=0.65)
    return f"; did you mean {close[0]}?" if close and close[0] != wrong else ""


def _vocabulary() -> set[str]:
    """Names of the classes that a configuration can hold, and of their parameters."""
    modules = [m for name, m in list(sys.modules.items()) if name.split(".")[0] == "diffusion_pl"]
    modules += [
        sys.modules[name] for name in ("torch.optim", "lightning.pytorch.trainer.trainer") if name in sys.modules
    ]
    classes = {c for m in modules if isinstance(m, ModuleType) for _, c in inspect.getmembers(m, inspect.isclass)}
    words = {"model", "data", "trainer", "ema", "saver", "guard", "doctor", "expected", "run", "config"}
    words |= {"ckpt_path", "seed_everything", "class_path", "init_args"}
    for cls in classes:
        words.add(cls.__name__)
        try:
            words.update(inspect.signature(cls).parameters)
        except (ValueError, TypeError):
            continue
    return words
