"""Where the behaviour of another library is changed: one named function each, with the version that was read."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jsonargparse._typehints as typehints
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
