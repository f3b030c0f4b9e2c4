"""Which classes and parameters may be at a key of a configuration, from the types of the command's options."""

import collections.abc
import inspect
import sys
import types as python_types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Union, get_args, get_origin

from .upstream.jsonargparse import parameters

Types = Mapping[str, Any]

_PLAIN = (int, float, str, bool, list, dict, tuple, bytes, type(None), object)


def _hints_at(parts: Sequence[str], types: Types) -> list[Any]:
    """The types that may be at a dotted key: of the option, or of parameters of the classes on the way."""
    for n in range(len(parts), 0, -1):
        if ".".join(parts[:n]) in types:
            hints = [types[".".join(parts[:n])]]
            break
    else:
        return []
    for part in parts[n:]:
        classes = {c for hint in hints for base in _bases(hint) for c in _subclasses(base)}
        hints = [parameters(cls)[part].annotation for cls in classes if part in parameters(cls)]
    return hints


def bases_at(parts: Sequence[str], types: Types) -> list[type]:
    return list(dict.fromkeys(base for hint in _hints_at(parts, types) for base in _bases(hint)))


def classes_at(parts: Sequence[str], types: Types) -> list[type]:
    found = [cls for base in bases_at(parts, types) for cls in _subclasses(base)]
    if parts[-1] != "network":
        return found
    return [cls for cls in found if next(iter(parameters(cls)), None) == "shape"]  # not its layers


def class_names(classes: Iterable[type]) -> set[str]:
    return {cls.__name__ for cls in classes if not inspect.isabstract(cls)}


def branches(hint: Any) -> list[Any]:
    """The types of a union."""
    return list(get_args(hint)) if get_origin(hint) in (Union, python_types.UnionType) else [hint]


def _bases(hint: Any) -> Iterator[type]:
    """The classes that a type names: of unions, lists and dictionaries their parts, of a callable what it returns."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is collections.abc.Callable:
        yield from _bases(args[-1])
    elif origin is not None:
        for arg in args:
            yield from _bases(arg)
    elif inspect.isclass(hint) and hint not in _PLAIN and not hint.__module__.startswith(("pathlib", "datetime")):
        yield hint


def _subclasses(base: type) -> list[type]:
    """The public classes of a kind, ours before others'; of modules only ours, of which there are few."""
    todo, found = [base], dict[type, None]()
    while todo:
        cls = todo.pop()
        if cls not in found:
            found[cls] = None
            todo += type.__subclasses__(cls)
    public = [c for c in found if not c.__name__.startswith("_") and "<locals>" not in c.__qualname__]
    ours = [c for c in public if c.__module__.startswith("diffusion_pl.") and _is_exported(c)]
    if base.__module__.startswith("torch.nn"):
        return [c for c in ours if c.__module__.startswith(("diffusion_pl.networks", "diffusion_pl.metrics"))]
    others = ("torch.optim", "lightning.")
    return ours + [c for c in public if c.__module__.startswith(others)] or [c for c in public if c is not base]


def _is_exported(cls: type) -> bool:
    package = sys.modules.get(".".join(cls.__module__.split(".")[:2]))
    return getattr(package, cls.__name__, None) is cls


def all_classes() -> list[type]:
    modules = [m for name, m in list(sys.modules.items()) if name.split(".")[0] == "diffusion_pl"]
    modules += [sys.modules[name] for name in ("torch.optim",) if name in sys.modules]
    return [c for m in modules for c in vars(m).values() if inspect.isclass(c) and c.__module__ != "builtins"]
