"""The examples of the README and of the documentation, run page by page: what a reader would type does what it says.

A page is worked through from top to bottom in a folder of its own.  Python is executed, in one namespace a page; a
block that opens with the name of a file is that file.  Command lines are parsed by the command they are for, or, after
`<!-- run -->`, executed.  A configuration, after `<!-- NAME.yaml with configs/….yaml: loss < BOUND -->`, is saved under
that name, merged over that file, and has to satisfy the doctor; test_docs_trained.py trains it to that loss.
"""

import ast
import importlib
import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
import yaml
from shell import ROOT, cli

from diffusion_pl import __version__
from diffusion_pl.__main__ import COMMANDS
from diffusion_pl.pipeline import Pipeline

README = ROOT / "README.md"
DOCS = ROOT / "docs"
PACKAGE = ROOT / "diffusion_pl"
THEORY = DOCS / "pages/theory.md"
BESIDES = ("CONTRIBUTING", "CHANGELOG", "SECURITY")
PAGES = sorted((DOCS / "pages").rglob("*.md"))
pictures = SimpleNamespace(**runpy.run_path(str(DOCS / "pictures.py")))
BLOCK = re.compile(r"^(?:<!-- (?P<mark>.+?) -->\n)?^```(?P<language>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A fenced block of a page, with the comment above it."""

    page: Path
    line: int
    language: str
    text: str
    mark: str

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text()
    result = list(BLOCK.finditer(text))
    assert len(result) == len(re.findall(r"^ *```\w", text, re.MULTILINE)), f"{page}: a block that is not read"
    for match in result:
        line = text.count("\n", 0, match.start("text"))
        yield Block(page, line, match["language"], match["text"], match["mark"] or "")


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of a page's files; modules of that name are forgotten afterwards."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    yield tmp_path
    for module in set(sys.modules) - before:
        if str(getattr(sys.modules[module], "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[module]


def work_through(page: Path, folder: Path) -> dict[str, Any]:
    """Do what the page says; the names that its Python has defined in the end."""
    variables: dict[str, Any] = {"__name__": "page"}
    for block in blocks(page):
        if block.language == "python":
            run_python(block, variables, folder)
        elif block.language == "sh":
            for args in commands(block):
                run_command(block, args, folder)
        elif block.language == "yaml":
            run_yaml(block, folder)
        else:
            assert block.language in ("text", "bibtex"), f"{block.place}: what is {block.language}?"
    return variables


def run_python(block: Block, variables: dict[str, Any], folder: Path) -> None:
    module = re.match(r"# (\w+)\.py\n", block.text)
    if module:
        (folder / f"{module[1]}.py").write_text(block.text)
        importlib.invalidate_caches()
        importlib.import_module(module[1])
    else:
        code = compile("\n" * block.line + block.text, name(block.page), "exec")  # its lines are those of the page
        exec(code, variables)


def commands(block: Block) -> Iterator[list[str]]:
    """The arguments of each `python -m diffusion_pl …` of a block; targets of make are looked up."""
    known: dict[str, str] = {}
    for line in block.text.replace("\\\n", " ").splitlines():
        line = re.sub(r"\$(\w+)", lambda use: known.get(use[1], use[0]), line)
        words = shlex.split(line, comments=True)
        loop = re.match(r"for (\w+) in (\S+) .*; do$", line)
        if len(words) == 1 and re.match(r"\w+=", words[0]):
            variable, _, value = words[0].partition("=")
            known[variable] = value
        elif loop:  # its first round
            known[loop[1]] = loop[2]
        elif words[:1] == ["make"]:
            targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
            assert targets >= set(words[1:]), f"{block.place}: {line}"
        elif "diffusion_pl" in words:
            yield words[words.index("diffusion_pl") + 1 :]


def run_command(block: Block, args: list[str], folder: Path) -> None:
    assert args[0] in [*COMMANDS, "--version"], f"{block.place}: no command {args[0]}"
    if "--init_from" in args and not (folder / args[args.index("--init_from") + 1]).exists():
        return  # its options are those of a checkpoint that the reader has
    done = cli(folder, *args, *([] if block.mark == "run" or args[0] == "--version" else ["--print_config"]))
    assert done.code == 0, f"{block.place}: {shlex.join(args)}\n{done.err}"


def configuration(block: Block) -> tuple[str, str, float]:
    """Of a block of YAML: its name, the file that it is merged over, and the bound of its loss after a trial."""
    marked = re.fullmatch(r"([\w-]+\.yaml) with (configs/\S+\.yaml): loss < ([\d.]+)", block.mark)
    assert marked, f"{block.place}: expected a mark above it, <!-- NAME.yaml with configs/….yaml: loss < BOUND -->"
    return marked[1], marked[2], float(marked[3])


def run_yaml(block: Block, folder: Path) -> None:
    file, base, _ = configuration(block)
    (folder / file).write_text(block.text)
    assert yaml.safe_load(block.text)
    done = cli(folder, "doctor", "--config", base, "--config", file)
    assert done.code == 0, f"{block.place}:\n{done.out}{done.err}"


#: python.md has a test of its own.
@pytest.mark.parametrize("page", [page for page in PAGES if any(blocks(page)) and page.stem != "python"], ids=name)
def test_a_pages_examples_do_what_they_say(page: Path, folder: Path) -> None:
    work_through(page, folder)


def python_of(page: Path) -> list[str]:
    return [block.text for block in blocks(page) if block.language == "python"]


def test_the_readme_is_short() -> None:
    (code,) = python_of(README)
    assert len(code.splitlines()) <= 12
    assert len(README.read_text().splitlines()) <= 150


def test_the_readmes_example_gives_images_and_estimates(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pipeline, "block", 20)  # else 128 images are drawn for 100, 64 for 16
    names = work_through(README, folder)
    assert names["images"].shape == names["fast"].shape == (100, 1, 8, 8)
    assert len(names["sevens"]) == 16
    kernel = names["kernel"]
    again = kernel.alpha * names["x_0"] + kernel.sigma * names["eps"]
    torch.testing.assert_close(again.float(), names["x_t"].float(), rtol=0, atol=1e-4)


@pytest.mark.slow
def test_training_in_python_finds_the_moons(folder: Path) -> None:
    page = DOCS / "pages/python.md"
    assert len(python_of(page)[-1].splitlines()) <= 25
    names = work_through(page, folder)
    for x in (names["own"], names["fast"]):  # two crescents: the mean is between them
        torch.testing.assert_close(x.mean(0), torch.tensor([0.5, 0.25]), rtol=0, atol=0.1)
    assert torch.equal(names["again"](8), names["own"][:8])


def test_the_images_of_readme_and_gallery_are_made_by_commands() -> None:
    made = {name for section in pictures.sections(pictures.PAGE.read_text()) for name in section.files}
    assets = {path.name: path.stat().st_size for path in pictures.ASSETS.iterdir()}
    assert assets.keys() == made
    assert sum(assets.values()) <= pictures.LARGEST
    for page in (README, *PAGES):
        for path in re.findall(r"!\[.*?\]\((.+?)\)", page.read_text()):
            assert (page.parent / path).is_file(), f"{name(page)}: {path}"
    gallery = pictures.PAGE.read_text()
    assert set(re.findall(r"!\[.*?\]\(\.\./assets/(.+?)\)", gallery)) == made


@cache
def functions_of(file: str) -> set[str]:
    return {node.name for node in ast.parse((ROOT / file).read_text()).body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("page", [README, *(ROOT / f"{page}.md" for page in BESIDES), *PAGES], ids=name)
def test_the_commands_and_files_it_names_exist(page: Path) -> None:
    text = page.read_text()
    named = set(re.findall(r"python -m diffusion_pl ([a-z]\w*)", text))
    assert named <= set(COMMANDS)
    for path in re.findall(r"(?:configs|tests|docs|benchmarks)/[\w/]+\.(?:yaml|py|md)", text):
        assert (ROOT / path).is_file(), path
    for file, test in re.findall(r"\((?:\.\./)+(tests/\w+\.py)#(\w+)\)", text):
        assert test in functions_of(file), f"{file} has no {test}"


def test_changelog_and_citation_name_the_version() -> None:
    assert re.search(rf"^## {re.escape(__version__)}$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == __version__


def test_the_table_of_methods_is_the_same_wherever_it_stands() -> None:
    tables = [re.findall(r"^\| method \|.*?\n\n", p.read_text(), re.MULTILINE | re.DOTALL) for p in (README, THEORY)]
    assert len(tables[0]) == 1
    assert tables[0] == tables[1]


def test_the_reference_holds_every_module() -> None:
    listed = re.findall(r"^::: diffusion_pl\.(\S+)$", "\n".join(page.read_text() for page in PAGES), re.MULTILINE)
    there = {f"{path.parent.name}.*" for path in PACKAGE.glob("*/__init__.py")}
    there |= {path.stem for path in PACKAGE.glob("[!_]*.py")}
    assert sorted(listed) == sorted(there), "give docs/pages/reference a line `::: diffusion_pl.NAME`"
