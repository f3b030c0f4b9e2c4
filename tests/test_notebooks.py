"""The notebooks: stripped, named, complete in what they correct, and, slowly, executed."""

import ast
import importlib.util
import re
import resource
import sys
from pathlib import Path
from string import ascii_lowercase
from types import ModuleType
from typing import Any

import nbformat
import pytest

FOLDER = Path(__file__).parent.parent / "notebooks"
#: What may be imported besides the package and the standard library.
KNOWN = {"IPython", "PIL", "ipywidgets", "lightning", "matplotlib", "numpy", "scipy", "sklearn", "torch"}
MINUTES = 3  # each notebook's time, on two cores


def defects(number: int, last: str, more: str = "") -> set[str]:
    """Names of the known defects of a source: a letter for each, to the last, and then some."""
    letters = ascii_lowercase[: ascii_lowercase.index(last) + 1] + more
    return {f"{number}-{letter}" for letter in letters}


#: Which source a notebook is about, and the known defects of that source.
CORRECTED = {
    "0_continuous_sde": ("VP-SDE seminar", defects(0, "z", "ABCDEFGHIJKLMNO")),
    "1_ddpm": ("annotated DDPM", defects(1, "i")),
    "2_unet_and_elbo": ("Korean DDPM notes", defects(2, "k")),
    "3_datasaurus": ("German Datasaurus introduction", defects(3, "p")),
    "4_one_picture": ("French DDPM demonstration", defects(4, "l")),
}
#: Exercises and questions that the sources leave open, by the numbers that the notebooks give them.
ANSWERED = {
    "0_continuous_sde": "0-01 0-04 0-07 0-09 0-10 0-11 0-14 0-15 0-19 0-21 0-22 0-53 0-54 0-55",
    "3_datasaurus": "3-02 3-09 3-10",
}
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)


def text(path: Path) -> str:
    return "\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")


def test_every_notebook_is_there() -> None:
    assert {path.stem for path in NOTEBOOKS} == {*CORRECTED, "5_samplers_and_likelihood", "6_few_steps"}


@each
def test_is_valid_and_stripped(path: Path) -> None:
    notebook = read(path)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert notebook.metadata.kernelspec.name == "python3"
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None
        assert not cell.metadata


@each
def test_imports_the_package_and_well_known_libraries_only(path: Path) -> None:
    names = set()
    for cell in read(path).cells:
        if cell.cell_type != "code":
            continue
        code = "\n".join(line for line in cell.source.splitlines() if not line.startswith("%"))
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names.add((node.module or "").split(".")[0])
    assert "diffusion_pl" in names
    assert names - set(sys.stdlib_module_names) - {"diffusion_pl"} <= KNOWN


@pytest.mark.parametrize("name", CORRECTED)
def test_names_its_source_and_corrects_all_of_it(name: str) -> None:
    title, known = CORRECTED[name]
    content = text(FOLDER / f"{name}.ipynb")
    assert f"**{title}**" in content
    assert set(re.findall(r"\*\*Correction (\d-\w)\.\*\*", content)) == known


@pytest.mark.parametrize("name", ANSWERED)
def test_answers_the_open_questions_of_its_source(name: str) -> None:
    marked = re.findall(r"\*\*(?:Exercise|Question)s? ([^*]+)\*\*", text(FOLDER / f"{name}.ipynb"))
    assert set(re.findall(r"\d-\d\d", " ".join(marked))) == set(ANSWERED[name].split())


def processor_time() -> float:
    """Seconds of all processes that this one has started and that have ended, such as the notebooks' kernels."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def runner() -> ModuleType:
    spec = importlib.util.spec_from_file_location("run_notebooks", FOLDER / "run.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_failing_notebook_fails_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = runner()
    monkeypatch.setattr(run, "EXECUTED", tmp_path / "executed")
    for name, code in (("good", "print(6 * 7)"), ("bad", "1 / 0")):
        cells = [nbformat.v4.new_code_cell(code)]
        nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / f"{name}.ipynb")
    assert run.main([str(tmp_path / "good.ipynb")]) == 0
    assert re.search(r"good\.ipynb +\d+ s", capsys.readouterr().out)
    assert read(tmp_path / "executed" / "good.ipynb").cells[0].outputs[0].text == "42\n"
    assert read(tmp_path / "good.ipynb").cells[0].outputs == []
    assert run.main([str(tmp_path / "bad.ipynb")]) == 1
    assert "ZeroDivisionError" in capsys.readouterr().err
    assert run.main([str(tmp_path / "absent.ipynb")]) == 2


@pytest.mark.slow
@each
def test_runs_in_its_time(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = runner()
    monkeypatch.setattr(run, "EXECUTED", tmp_path)
    before = processor_time()
    wall = run.execute(path)
    assert min(wall, processor_time() - before) < 60 * MINUTES  # the machine may be busy with other things
    images = [
        output
        for cell in read(tmp_path / path.name).cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if "image/png" in output.get("data", {})
    ]
    assert len(images) >= 5
