"""Which classes and parameters may be at a key of a configuration, from the types of the command's options."""

import collections.abc
import inspect
import sys
import types as python_types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Protocol, Union, get_args, get_origin, get_type_hints

from .upstream.jsonargparse import parameters

Types = Mapping[str, Any]

_PLAIN = (int, float, str, bool, list, dict, tuple, bytes, type(None), object)
_LISTS = (list, tuple, set, collections.abc.Iterable, collections.abc.Sequence)
_DICTS = (dict, collections.abc.Mapping)
#: Packages whose classes are chosen by name in a configuration.
_CHOSEN = ("diffusion_pl.", "lightning.", "torch.nn", "torch.optim")


def branches(hint: Any) -> list[Any]:
    """The types of a union, those of unions within it included."""
    if get_origin(hint) not in (Union, python_types.UnionType):
        return [hint]
    return [branch for part in get_args(hint) for branch in branches(part)]


def kinds(hint: Any) -> list[type]:
    """The classes one of whose subclasses may be given by name: those of the type itself, not of lists' elements."""
    made = [_made(branch) for branch in branches(hint)]
    return [kind for kind in made if inspect.isclass(kind) and _is_chosen(kind)]


def given_by_call(hint: Any, cls: type) -> set[str]:
    """The parameters of a class that a configuration does not give, since whoever calls the factory does."""
    names, given = list(parameters(cls)), set[str]()
    for branch in branches(hint):
        if _is_callable(branch):
            arguments = get_args(branch)[0]
            given |= set(names[: len(arguments) if isinstance(arguments, list) else 1])
        elif _is_factory(branch):
            called = list(inspect.signature(branch.__call__).parameters.values())[1:]
            given |= set(names[: sum(p.kind is p.POSITIONAL_ONLY for p in called)])
            given |= {p.name for p in called if p.kind is p.KEYWORD_ONLY}
    return given


def hint_of(parameter: inspect.Parameter) -> Any:
    """The type of a parameter; with None if that is its default."""
    hint = parameter.annotation
    optional = parameter.default is None and hint is not inspect.Parameter.empty and not isinstance(hint, str)
    return _union([hint, type(None)]) if optional else hint


def elements(hint: Any) -> Any:
    """Type of the elements of a list; None if the type is no list."""
    return _union([get_args(b)[0] for b in branches(hint) if get_origin(b) in _LISTS and get_args(b)])


def values(hint: Any) -> Any:
    """Type of the values of a dictionary; None if the type is no dictionary."""
    return _union([get_args(b)[1] for b in branches(hint) if get_origin(b) in _DICTS and get_args(b)])


def plain(hint: Any) -> Any:
    """The part of a type that names no class: numbers, texts, lists and dictionaries of them; None if there is none."""
    return _union([branch for branch in branches(hint) if not list(_bases(branch, chosen=True))])


def words(hint: Any) -> str:
    """A type as a message names it: "int or list of int", "one of 'L', 'RGB'"."""
    literals, others, rest = list[Any](), list[str](), list[str]()
    for branch in branches(hint):
        origin, args = get_origin(branch), get_args(branch)
        if origin is Literal:
            literals += args
        elif origin in _LISTS:
            inside = [words(arg) for arg in dict.fromkeys(args) if arg is not Ellipsis]
            others.append(f"list of {' and '.join(inside)}" if inside else "list")
        elif origin in _DICTS or branch is dict:
            others.append("keys with values")
        elif inspect.isclass(branch) and issubclass(branch, Path):
            others.append("path")
        elif branch is bool and any(number in branches(hint) for number in (int, float)):
            continue
        elif inspect.isclass(branch) and branch.__module__ == "builtins" and branch is not type(None):
            others.append(branch.__name__)
        elif branch is not type(None):
            rest.append(getattr(branch, "__name__", str(branch)))
    others = others or ([] if literals else rest)
    named = "one of " + ", ".join(dict.fromkeys(map(str, literals))) if literals else ""
    return " or ".join(dict.fromkeys(filter(None, [named, *others]))) or "null"


def bases_at(parts: Sequence[str], types: Types) -> list[type]:
    """The kinds of classes that may be at a dotted key: of the option, or of parameters of the classes on the way."""
    for n in range(len(parts), 0, -1):
        if ".".join(parts[:n]) in types:
            hints = [types[".".join(parts[:n])]]
            break
    else:
        return []
    for part in parts[n:]:
        classes = {c for hint in hints for base in _bases(hint) for c in _subclasses(base)}
        hints = [parameters(cls)[part].annotation for cls in classes if part in parameters(cls)]
    return list(dict.fromkeys(base for hint in hints for base in _bases(hint)))


def classes_at(parts: Sequence[str], types: Types) -> list[type]:
    """The classes that may be at a dotted key."""
    return choices(bases_at(parts, types), parts[-1])


def choices(bases: Iterable[type], name: str) -> list[type]:
    """The classes of some kinds that may be the value of a parameter."""
    classes = [cls for base in bases for cls in _subclasses(base)]
    if name != "network":
        return classes
    return [cls for cls in classes if next(iter(parameters(cls)), None) == "shape"]  # not its layers


def class_names(classes: Iterable[type]) -> set[str]:
    return {cls.__name__ for cls in classes if not inspect.isabstract(cls)}


STANDARD_LIBRARY = frozenset(sys.stdlib_module_names)


def imported(path: str, trusted: bool = True) -> Any:
    """A class or function by its path; None if there is none, or if it is not trusted and not imported yet."""
    module, _, name = path.rpartition(".")
    if module.startswith("."):  # relative to nothing
        return None
    try:
        return getattr(import_module(module) if trusted else sys.modules.get(module), name, None)
    except (ImportError, AttributeError, ValueError):
        return None


def why_missing(path: str) -> str:
    """Which module of a class path is missing, or why it cannot be imported; "" if the module is there."""
    module = path.rpartition(".")[0]
    try:
        if module.strip("."):
            import_module(module)
    except ModuleNotFoundError as error:
        missing = str(error.name)
        inside = f"{module}.".startswith(f"{missing}.")
        return f": no module {missing}" if inside else f": {module} needs the package {missing}, which is not installed"
    except Exception as error:  # of a module of the user's own
        return f": {module} cannot be imported: {type(error).__name__}: {' '.join(str(error).split())}"
    return ""


def _union(kinds: Sequence[Any]) -> Any:
    return Union[tuple(kinds)] if kinds else None  # noqa: UP007  of as many as there are


def _is_callable(hint: Any) -> bool:
    return get_origin(hint) is collections.abc.Callable and bool(get_args(hint))


def _is_factory(hint: Any) -> bool:
    """Whether a type is a protocol of functions that make something."""
    return inspect.isclass(hint) and Protocol in hint.__bases__ and "__call__" in vars(hint)


def _made(hint: Any) -> Any:
    """The class of what a type stands for: of a callable and of a factory what it returns."""
    if _is_factory(hint):
        return get_type_hints(hint.__call__).get("return")
    return get_args(hint)[-1] if _is_callable(hint) else hint


def _is_chosen(kind: type) -> bool:
    return kind not in _PLAIN and f"{kind.__module__}.".startswith(_CHOSEN)


def _bases(hint: Any, chosen: bool = False) -> Iterator[type]:
    """The classes that a type names: of unions, lists and dictionaries their parts, of a callable what it returns.

    Args:
        hint: the type.
        chosen: only those that are chosen by name.
    """
    origin, args = get_origin(hint), get_args(hint)
    if origin is collections.abc.Callable or _is_factory(hint):
        yield from _bases(_made(hint), chosen)
    elif origin is not None:
        for arg in args:
            yield from _bases(arg, chosen)
    elif inspect.isclass(hint) and hint not in _PLAIN and not hint.__module__.startswith(("pathlib", "datetime")):
        yield from [hint] if not chosen or _is_chosen(hint) else []


def _subclasses(base: type) -> list[type]:
    """The public classes of a kind, own before others'; of modules only own, of which there are few."""
    todo, subclasses = [base], dict[type, None]()
    while todo:
        cls = todo.pop()
        if cls not in subclasses:
            subclasses[cls] = None
            todo += type.__subclasses__(cls)
    public = [c for c in subclasses if not c.__name__.startswith("_") and "<locals>" not in c.__qualname__]
    own = [c for c in public if c.__module__.startswith("diffusion_pl.") and _is_exported(c)]
    if base.__module__.startswith("torch.nn"):
        return [c for c in own if c.__module__.startswith(("diffusion_pl.networks", "diffusion_pl.metrics"))]
    others = ("torch.optim", "lightning.")
    return own + [c for c in public if c.__module__.startswith(others)] or [c for c in public if c is not base]


def _is_exported(cls: type) -> bool:
    package = sys.modules.get(".".join(cls.__module__.split(".")[:2]))
    return getattr(package, cls.__name__, None) is cls


def all_classes() -> list[type]:
    modules = [m for name, m in list(sys.modules.items()) if name.split(".")[0] == "diffusion_pl"]
    modules += [sys.modules[name] for name in ("torch.optim",) if name in sys.modules]
    return [c for m in modules for c in vars(m).values() if inspect.isclass(c) and c.__module__ != "builtins"]
