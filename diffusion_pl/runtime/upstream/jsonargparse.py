"""Private or undocumented API of jsonargparse."""

import argparse
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

import jsonargparse._common as common
import jsonargparse._completions as completions
import jsonargparse._typehints as typehints
from jsonargparse import ArgumentError, ArgumentParser, set_parsing_settings
from jsonargparse._actions import _ActionHelpClassPath, _ActionPrintConfig
from jsonargparse._link_arguments import ActionLink
from jsonargparse._parameter_resolvers import get_signature_parameters
from jsonargparse._required import iter_required_keys, restore_suppressed_required
from jsonargparse._util import get_import_path, import_object

SWITCH = "switch"  # the type of an option without a value


@contextmanager
def own_defaults() -> Iterator[None]:
    """Within, a class that replaces another one in a configuration starts from its own defaults.

    jsonargparse keeps those init_args of the old class that the new one has too, such as `scale`, which may mean
    something else there: `discard_init_args_on_class_path_change`.  A class spelled in another way is the same class
    and keeps its options.  Read: jsonargparse 4.53.
    """
    before = typehints.discard_init_args_on_class_path_change
    typehints.discard_init_args_on_class_path_change = _discard
    try:
        yield
    finally:
        typehints.discard_init_args_on_class_path_change = before


def _discard(parser_or_action: Any, prev_val: Any, value: Any) -> None:
    if not prev_val or "init_args" not in prev_val or _same(prev_val["class_path"], value["class_path"]):
        return
    init_args = prev_val["init_args"]
    for key in list(init_args if isinstance(init_args, dict) else vars(init_args)):  # at the top, with all below
        init_args.pop(key)


def _same(old: str | None, new: str) -> bool:
    return old is None or old == new or import_object(old) is import_object(new)


def prefer_package(package: str) -> None:
    """Let short names mean the classes of a package before those of others, such as MLP.

    `get_all_subclass_paths`, the one place that resolves them.  Read: jsonargparse 4.53.
    """
    everything = typehints.get_all_subclass_paths

    def package_first(cls: type, *args: Any, **kwargs: Any) -> list[str]:
        paths: list[str] = everything(cls, *args, **kwargs)
        own_names = {path.rpartition(".")[2] for path in paths if path.startswith(f"{package}.")}
        return [path for path in paths if path.startswith(f"{package}.") or path.rpartition(".")[2] not in own_names]

    typehints.get_all_subclass_paths = package_first


@contextmanager
def completed_classes(classes: Callable[[Any], Iterable[type]], depth: int = 2) -> Iterator[None]:
    """Within, completion scripts offer these classes of a kind, and their options down to a depth.

    Else they offer all subclasses, with options at any depth, which takes many minutes.  Names of `_completions`:
    `get_all_subclass_paths`, `add_subactions_and_get_subclass_choices`, `get_signature_parameters`.  Read: jsonargparse
    4.53.

    Args:
        classes: those of a kind, by which their import paths are offered.
        depth: number of dots in an option from which on classes are offered without their options; of Lightning's
            classes, which are many, there are none.
    """
    names = vars(completions)
    add = names["add_subactions_and_get_subclass_choices"]

    def paths(kind: Any, **_: Any) -> list[str]:
        return list(dict.fromkeys(map(get_import_path, classes(kind))))

    def add_some(kind: Any, prefix: str | None, *args: Any, closed_type: bool = False) -> list[str]:
        if (prefix or "").count(".") >= depth or str(getattr(kind, "__module__", "")).startswith("lightning."):
            return [] if closed_type else paths(kind)
        added: list[str] = add(kind, prefix, *args, closed_type=closed_type)
        return added

    ours = {
        "get_all_subclass_paths": paths,
        "add_subactions_and_get_subclass_choices": add_some,
        "get_signature_parameters": cache(get_signature_parameters),
    }
    before = {name: names[name] for name in ours}
    names.update(ours)
    try:
        yield
    finally:
        names.update(before)


@contextmanager
def imports_only(packages: Sequence[str]) -> Iterator[None]:
    """Within, jsonargparse imports nothing outside some packages, nor aliases there of others' names.

    `set_parsing_settings` adds only, it knows no way back: `parsing_settings`.  Read: jsonargparse 4.53.
    """
    settings = common.parsing_settings
    before = dict(settings)
    try:
        set_parsing_settings(import_path_denylist=["*"], import_path_allowlist=list(packages))
        yield
    finally:
        settings.update(before)


def option_types(parser: argparse.ArgumentParser) -> dict[str, Any]:
    """Type of each option of a parser by its dotted name: `_actions`, and `_typehint` of each; SWITCH of one without a
    value.

    Read: jsonargparse 4.53, Python 3.11.
    """
    types: dict[str, Any] = {}
    for action in parser._actions:
        name = next((o for o in action.option_strings if o.startswith("--")), "").lstrip("-").rstrip("+")
        if name and not isinstance(action, (ActionLink, _ActionHelpClassPath)):
            is_switch = action.nargs == 0 or isinstance(action, _ActionPrintConfig)
            types[name] = SWITCH if is_switch else getattr(action, "_typehint", getattr(action, "type", None))
    return types


def required_options(parser: argparse.ArgumentParser) -> list[str]:
    """Dotted names of the options that must be given: `iter_required_keys`.  Read: jsonargparse 4.53."""
    return list(iter_required_keys(parser))  # type: ignore[arg-type]


def default_classes(parser: argparse.ArgumentParser) -> dict[str, str]:
    """The class path that an option has by default, by its dotted name: `_actions`.  Read: jsonargparse 4.53."""
    defaults = {action.dest: action.default for action in parser._actions}
    is_spec: Callable[[Any], bool] = typehints.is_subclass_spec
    return {name: str(value["class_path"]) for name, value in defaults.items() if is_spec(value)}


def accepts(kind: Any, value: Any) -> bool:
    """Whether a value of a configuration, or the text of an option, is of a type."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=kind)
    try:
        parser.parse_args([f"--value={value}"]) if isinstance(value, str) else parser.parse_object({"value": value})
    except ArgumentError:
        return False
    return True


class Option(NamedTuple):
    """An option of a parser, for its help.

    Attributes:
        group: title of the group that it is in; "" of none.
        name: with its dashes, such as --model.network; without the underscore of a word of Python.
        help: its text; "" if there is none.
        kind: type of its value; None of a switch or a configuration file.
        default: None also where there is none.
        required: whether it must be given.
        is_class_help: whether it shows the options of a class, as --data.help Folder.
        takes_value: whether a value follows.
    """

    group: str
    name: str
    help: str
    kind: Any
    default: Any
    required: bool
    is_class_help: bool
    takes_value: bool


def options_of(parser: argparse.ArgumentParser) -> list[Option]:
    """The options of a parser in the order of its help: `_action_groups`, `_group_actions`.

    While a command line is parsed none is required: `restore_suppressed_required`.  Read: jsonargparse 4.53, Python
    3.11.
    """
    options = []
    with restore_suppressed_required():
        for group in parser._action_groups:
            for action in group._group_actions:
                if not action.option_strings or action.help == argparse.SUPPRESS or isinstance(action, ActionLink):
                    continue
                name = max(action.option_strings, key=len).rstrip("+_")  # from_ is --from
                is_class_help = isinstance(action, _ActionHelpClassPath)
                options.append(
                    Option(
                        group=group.title or "" if "." in name else "",
                        name=name,
                        help=action.help or "",
                        kind=None if is_class_help else getattr(action, "_typehint", action.type),
                        default=None if action.default is argparse.SUPPRESS else action.default,
                        required=action.required,
                        is_class_help=is_class_help,
                        takes_value=action.nargs != 0 and not isinstance(action, _ActionPrintConfig),
                    )
                )
    return options


def set_help(parser: argparse.ArgumentParser, texts: Mapping[str, str]) -> None:
    """Replace the help of options, given by their names without dashes: `_actions`.

    Read: jsonargparse 4.53, Python 3.11.
    """
    for action in parser._actions:
        name = max(action.option_strings, key=len, default="").strip("-+_")
        action.help = texts.get(name, action.help)


class HelpAll(common.NonParsingAction):
    """--help-all: print `parser.format_help_all()` and exit.  Read: jsonargparse 4.53, `NonParsingAction`."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{**kwargs, "dest": argparse.SUPPRESS, "default": argparse.SUPPRESS, "nargs": 0})

    def __call__(self, parser: Any, *args: Any) -> None:
        print(parser.format_help_all(), end="")
        parser.exit()


class Switch(common.NonParsingAction):
    """An option without a value that leaves nothing in the namespace.  Read: jsonargparse 4.53, `NonParsingAction`."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{**kwargs, "dest": argparse.SUPPRESS, "default": argparse.SUPPRESS, "nargs": 0})

    def __call__(self, *args: Any) -> None:
        pass


def make_optional(parser: argparse.ArgumentParser, names: Iterable[str]) -> None:
    """Let options with a default of the parser be no longer required: `_actions`.

    Read: jsonargparse 4.53, Python 3.11.
    """
    optional = set(names)
    for action in parser._actions:
        action.required &= action.dest not in optional


@cache
def parameters(cls: type) -> Mapping[str, inspect.Parameter]:
    """The options that a configuration may give a class: its own, and those that its **kwargs hand on to its bases.

    jsonargparse finds the latter in the source of ``super().__init__(…)``: `get_signature_parameters`.  {} of what has
    no signature.  Read: jsonargparse 4.53.
    """
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    try:
        own = inspect.signature(cls).parameters
    except (ValueError, TypeError):
        return {}
    if not inspect.isclass(cls) or all(p.kind is not inspect.Parameter.VAR_KEYWORD for p in own.values()):
        return {name: p for name, p in own.items() if p.kind not in kinds}
    return {
        p.name: inspect.Parameter(p.name, inspect.Parameter.KEYWORD_ONLY, default=p.default, annotation=p.annotation)
        for p in get_signature_parameters(cls, "__init__")
        if p.kind not in kinds
    }
