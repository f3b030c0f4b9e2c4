"""An error in one line: where it is (option, or file and line), what is wrong, and the likeliest correction."""

import collections.abc
import difflib
import inspect
import re
import sys
import types as python_types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, Union, get_args, get_origin

from .config_files import SECTIONS, SUFFIXES, find, find_class
from .parsing import BUILT, UsageError

Types = Mapping[str, Any]

_GOT = r"Got value: (?:Namespace\(class_path=')?([\w.]+).*"
#: What jsonargparse says, and what is printed.
_PHRASES = (
    (r"Expected a dot import path string:\s*$", "expected a class, got nothing"),
    (r"Expected a dot import path string: (.+)", r"there is no class \1"),
    (rf"Type .+ a callable class: module .+ has no attribute '.+?'\. {_GOT}", r"there is no class \1"),
    (rf"Type .+ a callable class: No module named '.+?'\. {_GOT}", r"there is no class \1"),
    (r"Type .+ a callable class: Dict must include a class_path.+NestedArg\(key='(\w+)'.+", r"unknown key \1"),
    (r"Type .+: Expected an import path or a subclass spec, but got (.+?)\. Got.*", r"expected a class, got \1"),
    (r"Type .+ expects a function or a callable class: (.+)", r"expected a class: \1"),
    (r"Import path (\S+) does not correspond to a subclass of (\w+).*", r"\1 is no \2"),
    (r"Not a valid subclass of (\w+)\. Got value: (.+?) Subclass types.*", r"expected class_path of a \1, got \2"),
    (r"Expected an instantiatable class, but .*is abstract", "expected class_path and init_args only"),
    (r"Problem with given class_path '(.+?)': (.*)", r"\1: \2"),
    (r"Option '(.+)' is not accepted", r"unknown key \1"),
    (r"Subcommand '\w+' does not accept option '(.+)'", r"unknown key \1"),
    (r"the following arguments are required: (\w+\..+)", r"missing: \1 (give a --config, or these options)"),
    (r"the following arguments are required: (.+)", r"missing: \1"),
    (r"\b(?:fit|validate|test|predict)\.(?=model|data)", ""),
    (r"Expected a <class '(?:\w+\.)*(\w+)'>\. Got value: (.*)", r"expected \1, got \2"),
    (r"Expected a <class '(?:\w+\.)*(\w+)'>", r"expected \1"),
    (r"Expected a typing\.Literal\[(.+)\]\. Got value: (.*)", r"expected one of \1, got \2"),
    (r"Expected a typing\.Literal\[(.+)\]", r"expected one of \1"),
    (r"(-?\d+) is not in bounds, numpy accepts from (\d+) to (\d+)", r"seed_everything must be in [\2, \3], got \1"),
)
#: Branches of a union that tell nothing.
_NOISE = re.compile(
    r"Expected a path but|Expected a <class 'NoneType'>|Does not validate|a class path \(str\)|a dict with"
)
#: Names that other programs use -> ours, the first of which that the command has is suggested.
_SYNONYMS = {
    "ckpt_path": "checkpoint ckpt checkpoint_path model_path resume resume_from weights_path pretrained load",
    "trainer.max_epochs": "epochs num_epochs",
    "trainer.max_steps": "steps iterations iters num_steps n_steps train_steps",
    "trainer.devices": "gpus num_gpus ngpu n_gpus",
    "devices": "gpus num_gpus ngpu n_gpus",
    "trainer.accelerator": "device gpu cuda cpu",
    "accelerator": "device gpu cuda cpu",
    "seed_everything": "seed random_seed",
    "run": "name run_name experiment",
    "model.optimizer.lr": "lr learning_rate",
    "num_samples": "n num count samples number",
    "output": "out o outdir out_dir output_dir save_dir dir",
    "cond.label": "label class class_label",
    "data": "dataset",
    "data.path": "data_dir data_path dataset_path",
    "scale": "cfg guidance guidance_scale w",
    "config": "cfg conf config_file yaml c",
    "steps": "num_steps num_inference_steps n_steps",
    "trainer.precision": "precision fp16 bf16 amp",
    "trainer.logger": "logger wandb",
    "sampler": "scheduler solver",
    "metrics": "fid",
}
_PLAIN = (int, float, str, bool, list, dict, tuple, bytes, type(None), object)


def explain(error: BaseException, args: Sequence[str] = ()) -> str:
    """An error in one line; of a UsageError with its place and a suggestion.

    Args:
        error: as raised.
        args: the command line.
    """
    if isinstance(error, UsageError):
        return one_line(str(error), args, error.types)
    text = one_line(str(error) or type(error).__name__, args)
    cls = getattr(error, BUILT, None)
    named = re.match(r"([A-Z]\w+): ", text)
    if cls is None and named:  # a class that is built later, such as a network
        cls = next((c for c in _all_classes() if c.__name__ == named[1]), None)
    where = "" if cls is None else _place_of_class(cls, text, args)
    return f"{where}: {text}" if where else text


def _place_of_class(cls: type, text: str, args: Sequence[str]) -> str:
    """Where the options of a class are set that refused to be built; empty if the command line does not say."""
    name = cls.__name__
    keys = [arg.partition("=")[0].lstrip("-") for arg in args if arg.startswith("--") and arg.endswith(f"={name}")]
    keys += [a.lstrip("-") for a, b in pairwise(args) if a.startswith("--") and b.rpartition(".")[2] == name]
    entries = find_class(name, args)
    keys = [key.removesuffix(".class_path") for key in keys] or [entry.key for entry in entries]
    keys = keys or ([name.lower()] if name.lower() in SECTIONS else [])
    if len(set(keys)) != 1:  # nobody knows which of them
        return ""
    key = keys[0]
    mentioned = [p for p in _parameters(cls) if re.search(rf"\b{p}\b", text)]
    places = {p: _place(f"{key}.{p}", args) for p in mentioned}
    places = {p: place for p, place in places.items() if place != f"{key}.{p}"}
    if len(places) == 1 and len(mentioned) == 1:
        return next(iter(places.values()))
    found = _place(key, args)
    return found if found != key or places else ""


def one_line(message: str, args: Sequence[str] = (), types: Types | None = None) -> str:
    """A message of jsonargparse (or any other) in one line, with the place and the likeliest correction.

    Args:
        message: as raised.
        args: the command line, where a wrong key is looked for.
        types: of the options of the command, from which suggestions are taken.
    """
    types = types or {}
    if stray := re.match(r"(?:argument |Error: )?unrecognized arguments: (\S+)", message):
        return _unknown_option(stray[1], types, args)
    if lacking := re.match(r"argument (?:\S+/)?(--\S+): expected (?:one|at least one) argument", message):
        name = lacking[1].lstrip("-")
        value = "true" if bool in _branches(types.get(name)) else "VALUE"
        return f"{lacking[1]} needs a value: {lacking[1]} {value}"
    if nested := re.search(r"but got NestedArg\(key='(\w+)', val=", message):
        key = _keys(message)[0]
        option = f"--{key}.{nested[1]}"
        return f"{option}: set --{key} CLASS first, its options come after it"
    key, given = "", None
    causes = [message]
    while len(causes) == 1:
        inner, rest = _keys(causes[0])
        key = ".".join(filter(None, (key, inner)))
        given = re.search(r"Given value: (.*)", rest) or given
        found = _causes(rest)
        causes, before = found, causes
        if found in ([rest], before):
            break
    if len(causes) > 1:
        causes = [cause for cause in causes if not cause.startswith("Not a valid subclass")] or causes
    if any(cause.startswith("the following arguments are required") for cause in causes):  # of the class that is given
        causes = [cause for cause in causes if "does not correspond to a subclass" not in cause]
    text = " or ".join(dict.fromkeys(map(_phrase, causes))).replace(" or expected ", " or ")
    if text == "expected class_path and init_args only" and (name := _given(key, args)) is not None:
        names = sorted(_names(_classes_at(key.split("."), types)))
        if name not in names and any(name == base.__name__ for base in _bases_at(key.split("."), types)):
            text = f"{name} is abstract: choose one of {', '.join(names)}"
    if entry := re.match(r"expected class_path of a (\w+), got (.*)", text):
        keys = _keys_of(entry[1], key, types)
        text = f"expected the keys {keys}, got {entry[2]}" if keys else text
    if given and text.startswith("expected") and "got" not in text:
        text += f", got {given[1]}"
    if unloaded := re.match(r"Unable to load config '?\"?(.*?)'?\"?(?: - .*)?$", text):
        key = ".".join(dict.fromkeys(key.split(".")))
        text = f"expected options of its own, such as --{_first_below(key, types)}, got {unloaded[1]}"
    if missing := re.fullmatch(r"missing: ([\w, ]+)", text):
        names = missing[1].split(", ")
        return (
            f"missing: {', '.join(f'--{name}' if name in types else name for name in names)}"
            if not key
            else (f"{_place(key, args)}: {text}")
        )
    unknown = re.search(r"(unknown key|there is no class) ([^\s;]+)", text)
    if unknown is None:
        return ": ".join(filter(None, (_place(key, args, text), text)))
    name = unknown[2].removeprefix("Namespace(class_path=").strip("'\",)")
    if unknown[1] == "there is no class":
        text = text.replace(unknown[2], name)
        return ": ".join(filter(None, (_place(key, args, f"got {name}"), _unknown_class(text, name, key, types))))
    parts = [part for part in ".".join(filter(None, (key, name))).split(".") if part != "init_args"]
    odd = _first_unknown(parts, types, args)
    key = ".".join(parts[: odd + 1] if types else parts)
    near = nearest(parts[odd], _children(parts[:odd], types, args))
    if near is None and odd == 0:  # maybe an option that belongs into a section
        near = _by_last_name(parts, types, args)
    return ": ".join(filter(None, (_place(key, args), "unknown key"))) + _did_you_mean(near)


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The name that is most like another, whatever the case of letters and signs between them."""
    known = {_plain(n): n for n in sorted(names, reverse=True)}
    wanted = _plain(name)
    if not wanted:
        return None
    if wanted in known:
        return known[wanted]
    # 0.6 suggests maxsteps for max_step, not band for wandb: what begins alike comes before what is spelled alike.
    if len(wanted) > 2 and (begins := [n for n in known if n.startswith(wanted)]):
        return known[min(begins, key=len)]
    close = difflib.get_close_matches(wanted, known, n=1, cutoff=0.65)
    if close:
        return known[close[0]]
    return None


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower().replace("+", "p"))


def _did_you_mean(near: str | None) -> str:
    return f"; did you mean {near}?" if near else ""


def _unknown_option(token: str, types: Types, args: Sequence[str]) -> str:
    """A line about an argument that the command does not have."""
    if not token.startswith("-"):
        if token.endswith(SUFFIXES):
            hint = f"; did you mean --config {token}?" if "config" in types else ""
        elif token.endswith(".ckpt"):
            hint = f"; did you mean --ckpt_path {token}?"
        else:
            hint = "; a value needs an option before it, as in --run NAME"
        return f"unexpected argument {token}{hint}"
    option = token.split("=")[0]
    parts = option.lstrip("-").rstrip("+").split(".")
    odd = _first_unknown(parts, types, args)
    near = None
    if odd:
        found = nearest(parts[odd], _children(parts[:odd], types, args))
        near = None if found is None else ".".join([*parts[:odd], found, *parts[odd + 1 :]])
    near = near or _by_last_name(parts, types, args)
    return f"unknown option {option}" + _did_you_mean(near and f"--{near}")


def _by_last_name(parts: Sequence[str], types: Types, args: Sequence[str]) -> str | None:
    """The option that is meant by a name without its section: lr, max_steps, checkpoint."""
    name = parts[-1]
    known = [*_options(types, args), "help"]
    if len(parts) == 1:
        if near := next((key for key in known if "." not in key and _plain(key) == _plain(name)), None):
            return near
        for ours, others in _SYNONYMS.items():
            if name.lower().replace("-", "_") in others.split() and (ours in known or ours.split(".")[0] in known):
                full = ours if ours in known or ours == "cond.label" else None
                if full:
                    return full
    same = [key for key in known if _plain(key.rpartition(".")[2]) == _plain(name)]
    if same:
        order = ("", "trainer", "model", "data")
        return min(same, key=lambda k: (k.count("."), order.index(k.split(".")[0]) if k.split(".")[0] in order else 4))
    top = [key for key in known if key.count(".") <= (len(parts) > 1)]
    return nearest(".".join(parts), top) or nearest(name, [k for k in known if k.count(".") == 1 and len(name) > 4])


def _unknown_class(text: str, name: str, key: str, types: Types) -> str:
    short = name.rpartition(".")[2]
    parts = key.split(".")
    classes, bases = _classes_at(parts, types), _bases_at(parts, types)
    if not bases:  # nothing is known of this key
        classes = [c for c in _all_classes() if not c.__name__.startswith("_")]
    names = _names(classes)
    kind = next((c for c in _all_classes() if c.__name__ == short), None)
    if not bases and kind is not None:
        return f"{short} is a class of another kind"
    if bases and short not in names and kind is not None:
        wanted = " or ".join(dict.fromkeys(base.__name__ for base in bases))
        known = ", ".join(sorted(names)[:12])
        return f"{short} is a class of another kind, expected a {wanted}" + (f" such as {known}" if known else "")
    near = nearest(short, names)
    if near is None and 0 < len(names) <= 20:
        return f"{text}; choose one of {', '.join(sorted(names))}"
    return text + _did_you_mean(near)


def _keys_of(name: str, key: str, types: Types) -> str:
    """The options of a class that has no subclasses, so that nobody writes its class_path."""
    base = next((base for base in _bases_at(key.split("."), types) if base.__name__ == name), None)
    return ", ".join(_parameters(base)) if base is not None and not type.__subclasses__(base) else ""


def _options(types: Types, args: Sequence[str]) -> Iterator[str]:
    """Dotted names of all options, those of the classes that options take included, two levels deep."""
    yield from types
    for key in list(types):
        for name in _children([*key.split(".")], types, args):
            yield f"{key}.{name}"


def _first_unknown(parts: Sequence[str], types: Types, args: Sequence[str]) -> int:
    """Which part of a dotted key is the first that there is not."""
    for n in range(len(parts)):
        if parts[n] not in _children(parts[:n], types, args):
            return n
    return len(parts) - 1


def _children(parts: Sequence[str], types: Types, args: Sequence[str] = ()) -> set[str]:
    """The names that may follow a dotted key: options of the command, or parameters of the class that is there."""
    key = ".".join(parts)
    prefix = f"{key}." if key else ""
    found = {name.removeprefix(prefix).split(".")[0] for name in types if name.startswith(prefix) and name != key}
    if not parts:
        return found
    given = _given(key, args)
    classes = _classes_at(parts, types)
    named = [c for c in classes if given and c.__name__ == given.rpartition(".")[2]]
    for cls in named or classes:
        found |= {name for name in _parameters(cls) if not name.startswith("_")}
    return found - {"shape", "classes"} if key == "model.network" else found


def _given(key: str, args: Sequence[str]) -> str | None:
    """The class that the command line or a file gives at a key."""
    for n in range(len(args) - 1, -1, -1):
        name, equals, value = args[n].partition("=")
        if name.lstrip("-").removesuffix(".class_path") == key and name.startswith("--"):
            return value if equals else args[n + 1] if n + 1 < len(args) else None
    return next((entry.text for entry in find(key, args) if entry.text), None)


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
        hints = [_parameters(cls)[part].annotation for cls in classes if part in _parameters(cls)]
    return hints


def _bases_at(parts: Sequence[str], types: Types) -> list[type]:
    return list(dict.fromkeys(base for hint in _hints_at(parts, types) for base in _bases(hint)))


def _classes_at(parts: Sequence[str], types: Types) -> list[type]:
    found = [cls for base in _bases_at(parts, types) for cls in _subclasses(base)]
    if parts[-1] != "network":
        return found
    return [cls for cls in found if next(iter(_parameters(cls)), None) == "shape"]  # not its layers


def _names(classes: Iterable[type]) -> set[str]:
    return {cls.__name__ for cls in classes if not inspect.isabstract(cls)}


def _branches(hint: Any) -> list[Any]:
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


def _all_classes() -> list[type]:
    modules = [m for name, m in list(sys.modules.items()) if name.split(".")[0] == "diffusion_pl"]
    modules += [sys.modules[name] for name in ("torch.optim",) if name in sys.modules]
    return [c for m in modules for c in vars(m).values() if inspect.isclass(c) and c.__module__ != "builtins"]


def _parameters(cls: type) -> Mapping[str, inspect.Parameter]:
    try:
        found = inspect.signature(cls).parameters
    except (ValueError, TypeError):
        return {}
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return {name: p for name, p in found.items() if p.kind not in kinds}


def _first_below(key: str, types: Types) -> str:
    return next((name for name in types if name.startswith(f"{key}.")), f"{key}.OPTION")


def _keys(message: str) -> tuple[str, str]:
    """The dotted key that the message begins with, over all its levels, and the rest."""
    keys = []
    while found := re.match(r'\s*Parser key "([^"]+)":\s*', message):
        keys.append(found[1])
        message = message[found.end() :]
    return ".".join(keys), message


def _causes(message: str) -> list[str]:
    """The branches of a union that tell something; the whole message if it has none."""
    causes: list[str] = []
    for item in _items(message):
        if item.startswith("Does not validate"):
            causes += _causes(item)
        elif not _NOISE.match(item):
            causes.append(item)
    if any(re.match(r"Expected a <class '(int|float)'>", cause) for cause in causes):  # a number, and so no class
        causes = [cause for cause in causes if "dot import path" not in cause]
    if any(not cause.startswith("Expected a") or "dot import path" in cause for cause in causes):
        # What went wrong with the type that was given.
        causes = [cause for cause in causes if not re.fullmatch(r"Expected a <class '[\w.]+'>\s*", cause)]
    return causes or [message]


def _items(text: str) -> list[str]:
    """The items of the outermost list in a text, each with what is indented below it."""
    lines = text.split("\n")
    indents = [len(line) - len(line.lstrip()) for line in lines]
    marks = [n for n, line in enumerate(lines) if line.lstrip().startswith("- ") and n]
    outer = [n for n in marks if indents[n] == min(indents[m] for m in marks)]
    found = []
    for n in outer:
        item = [lines[n].lstrip()[2:]]
        for m in range(n + 1, len(lines)):
            if lines[m].strip() and (m in outer or indents[m] < indents[n]):
                break
            item.append(lines[m])
        found.append("\n".join(item))
    return found


def _phrase(cause: str) -> str:
    cause = " ".join(re.sub(r'Parser key "([^"]+)":', r"\1:", cause).split())
    for pattern, phrase in _PHRASES:
        cause = re.sub(pattern, phrase, cause)
    return cause


def _place(key: str, args: Sequence[str], text: str = "") -> str:
    """Where the key is set: an option of the command line, or file:line of a configuration; else the key itself."""
    if not key:
        return ""
    parts = [part for part in key.split(".") if part != "init_args"]
    for arg in reversed(args):
        option = arg.split("=")[0]
        if option.startswith("--") and [p for p in option[2:].rstrip("+").split(".") if p != "init_args"] == parts:
            return option
    entries = find(key, args)
    got = text.rpartition("got ")[2].strip("'\"") if "got " in text else None
    # jsonargparse reads file after file: the one whose value it refuses need not be the last that sets the key.
    entry = next((e for e in entries if e.text is not None and e.text == got), entries[0] if entries else None)
    if entry is not None:
        return f"{entry.path}:{entry.line}: {key}"
    section = parts[0]
    if len(parts) > 1 and f"--{section}" in args:  # --model FILE
        return f"--{section}: {'.'.join(parts[1:])}"
    return key
