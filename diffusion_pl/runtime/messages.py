"""An error in one line: where it is (option, or file and line), what is wrong, and the likeliest correction."""

import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

from .config_files import SECTIONS, SUFFIXES, find, find_class
from .parsing import BUILT, UsageError
from .phrases import causes_of, phrase, split_key
from .upstream.jsonargparse import parameters
from .vocabulary import Types, all_classes, bases_at, branches, class_names, classes_at

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
        cls = next((c for c in all_classes() if c.__name__ == named[1]), None)
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
    mentioned = [p for p in parameters(cls) if re.search(rf"\b{p}\b", text)]
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
        value = "true" if bool in branches(types.get(name)) else "VALUE"
        return f"{lacking[1]} needs a value: {lacking[1]} {value}"
    if nested := re.search(r"but got NestedArg\(key='(\w+)', val=", message):
        key = split_key(message)[0]
        option = f"--{key}.{nested[1]}"
        return f"{option}: set --{key} CLASS first, its options come after it"
    key, given = "", None
    causes = [message]
    while len(causes) == 1:
        inner, rest = split_key(causes[0])
        key = ".".join(filter(None, (key, inner)))
        given = re.search(r"Given value: (.*)", rest) or given
        found = causes_of(rest)
        causes, before = found, causes
        if found in ([rest], before):
            break
    if len(causes) > 1:
        causes = [cause for cause in causes if not cause.startswith("Not a valid subclass")] or causes
    if any(cause.startswith("the following arguments are required") for cause in causes):  # of the class that is given
        causes = [cause for cause in causes if "does not correspond to a subclass" not in cause]
    text = " or ".join(dict.fromkeys(map(phrase, causes))).replace(" or expected ", " or ")
    if text == "expected class_path and init_args only" and (name := _given(key, args)) is not None:
        names = sorted(class_names(classes_at(key.split("."), types)))
        if name not in names and any(name == base.__name__ for base in bases_at(key.split("."), types)):
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
    if not key and not types:  # not of the command line: what it is of stands in the message, such as a checkpoint
        return text
    if unknown is None:
        return ": ".join(filter(None, (_place(key, args, text), text)))
    name = unknown[2].removeprefix("Namespace(class_path=").strip("'\",)")
    if unknown[1] == "there is no class":
        text = text.replace(unknown[2], name)
        return ": ".join(filter(None, (_place(key, args, f"got {name}"), _unknown_class(text, name, key, types))))
    parts = [part for part in ".".join(filter(None, (key, name))).split(".") if part != "init_args"] or [name]
    odd = _first_unknown(parts, types, args)
    key = ".".join(parts[: odd + 1] if types else parts)
    near = nearest(parts[odd], _children(parts[:odd], types, args) - {parts[odd]})
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
    classes, bases = classes_at(parts, types), bases_at(parts, types)
    if not bases:  # nothing is known of this key
        classes = [c for c in all_classes() if not c.__name__.startswith("_")]
    names = class_names(classes)
    kind = next((c for c in all_classes() if c.__name__ == short), None)
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
    base = next((base for base in bases_at(key.split("."), types) if base.__name__ == name), None)
    return ", ".join(parameters(base)) if base is not None and not type.__subclasses__(base) else ""


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
    classes = classes_at(parts, types)
    named = [c for c in classes if given and c.__name__ == given.rpartition(".")[2]]
    for cls in named or classes:
        found |= {name for name in parameters(cls) if not name.startswith("_")}
    return found - {"shape", "conditions"} if key == "model.network" else found


def _given(key: str, args: Sequence[str]) -> str | None:
    """The class that the command line or a file gives at a key."""
    for n in range(len(args) - 1, -1, -1):
        name, equals, value = args[n].partition("=")
        if name.lstrip("-").removesuffix(".class_path") == key and name.startswith("--"):
            return value if equals else args[n + 1] if n + 1 < len(args) else None
    return next((entry.text for entry in find(key, args) if entry.text), None)


def _first_below(key: str, types: Types) -> str:
    return next((name for name in types if name.startswith(f"{key}.")), f"{key}.OPTION")


def _place(key: str, args: Sequence[str], text: str = "") -> str:
    """Where the key is set: an option of the command line, or file:line of a configuration; else the key itself."""
    if not key:
        return ""
    parts = [part for part in key.split(".") if part != "init_args"] or [key]
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
