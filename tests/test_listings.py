"""`configs` and `runs`: what is listed, how fast, and which file a name stands for."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from shell import ROOT, TINY, cli, environment, fit

from diffusion_pl.runtime.config_files import config_files, with_config_files
from diffusion_pl.runtime.run_card import LOCK
from diffusion_pl.runtime.shipped_configs import Heading, find_config, near_configs, read_heading, shipped_configs

SHIPPED = shipped_configs()


def listed(folder: Path, *args: Any) -> Any:
    done = cli(folder, *args, "--json")
    assert done.code == 0, done.err
    return json.loads(done.out)["rows"]


def test_every_shipped_config_is_listed(tmp_path: Path) -> None:
    files = {path.relative_to(ROOT / "configs").with_suffix("").as_posix() for path in (ROOT / "configs").glob("*/*")}
    assert {entry["name"] for entry in listed(tmp_path, "configs")} == files == set(SHIPPED)
    lines = cli(tmp_path, "configs").out.splitlines()
    assert [line.split()[0] for line in lines[2 : len(SHIPPED) + 2]] == list(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_config_head_gives_one_line(name: str) -> None:
    head = read_heading(SHIPPED[name])
    assert 20 <= len(head.what) <= 180
    assert not head.what.endswith((".", ":"))
    if not name.startswith("overlays/"):
        assert 3 <= len(head.cost) <= 45, "the head needs a paragraph Hardware: …"
    if name.startswith("cifar10/"):
        assert head.papers


def test_heading_of_a_head_comment(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(
        "# Moons, 2 columns: a test. More words.\n# Source: A, arXiv 2011.13456 (x); B, arXiv 2202.00512.\n"
        "# Expected: nothing.  Hardware: one GPU, two\n#   days (of 8); more.\nmodel: {}\n# Hardware: none.\n"
    )
    assert read_heading(path) == Heading("Moons, 2 columns: a test", ("2011.13456", "2202.00512"), "one GPU, two days")
    path.write_text("model: {}\n")
    with pytest.raises(ValueError, match=r"a\.yaml"):
        read_heading(path)


@pytest.mark.parametrize("spelling", ["digits/vp", "digits/vp.yaml", "configs/digits/vp.yaml"])
def test_name_stands_for_the_shipped_file(spelling: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_config(Path(spelling)) == SHIPPED["digits/vp"]
    args = ["fit", "--config", spelling, f"--config={spelling}", "--run", "digits/vp"]
    assert config_files(args) == [SHIPPED["digits/vp"]] * 2
    path = str(SHIPPED["digits/vp"])
    assert with_config_files(args) == ["fit", "--config", path, f"--config={path}", "--run", "digits/vp"]


def test_file_of_the_user_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    own = Path("configs/digits/vp.yaml")
    own.parent.mkdir(parents=True)
    own.write_text("trainer: {max_steps: 7}")
    assert find_config(own) == own
    assert find_config(Path("digits/vp")) == SHIPPED["digits/vp"]


def test_named_configs_are_merged_in_order(tmp_path: Path) -> None:
    names = ("--config", "datasaurus/vp", "--config", "overlays/debug")
    done = cli(tmp_path, "fit", *names, "--print_config")
    assert done.code == 0, done.err
    debug = yaml.safe_load(SHIPPED["overlays/debug"].read_text())["trainer"]
    assert debug.items() <= yaml.safe_load(done.out)["trainer"].items()


@pytest.mark.parametrize(
    ("typed", "near"),
    [
        ("digits/vpp", "digits/vp"),
        ("configs/digit/vp.yaml", "digits/vp"),
        ("classifier", "digits/classifier"),
        ("datasaurus", "datasaurus/"),
        ("nothing-alike", "python -m diffusion_pl configs"),
    ],
)
def test_wrong_name_gets_the_nearest_ones(typed: str, near: str, tmp_path: Path) -> None:
    done = cli(tmp_path, "fit", "--config", typed)
    assert done.code == 2
    assert f"--config {typed}: " in done.error and near in done.error


def test_at_most_three_names_are_suggested() -> None:
    assert all(len(near_configs(Path(typed))) <= 3 for typed in ("vp", "cifar10", "cifar10/ddpm", "x", "."))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a run is finished, copies of it are running, dead and damaged, and one is a folder deeper."""
    folder = tmp_path_factory.mktemp("listed")
    run = fit(folder, trainer__max_steps=20)
    card = json.loads((run / "card.json").read_text())
    changes: dict[str, dict[str, Any]] = {
        "dead": {"status": "running"},
        "deep/er": {},
        "failed": {"status": "failed", "steps": None},
    }
    for name, change in changes.items():
        (folder / "runs" / name).mkdir(parents=True)
        (folder / "runs" / name / "card.json").write_text(json.dumps({**card, **change}))
    (folder / "runs/damaged").mkdir()
    (folder / "runs/damaged/card.json").write_text('{"sessions": 3')
    (folder / "runs/older/checkpoints").mkdir(parents=True)
    (folder / "runs/notes").mkdir()
    return folder


def test_runs_are_listed_with_state_and_step(runs: Path) -> None:
    entries = {entry["run"]: entry for entry in listed(runs, "runs")}
    assert set(entries) == {"run", "dead", "deep/er", "failed", "damaged", "older"}
    states = {name: entry["state"] for name, entry in entries.items()}
    assert states == {
        "run": "finished", "dead": "dead", "deep/er": "finished", "failed": "failed", "damaged": "unknown",
        "older": "unknown",
    }  # fmt: skip
    run = entries["run"]
    assert (run["step"], run["of"]) == (20, 20)
    assert next(iter(run["metrics"])).startswith("val_loss/")
    assert run["metrics"]["learning_rate"] == pytest.approx(TINY["model"]["optimizer"]["init_args"]["lr"])
    files = {path.stat().st_ino: path.stat().st_size for path in (runs / "runs/run").rglob("*") if path.is_file()}
    assert run["MB"] == sum(files.values()) / 1e6
    assert "card.json" in entries["damaged"]["metrics"]


def test_table_of_runs_has_a_line_each(runs: Path) -> None:
    lines = cli(runs, "runs").out.splitlines()
    assert lines[1].split() == ["run", "state", "step", "of", "MB", "metrics"]
    assert len(lines) == 8
    line = next(line for line in lines if line.startswith("  run  ") and "finished" in line)
    assert line.split()[2:4] == ["20", "20"] and "val_loss/" in line
    assert any(line.startswith("  damaged") and "card.json" in line for line in lines)
    assert cli(runs, "runs", "runs/deep").out.count("\n") == 3


def test_running_run_holds_its_lock(runs: Path) -> None:
    code = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX); print('held'); input()"
    lock = runs / "runs/dead" / LOCK
    with subprocess.Popen(
        [sys.executable, "-u", "-c", code, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        state = {entry["run"]: entry["state"] for entry in listed(runs, "runs")}["dead"]
        holder.communicate("\n")
    assert state == "running"
    assert {entry["run"]: entry["state"] for entry in listed(runs, "runs")}["dead"] == "dead"
    lock.unlink()


def test_folder_without_runs(tmp_path: Path) -> None:
    assert cli(tmp_path, "runs").code == 2
    (tmp_path / "runs").mkdir()
    assert cli(tmp_path, "runs").out == "0 runs in runs\n"
    (tmp_path / "file").write_text("")
    assert "file: is a file" in cli(tmp_path, "runs", "file").error


@pytest.mark.parametrize("command", ["configs", "runs"])
def test_listings_need_no_torch(runs: Path, command: str) -> None:
    code = (
        "import sys\nfrom diffusion_pl.__main__ import main\nassert main(sys.argv[1:]) == 0\n"
        "print(*[name for name in ('torch', 'lightning', 'numpy') if name in sys.modules], file=sys.stderr)"
    )
    command_line = [sys.executable, "-c", code, command]
    done = subprocess.run(command_line, cwd=runs, env=environment(), capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "\n")
