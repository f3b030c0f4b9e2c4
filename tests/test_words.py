"""Plain words: docstrings, comments, messages, help, pages, notebooks and configs avoid the words listed here.

Words and phrases are checked in text that people read, not in names, keys (strings of one word) or code of pages. Names
of variables in NAMES and test names longer than LONGEST are refused as well.
"""

import ast
import io
import json
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]

#: What to write instead, by the words to avoid.
AVOID = {
    r"pictures?": "image",
    r"figures?": "metric, value, result; plot for a drawing",
    r"told|tells?": "is given, receives, reports, states",
    r"lies?|lying|at hand|left out": "is in, is saved to, available, skipped",
    r"bears?": "is defined at, supports",
    r"beside": "next to, besides, compared with",
    r"anew": "again, new",
    r"goes on|go on": "continues, resumes",
    r"laws?": "distribution",
    r"rules?": "sampler, method",
    r"sides": "height and width, size",
    r"judged": "evaluated, measured",
    r"mends?|mended": "Fix: …",
    r"not to be had": "is not available",
    r"tables? of betas|beta tables?": "beta schedule",
    r"(?:variance-)?(?:preserving|exploding) process|noise process": "noise schedule, SDE",
    r"levels of gr[ea]y": "quantization levels",
    r"document [0-4]": "the title of the source",
}
INSTEAD = {re.compile(word.replace(" ", r"\s+"), re.IGNORECASE): plain for word, plain in AVOID.items()}
WORDS = re.compile(rf"(?<![\w-])(?:{'|'.join(word.pattern for word in INSTEAD)})(?![\w-])", re.IGNORECASE)

#: Where one of the words is right: pattern of the path, pattern of the text around the word, reason.
ALLOWED = [
    (r"", r"(?i:Bayes|Itô|Cramer|trapezoidal|scoring)\S* rules?", "a rule of mathematics"),
    (r"", r"(?:both|two|left|right) sides|side by side", "of an equation, a comparison"),
    (
        r"",
        r"(?:MY_)?PICTURES|\bPicture\b|[\w./`]*pictures?/[\w.*{]*|named pictures",
        "names of a class, a folder, a config",
    ),
    (
        r"diffusion_pl/losses/|configs/|\S*(?:few_steps|flow_map)|docs/pages/features|diffusion_pl/callbacks/doctor",
        r"(?i:rules?)",
        "by which a flow map is trained",
    ),
    (r"diffusion_pl/plots/|diffusion_pl/callbacks/figures|tests/test_plots", r"(?i:figures?)", "matplotlib's figures"),
]

STRINGS = {tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}

#: Names that do not say what they hold.
NAMES = {"found", "told", "wanted", "strange"}
LONGEST = 60  # characters of the name of a test

FOLDERS = ("diffusion_pl", "tests", "benchmarks", "notebooks", "configs", "docs/pages")


class Text(NamedTuple):
    """A piece of text of a file, and its first line there."""

    line: int
    text: str


def code_texts(source: str) -> Iterator[Text]:
    """Comments, docstrings and strings of more than one word."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        text = token.string
        if token.type in STRINGS and re.match(r"\w*[fF]", text):
            text = re.sub(r"\{[^{}]*\}", "{}", text)  # code, where f-strings are one token
        if token.type == tokenize.COMMENT or (token.type in STRINGS and re.search(r"\w\s+\w", text)):
            yield Text(token.start[0], text)


def page_texts(source: str) -> Iterator[Text]:
    """Lines of Markdown without code and without targets of links."""
    fenced = False
    for number, line in enumerate(source.splitlines(), 1):
        fenced ^= line.lstrip().startswith("```")
        if not fenced:
            yield Text(number, re.sub(r"`[^`]*`|\]\([^)]*\)|<[^>]*>", "``", line))


def notebook_texts(source: str) -> Iterator[Text]:
    """Text cells, and texts in code cells; the line is the number of the cell."""
    for number, cell in enumerate(json.loads(source)["cells"]):
        content = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            yield from (Text(number, text) for _, text in page_texts(content))
        else:
            content = re.sub(r"^%.*$", "", content, flags=re.MULTILINE)
            yield from (Text(number, text) for _, text in code_texts(content))


def config_texts(source: str) -> Iterator[Text]:
    """Comments of YAML."""
    for number, line in enumerate(source.splitlines(), 1):
        if "#" in line:
            yield Text(number, line[line.index("#") :])


READERS = {".py": code_texts, ".md": page_texts, ".ipynb": notebook_texts, ".yaml": config_texts}


def avoided(path: Path, name: str) -> list[str]:
    """Words of a file to replace: file, line, word, what to write instead."""
    source = path.read_text(encoding="utf-8")
    if not WORDS.search(source):
        return []
    allowed = [re.compile(text) for where, text, _ in ALLOWED if re.match(where, name)]
    lines = []
    for line, text in READERS[path.suffix](source):
        for match in WORDS.finditer(text):
            around = [found for pattern in allowed for found in pattern.finditer(text)]
            if any(a.start() <= match.start() and match.end() <= a.end() for a in around):
                continue
            instead = next(plain for word, plain in INSTEAD.items() if word.fullmatch(match[0]))
            lines.append(
                f"{name}:{line + text.count(chr(10), 0, match.start())}: {' '.join(match[0].split())} -> {instead}"
            )
    return lines


def unclear(path: Path, name: str) -> list[str]:
    """Local names, arguments and functions of a module that are in NAMES."""
    source = path.read_text(encoding="utf-8")
    if not re.search(rf"\b(?:{'|'.join(NAMES)})\b", source):
        return []
    used: set[tuple[int, str]] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            used.add((node.lineno, node.id))
        elif isinstance(node, ast.arg):
            used.add((node.lineno, node.arg))
        elif isinstance(node, ast.FunctionDef):
            used.add((node.lineno, node.name))
    return [f"{name}:{line}: {used_name}" for line, used_name in sorted(used) if used_name in NAMES]


def files() -> dict[str, Path]:
    """Files to check by their paths from the root."""
    paths = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.suffix in READERS]
    paths += [path for path in ROOT.glob("*.md")]
    return {path.relative_to(ROOT).as_posix(): path for path in sorted(paths) if path != Path(__file__)}


FILES = files()


def test_texts_use_plain_words() -> None:
    lines = [line for name, path in FILES.items() for line in avoided(path, name)]
    assert not lines, "\n".join(lines)


def test_names_say_what_they_hold() -> None:
    lines = [line for name, path in FILES.items() if path.suffix == ".py" for line in unclear(path, name)]
    assert not lines, "\n".join(lines)


def test_test_names_are_short() -> None:
    modules = [path for path in FILES.values() if path.name.startswith("test_")]
    names = [name for path in modules for name in re.findall(r"^\s*def (test_\w+)", path.read_text(), re.MULTILINE)]
    assert len(names) > 1000
    assert not [name for name in names if len(name) > LONGEST]


PLANTED = {
    "module.py": '"""What is told."""\n\n\ndef f(x):\n    raise ValueError(f"this picture {x} is wrong")  # mend it\n',
    "page.md": "# Title\n\nA figure that `told` us.\n\n```python\ntold = 1\n```\n",
    "notebook.ipynb": json.dumps({"cells": [{"cell_type": "markdown", "source": ["The law of\n", "document 2"]}]}),
    "config.yaml": "key: told # no figure is published\n",
}
REPORTED = {
    "module.py": ["1: told", "5: picture", "5: mend"],
    "page.md": ["3: figure"],
    "notebook.ipynb": ["0: law", "0: document 2"],
    "config.yaml": ["1: figure"],
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_word_is_reported(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(PLANTED[name], encoding="utf-8")
    assert [line.removeprefix(f"{name}:").split(" -> ")[0] for line in avoided(tmp_path / name, name)] == REPORTED[name]


def test_an_unclear_name_is_reported(tmp_path: Path) -> None:
    (tmp_path / "module.py").write_text("def f(wanted):\n    found = wanted\n    return found\n", encoding="utf-8")
    assert unclear(tmp_path / "module.py", "module.py") == ["module.py:1: wanted", "module.py:2: found"]


@pytest.mark.parametrize("exception", [entry[1] for entry in ALLOWED])
def test_every_exception_is_used(exception: str) -> None:
    where = next(entry[0] for entry in ALLOWED if entry[1] == exception)
    pattern = re.compile(exception)
    assert any(
        pattern.search(path.read_text(encoding="utf-8")) for name, path in FILES.items() if re.match(where, name)
    )
