"""What docs/ makes of formulas and notebooks when the site is built."""

import base64
import importlib.util
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import nbformat
import pytest
from mkdocs.exceptions import PluginError
from shell import ROOT

PAGE = SimpleNamespace(file=SimpleNamespace(src_uri="page.md"))


def hooks(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / f"docs/{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def drawn(content: str) -> str:
    html: str = hooks("formulas").on_page_content(content, page=PAGE)
    return html


def test_formulas_become_mathml() -> None:
    html = drawn(r'<p><span class="arithmatex">\(s &lt; t\)</span></p><div class="arithmatex">\[\frac{a}{b}\]</div>')
    assert "<mo>&#x0003C;</mo>" in html
    assert "<mfrac>" in html and 'display="block"' in html
    assert "\\(" not in html and "\\[" not in html
    assert "𝒩" in drawn(r'<span class="arithmatex">\(\mathcal N\)</span>')
    assert "ℝ" in drawn(r'<span class="arithmatex">\(\mathbb R\)</span>')


@pytest.mark.parametrize("tex", [r"\alhpa", r"\left( a", r"\mathbb{1}"])
def test_a_formula_that_is_not_understood_is_an_error(tex: str) -> None:
    with pytest.raises(PluginError, match=r"page\.md"):
        drawn(rf'<span class="arithmatex">\({tex}\)</span>')


def notebook(path: Path, source: str, outputs: list[Any]) -> Path:
    cells = [nbformat.v4.new_markdown_cell("# Title"), nbformat.v4.new_code_cell(source, outputs=outputs)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    return path


def test_a_page_has_the_outputs_of_an_executed_notebook(tmp_path: Path) -> None:
    shown = base64.b64encode(b"image").decode()
    outputs = [
        nbformat.v4.new_output("stream", name="stdout", text="42\n"),
        nbformat.v4.new_output("stream", name="stderr", text="progress"),
        nbformat.v4.new_output("display_data", data={"image/png": shown, "text/plain": "<Figure>"}),
    ]
    plain, executed = notebook(tmp_path / "a.ipynb", "work()", []), notebook(tmp_path / "b.ipynb", "work()", outputs)
    text, images = hooks("notebook_pages").page_of(plain, executed)
    assert text.startswith("# Title")
    assert "````python\nwork()\n````" in text and "````text\n42\n````" in text
    assert images == {"a-0.png": b"image"} and "(a-0.png)" in text
    assert "progress" not in text and "Figure" not in text and "make notebooks" not in text


def test_old_outputs_are_not_shown(tmp_path: Path) -> None:
    plain = notebook(tmp_path / "a.ipynb", "new()", [])
    old = notebook(tmp_path / "b.ipynb", "old()", [nbformat.v4.new_output("stream", name="stdout", text="42\n")])
    for executed in (old, tmp_path / "missing.ipynb"):
        text, _ = hooks("notebook_pages").page_of(plain, executed)
        assert "make notebooks" in text and "42" not in text
