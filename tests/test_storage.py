"""storage: files appear whole, folders belong to one call, and an interrupted call can be repeated."""

import errno
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffusion_pl.evaluation.features import cached
from diffusion_pl.runtime.output import Report
from diffusion_pl.runtime.output_folder import UNFINISHED, OutputFolder
from diffusion_pl.runtime.storage import Lock, claim_folder, copy_file, write_file, write_json

FORK = multiprocessing.get_context("fork")


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def in_child(call: Callable[[], Any]) -> int | None:
    """Run it in another process; its exit status."""
    child = FORK.Process(target=call)
    child.start()
    child.join(30)
    return child.exitcode


def write(stage: Path) -> list[Path]:
    (stage / "sub").mkdir()
    (stage / "a.txt").write_text("a")
    (stage / "sub" / "b.txt").write_text("b")
    return [stage / "a.txt", stage / "sub" / "b.txt"]


def publish(folder: Path, call: dict[str, Any]) -> OutputFolder:
    with OutputFolder(folder, call) as output:
        if output.published is None:
            output.publish(write, Report(done="two files"))
    return output


def test_a_file_is_replaced_in_one_instant(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "x.json"
    write_json(path, {"a": "ä"})
    assert path.read_text(encoding="utf-8") == '{\n  "a": "ä"\n}\n'

    def fail(file: Any) -> None:
        file.write(b"half")
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        write_file(path, fail)
    assert path.read_text(encoding="utf-8").startswith("{")
    write_file(path, b"\x00")
    assert path.read_bytes() == b"\x00"
    assert names(tmp_path) == ["deep/x.json"]


def test_a_new_file_does_not_replace_another(tmp_path: Path) -> None:
    path = tmp_path / "mine"
    path.write_text("mine")
    with pytest.raises(FileExistsError):
        write_file(path, "yours", replace=False)
    assert path.read_text() == "mine"
    write_file(tmp_path / "new", "yours", replace=False)
    assert names(tmp_path) == ["mine", "new"]


def test_without_hard_links_no_file_is_replaced_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(FileExistsError):
        write_file(tmp_path / "mine", "yours", replace=False)
    copy_file(tmp_path / "mine", tmp_path / "copy")
    assert (tmp_path / "copy").read_text() == "mine"
    assert publish(tmp_path / "out", {}).published is not None
    assert names(tmp_path / "out") == [".call.json", "a.txt", "sub/b.txt"]


def test_files_of_killed_writers_are_removed_and_no_others(tmp_path: Path) -> None:
    def die() -> None:
        write_file(tmp_path / "x", lambda file: os.kill(os.getpid(), signal.SIGKILL))

    assert in_child(die) == -signal.SIGKILL
    (left,) = names(tmp_path)
    assert left.startswith(".x.")
    (tmp_path / ".x.part").write_text("the user's own")
    write_file(tmp_path / "x", "whole")
    assert names(tmp_path) == [".x.part", "x"]


def test_a_file_that_another_process_is_writing_stays(tmp_path: Path) -> None:
    begun, go_on = FORK.Event(), FORK.Event()

    def slow(file: Any) -> None:
        file.write(b"slow")
        begun.set()
        go_on.wait(30)

    child = FORK.Process(target=lambda: write_file(tmp_path / "x", slow))
    child.start()
    assert begun.wait(30)
    write_file(tmp_path / "x", "fast")
    go_on.set()
    child.join(30)
    assert child.exitcode == 0
    assert (tmp_path / "x").read_text() == "slow"
    assert names(tmp_path) == ["x"]


def test_every_claim_gets_a_folder_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "run-2").mkdir()
    (tmp_path / "run-2" / "note").write_text("mine")
    gate, result = FORK.Barrier(8), FORK.Queue()

    def claim() -> None:
        gate.wait(30)
        result.put(claim_folder(tmp_path, "run").name)

    children = [FORK.Process(target=claim) for _ in range(8)]
    for child in children:
        child.start()
    claimed = sorted(result.get(timeout=30) for _ in children)
    for child in children:
        child.join(30)
    assert claimed == sorted(["run", *(f"run-{k}" for k in range(3, 10))])


def test_a_lock_has_one_holder_and_ends_with_it(tmp_path: Path) -> None:
    begun = FORK.Event()

    def hold() -> None:
        lock = Lock(tmp_path / "lock", "busy")
        begun.set()
        time.sleep(60)
        lock.release()

    child = FORK.Process(target=hold)
    child.start()
    assert begun.wait(30)
    with pytest.raises(ValueError, match=rf"busy \(process {child.pid} on "):
        Lock(tmp_path / "lock", "busy")
    assert child.pid is not None
    os.kill(child.pid, signal.SIGKILL)
    child.join(30)
    lock = Lock(tmp_path / "lock", "busy")
    lock.release()
    lock.release()
    assert names(tmp_path) == []


def test_an_output_folder_is_filled_in_one_go(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with OutputFolder(folder, {"seed": 1}) as output:
        (output.work / "part").write_text("some")
        assert names(folder) == [f"{UNFINISHED}/call.json", f"{UNFINISHED}/lock", f"{UNFINISHED}/part"]
        output.publish(write, Report(done="two files"))
    assert names(folder) == [".call.json", "a.txt", "sub/b.txt"]
    assert str(output.published) == f"two files\nsaved:\n  {folder}/a.txt\n  {folder}/sub/b.txt"
    assert str(publish(folder, {"seed": 1}).published) == str(output.published)


@pytest.mark.parametrize("there", ["0.png", ".hidden", "samples/1.png"])
def test_a_folder_with_files_of_the_user_is_refused(tmp_path: Path, there: str) -> None:
    (tmp_path / there).parent.mkdir(exist_ok=True)
    (tmp_path / there).write_text("mine")
    with pytest.raises(ValueError, match="not empty"):
        OutputFolder(tmp_path, {})
    assert names(tmp_path) == [there]


def test_another_call_is_refused_with_the_difference(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), OutputFolder(tmp_path / "out", {"seed": 1, "steps": 4}) as output:
        (output.work / "part").write_text("some")
        raise KeyboardInterrupt
    before = names(tmp_path)
    with pytest.raises(ValueError, match=r"unfinished results of another call \(seed 1, now 2\): repeat that call"):
        OutputFolder(tmp_path / "out", {"seed": 2, "steps": 4})
    assert names(tmp_path) == before
    publish(tmp_path / "out", {"seed": 1, "steps": 4})
    with pytest.raises(ValueError, match=r"finished results of another call \(steps 4, now 5\)"):
        OutputFolder(tmp_path / "out", {"seed": 1, "steps": 5})
    assert names(tmp_path / "out") == [".call.json", "a.txt", "sub/b.txt"]


def test_a_call_without_results_leaves_no_folder(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("new", "empty"):
        with pytest.raises(RuntimeError), OutputFolder(tmp_path / name, {}):
            raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]  # which the user has made


def test_a_file_that_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a\.txt appeared meanwhile"), OutputFolder(tmp_path, {}) as output:
        (tmp_path / "a.txt").write_text("mine")
        output.publish(write, Report(done="two files"))
    assert (tmp_path / "a.txt").read_text() == "mine"
    (tmp_path / "a.txt").rename(tmp_path / "mine.txt")
    publish(tmp_path, {})
    assert names(tmp_path) == [".call.json", "a.txt", "mine.txt", "sub/b.txt"]


def test_one_call_at_a_time_writes_to_a_folder(tmp_path: Path) -> None:
    begun = FORK.Event()

    def work() -> None:
        with OutputFolder(tmp_path / "out", {}):
            begun.set()
            time.sleep(60)

    child = FORK.Process(target=work)
    child.start()
    assert begun.wait(30)
    with pytest.raises(ValueError, match=r"another process is writing to .*out.*process \d+"):
        OutputFolder(tmp_path / "out", {})
    child.kill()
    child.join(30)
    publish(tmp_path / "out", {})


def test_a_file_where_a_folder_is_expected_is_reported(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(ValueError, match="is a file"):
        OutputFolder(tmp_path / "out", {})
    with pytest.raises(ValueError, match=r"cannot write to the folder|is a file"):
        OutputFolder(tmp_path / "out" / "in", {})


def test_a_damaged_note_is_one_line(tmp_path: Path) -> None:
    publish(tmp_path, {})
    (tmp_path / ".call.json").write_text("[")
    with pytest.raises(ValueError, match=r"\.call\.json is damaged"):
        OutputFolder(tmp_path, {})


def test_note_of_version_0_1_is_read(tmp_path: Path) -> None:
    publish(tmp_path, {"seed": 1})
    note = {"call": {"seed": 1}, "summary": "two files:", "files": ["a.txt"], "error": "one is missing"}
    write_json(tmp_path / ".call.json", note)
    with OutputFolder(tmp_path, {"seed": 1}) as output:
        assert output.report == Report(done="two files", files=[tmp_path / "a.txt"], error="one is missing")


def test_followers_wait_for_the_leader(tmp_path: Path) -> None:
    result = FORK.Queue()

    def follow() -> None:
        with OutputFolder(tmp_path / "out", {}, leader=False) as output:
            result.put((output.work.is_dir(), output.published is None))

    child = FORK.Process(target=follow)
    child.start()
    time.sleep(0.2)
    with OutputFolder(tmp_path / "out", {}) as output:
        assert result.get(timeout=30) == (True, True)
        child.join(30)
        output.publish(write, Report(done=""))


def test_a_damaged_cache_is_recomputed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    calls: list[int] = []

    def compute() -> np.ndarray:
        calls.append(1)
        return np.arange(12.0).reshape(6, 2)

    def check(times: int, length: int = 6) -> None:
        assert np.array_equal(cached("rows.npy", length, compute), np.arange(12.0).reshape(6, 2))
        assert len(calls) == times

    check(1)
    check(1)
    path = tmp_path / "diffusion_pl" / "rows.npy"
    whole = path.read_bytes()
    for k, damage in enumerate((b"", whole[:-8], b"garbage", whole[:-1] + b"\x01"), 2):
        path.write_bytes(damage)
        check(k)
    check(6, length=5)  # of other data
    path.with_suffix(".sha256").unlink()
    check(7)
    check(7)


def test_without_a_writable_cache_there_is_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert cached("rows.npy", 2, lambda: np.ones((2, 1))).tolist() == [[1.0], [1.0]]
    assert "set XDG_CACHE_HOME" in capsys.readouterr().err
    monkeypatch.delenv("XDG_CACHE_HOME")

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    assert cached("rows.npy", 2, lambda: np.ones((2, 1))).tolist() == [[1.0], [1.0]]
    assert "no home folder" in capsys.readouterr().err
