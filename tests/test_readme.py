"""The README's promises that can be run."""

import re
from pathlib import Path

import pytest

from diffusion_pl.__main__ import COMMANDS

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_the_python_example_runs_and_finds_the_moons(capsys: pytest.CaptureFixture[str]) -> None:
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert code is not None
    assert len([line for line in code[1].splitlines() if line.strip()]) <= 25
    exec(compile(code[1], "README.md", "exec"), {"__name__": "readme"})
    # Two crescents: the mean of all samples lies between them, near (0.5, 0.25).
    means = [float(v) for v in re.findall(r"-?\d+\.\d+", capsys.readouterr().out.splitlines()[-1])]
    assert means == pytest.approx([0.5, 0.25] * 2, abs=0.1)


def test_the_commands_it_names_exist() -> None:
    named = set(re.findall(r"python -m diffusion_pl (\w+)", README))
    assert named and named <= set(COMMANDS)


def test_the_files_it_names_exist() -> None:
    root = Path(__file__).parent.parent
    for path in re.findall(r"configs/\w+/\w+\.yaml", README):
        assert (root / path).is_file()
