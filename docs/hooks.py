"""Files of the repository that pages link to, such as tests, become pages of the site; packages become their modules.

A link like ../../tests/test_grids.py#test_explicit_grid then leads, in the repository, to the file and, in the site, to
that test; a link to a file or a test that does not exist is a warning, which is an error for `make docs`.  A link to a
notebook leads to its page (see notebook_pages.py), one to docs/assets to a copy.  In the reference, `::: package.*`
stands for all modules of a package.
"""

import ast
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

LINK = re.compile(r"\]\((?:\.\./)+((?:tests|configs|benchmarks)/[\w./-]+)(#[\w-]+)?\)")
NOTEBOOK = re.compile(r"\]\((?:\.\./)+notebooks/(\w+)\.ipynb\)")
ASSET = re.compile(r"(?<=[(\"])(?:\.\./)+assets/(?=[\w.-]+)")
PACKAGE = re.compile(r"^::: (\S+)\.\*$", re.MULTILINE)
LANGUAGES = {".yaml": "yaml", ".py": "python"}


def on_files(files: Files, config: Any) -> Files:
    """Add a page for each file that is linked to, and the images of docs/assets."""
    root = Path(config.config_file_path).parents[1]
    for path in root.glob("docs/assets/*.*"):
        files.append(File.generated(config, f"media/{path.name}", abs_src_path=str(path)))
    pages = [Path(file.abs_src_path).read_text() for file in files.documentation_pages()]
    for path in sorted({link[1] for page in pages for link in LINK.finditer(page)}):
        if (root / path).is_file():
            files.append(File.generated(config, f"source/{path}.md", content=as_page(root / path, path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, **kwargs: Any) -> str:
    """Turn links to files of the repository into links to what was made of them, and name the modules of packages."""
    root = Path(config.config_file_path).parents[1]
    markdown = PACKAGE.sub(lambda line: "\n\n".join(f"::: {module}" for module in modules(root, line[1])), markdown)
    up = "../" * page.file.src_uri.count("/")
    markdown = NOTEBOOK.sub(rf"]({up}notebooks/\1.md)", ASSET.sub(f"{up}media/", markdown))
    return LINK.sub(lambda link: f"]({up}source/{link[1]}.md{link[2] or ''})", markdown)


def modules(root: Path, package: str) -> list[str]:
    """The modules of a package, its base first."""
    names = [file.stem for file in root.joinpath(*package.split(".")).glob("*.py") if file.stem != "__init__"]
    return [f"{package}.{name}" for name in sorted(names, key=lambda name: (name != "base", name))]


def as_page(file: Path, name: str) -> str:
    """A file as Markdown: of a module of tests a section for each test, of anything else the text."""
    text = file.read_text()
    if file.suffix == ".md":
        return text
    if not file.name.startswith("test_"):
        return f"# {name}\n\n````{LANGUAGES[file.suffix]}\n{text}````\n"
    module, lines = ast.parse(text), text.splitlines()
    sections = [f"# {name}\n\n{ast.get_docstring(module)}\n"]
    for node in module.body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            source = "\n".join(lines[first - 1 : node.end_lineno])
            sections.append(f"## {node.name}\n\n````python\n{source}\n````\n")
    return "\n".join(sections)
