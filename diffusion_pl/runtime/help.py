"""The help of commands and classes: a short page of the common options, and the list of all."""

import inspect
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from .upstream.jsonargparse import Option, options_of
from .vocabulary import Types, bases_at, branches, class_names, classes_at

WIDTH = 100  # columns
_INDENT = 26  # column of the texts
_SHOWN = 24  # classes in a list
_FEW = 3  # values that are listed after the name of an option
_LAST = ("json", "config", "print_config", "help", "help-all")
_PLAIN = {float: "X", int: "N", str: "TEXT", bool: "true|false"}


@dataclass(frozen=True)
class Page:
    """What the help of a command says besides its options.

    Attributes:
        about: what the command does, one sentence.
        usage: the command line after `python -m diffusion_pl`.
        examples: command lines after `python -m diffusion_pl`.
        common: options of the short help, by their names without dashes; one that the parser does not list itself, such
            as model.optimizer.lr, as "NAME VALUE" with its text.  Empty: all.
        classes: options that show those of a class, such as "--data.help Folder".
        texts: help of options in place of their own, by their names without dashes.
    """

    about: str
    usage: str
    examples: Sequence[str]
    common: Mapping[str, str] = field(default_factory=dict)
    classes: Sequence[str] = ()
    texts: Mapping[str, str] = field(default_factory=dict)


def short(parser: Any, page: Page) -> str:
    """The page of a command: what it does, examples, and its common options."""
    options = {option.name[2:]: option for option in options_of(parser) if not option.is_class_help}
    types = {name: option.kind for name, option in options.items()}
    names = page.common or dict.fromkeys([name for name in options if name not in _LAST], "") | dict.fromkeys(_LAST, "")
    lines = [*_head(page), "", "examples:", *map(_example, page.examples)]
    lines += ["", "common options:" if page.common else "options:"]
    for name, text in names.items():
        if text:
            lines += _entry(f"--{name}", text)
        elif name in options:
            lines += _entry(_heading(options[name]), describe(options[name], types, listed=False))
    command = f"python -m diffusion_pl {page.usage.split()[0]}"
    more = [f"All options: {command} --help-all"] if page.common else []
    more += [f"Options of a class: {command} {example}" for example in page.classes]
    return "\n".join([*lines, *([""] if more else []), *more]) + "\n"


def full(parser: Any, page: Page | None = None, description: str = "") -> str:
    """All options of a command by its sections, or of a class.

    Args:
        parser: whose options.
        page: of the command; None: of a class, described by `description`.
        description: a title.
    """
    everything = options_of(parser)
    options = [option for option in everything if not option.is_class_help]
    types = {option.name[2:]: option.kind for option in options}
    sections = {name.partition(".")[0] for name in types if "." in name}
    lines = [description] if page is None else _head(page)
    titles = [o.group if page is None else _section(o, sections) for o in options]
    for title in dict.fromkeys(sorted(titles, key=bool)):  # those of no section first
        lines += ["", *textwrap.wrap(f"{title or 'options'}:", WIDTH)]
        for option in (option for option, its_title in zip(options, titles, strict=True) if its_title == title):
            lines += _entry(_heading(option), describe(option, types))
    return "\n".join(lines).strip("\n") + "\n"


def describe(option: Option, types: Types, listed: bool = True) -> str:
    """The text of an option: what it is, its values, its default.

    Args:
        option: of a parser.
        types: of all its options.
        listed: name the classes that it takes, too.
    """
    text = " ".join(option.help.split())
    if option.default is None and not option.required:  # what is None in Python is not given on the command line
        text = re.sub(r"(^|\. )None(?=:| for )", r"\1Default", text)
        text = re.sub(r"\bNone(?=:| for )", "default", text)
    text = text[:1].upper() + text[1:]
    parts = [text if text.endswith(".") or not text else f"{text}."]
    literals, key = _literals(option.kind), option.name[2:].split(".")
    if len(literals) > _FEW and sum(value in text for value in literals) < 2:
        parts.append(f"One of {', '.join(literals)}.")
    elif listed and not literals and (names := _classes(key, types)):
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        parts.append(f"Classes: {', '.join(names[:_SHOWN])}{more}. Options of one: {option.name}.help NAME.")
    if option.required:
        parts.append("(required)")
    elif option.takes_value and option.kind is not None and "default" not in text.lower():
        parts.append(f"(default: {_value(option.default)})")
    return " ".join(filter(None, parts))


def _classes(key: Sequence[str], types: Types) -> list[str]:
    """Names of the classes that an option takes, without the base of them all."""
    return sorted(class_names({*classes_at(key, types)} - {*bases_at(key, types)}))


def _section(option: Option, sections: set[str]) -> str:
    name = option.name[2:].partition(".")[0]
    return name if name in sections else ""


def _head(page: Page) -> list[str]:
    return [f"usage: python -m diffusion_pl {page.usage}", "", *textwrap.wrap(page.about, WIDTH)]


def _example(command: str) -> str:
    """A command line that can be pasted, also where it takes several lines."""
    first, *options = re.split(r" (?=--)", f"  python -m diffusion_pl {command}")
    lines = [first]
    for number, option in enumerate(options, 1):
        end = "" if number == len(options) else " \\"
        if len(f"{lines[-1]} {option}{end}") > WIDTH:
            lines[-1] += " \\"
            lines.append(f"      {option}")
        else:
            lines[-1] += f" {option}"
    return "\n".join(lines)


def _entry(heading: str, text: str) -> list[str]:
    """An option and its text, which begins on the line of a short heading, else on the next."""
    lines = textwrap.wrap(text, WIDTH - _INDENT, break_on_hyphens=False) or [""]
    indented = [" " * _INDENT + line for line in lines]
    if len(heading) + 4 <= _INDENT:
        return [f"  {heading}".ljust(_INDENT) + lines[0], *indented[1:]]
    return [f"  {heading}", *indented]


def _heading(option: Option) -> str:
    if not option.takes_value:
        return option.name
    return f"{option.name} {'FILE' if option.kind is None else _metavar(option.kind)}"


def _metavar(kind: Any) -> str:
    """What to call a value of a type: N, X, PATH, CLASS, …"""
    literals, kinds = _literals(kind), [part for part in branches(kind) if part is not type(None)]
    if literals:
        return "|".join(literals) if len(literals) <= _FEW else "NAME"
    classes = bases_at(["value"], {"value": kind})
    if Path in kinds:
        return "PATH"
    name = next((name for plain, name in _PLAIN.items() if plain in kinds), None)
    if classes and name not in ("N", "X"):
        return "NAME" if name == "TEXT" else _several(kinds, "CLASS")
    return name or _several(kinds, "")


def _several(kinds: Sequence[Any], inner: str) -> str:
    """Of a list or a dictionary; `inner` is what to call the values of it, or of anything else."""
    origin = next((get_origin(part) for part in kinds if inspect.isclass(get_origin(part))), None)
    if origin is None or not issubclass(origin, (Sequence, Mapping)):
        return inner or "VALUE"
    if issubclass(origin, Mapping):
        return "{KEY: VALUE}"
    part = next(part for part in kinds if get_origin(part) is origin)
    inner = inner or _metavar(get_args(part)[0])
    return f"{inner} …" if origin is list else f"[{inner}, …]"  # lists of commands are given value after value


def _literals(kind: Any) -> list[str]:
    return [str(value) for part in branches(kind) if get_origin(part) is Literal for value in get_args(part)]


def _value(default: Any) -> str:
    """A default as it is written on the command line."""
    if default is None:
        return "none"
    if isinstance(default, bool):
        return str(default).lower()
    class_path = getattr(default, "class_path", None) or (isinstance(default, dict) and default.get("class_path"))
    if class_path:
        return str(class_path).rpartition(".")[2]
    if isinstance(default, (list, tuple)):
        return f"[{', '.join(map(_value, default))}]"
    return str(default) or "''"
