"""Compare the values of a configuration, as nodes with their places, with the types of a command's options.

Sections and values are given in the order in which they are applied: each name, class and value is checked by itself,
and what was set before decides which names may follow.
"""

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from .config_files import OFF, OPTIONAL, SUFFIXES, compose, read_text
from .suggestions import did_you_mean, nearest, nearest_child, option_meant
from .upstream.jsonargparse import SWITCH, accepts, parameters
from .vocabulary import (
    STANDARD_LIBRARY,
    all_classes,
    branches,
    choices,
    class_names,
    elements,
    given_by_call,
    hint_of,
    imported,
    kinds,
    plain,
    values,
    why_missing,
    words,
)

_NULL = "tag:yaml.org,2002:null"
_TEXT = "tag:yaml.org,2002:str"
_OF_CLASS = ("class_path", "init_args", "dict_kwargs")
_LISTED = 8  # names in a message
_LINKED = ("shape", "conditions")  # what the model takes from the data


class Mistake(Exception):
    """The text of the line."""


class Source(NamedTuple):
    """Where a value comes from: an option of the command line, or a configuration file; nothing: plain values."""

    option: str = ""
    key: str = ""  # that the option sets
    path: Path | None = None

    @property
    def parts(self) -> list[str]:
        return [part for part in self.key.split(".") if part != "init_args"]

    def place(self, key: str, line: int) -> str:
        if self.path is not None:
            return f"{self.path}:{line}: {key}" if key else f"{self.path}:{line}"
        if not self.option:
            return key
        inner = ".".join(key.split(".")[len(self.parts) :])
        return f"{self.option}: {inner}" if inner else self.option


class Walk:
    """The types of the options, and what was set so far.

    Args:
        types: of the options, by their dotted names.
        required: options that must be given.
        defaults: class paths of the options that have one by default.
        trusted: whether modules may be imported and files read that the values name.

    Attributes:
        source: of the values that are given next.
    """

    def __init__(
        self,
        types: Mapping[str, Any],
        required: Sequence[str] = (),
        defaults: Mapping[str, str] | None = None,
        trusted: bool = True,
    ) -> None:
        self.types, self.required, self.trusted = types, required, trusted
        self.classes: dict[str, Any] = {key: imported(path) for key, path in (defaults or {}).items()}
        self.placed: dict[str, tuple[str, set[str]]] = {}  # where each class was given, and parameters that are not
        self.given: dict[str, None] = {}  # keys, in order
        self.source = Source()

    def file(self, path: Path, text: str, parts: tuple[str, ...]) -> None:
        """A configuration file, or a configuration as text, for a key."""
        if not self.trusted:
            return
        before = self.source
        if "\n" not in text and not text.lstrip().startswith("{"):
            self.source, text = Source(path=path), read_text(path)
        root = compose(path, text)
        if root is not None:
            self.at(parts, root, 1)
        self.source = before

    # Sections.

    def at(self, parts: tuple[str, ...], node: Node, line: int) -> None:
        """A value for a key, which is a section, an option, or a parameter of an option's class."""
        parts = tuple(part for part in parts if part != "init_args")
        if not parts or self.is_group(parts):
            return self.section(parts, node, line)
        for n in range(1, len(parts) + 1):
            if ".".join(parts[:n]) in self.types and not self.is_group(parts[:n]):
                return self._inside(parts[:n], parts[n:], node, self.types[".".join(parts[:n])], line)
        n = next((n for n, part in enumerate(parts) if part not in self.children(parts[:n])), len(parts) - 1)
        self._unknown(parts, n, line, "unknown key")

    def section(self, parts: tuple[str, ...], node: Node, line: int) -> None:
        """A mapping of options; () is the whole configuration."""
        if isinstance(node, MappingNode):
            for key, value in node.value:
                if str(key.value) == "<<":
                    self.section(parts, value, line)
                else:
                    self._key((*parts, *str(key.value).rstrip("+").split(".")), str(key.value), value, key)
        elif isinstance(node, ScalarNode) and node.value.endswith(SUFFIXES):
            folder = self.source.path.parent if self.source.path else Path()
            self.file(folder / node.value, node.value, parts)
        elif not (parts and parts[0] in OPTIONAL and isinstance(node, ScalarNode) and node.value.lower() in OFF):
            first = next((name for name in self.types if name.startswith(".".join((*parts, "")))), "")
            self._raise(parts, line, f"expected options of its own, such as --{first}, got {_shown(node)}")

    def _key(self, parts: tuple[str, ...], name: str, value: Node, key: Node) -> None:
        """A key of a section; one with dots may name an option, but no parameter of a class."""
        line = key.start_mark.line + 1
        self.at(parts, value, line)
        if "." in name and ".".join(parts) not in self.types and not self.is_group(parts):
            self._raise(parts, line, f"write nested keys in place of the dots, or the option --{'.'.join(parts)}")

    def is_group(self, parts: Sequence[str]) -> bool:
        """Whether a key is a section of several options."""
        prefix = ".".join((*parts, ""))
        return any(name.startswith(prefix) for name in self.types)

    # Values.

    def _inside(self, parts: tuple[str, ...], rest: tuple[str, ...], node: Node, hint: Any, line: int) -> None:
        """A value for what is below a key of this type."""
        if not rest or rest == ("class_path",):
            return self._value(parts, node, hint, line)
        if not kinds(hint) and values(hint) is not None:
            return self._inside((*parts, rest[0]), rest[1:], node, values(hint), line)
        bases = kinds(hint) or kinds(elements(hint))
        cls = self._class(parts, bases)
        known = self._known(parts, bases, hint)
        if bases and rest[0] in known:
            if cls is None:
                place = self.source.option or self.source.place(".".join(parts), line)
                raise Mistake(f"{place}: set --{'.'.join(parts)} CLASS first, its options come after it")
            return self._parameter(parts, cls, rest[0], node, line, rest[1:])
        self._unknown((*parts, *rest), len(parts), line, f"unknown key{_of(cls)}")

    def _value(self, parts: tuple[str, ...], node: Node, hint: Any, line: int) -> None:
        self.given[".".join(parts)] = None
        if hint in (Any, object, None, inspect.Parameter.empty) or isinstance(hint, str):
            return
        simple, bases = plain(hint), kinds(hint)
        if node.tag == _NULL and type(None) in branches(hint):
            return
        if simple is not None and accepts(simple, _python(node)):
            return
        if isinstance(node, SequenceNode) and (element := elements(hint)) is not None:
            for value in node.value:
                self._value(parts, value, element, value.start_mark.line + 1)
            if simple is not None and element is elements(simple):
                self._raise(parts, line, f"expected {words(hint)}, got {_shown(node)}")
            return
        if not bases and elements(hint) is not None:
            if kinds(elements(hint)):  # one element that is appended to a list
                hint, bases = elements(hint), kinds(elements(hint))
            elif isinstance(node, ScalarNode) and accepts(elements(hint), node.value):
                self._raise(parts, line, f"expected {words(hint)}, got {node.value}; did you mean [{node.value}]?")
        if isinstance(node, MappingNode) and not bases and (value_hint := values(hint)) is not None:
            for key, value in node.value:
                self._value((*parts, str(key.value)), value, value_hint, key.start_mark.line + 1)
            return
        if isinstance(node, ScalarNode) and bases and node.tag == _TEXT:
            if node.value.endswith(SUFFIXES):
                folder = self.source.path.parent if self.source.path else Path()
                return self.file(folder / node.value, node.value, parts)
            return self._name(parts, node.value, bases, hint, line)
        if isinstance(node, MappingNode) and bases:
            return self._spec(parts, node, bases, hint, line)
        self._raise(parts, line, f"expected {self._expected(parts, hint, bases)}, got {_shown(node)}")

    def _spec(self, parts: tuple[str, ...], node: MappingNode, bases: list[type], hint: Any, line: int) -> None:
        """A class with its parameters."""
        entries = {str(key.value): (key.start_mark.line + 1, value) for key, value in node.value}
        inner: Node | None = node
        if "class_path" in entries:
            where, name = entries["class_path"]
            if not isinstance(name, ScalarNode) or name.tag != _TEXT:
                expected = self._expected(parts, hint, bases)
                self._raise(parts, where, f"expected class_path of {expected}, got {_shown(name)}")
            self._name(parts, name.value, bases, hint, where)
            inner = None
            for extra, (where, _) in entries.items():
                if extra not in _OF_CLASS:
                    near = nearest(extra, _OF_CLASS)
                    move = did_you_mean(near) if near else "; move it into init_args"
                    text = f"expected class_path and init_args only{move}"
                    self._raise((*parts, extra), where, text)
        if "init_args" in entries:
            inner = entries["init_args"][1]
        cls = self._class(parts, bases)
        if cls is None and "class_path" not in entries:
            near = next((name for name in entries if nearest(name, ["class_path"])), None)
            got = f"{near}; did you mean class_path?" if near else ", ".join(entries)
            self._raise(parts, line, f"expected class_path of {self._expected(parts, hint, bases)}, got {got}")
        if cls is not None and "class_path" not in entries and ".".join(parts) not in self.classes:
            self.classes[".".join(parts)] = cls
            self.placed[".".join(parts)] = self.source.place(".".join(parts), line), set()
        if isinstance(inner, MappingNode):
            for key, value in inner.value:
                name, where = str(key.value).rstrip("+"), key.start_mark.line + 1
                if cls is not None and name not in parameters(cls) and name != "<<":
                    self._unknown((*parts, name), len(parts), where, f"unknown key{_of(cls)}")
                self._parameter(parts, cls, name, value, where)

    def _parameter(
        self, parts: tuple[str, ...], cls: Any, name: str, node: Node, line: int, rest: tuple[str, ...] = ()
    ) -> None:
        if cls is not None and name in parameters(cls):
            self._inside((*parts, name), rest, node, hint_of(parameters(cls)[name]), line)

    def _name(self, parts: tuple[str, ...], name: str, bases: list[type], hint: Any, line: int) -> None:
        """A class by its name or path."""
        key, short = ".".join(parts), name.rpartition(".")[2]
        candidates = choices(bases, parts[-1])
        names = {cls.__name__: cls for cls in candidates}
        cls = names.get(name) or (imported(name, self.trusted) if "." in name else None)
        if inspect.isclass(cls) and issubclass(cls, tuple(bases)):
            if inspect.isabstract(cls):
                self._raise(parts, line, f"{short} is abstract: choose one of {_listing(class_names(candidates))}")
            if self.classes.get(key) is not cls:  # another one starts from its own defaults
                self.given = {k: None for k in self.given if not k.startswith(f"{key}.")}
            self.classes[key] = cls
            self.placed[key] = self.source.place(key, line), given_by_call(hint, cls)
            return
        if name.partition(".")[0] in STANDARD_LIBRARY:
            self._raise(parts, line, f"{name} is refused, expected {self._expected(parts, hint, bases)}")
        if callable(cls) and not inspect.isclass(cls):  # a function that makes it
            self.classes.pop(key, None)
            return
        if cls is None and "." not in name:
            cls = next((c for c in all_classes() if c.__name__ == name), None)
        if cls is not None:
            what = f"{short} is a class of another kind" if inspect.isclass(cls) else f"{name} is no class"
            near = did_you_mean(nearest(short, class_names(candidates)))
            self._raise(parts, line, f"{what}, expected {self._expected(parts, hint, bases)}{near}")
        similar = nearest(short, class_names(candidates))
        text = f"there is no class {name}{why_missing(name) if self.trusted else ''}"
        if similar is None and 0 < len(class_names(candidates)) <= 2 * _LISTED:
            self._raise(parts, line, f"{text}; choose one of {_listing(class_names(candidates), 2 * _LISTED)}")
        self._raise(parts, line, text + did_you_mean(similar))

    # What is there.

    def _class(self, parts: Sequence[str], bases: Sequence[type]) -> Any:
        """The class in force at a key: the one that was given, or one that needs no name."""
        cls = self.classes.get(".".join(parts))
        return cls or next((base for base in bases if not inspect.isabstract(base) and _is_closed(base)), None)

    def _known(self, parts: Sequence[str], bases: Sequence[type], hint: Any = None) -> list[str]:
        """The parameters that may be given at a key."""
        cls = self._class(parts, bases)
        classes = [cls] if cls is not None else choices(bases, parts[-1])
        names = dict.fromkeys(name for c in classes for name in parameters(c) if not name.startswith("_"))
        by_call = set[str]() if hint is None else {name for c in classes for name in given_by_call(hint, c)}
        return [name for name in names if name not in by_call]

    def children(self, parts: Sequence[str]) -> list[str]:
        """The names that may follow a key."""
        prefix = ".".join((*parts, "")) if parts else ""
        names = dict.fromkeys(name.removeprefix(prefix).split(".")[0] for name in self.types if name.startswith(prefix))
        if names or not parts:
            return list(names)
        for n in range(len(parts), 0, -1):
            hint = self.types.get(".".join(parts[:n]))
            if hint is None or hint is SWITCH:
                continue
            for at, part in enumerate(parts[n:], n):
                if not kinds(hint) and values(hint) is not None:
                    hint = values(hint)
                    continue
                cls = self._class(parts[:at], kinds(hint))
                if cls is None or part not in parameters(cls):
                    return []
                hint = hint_of(parameters(cls)[part])
            return self._known(parts, kinds(hint) or kinds(elements(hint)), hint)
        return []

    def _expected(self, parts: Sequence[str], hint: Any, bases: Sequence[type]) -> str:
        """What may be at a key, in words: "a Schedule such as VP, Cosine"."""
        simple = plain(hint)
        texts = [words(simple)] if simple is not None and words(simple) != "null" else []
        for base in bases:
            if _is_closed(base):
                texts.append(f"the keys {', '.join(parameters(base))}")
            else:
                names = class_names(choices([base], parts[-1]))
                kind = "network" if parts[-1] == "network" else base.__name__
                article = "an" if kind[0] in "AEIOU" else "a"
                texts.append(f"{article} {kind}" + (f" such as {_listing(names)}" if names else ""))
        return " or ".join(dict.fromkeys(texts)) or words(hint)

    def missing(self) -> None:
        """What is required and was not given: of the command, then of each class."""
        given = {*self.given, *(key.partition(".")[0] for key in self.given)}
        lacking = [name for name in self.required if name not in given]
        if lacking:
            if "trainer.max_steps" in self.types:
                raise Mistake(f"missing: {', '.join(lacking)} (give a --config, or these options)")
            raise Mistake(f"missing: {', '.join(f'--{name}' for name in lacking)}")
        for key, (place, by_call) in self.placed.items():
            cls: Any = self.classes.get(key)
            if cls is None or cls.__module__.startswith("lightning.pytorch.loggers"):  # with defaults of ours
                continue
            names = [n for n, p in parameters(cls).items() if p.default is inspect.Parameter.empty]
            lacking = [n for n in names if f"{key}.{n}" not in self.given and n not in (*_LINKED, *by_call)]
            if lacking:
                raise Mistake(f"{place}: missing: {', '.join(lacking)}, required by {cls.__name__}")

    # Messages.

    def _raise(self, parts: Sequence[str], line: int, text: str) -> NoReturn:
        place = self.source.place(".".join(part for part in parts if part not in _OF_CLASS), line)
        raise Mistake(f"{place}: {text}")

    def _unknown(self, parts: Sequence[str], n: int, line: int, text: str) -> NoReturn:
        """A key whose n-th part does not exist, with the one that is meant, or those that there are."""
        children = self.children(parts[:n])
        of_class = ".".join(parts[:n]) in self.classes
        near = nearest_child(parts[:n], parts[n], children) or (nearest(parts[n], _OF_CLASS) if of_class else None)
        is_option = bool(self.source.option) and len(parts) <= len(self.source.parts)
        if near is not None:
            hint = did_you_mean("--" + ".".join([*parts[:n], near, *parts[n + 1 :]]) if is_option else near)
        elif of_class:
            hint = f"; choose one of {_listing(children, 2 * _LISTED)}"
        else:
            hint = option_meant(".".join(parts), self.types, self.children)
        if is_option:
            raise Mistake(f"{text.replace('key', 'option ' + self.source.option)}{hint}")
        self._raise(parts[: n + 1], line, f"{text}{hint.replace('--', '')}")


def _is_closed(kind: type) -> bool:
    """Whether a class has no subclasses to choose from, so that its class_path need not be given."""
    return kind.__module__.startswith("diffusion_pl.") and not type.__subclasses__(kind)


def _of(cls: Any) -> str:
    return f" of {cls.__name__}" if inspect.isclass(cls) else ""


def _listing(names: Sequence[str] | set[str], most: int = _LISTED) -> str:
    ordered = sorted(names) if isinstance(names, set) else list(names)
    if isinstance(names, set) and len(names) > most:  # the plain ones have short names
        ordered.sort(key=len)
    return ", ".join(ordered[:most]) + (", …" if len(ordered) > most else "")


def _python(node: Node) -> Any:
    """The value of a node; the text of a scalar, which the type decides how to read."""
    if isinstance(node, ScalarNode):
        return str(node.value) if node.tag != _NULL else "null"
    try:
        return yaml.safe_load(yaml.serialize(node))
    except yaml.YAMLError:
        return str(node.value)


def _shown(node: Node) -> str:
    if isinstance(node, SequenceNode):
        return yaml.serialize(node, width=1000).strip() if len(node.value) < _LISTED else "a list"
    if isinstance(node, MappingNode):
        return f"the keys {', '.join(str(key.value) for key, _ in node.value)}"
    return "null" if node.tag == _NULL else str(node.value) or "nothing"
