"""Commands that are killed after their work is done, at any moment, and repeated; runs that start at the same time."""

import contextlib
import csv
import multiprocessing
import os
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
import yaml
from images_model import fit_digits
from PIL import Image
from shell import cli, tiny_config

from diffusion_pl.__main__ import main
from diffusion_pl.checkpoints import io as checkpoints
from diffusion_pl.runtime.output_folder import OutputFolder
from diffusion_pl.runtime.storage import Lock

FORK = multiprocessing.get_context("fork")  # the packages are imported already
CHECKPOINT = Path("runs/digits/checkpoints/last.ckpt")
EVENTS = {"open", "os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir"}

#: What each command is given besides its output.
CALLS: dict[str, list[Any]] = {
    "sample": ["--num_samples", 6, "--film", "true"],
    "encode": ["--path", "images"],
    "restore": ["--path", "images", "--sampler", "Ancestral", "--num_samples", 2],
    "sweep": ["--samplers", "DDIM", "--nfe", "2", "--num_samples", 8],
    "evaluate": ["--extractor", "DigitsClassifier", "--metrics", "fid", "--num_samples", 20],
    "export": ["--to", "safetensors"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("interruptions")
    assert fit_digits(folder) == CHECKPOINT
    (folder / "images").mkdir()
    for k in range(2):
        values = np.random.default_rng(k).integers(0, 256, (8, 8), dtype=np.uint8)
        Image.fromarray(values).save(folder / "images" / f"{k}.png")
    unet = diffusers.UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 8),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        layers_per_block=1,
    )
    diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler()).save_pretrained(folder / "pipe")
    return folder


@pytest.fixture(autouse=True)
def surroundings(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    monkeypatch.chdir(folder)
    torch.set_num_threads(1)  # threads do not survive a fork


def arguments(command: str, output: str) -> list[str]:
    if command == "import":
        return ["import", "--from", "diffusers", "pipe", "--output", f"{output}/model.ckpt"]
    if command == "predict":
        return ["predict", "--config", "digits.yaml", "--run", "digits", "--ckpt_path", "last"]
    return [command, "--ckpt_path", str(CHECKPOINT), "--output", output, *map(str, CALLS[command])]


def run(args: Sequence[str], moment: int | None) -> tuple[int, int]:
    """The exit status of a command in a process that kills itself at an access to the file system, counted from the end
    of its work; and how many such accesses it made.
    """
    count = FORK.Value("i", 0)

    def child() -> None:
        working = [True]

        def watch(event: str, details: tuple[Any, ...]) -> None:
            if working[0] or event not in EVENTS:
                return
            if count.value == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            count.value += 1

        def done(function: Any) -> Any:
            def call(*args: Any, **kwargs: Any) -> Any:
                working[0] = False
                return function(*args, **kwargs)

            return call

        OutputFolder.publish = done(OutputFolder.publish)  # type: ignore[method-assign]
        checkpoints.write_file = done(checkpoints.write_file)  # type: ignore[attr-defined]
        sys.addaudithook(watch)
        with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing), contextlib.redirect_stderr(nothing):
            os._exit(main(args))

    process = FORK.Process(target=child)
    process.start()
    process.join(120)
    assert process.exitcode is not None
    return process.exitcode, count.value


def contents(output: Path) -> dict[str, Any]:
    """What the files below a folder hold, but for the seconds that something took."""
    result: dict[str, Any] = {}
    for path in sorted(path for path in output.rglob("*") if path.is_file()):
        name = str(path.relative_to(output))
        if path.name == "sweep.csv":
            result[name] = [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(path.open())]
        elif path.suffix == ".ckpt":
            content = checkpoints.read(path)
            result[name] = {key: value.tolist() for key, value in content["state_dict"].items()}
        elif path.name not in (".call.json", "sweep.png"):  # they contain the seconds
            result[name] = path.read_bytes()
        else:
            result[name] = path.stat().st_size > 0
    return result


def check(folder: Path, command: str, moments: int) -> None:
    """Kill the command at so many moments, repeat it each time, and compare with a call that nobody touched."""
    samples = folder / "runs" / "digits" / "samples"

    def output(name: str) -> Path:
        return samples if command == "predict" else folder / name

    def reset() -> None:
        shutil.rmtree(samples, ignore_errors=True)

    status, total = run(arguments(command, "whole"), None)
    assert status == 0
    assert total > 4
    expected = contents(output("whole"))
    reset()
    for moment in sorted({round(k * (total - 1) / max(1, moments - 1)) for k in range(moments)}):
        name = f"{command}-{moment}"
        status, _ = run(arguments(command, name), moment)
        assert status == -signal.SIGKILL, moment
        status, _ = run(arguments(command, name), None)
        # An import that was complete already says that the file is there.
        assert status == 0 or (command == "import" and (output(name) / "model.ckpt").is_file()), moment
        assert contents(output(name)) == expected, moment
        reset()
        shutil.rmtree(folder / name, ignore_errors=True)
    shutil.rmtree(folder / "whole", ignore_errors=True)


def test_samples_are_complete_after_a_kill_at_the_end(folder: Path) -> None:
    check(folder, "sample", 4)


@pytest.mark.slow
@pytest.mark.parametrize("command", [*CALLS, "import", "predict"])
def test_every_command_is_complete_after_a_kill_at_its_end(folder: Path, command: str) -> None:
    check(folder, command, 20)


def start_together(folder: Path, count: int) -> list[Path]:
    """The folders of so many runs of one configuration that begin at the same time with seeds of their own."""
    gate = FORK.Barrier(count)

    def child(seed: int) -> None:
        with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing), contextlib.redirect_stderr(nothing):
            gate.wait(60)
            os._exit(main(["fit", "--config", "tiny.yaml", "--run", "same", "--seed_everything", str(seed)]))

    children = [FORK.Process(target=child, args=(seed,)) for seed in range(count)]
    for process in children:
        process.start()
    for process in children:
        process.join(120)
    assert [process.exitcode for process in children] == [0] * count
    return sorted((folder / "runs").glob("same*"))


def check_together(folder: Path, count: int) -> None:
    result = start_together(folder, count)
    assert [path.name for path in result] == ["same", *(f"same-{k}" for k in range(2, count + 1))]
    seeds = [yaml.safe_load((path / "config.yaml").read_text())["seed_everything"] for path in result]
    assert sorted(seeds) == list(range(count))
    for path in result:
        assert checkpoints.read(path / "checkpoints" / "last.ckpt")["global_step"] == 3
        assert not [file for file in path.rglob("*") if file.suffix in (".part", ".lock")]
        shutil.rmtree(path)


def test_runs_that_start_together_have_folders_of_their_own(folder: Path) -> None:
    tiny_config(folder, trainer__max_steps=3)
    check_together(folder, 3)


@pytest.mark.slow
def test_twenty_rounds_of_four_runs_lose_none(folder: Path) -> None:
    tiny_config(folder, trainer__max_steps=3)
    for _ in range(20):
        check_together(folder, 4)


def test_the_folder_of_one_that_was_faster_is_not_removed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two that begin with --ckpt_path auto find no folder; the second must not take the first's for its own."""
    tiny_config(folder, trainer__max_steps=3)
    run = Path("runs/faster")
    begun, end = FORK.Event(), FORK.Event()

    def child() -> None:
        run.mkdir(parents=True)
        lock = Lock(run / ".lock", "busy")
        begun.set()
        end.wait(60)
        lock.release()

    process = FORK.Process(target=child)
    process.start()
    assert begun.wait(60)
    exists = Path.exists
    monkeypatch.setattr(Path, "exists", lambda self, **options: self != run and exists(self, **options))
    error = cli(folder, "fit", "--config", "tiny.yaml", "--run", "faster", "--ckpt_path", "auto").error
    monkeypatch.undo()
    assert "is being trained by another process" in error
    assert (folder / run / ".lock").exists()
    end.set()
    process.join(60)


def test_a_run_that_is_being_trained_is_not_resumed_twice(folder: Path) -> None:
    tiny_config(folder, trainer__max_steps=3)
    assert cli(folder, "fit", "--config", "tiny.yaml", "--run", "locked").code == 0
    begun, end = FORK.Event(), FORK.Event()

    def child() -> None:
        lock = Lock(folder / "runs/locked/.lock", "busy")
        begun.set()
        end.wait(60)
        lock.release()

    process = FORK.Process(target=child)
    process.start()
    assert begun.wait(60)
    again = ("fit", "--config", "tiny.yaml", "--run", "locked", "--ckpt_path", "last", "--trainer.max_steps", 5)
    error = cli(folder, *again).error
    assert error.startswith("runs/locked is being trained by another process")
    assert f"process {process.pid}" in error
    end.set()
    process.join(60)
    assert cli(folder, *again).code == 0
