"""Configuration files as text: is this one readable, and on which line is a key?

jsonargparse reads values without their lines.  Here the files are read again, as nodes with line numbers.
"""

import difflib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from .bounds import check_plain
from .shipped_configs import find_config, near_configs

SUFFIXES = (".yaml", ".yml", ".json")
#: Sections that may be switched off by null or false.
OPTIONAL = ("ema", "guard", "doctor")
#: What switches them off.
OFF = ("false", "null", "none", "no", "off", "~")
#: What each section that is no class looks like.
SECTIONS = {
    "model": "network, schedule and loss",
    "data": "class_path and init_args",
    "trainer": "max_steps",
    "ema": "decays: [0.999]",
    "saver": "every_n_steps: 500",
    "guard": "stop_after: 10",
    "doctor": "max_kl: 0.01",
}
_NULL, _FALSE = "tag:yaml.org,2002:null", "tag:yaml.org,2002:bool"


class Entry(NamedTuple):
    """A value in a configuration file, and where it is."""

    path: Path
    line: int
    value: Node
    key: str = ""

    @property
    def text(self) -> str | None:
        """Of a scalar, or the class_path of a class; None of anything else."""
        node: Node | None = self.value
        if isinstance(node, MappingNode):
            node = next((value for key, value in node.value if key.value == "class_path"), None)
        return str(node.value) if isinstance(node, ScalarNode) else None


def config_files(args: Sequence[str]) -> list[Path]:
    """The files that a command line names with --config, in its order; shipped ones as `find_config` finds them."""
    files = [b for a, b in pairwise(args) if a in ("--config", "-c")]
    files += [a.split("=", 1)[1] for a in args if a.startswith("--config=")]
    return [find_config(Path(f)) for f in files]


def with_config_files(args: Sequence[str]) -> list[str]:
    """A command line in which each --config has the path of its file in place of a shipped configuration's name."""
    named, before = list[str](), ""
    for arg in args:
        option, equals, value = arg.partition("=")
        if before in ("--config", "-c"):
            arg = str(find_config(Path(arg)))
        elif option == "--config" and equals:
            arg = f"--config={find_config(Path(value))}"
        named.append(arg)
        before = arg
    return named


def check_files(args: Sequence[str]) -> None:
    """Look at every --config before it is parsed.

    Raises:
        OSError: a file that is missing or cannot be opened.
        ValueError: no text, no YAML, no sections, a key twice, or a section of another kind; with file and line.
    """
    for path in config_files(args):
        if "\n" in str(path) or str(path).lstrip().startswith("{"):
            continue  # not a file: a configuration as text
        text = read_text(path)
        root = compose(path, text)
        if root is None:
            raise ValueError(f"{path} is empty: expected sections such as model, data, trainer")
        if not isinstance(root, MappingNode):
            kind = "a list" if isinstance(root, SequenceNode) else f"the text {str(root.value)[:40]!r}"
            raise ValueError(f"{path}: expected sections such as model, data, trainer, got {kind}")
        _refuse_duplicates(path, root)
        _check_dates(path, root)
        with suppress(yaml.YAMLError):  # reported when it is parsed
            check_plain(yaml.safe_load(text), str(path))
        for key, value in root.value:
            if key.value in SECTIONS and not isinstance(value, MappingNode) and not _is_reference(key.value, value):
                _check_section(path, key, value)


def read_text(path: Path) -> str:
    """The text of a configuration file, UTF-8.

    Raises:
        OSError, ValueError: there is none, with the reason in one line.
    """
    if path.is_dir():
        raise IsADirectoryError(f"--config {path}: is a folder, expected a YAML file")
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        names = [file.name for file in path.parent.glob("*") if file.suffix in SUFFIXES]
        near = [str(path.parent / name) for name in difflib.get_close_matches(path.name, names, n=1)]
        near = near or near_configs(path)
        hint = f"did you mean {' or '.join(near)}?" if near else "`python -m diffusion_pl configs` lists those by name"
        raise FileNotFoundError(f"--config {path}: no such file; {hint}") from None
    except OSError as error:
        raise OSError(f"--config {path}: cannot be read: {error.strerror}") from error
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ValueError(f"{path} is UTF-16 or UTF-32 text. Fix: save it as UTF-8")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ValueError(
            f"{path}:{line}: not UTF-8 text (byte 0x{content[error.start]:02x}). Fix: save it as UTF-8"
        ) from None


def find(key: str, args: Sequence[str]) -> list[Entry]:
    """Where a dotted key is set in the configuration files: in the last file first, by its whole path."""
    parts = [part for part in key.split(".") if part != "init_args"]
    entries: list[Entry] = []
    for path in reversed(config_files(args)):
        try:
            root = compose(path, read_text(path))
        except (OSError, ValueError):
            continue
        if root is not None:
            entries += _walk(path, root, root.start_mark.line + 1, parts)
    return entries


def find_class(name: str, args: Sequence[str]) -> list[Entry]:
    """Where the configuration files name a class, in the last file first."""
    entries = []
    for path in reversed(config_files(args)):
        try:
            root = compose(path, read_text(path))
        except (OSError, ValueError):
            continue
        nodes = [(root, "")] if root is not None else []
        while nodes:
            node, key = nodes.pop(0)
            if isinstance(node, SequenceNode):
                nodes += [(value, key) for value in node.value]
            elif isinstance(node, MappingNode):
                nodes += [(value, _below(key, str(part.value))) for part, value in node.value]
            elif isinstance(node, ScalarNode) and str(node.value).rpartition(".")[2] == name:
                entries.append(Entry(path, node.start_mark.line + 1, node, key))
    return entries


def _below(key: str, part: str) -> str:
    return key if part in ("class_path", "init_args") else f"{key}.{part}".lstrip(".")


def compose(path: Path, text: str) -> Node | None:
    """The nodes of a text.

    Raises:
        ValueError: it is no YAML.
    """
    try:
        return yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        line = text.splitlines()[mark.line] if mark and mark.line < len(text.splitlines()) else ""
        if "\t" in line[: (mark.column if mark else 0) + 1]:
            raise ValueError(f"{where}: YAML cannot be indented by tabs. Fix: use spaces") from None
        reason = ", ".join(part for part in (error.context, error.problem) if part)
        raise ValueError(f"{where}: not valid YAML: {' '.join(reason.split())}") from None
    except yaml.YAMLError as error:
        reason = str(error).replace('in "<unicode string>", ', "at ")
        raise ValueError(f"{path}: not valid YAML: {' '.join(reason.split())}") from None
    except RecursionError:
        raise ValueError(f"{path}: not valid YAML: nested too deeply") from None


def _refuse_duplicates(path: Path, root: Node) -> None:
    nodes, seen = [(root, "")], set()
    while nodes:
        node, key = nodes.pop()
        if id(node) in seen:  # an alias
            continue
        seen.add(id(node))
        if isinstance(node, SequenceNode):
            nodes += [(value, key) for value in node.value]
        elif isinstance(node, MappingNode):
            lines: dict[str, int] = {}
            for name, value in node.value:
                text, line = str(name.value), name.start_mark.line + 1
                full = f"{key}.{text}" if key else text
                if text in lines and text != "<<":
                    raise ValueError(
                        f"{path}:{line}: {full}: set twice, also on line {lines[text]}. Fix: remove one of them"
                    )
                lines[text] = line
                nodes.append((value, full))


def _check_dates(path: Path, root: Node) -> None:
    """Refuse text that YAML takes for a date, and that is none."""
    nodes, seen = [root], set()
    while nodes:
        node = nodes.pop()
        if id(node) in seen:  # an alias
            continue
        seen.add(id(node))
        if isinstance(node, SequenceNode):
            nodes += node.value
        elif isinstance(node, MappingNode):
            nodes += [part for pair in node.value for part in pair]
        elif node.tag == "tag:yaml.org,2002:timestamp":
            try:
                yaml.safe_load(node.value)
            except ValueError as error:
                where = f"{path}:{node.start_mark.line + 1}"
                raise ValueError(f"{where}: {node.value} is not a date ({error}). Fix: put it in quotes") from None


def _check_section(path: Path, key: ScalarNode, value: Node) -> None:
    """Refuse a section that is a number, a list, true; and null or false where the section is needed."""
    name, where = key.value, f"{path}:{key.start_mark.line + 1}"
    off = isinstance(value, ScalarNode) and (
        value.tag == _NULL or (value.tag == _FALSE and str(value.value).lower() in ("false", "no", "off"))
    )
    if off and name in OPTIONAL:
        return
    hint = ", or false to switch it off" if name in OPTIONAL else ""
    if name == "saver" and off:
        hint = "; checkpoints cannot be switched off, a run without one could not be resumed or sampled"
    elif name == "saver" and isinstance(value, ScalarNode) and str(value.value).isdigit():
        hint = f"; did you mean {{every_n_steps: {value.value}}}?"
    got = "a list" if isinstance(value, SequenceNode) else str(value.value) or "null"
    raise ValueError(f"{where}: {name}: expected keys such as {SECTIONS[name]}, got {got}{hint}")


def _is_reference(name: str, value: Node) -> bool:
    """Whether a section is the name of another file, or of a class."""
    if not isinstance(value, ScalarNode) or value.tag != "tag:yaml.org,2002:str":
        return False
    return name in ("model", "data") or Path(value.value).suffix in SUFFIXES


def _walk(path: Path, node: Node, line: int, parts: list[str]) -> Iterator[Entry]:
    """The entries below a node at these keys, over init_args, lists, merged mappings and other files."""
    if not parts:
        yield Entry(path, line, node)
    elif isinstance(node, SequenceNode):
        for value in node.value:
            yield from _walk(path, value, value.start_mark.line + 1, parts)
    elif isinstance(node, MappingNode):
        for key, value in node.value:
            name, here = str(key.value), key.start_mark.line + 1
            if name.rstrip("+") == parts[0]:
                yield from _walk(path, value, here, parts[1:])
            elif name in ("init_args", "<<"):
                yield from _walk(path, value, here, parts)
    elif isinstance(node, ScalarNode) and Path(str(node.value)).suffix in SUFFIXES:
        other = path.parent / node.value
        try:
            root = compose(other, read_text(other))
        except (OSError, ValueError):
            return
        if root is not None:
            yield from _walk(other, root, 1, parts)
