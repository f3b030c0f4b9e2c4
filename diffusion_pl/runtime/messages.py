"""An error in one line: where it is (option, or file and line), what is wrong, and the most likely correction."""

import re
from collections.abc import Sequence
from itertools import pairwise

from .config_files import SECTIONS, find, find_class
from .diagnosis import find_mistake
from .parsing import BUILT, UsageError, refusal_in
from .upstream.jsonargparse import parameters
from .vocabulary import all_classes


def explain(error: BaseException, args: Sequence[str] = ()) -> str:
    """An error in one line, with its place.

    Args:
        error: as raised.
        args: the command line.
    """
    error = error if isinstance(error, UsageError) else refusal_in(error)
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, UsageError):
        if error.key:
            return f"{place_of(error.key, args)}: {text.removeprefix(f'{error.key}: ')}"
        return find_mistake(error) or text
    cls = getattr(error, BUILT, None)
    named = re.match(r"([A-Z]\w+): ", text)  # how our classes begin their messages
    if cls is None and named:
        cls = next((c for c in all_classes() if c.__name__ == named[1]), None)
    where = "" if cls is None else _place_of_class(cls, text, args)
    return f"{where}: {text}" if where else text


def place_of(key: str, args: Sequence[str]) -> str:
    """Where a dotted key is set: an option of the command line, or file:line of the last file; else the key itself."""
    parts = [part for part in key.split(".") if part != "init_args"] or [key]
    for arg in reversed(args):
        option = arg.split("=")[0]
        if option.startswith("--") and [p for p in option[2:].rstrip("+").split(".") if p != "init_args"] == parts:
            return option
    entry = next(iter(find(key, args)), None)
    return f"{entry.path}:{entry.line}: {key}" if entry is not None else key


def _place_of_class(cls: type, text: str, args: Sequence[str]) -> str:
    """Where the options of a class are set that refused to be built; empty if the command line does not say."""
    name = cls.__name__
    keys = [arg.partition("=")[0].lstrip("-") for arg in args if arg.startswith("--") and arg.endswith(f"={name}")]
    keys += [a.lstrip("-") for a, b in pairwise(args) if a.startswith("--") and b.rpartition(".")[2] == name]
    keys = [key.removesuffix(".class_path") for key in keys] or [entry.key for entry in find_class(name, args)]
    keys = keys or ([name.lower()] if name.lower() in SECTIONS else [])
    if len(set(keys)) != 1:  # it is unknown which of them
        return ""
    key = keys[0]
    mentioned = [p for p in parameters(cls) if re.search(rf"\b{p}\b", text)]
    places = {p: place_of(f"{key}.{p}", args) for p in mentioned}
    places = {p: place for p, place in places.items() if place != f"{key}.{p}"}
    if len(places) == 1 and len(mentioned) == 1:
        return next(iter(places.values()))
    place_of_class = place_of(key, args)
    return place_of_class if place_of_class != key or places else ""
