"""Private or undocumented API of jsonargparse."""

import argparse
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import jsonargparse._common as common
import jsonargparse._typehints as typehints
from jsonargparse import ArgumentError, ArgumentParser, set_parsing_settings
from jsonargparse._actions import _ActionHelpClassPath, _ActionPrintConfig
from jsonargparse._link_arguments import ActionLink
from jsonargparse._parameter_resolvers import get_signature_parameters
from jsonargparse._required import iter_required_keys
from jsonargparse._util import import_object

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
