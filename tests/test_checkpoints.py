"""Checkpoint files: whole or not there, and read as data only."""

import errno
import hashlib
import multiprocessing
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import torch
from shell import LAST, assert_same_training, cli, differences, environment, fit, no_files_change, tiny_config

from diffusion_pl.checkpoints.io import AtomicCheckpointIO, is_whole, read, read_hashed, snapshot, write

FORK = multiprocessing.get_context("fork")  # the packages are imported already
OLD: dict[str, Any] = {"state_dict": {"w": torch.arange(5.0)}, "global_step": 1}
NEW: dict[str, Any] = {"state_dict": {"w": torch.arange(5.0) + 1}, "global_step": 2}


class Evil:
    """Runs a command where it is unpickled."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.victim}",)


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def test_what_was_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "last.ckpt"
    write(OLD, path)
    assert torch.equal(read(path)["state_dict"]["w"], OLD["state_dict"]["w"])
    write(NEW, path)
    assert read(str(path))["global_step"] == 2
    assert names(path.parent) == ["last.ckpt", "previous.ckpt"]  # no leftovers
    AtomicCheckpointIO().remove_checkpoint(path)
    assert not path.exists()


def fail_midway(error: Exception) -> Any:
    """torch.save that writes half of the file."""

    def save(content: Any, file: Any) -> None:
        file.write(b"half of a checkpoint")
        raise error

    return save


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        RuntimeError("[enforce fail at inline_container.cc:671] . unexpected pos 64 vs 0"),
    ],
    ids=["full disk", "full disk as torch reports it"],
)
def test_a_write_that_fails_midway_leaves_the_old_file_intact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    path = tmp_path / "last.ckpt"
    write(OLD, path)
    monkeypatch.setattr(torch, "save", fail_midway(error))
    with pytest.raises(OSError, match=r"cannot write the checkpoint .*last\.ckpt: .*intact"):
        write(NEW, path)
    monkeypatch.undo()
    assert read(path)["global_step"] == 1
    assert names(tmp_path) == ["last.ckpt"]


def test_a_bug_in_saving_is_not_disguised_as_a_full_disk(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    write(OLD, path)
    with pytest.raises((AttributeError, pickle.PicklingError, TypeError)):
        write({"state_dict": {}, "no": lambda: None}, path)
    assert read(path)["global_step"] == 1


@pytest.mark.parametrize("when", ["fsync", "replace"])
def test_a_failure_at_any_moment_leaves_the_old_file_intact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    path = tmp_path / "last.ckpt"
    write(OLD, path)

    def fail(*_: Any) -> None:
        raise OSError(errno.EIO, "input/output error")

    monkeypatch.setattr(os, when, fail)
    with pytest.raises(OSError, match="input/output error"):
        write(NEW, path)
    monkeypatch.undo()
    assert read(path)["global_step"] == 1


def test_the_data_are_on_the_disk_before_the_name_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = []

    def noted(name: str, real: Any, *args: Any) -> Any:
        done.append(name)
        return real(*args)

    for name in ("fsync", "replace"):
        monkeypatch.setattr(os, name, partial(noted, name, getattr(os, name)))
    write(OLD, tmp_path / "last.ckpt")
    assert done == ["fsync", "replace", "fsync"]  # the file, its name, the folder
    done.clear()
    write(NEW, tmp_path / "last.ckpt")
    assert done == ["fsync", "replace", "fsync", "replace", "fsync"]  # after the first, the old one's second name


def test_a_kill_while_writing_leaves_the_old_file_intact(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    write(OLD, path)

    def child() -> None:
        def save(content: Any, file: Any) -> None:
            file.write(b"half")
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)

        torch.save = save  # type: ignore[assignment]
        write({"state_dict": {}}, path)

    killed = FORK.Process(target=child)
    killed.start()
    killed.join(60)
    assert killed.exitcode == -signal.SIGKILL
    assert read(path)["global_step"] == 1
    write(NEW, path)
    assert names(tmp_path) == ["last.ckpt", "previous.ckpt"]  # the next one takes the leftover's place


# The one before


def test_previous_checkpoint_is_complete_at_every_instant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, previous = tmp_path / "last.ckpt", tmp_path / "previous.ckpt"
    write(OLD, path)
    number = path.stat().st_ino
    seen: list[list[int]] = []  # steps in both files, before and after every call that changes the folder

    def look() -> None:
        seen.append([read(file)["global_step"] for file in (path, previous) if file.exists()])

    def looked(function: Any) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            look()
            result = function(*args, **options)
            look()
            return result

        return call

    for name in ("replace", "link", "unlink", "fsync"):
        monkeypatch.setattr(os, name, looked(getattr(os, name)))
    write(NEW, path)
    monkeypatch.undo()
    assert [k for k, _ in groupby(seen)] == [[1], [1, 1], [2, 1]]
    assert previous.stat().st_ino == number  # a name, not a copy
    assert [read(file)["global_step"] for file in (path, previous)] == [2, 1]
    write({**NEW, "global_step": 3}, path)
    assert [read(file)["global_step"] for file in (path, previous)] == [3, 2]
    assert names(tmp_path) == ["last.ckpt", "previous.ckpt"]


def test_the_bytes_that_were_read_are_the_ones_hashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run replaces last.ckpt while another command reads it."""
    path, real = tmp_path / "last.ckpt", torch.load
    write(OLD, path)
    before = hashlib.sha256(path.read_bytes()).hexdigest()

    def replaced(file: Any, **options: Any) -> Any:
        monkeypatch.setattr(torch, "load", real)
        write(NEW, path)
        return real(file, **options)

    monkeypatch.setattr(torch, "load", replaced)
    content, sha256 = read_hashed(path)
    assert content["global_step"] == 1
    assert sha256 == before
    assert read_hashed(path)[1] == hashlib.sha256(path.read_bytes()).hexdigest() != before


def test_where_files_cannot_have_two_names_it_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    path, previous = tmp_path / "last.ckpt", tmp_path / "previous.ckpt"
    for content in (OLD, NEW):
        write(content, path)
    assert [read(file)["global_step"] for file in (path, previous)] == [2, 1]
    assert names(tmp_path) == ["last.ckpt", "previous.ckpt"]


def test_a_kill_between_two_renames_leaves_no_extra_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then both are names of one file, and renaming one to the other does nothing, says POSIX."""
    path, previous = tmp_path / "last.ckpt", tmp_path / "previous.ckpt"
    write(OLD, path)
    os.link(path, previous)
    os.link(path, tmp_path / ".previous.ckpt.0123-4567.part")
    write(NEW, path)
    assert [read(file)["global_step"] for file in (path, previous)] == [2, 1]
    assert names(tmp_path) == ["last.ckpt", "previous.ckpt"]


def test_a_damaged_file_does_not_replace_the_last_good_one(tmp_path: Path) -> None:
    path, previous = tmp_path / "last.ckpt", tmp_path / "previous.ckpt"
    write(OLD, path)
    write(NEW, path)
    path.write_bytes(path.read_bytes()[:-100])
    write({**NEW, "global_step": 3}, path)
    assert [read(file)["global_step"] for file in (path, previous)] == [3, 1]


def test_damage_is_reported_with_the_newest_intact_checkpoint(tmp_path: Path) -> None:
    path, previous = tmp_path / "last.ckpt", tmp_path / "previous.ckpt"
    for content in (OLD, NEW):
        write(content, path)
    shutil.copy(previous, tmp_path / "older.ckpt")
    os.utime(tmp_path / "older.ckpt", (1, 1))
    path.write_bytes(path.read_bytes()[:-100])
    hint = f"; the newest good one is {previous}: give it as --ckpt_path"
    with pytest.raises(ValueError, match=rf"last\.ckpt is damaged .*{re.escape(hint)}$"):
        read(path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=rf"no checkpoint at {path}{re.escape(hint)}$"):
        read(path)
    previous.write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"the newest good one is .*older\.ckpt"):
        read(path)
    (tmp_path / "older.ckpt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"is damaged or not a checkpoint \([^)]*\)$"):
        read(previous)
    with pytest.raises(FileNotFoundError, match=r"last\.ckpt$"):
        read(path)


def test_damage_error_names_a_checkpoint_that_resumes_the_run(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"trainer__max_steps": 20, "saver": {"every_n_steps": 8}}
    whole, run = fit(tmp_path, run="whole", **changes), fit(tmp_path, **changes)
    previous = "runs/run/checkpoints/previous.ckpt"
    assert read(tmp_path / previous)["global_step"] == 16
    again = ("fit", "--config", "run.yaml", "--run", "run", "--ckpt_path")
    good = (run / LAST).read_bytes()
    (run / LAST).write_bytes(good[:-1000])
    hint = f"the newest good one is {previous}: give it as --ckpt_path"
    error = cli(tmp_path, *again, "last").error
    assert error.startswith("runs/run/checkpoints/last.ckpt is damaged")
    assert error.endswith(hint)
    (run / LAST).unlink()
    assert cli(tmp_path, *again, "last").error == f"no checkpoint at runs/run/checkpoints/last.ckpt; {hint}"
    newer = tmp_path / "runs" / "run-2" / "checkpoints"
    newer.mkdir(parents=True)
    shutil.copy(tmp_path / previous, newer)
    assert "the newest good one is runs/run-2/checkpoints/previous.ckpt" in cli(tmp_path, *again, "last").error
    shutil.rmtree(newer.parent)
    assert cli(tmp_path, "fit", "--config", "run.yaml", "--ckpt_path", previous).run == "runs/run"
    assert sorted(file.name for file in (tmp_path / "runs").iterdir()) == ["run", "whole"]
    assert_same_training(whole, run)


# In the background


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Writing stops midway until it is set."""
    gate, real = threading.Event(), torch.save

    def save(content: Any, file: Any) -> None:
        file.write(b"")
        assert gate.wait(30)
        real(content, file)

    monkeypatch.setattr(torch, "save", save)
    yield gate
    gate.set()


def steps(path: Path) -> Any:
    return read(path)["global_step"]


def test_a_thread_writes_a_snapshot_while_training_continues(tmp_path: Path, gate: threading.Event) -> None:
    path, writer = tmp_path / "last.ckpt", AtomicCheckpointIO()
    weight, history = torch.zeros(3), [1]
    with writer.in_background():
        writer.save_checkpoint({"state_dict": {"w": weight}, "global_step": 1, "history": history}, path)
    assert not path.exists()  # and we are here
    weight += 1
    history.append(2)
    gate.set()
    writer.wait()
    expected = {"state_dict": {"w": torch.zeros(3)}, "global_step": 1, "history": [1]}
    assert not list(differences(read(path), expected))


@pytest.mark.parametrize("what", ["save", "save in the background", "load", "remove", "teardown"])
def test_whatever_comes_next_waits_for_the_thread(tmp_path: Path, gate: threading.Event, what: str) -> None:
    path, writer = tmp_path / "last.ckpt", AtomicCheckpointIO()
    old = {**OLD, "pytorch-lightning_version": "2.6.6"}
    with writer.in_background():
        writer.save_checkpoint(old, path)
    threading.Timer(0.2, gate.set).start()
    start = time.monotonic()
    if what == "save":
        writer.save_checkpoint(NEW, path)
        assert steps(path) == 2
    elif what == "save in the background":
        with writer.in_background():
            writer.save_checkpoint(NEW, path)
    elif what == "load":
        assert writer.load_checkpoint(path)["global_step"] == 1
    elif what == "remove":
        writer.remove_checkpoint(path)
        assert not path.exists()
    else:
        writer.teardown()
        assert steps(path) == 1
    assert time.monotonic() - start > 0.15
    writer.wait()


def test_an_ending_process_finishes_its_write(tmp_path: Path) -> None:
    code = (
        "import sys, time, torch\n"
        "from pathlib import Path\n"
        "from diffusion_pl.checkpoints.io import AtomicCheckpointIO\n"
        "real = torch.save\n"
        "torch.save = lambda content, file: (time.sleep(1), real(content, file))\n"
        "writer = AtomicCheckpointIO()\n"
        "with writer.in_background():\n"
        "    writer.save_checkpoint({'state_dict': {}}, Path(sys.argv[1]))\n"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "last.ckpt"], env=environment(), check=True)
    assert is_whole(tmp_path / "last.ckpt")


def test_the_error_of_the_thread_comes_with_the_next_call(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    path = tmp_path / "file" / "last.ckpt"
    for call in ("save_checkpoint", "load_checkpoint", "teardown", "check"):
        writer = AtomicCheckpointIO()
        with writer.in_background():
            writer.save_checkpoint(OLD, path)
        args = {"save_checkpoint": (OLD, tmp_path / "other.ckpt"), "load_checkpoint": (path,)}.get(call, ())
        with pytest.raises(OSError, match=r"cannot write the checkpoint .*there was none before"):
            while True:  # `check` does not wait
                getattr(writer, call)(*args)
        writer.teardown()  # reported once


def test_a_snapshot_is_a_copy_in_which_what_was_shared_is_shared() -> None:
    weight, empty = torch.arange(6.0).reshape(2, 3), torch.zeros(0)
    state: Any = torch.nn.Linear(2, 2).state_dict()
    content = {
        "a": weight,
        "b": [weight.detach(), weight.t(), weight[:1]],
        "state": state,
        "e": (empty, torch.zeros(0, 2)),
    }
    copied = snapshot(content)
    assert not list(differences(copied, content))
    assert copied["a"].data_ptr() == copied["b"][0].data_ptr() != weight.data_ptr()
    assert copied["b"][1].data_ptr() != weight.data_ptr()
    assert copied["b"][2].untyped_storage().nbytes() == 3 * 4  # of a part, the part
    assert copied["state"]._metadata == state._metadata  # of the version of each module
    assert type(copied["state"]) is type(state)
    weight.zero_()
    assert copied["b"][1][2, 1] == 5


def test_an_unwritable_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(OSError, match="cannot write the checkpoint"):
        write(OLD, tmp_path / "file" / "last.ckpt")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs/run, five steps long."""
    folder = tmp_path_factory.mktemp("trained")
    fit(folder, trainer__max_steps=5)
    return folder


def flip(content: bytes, run: Path) -> bytes:
    """One bit of a weight is another one."""
    weight = torch.load(run / LAST, weights_only=True)["state_dict"]["denoiser.network.input.weight"]
    at = content.index(weight.numpy().tobytes()) + 5
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


def other_archive(content: bytes, run: Path) -> bytes:
    """A zip file, but of something else."""
    path = run.parent / "other.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    return path.read_bytes()


DAMAGES: dict[str, Any] = {
    "truncated": (lambda content, run: content[: len(content) // 2], "is damaged or not a checkpoint"),
    "one bit": (flip, "the checksum of .*data/0 does not match"),
    "garbage": (lambda content, run: bytes(range(256)) * 20, "is damaged or not a checkpoint"),
    "empty": (lambda content, run: b"", "is damaged or not a checkpoint"),
    "HTML": (lambda content, run: b"<html><body>404 not found</body></html>", "is damaged or not a checkpoint"),
    "another archive": (other_archive, "is damaged or not a checkpoint"),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("command", ["sample", "fit", "validate"])
def test_a_damaged_file_is_one_clear_line(trained: Path, tmp_path: Path, damage: str, command: str) -> None:
    damaged, message = DAMAGES[damage]
    bad = tmp_path / "bad.ckpt"
    bad.write_bytes(damaged((trained / "runs" / "run" / LAST).read_bytes(), trained / "runs" / "run"))
    config = tiny_config(trained)
    args = [] if command == "sample" else ["--config", config]
    with no_files_change(trained):
        error = cli(trained, command, *args, "--ckpt_path", bad).error
    assert error.startswith(str(bad))
    assert re.search(message, error), error


def test_a_file_holding_code_is_refused_and_the_code_not_run(trained: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    zipped, plain = tmp_path / "evil.ckpt", tmp_path / "pickle.ckpt"
    torch.save({"state_dict": {}, "pytorch-lightning_version": "2.6.6", "evil": Evil(victim)}, zipped)
    plain.write_bytes(pickle.dumps(Evil(victim)))
    config = tiny_config(tmp_path)
    for bad in (zipped, plain):
        for args in (["sample"], ["fit", "--config", config], ["predict", "--config", config]):
            assert cli(tmp_path, *args, "--ckpt_path", bad).error.startswith(str(bad))
    assert "maybe code: it was not read" in cli(tmp_path, "sample", "--ckpt_path", zipped).error
    assert not victim.exists()
    torch.load(zipped, weights_only=False)  # the trap works
    assert victim.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "is not a checkpoint of a training run: it has no state_dict"),
        ({"model": 1}, "is not a checkpoint of a training run: it has no state_dict"),
        ({"state_dict": {}}, "was not written by `python -m diffusion_pl fit`"),
    ],
    ids=["list", "other keys", "weights only"],
)
def test_a_sound_file_of_something_else_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "other.ckpt")
    for args in (["sample"], ["fit", "--config", tiny_config(tmp_path)]):
        assert message in cli(tmp_path, *args, "--ckpt_path", "other.ckpt").error


def test_no_file_is_said_to_be_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*none\.ckpt"):
        read(tmp_path / "none.ckpt")
    with pytest.raises(FileNotFoundError, match="no checkpoint in"):
        read(tmp_path)  # a folder
    assert cli(tmp_path, "sample", "--ckpt_path", "none.ckpt").error == "no checkpoint at none.ckpt"


def data_of(folder: Path, columns: str) -> dict[str, Any]:
    (folder / "cubes.csv").write_text("a,b,c\n" + "".join(f"{i},{i * i},{i**3}\n" for i in range(30)))
    arguments = {"path": "cubes.csv", "columns": list(columns)}
    return {"class_path": "Table", "init_args": arguments}


@pytest.mark.parametrize("command", ["fit", "validate", "predict"])
def test_checkpoint_of_another_model_is_refused_before_writing(trained: Path, command: str) -> None:
    others: dict[str, dict[str, Any]] = {
        "another network.*16 in the checkpoint, 8 here": {"model__network__init_args": {"width": 8, "depth": 1}},
        "another network.*absent in the checkpoint": {"model__network__init_args": {"width": 16, "depth": 2}},
        "another configuration: model.schedule": {"model__schedule": {"class_path": "Cosine"}},
        "another configuration: model.parameterization": {"model__parameterization": {"class_path": "Epsilon"}},
        "16x3 in the checkpoint, 16x4 here": {"data": data_of(trained, "abc")},
    }
    for index, (message, changes) in enumerate(others.items()):
        config = tiny_config(trained, f"other{index}.yaml", trainer__max_steps=9, **changes)
        run = trained / "runs" / "run"
        kept = {path: path.read_bytes() for path in (run / LAST, run / "config.yaml")}
        outcome = cli(trained, command, "--config", config, "--run", "run", "--ckpt_path", "last")
        assert re.search(message, outcome.error), outcome.error
        assert {path: path.read_bytes() for path in kept} == kept
