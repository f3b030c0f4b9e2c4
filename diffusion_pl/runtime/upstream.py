"""Where the behaviour of another library is changed: one named function each, with the version that was read."""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

import jsonargparse._typehints as typehints
from jsonargparse._parameter_resolvers import get_signature_parameters
from jsonargparse._util import import_object


@contextmanager
def own_defaults() -> Iterator[None]:
    """Within, a class that replaces another one in a configuration starts from its own defaults.

    jsonargparse (read: 4.53) keeps those init_args of the old class that the new one has too, such as `scale`, which
    may mean something else there.  A class spelled in another way is the same class and keeps its options.
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


@cache
def parameters(cls: type) -> Mapping[str, inspect.Parameter]:
    """The options that a configuration may give a class: its own, and those that its **kwargs hand on to its bases.

    jsonargparse (read: 4.53) finds the latter in the source of ``super().__init__(…)``, but has no public function that
    says what it found.  {} of what has no signature.
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
