"""Checkpoint files: whole or not there, and read as data only."""

import errno
import os
import pickle
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from shell import LAST, cli, environment, fit, no_files_change, tiny_config

from diffusion_pl.checkpoints import AtomicCheckpointIO, read, write

OLD = {"state_dict": {"w": torch.arange(5.0)}, "global_step": 1}
NEW = {"state_dict": {"w": torch.arange(5.0) + 1}, "global_step": 2}


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
def test_a_write_that_fails_midway_leaves_the_old_file_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    path = tmp_path / "last.ckpt"
    write(OLD, path)
    monkeypatch.setattr(torch, "save", fail_midway(error))
    with pytest.raises(OSError, match=r"cannot write the checkpoint .*last\.ckpt: .*untouched"):
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
def test_a_failure_at_any_moment_leaves_the_old_file_whole(
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
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *args, name=name, real=real: (done.append(name), real(*args))[1])
    write(OLD, tmp_path / "last.ckpt")
    assert done == ["fsync", "replace", "fsync"]  # the file, its name, the folder
    done.clear()
    write(NEW, tmp_path / "last.ckpt")
    assert done == ["fsync", "replace", "replace", "fsync"]  # in between, the old one's second name


def test_being_killed_while_writing_leaves_the_old_file_whole(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    write(OLD, path)
    code = (
        "import os, sys, torch\n"
        "from pathlib import Path\n"
        "from diffusion_pl import checkpoints\n"
        "def save(content, file):\n"
        "    file.write(b'half'); file.flush(); os.kill(os.getpid(), 9)\n"
        "torch.save = save\n"
        "checkpoints.write({'state_dict': {}}, Path(sys.argv[1]))\n"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(path)], env=environment(), capture_output=True)
    assert killed.returncode == -9, killed.stderr
    assert read(path)["global_step"] == 1
    write(NEW, path)
    assert names(tmp_path) == ["last.ckpt", "previous.ckpt"]  # the next one takes the leftover's place


def test_a_folder_that_cannot_be_written_is_an_error_and_not_silence(tmp_path: Path) -> None:
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
    spoil, told = DAMAGES[damage]
    bad = tmp_path / "bad.ckpt"
    bad.write_bytes(spoil((trained / "runs" / "run" / LAST).read_bytes(), trained / "runs" / "run"))
    config = tiny_config(trained)
    args = [] if command == "sample" else ["--config", config]
    with no_files_change(trained):
        error = cli(trained, command, *args, "--ckpt_path", bad).error
    assert error.startswith(str(bad))
    assert re.search(told, error), error


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
    ("content", "told"),
    [
        ([1, 2], "is not a checkpoint of a training run: it has no state_dict"),
        ({"model": 1}, "is not a checkpoint of a training run: it has no state_dict"),
        ({"state_dict": {}}, "was not written by `python -m diffusion_pl fit`"),
    ],
    ids=["list", "other keys", "weights only"],
)
def test_a_sound_file_of_something_else_is_refused(tmp_path: Path, content: Any, told: str) -> None:
    torch.save(content, tmp_path / "other.ckpt")
    for args in (["sample"], ["fit", "--config", tiny_config(tmp_path)]):
        assert told in cli(tmp_path, *args, "--ckpt_path", "other.ckpt").error


def test_no_file_is_said_to_be_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*none\.ckpt"):
        read(tmp_path / "none.ckpt")
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        read(tmp_path)  # a folder
    assert cli(tmp_path, "sample", "--ckpt_path", "none.ckpt").error == "no checkpoint at none.ckpt"


def data_of(folder: Path, columns: str) -> dict[str, Any]:
    (folder / "cubes.csv").write_text("a,b,c\n" + "".join(f"{i},{i * i},{i**3}\n" for i in range(30)))
    arguments = {"path": "cubes.csv", "columns": list(columns)}
    return {"class_path": "Table", "init_args": arguments}


@pytest.mark.parametrize("command", ["fit", "validate", "predict"])
def test_a_checkpoint_of_another_model_is_refused_and_the_run_stays_as_it_was(trained: Path, command: str) -> None:
    others = {
        "another network.*16 in the checkpoint, 8 here": {"model__network__init_args": {"width": 8, "depth": 1}},
        "another network.*absent in the checkpoint": {"model__network__init_args": {"width": 16, "depth": 2}},
        "another configuration: model.schedule": {"model__schedule": {"class_path": "Cosine"}},
        "another configuration: model.parameterization": {"model__parameterization": {"class_path": "Epsilon"}},
        "16x3 in the checkpoint, 16x4 here": {"data": data_of(trained, "abc")},
    }
    for index, (told, changes) in enumerate(others.items()):
        config = tiny_config(trained, f"other{index}.yaml", trainer__max_steps=9, **changes)
        run = trained / "runs" / "run"
        kept = {path: path.read_bytes() for path in (run / LAST, run / "config.yaml")}
        outcome = cli(trained, command, "--config", config, "--run", "run", "--ckpt_path", "last")
        assert re.search(told, outcome.error), outcome.error
        assert {path: path.read_bytes() for path in kept} == kept
