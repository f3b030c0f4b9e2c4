"""What answers before torch is there, and what happens to errors."""

import subprocess
import sys
from pathlib import Path

import pytest
from shell import cli, environment, fit, tiny_config

import diffusion_pl
from diffusion_pl.__main__ import COMMANDS, LISTINGS, TOOLS, TRAINER_COMMANDS, main

HEAVY = ("torch", "lightning", "numpy", "jsonargparse", "matplotlib")


def bare(folder: Path, *args: str) -> tuple[int, str, str, set[str]]:
    """Run main in a process of its own: status, stdout, stderr, and which heavy modules were imported."""
    code = (
        "import sys\n"
        "from diffusion_pl.__main__ import main\n"
        "status = main(sys.argv[1:])\n"
        f"print('IMPORTED', *[name for name in {HEAVY} if name in sys.modules])\n"
        "sys.exit(status)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *args], cwd=folder, env=environment(), capture_output=True, text=True, timeout=60
    )
    out, _, imported = done.stdout.rpartition("IMPORTED")
    return done.returncode, out, done.stderr, set(imported.split())


@pytest.mark.parametrize("args", [[], ["--help"], ["-h"], ["help"]], ids=["nothing", "--help", "-h", "help"])
def test_help_lists_commands_and_examples_without_heavy_imports(tmp_path: Path, args: list[str]) -> None:
    status, out, err, imported = bare(tmp_path, *args)
    assert (status, err, imported) == (0, "", set())
    for name, what in COMMANDS.items():
        assert any(line.split() == [name, *what.split()] for line in out.splitlines()), name
    assert "python -m diffusion_pl fit --config datasaurus/vp" in out
    assert max(map(len, out.splitlines())) <= 100


def test_the_version_and_a_mistyped_command_import_nothing(tmp_path: Path) -> None:
    status, out, err, imported = bare(tmp_path, "--version")
    assert (status, out, err, imported) == (0, f"diffusion_pl {diffusion_pl.__version__}\n", "", set())
    status, out, err, imported = bare(tmp_path, "fitt", "--config", "x.yaml")
    assert (status, out, imported) == (2, "", set())
    assert err == "diffusion_pl: error: unknown command 'fitt': did you mean fit?\n"


def test_python_m_exits_with_the_status(tmp_path: Path) -> None:
    def run(*args: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "diffusion_pl", *args]
        return subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=60)

    assert run("--help").returncode == 0
    assert run("trian").returncode == 2


def test_a_command_unlike_any_other_gets_the_list(tmp_path: Path) -> None:
    assert cli(tmp_path, "zzz").error == f"unknown command 'zzz': choose one of {', '.join(COMMANDS)}"
    assert "fit --config" in cli(tmp_path, "--config", "x.yaml").error


def test_commands_are_what_they_are_said_to_be() -> None:
    assert len(COMMANDS) == len(TRAINER_COMMANDS) + len(TOOLS) + len(LISTINGS)
    assert list(COMMANDS) == [*TRAINER_COMMANDS, *TOOLS, *LISTINGS]


@pytest.mark.parametrize("position", [0, 1, 99], ids=["first", "after the command", "last"])
def test_debug_shows_the_traceback_and_still_ends_with_the_line(tmp_path: Path, position: int) -> None:
    args = ["fit", "--config", tiny_config(tmp_path), "--model.schedule", "VPX"]
    args.insert(position, "--debug")
    done = cli(tmp_path, *args)
    assert done.code == 2
    assert "Traceback (most recent call last)" in done.err
    assert done.err.splitlines()[-1].startswith("diffusion_pl: error: --model.schedule: there is no class VPX")


def test_debug_can_come_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFUSION_PL_DEBUG", "1")
    assert "Traceback" in cli(tmp_path, "sample", "--ckpt_path", "none.ckpt").err
    monkeypatch.delenv("DIFFUSION_PL_DEBUG")
    assert "Traceback" not in cli(tmp_path, "sample", "--ckpt_path", "none.ckpt").err


def test_a_mistake_of_ours_is_one_line_and_status_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(name: str, args: object) -> None:
        raise AttributeError("on purpose")

    monkeypatch.setattr("diffusion_pl.commands.run_tool", broken)
    assert main(["sample"]) == 1
    assert "unexpected error: AttributeError: on purpose" in capsys.readouterr().err


def test_arguments_default_to_the_processs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["diffusion_pl", "--version"])
    assert main() == 0
    assert diffusion_pl.__version__ in capsys.readouterr().out


def test_a_good_command_exits_with_0_and_names_the_run_folder(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, trainer__max_steps=1)
    done = cli(tmp_path, "fit", "--config", config)
    assert (done.code, done.err) == (0, "")
    assert done.run == f"runs/{tmp_path.name}-tiny"
    assert fit(tmp_path).is_dir()


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    command = f"{sys.executable} -m diffusion_pl --help | true"
    done = subprocess.run(["bash", "-c", command], env=environment(), capture_output=True, text=True, timeout=60)
    assert (done.stderr, done.returncode) == ("", 0)
