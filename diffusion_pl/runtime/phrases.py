"""Messages of jsonargparse, in our words."""

import re

_GOT = r"Got value: (?:Namespace\(class_path=')?([\w.]+).*"
#: Patterns of its messages, and what is printed instead.
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
    (r"Group '([\w.]+)' does not accept option '(.+)'", r"unknown key \1.\2"),
    (
        r"the following arguments are required: (\w+\..+|model|data)$",
        r"missing: \1 (give a --config, or these options)",
    ),
    (r"the following arguments are required: (.+)", r"missing: \1"),
    (r"Expected a <class '(?:\w+\.)*(\w+)'>\. Got value: (.*)", r"expected \1, got \2"),
    (r"Expected a <class '(?:\w+\.)*(\w+)'>", r"expected \1"),
    (r"Expected a typing\.Literal\[(.+)\]\. Got value: (.*)", r"expected one of \1, got \2"),
    (r"Expected a typing\.Literal\[(.+)\]", r"expected one of \1"),
    (r"(-?\d+) is not in bounds, numpy accepts from (\d+) to (\d+)", r"seed_everything must be in [\2, \3], got \1"),
)
#: Branches of a union without information.
_NOISE = re.compile(
    r"Expected a path but|Expected a <class 'NoneType'>|Does not validate|a class path \(str\)|a dict with"
)


def split_key(message: str) -> tuple[str, str]:
    """The dotted key that the message begins with, over all its levels, and the rest."""
    keys = []
    while key := re.match(r'\s*Parser key "([^"]+)":\s*', message):
        keys.append(key[1])
        message = message[key.end() :]
    return ".".join(keys), message


def causes_of(message: str) -> list[str]:
    """The branches of a union with information; the whole message if it has none."""
    causes: list[str] = []
    for item in _items(message):
        if item.startswith("Does not validate"):
            causes += causes_of(item)
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
    items = []
    for n in outer:
        item = [lines[n].lstrip()[2:]]
        for m in range(n + 1, len(lines)):
            if lines[m].strip() and (m in outer or indents[m] < indents[n]):
                break
            item.append(lines[m])
        items.append("\n".join(item))
    return items


def phrase(cause: str) -> str:
    cause = " ".join(re.sub(r'Parser key "([^"]+)":', r"\1:", cause).split())
    for pattern, phrase in _PHRASES:
        cause = re.sub(pattern, phrase, cause)
    return cause
