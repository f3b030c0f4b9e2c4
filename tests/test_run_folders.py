"""The folder of a run: each run has its own, and it stands for its checkpoint wherever one is expected."""

import inspect
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from threading import Barrier
from types import SimpleNamespace
from typing import Any

import pytest
from shell import LAST, checkpoint, cli, fit

from diffusion_pl.__main__ import TOOLS, TRAINER_COMMANDS
from diffusion_pl.callbacks.replaying import read_dump
from diffusion_pl.checkpoints.io import read, write
from diffusion_pl.runtime.run_folder import RunFolder

RUN = Path("runs/run")
SAMPLE = ("sample", "--ckpt_path", RUN, "--num_samples", 2, "--steps", 2, "--output")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a model of points was trained for two steps, and its newest checkpoint is damaged."""
    path = tmp_path_factory.mktemp("folders")
    run = fit(path, trainer__max_steps=2, saver={"every_n_steps": 1})
    assert checkpoint(run)["global_step"] == 2
    (run / LAST).write_bytes(b"damaged")
    return path


#: Every option that takes a checkpoint, by command: a call that gets the folder, its exit status, and what shows that
#: the checkpoint was read.
CALLS: dict[tuple[str, str], tuple[tuple[Any, ...], int, str]] = {
    ("sample", "ckpt_path"): ((*SAMPLE, "s"), 0, "2 samples of"),
    ("sample", "classifier"): ((*SAMPLE, "c", "--classifier", RUN), 2, "not a classifier"),
    ("sample", "weak"): ((*SAMPLE, "w", "--weak", RUN, "--scale", 2), 0, "2 samples of"),
    ("encode", "ckpt_path"): (
        ("encode", "--ckpt_path", RUN, "--path", "points.csv", "--steps", 2, "--output", "e"),
        0,
        "2 examples carried",
    ),
    ("restore", "ckpt_path"): (
        ("restore", "--ckpt_path", RUN, "--path", "points.csv", "--output", "r"),
        2,
        "a model of points",
    ),
    ("sweep", "ckpt_path"): (
        ("sweep", "--ckpt_path", RUN, "--samplers", "DDIM", "--nfe", 2, "--num_samples", 50, "--output", "q"),
        0,
        "DDIM",
    ),
    ("evaluate", "ckpt_path"): (
        ("evaluate", "--ckpt_path", RUN, "--metrics", "sliced", "--num_samples", 50, "--steps", 2, "--output", "v"),
        0,
        "sliced",
    ),
    ("export", "ckpt_path"): (("export", "--ckpt_path", RUN, "--to", "safetensors", "--output", "x"), 0, "safetensors"),
    ("average", "ckpt_path"): (("average", RUN, "--std", 0.1), 2, "no snapshots of power-function EMA weights"),
    ("replay", "dump"): (("replay", RUN), 2, "no dump in runs/run"),
    ("verify", "run"): (("verify", "--run", RUN), 2, "runs/run"),
}  # fmt: skip


def test_every_option_that_takes_a_checkpoint_is_tried() -> None:
    names = set()
    for name in TOOLS:
        identifier = "import_" if name == "import" else name
        function = getattr(import_module(f"diffusion_pl.commands.{identifier}"), identifier)
        options = ("ckpt_path", "classifier", "weak", "dump", "run")
        names |= {(name, option) for option in options if option in inspect.signature(function).parameters}
    assert names == CALLS.keys()


@pytest.mark.parametrize("call", CALLS, ids="-".join)
def test_run_folder_is_taken_for_a_checkpoint(folder: Path, call: tuple[str, str]) -> None:
    """The previous one here, which is the newest good one."""
    (folder / "points.csv").write_text("x,y\n50,50\n40,60\n")
    args, code, shown = CALLS[call]
    done = cli(folder, *args)
    assert (done.code, shown in done.out + done.err) == (code, True), done


@pytest.mark.parametrize("command", [name for name in TRAINER_COMMANDS if name not in ("fit", "doctor")])
def test_run_folder_is_evaluated(folder: Path, command: str) -> None:
    done = cli(folder, command, "--config", "run.yaml", "--ckpt_path", RUN)
    assert done.code == 0, done.err
    assert done.run == str(RUN)


def test_run_folder_is_resumed(tmp_path: Path) -> None:
    run = fit(tmp_path, trainer__max_steps=2)
    done = cli(tmp_path, "fit", "--config", "run.yaml", "--ckpt_path", RUN, "--trainer.max_steps", 3)
    assert done.run == str(RUN)
    assert checkpoint(run)["global_step"] == 3


def test_newest_dump_of_a_run_folder_is_read(folder: Path, tmp_path: Path) -> None:
    content = read(folder / RUN)
    for step in (7, 12):
        write({**content, "dump": {"step": step}}, tmp_path / f"dumps/step-{step:08d}.ckpt")
    assert read_dump(tmp_path)["dump"]["step"] == 12


def chosen(root: Path, command: str = "fit", **options: Any) -> tuple[RunFolder, Path]:
    """A run's folder, chosen for a configuration of a name."""
    trainer = SimpleNamespace(default_root_dir=root, num_nodes=1)
    config = SimpleNamespace(**{"run": "name", "ckpt_path": None, "config": None, "trainer": trainer, **options})
    run = RunFolder()
    return run, run.choose(config, command, claim=True)[0]


def test_runs_that_begin_at_once_have_folders_of_their_own(tmp_path: Path) -> None:
    many = 8
    for attempt in range(10):
        together = Barrier(many)

        def begin(number: int, root: Path = tmp_path / str(attempt), together: Barrier = together) -> Path:
            together.wait()
            return chosen(root)[1]

        with ThreadPoolExecutor(many) as pool:
            folders = set(pool.map(begin, range(many)))
        assert {folder.name for folder in folders} == {"name", *(f"name-{number}" for number in range(2, many + 1))}


def test_folder_that_was_taken_meanwhile_is_not_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between looking for a free name and making the folder, another run makes it."""
    before = RunFolder._claim

    def late(self: RunFolder, folder: Path, *args: Any) -> Path:
        folder.mkdir(parents=True)
        return before(self, folder, *args)

    monkeypatch.setattr(RunFolder, "_claim", late)
    assert chosen(tmp_path)[1] == tmp_path / "name-2"


def test_published_folder_is_that_of_the_other_processes(tmp_path: Path) -> None:
    first, folder = chosen(tmp_path)
    assert not RunFolder().inherited
    first.publish()
    other, theirs = chosen(tmp_path)
    assert other.inherited and theirs == folder
    first.close()
    assert not RunFolder().inherited


def test_discarded_folder_was_made_by_this_run(tmp_path: Path) -> None:
    first, folder = chosen(tmp_path)
    (folder / "events.out").write_text("")
    first.close()
    first.discard()
    assert not folder.exists()
    folder.mkdir()
    (folder / "checkpoints").mkdir()
    (folder / LAST).write_bytes(b"")
    resumed, same = chosen(tmp_path, ckpt_path="last")
    assert same == folder
    resumed.close()
    resumed.discard()
    assert folder.exists()
