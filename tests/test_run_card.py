"""RunCard: what card.json says is true, however the run ends, and no run fails for it."""

import contextlib
import errno
import os
import re
import signal
import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException
from shell import LAST, checkpoint, cli, fit, scalars, start, tiny_config, tiny_data, tiny_module, tiny_trainer

from diffusion_pl.callbacks import RunCard, Saver
from diffusion_pl.runtime import provenance, storage
from diffusion_pl.runtime import run_card as cards
from diffusion_pl.runtime.run_card import read_card, write_card

COMMAND = "python -m diffusion_pl fit --config run.yaml --run run"
SESSION = {"status": "finished", "wall_seconds": 1.0}


class FailAt(Callback):
    """Raises in the middle of a step, counted from 0."""

    def __init__(self, step: int, error: BaseException) -> None:
        self.step, self.error = step, error

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Any) -> None:
        if trainer.global_step == self.step:
            raise self.error


class FailAtTheEnd(Callback):
    """What others do after the last step may fail."""

    def __init__(self, hook: str) -> None:
        setattr(self, hook, self.fail)

    def fail(self, *args: Any, **kwargs: Any) -> None:
        raise RuntimeError("on purpose")


class Look(Callback):
    """Reads the card in mid-run, as it is after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == self.step:
            self.card = read_card(trainer.default_root_dir)


def trained(folder: Path, *callbacks: Callback, data: Any = None, ckpt_path: Any = None, **options: Any) -> RunCard:
    """20 steps without the command line; an error on purpose is let through."""
    card = RunCard({"model": "tiny"}, ["fit"])
    trainer = tiny_trainer(folder, card, *callbacks, **options)
    with contextlib.suppress(RuntimeError, SIGTERMException):
        trainer.fit(tiny_module(), datamodule=data or tiny_data(), ckpt_path=ckpt_path)
    return card


def commit(folder: Path, name: str) -> None:
    """Make the folder a repository of one file."""
    for args in (["init", "-q"], ["add", name], ["commit", "-q", "-m", "one"]):
        author = ["-c", "user.name=Ada", "-c", "user.email=ada@example.org"]
        subprocess.run(["git", *author, "-C", str(folder), *args], check=True)


def test_the_card_of_a_run_records_what_the_run_did(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_PASSWORD", "open sesame")
    before, clock = datetime.now(UTC).replace(microsecond=0), time.monotonic()
    config = tiny_config(tmp_path, "run.yaml", trainer__accumulate_grad_batches=3)
    commit(tmp_path, "run.yaml")
    done = cli(tmp_path, "fit", "--config", config.name, "--run", "run")
    after, seconds = datetime.now(UTC), time.monotonic() - clock
    run = tmp_path / done.run
    card = read_card(run)

    printed = [line for line in done.out.splitlines() if "warning" not in line]
    assert printed[0] == "run: runs/run"
    assert "  card        runs/run/card.json" in done.out.splitlines()
    assert (card["run"], card["config_file"], card["command"]) == ("runs/run", "runs/run/config.yaml", COMMAND)
    linked = {name: card["config"]["model"].pop(name) for name in ("shape", "conditions")}  # come from the data
    assert linked == {"shape": [2], "conditions": {}}
    assert card["config"] == yaml.safe_load((run / "config.yaml").read_text())
    assert {"model", "data", "trainer", "ema", "saver", "guard", "doctor", "seed_everything"} <= card["config"].keys()
    assert not {"sesame", "Ada"} & set(re.findall(r"\w+", (run / "card.json").read_text()))
    assert not list(run.glob(".card*"))

    assert (card["status"], card["error"]) == ("finished", None)
    revision = subprocess.check_output(["git", "-C", str(tmp_path), "rev-parse", "HEAD"], text=True).strip()
    assert card["git"]["working_directory"] == {"revision": revision, "dirty": False}
    assert card["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert card["seeds"] == {"run": 0, "data": 0}
    data = tiny_data()
    data.setup()
    assert card["data"] == provenance.fingerprint(data)
    assert card["hardware"]["cores"] == os.cpu_count()
    assert card["peak_memory"]["rss"] > 100 * 2**20
    assert (card["steps"], card["examples_seen"]) == (
        40,
        40 * 3 * 32,
    )  # windows of three batches go across epochs of 20
    moments = checkpoint(run)["optimizer_states"][0]["state"].values()
    assert card["parameters"] == sum(state["exp_avg"].numel() for state in moments)
    assert card["metrics"]["step"] == 40
    logged = {tag: series[-1][1] for tag, series in scalars(run).items()}
    for tag in ("val_loss/ema0.999", "train_loss/raw", "learning_rate"):
        assert card["metrics"]["values"][tag] == pytest.approx(logged[tag], rel=1e-6)
    assert card["parallel"] == {
        "precision": "32-true",
        "strategy": "SingleDeviceStrategy",
        "world_size": 1,
        "num_nodes": 1,
        "batch_per_process": 32,
        "global_batch": 32,
        "accumulate_grad_batches": 3,
    }
    (session,) = card["sessions"]
    assert (session["from_step"], session["to_step"], session["resumed_from"]) == (0, 40, None)
    assert (session["status"], session["world_size"]) == ("finished", 1)
    assert before <= datetime.fromisoformat(session["start"]) <= datetime.fromisoformat(session["end"]) <= after
    assert 0 < session["wall_seconds"] == card["wall_seconds"] < seconds


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_a_resumed_run_continues_the_card_of_the_stopped_one(tmp_path: Path, number: signal.Signals) -> None:
    at_13 = [{"class_path": "shell.SignalAt", "init_args": {"batch": 13, "number": int(number)}}]
    config = tiny_config(tmp_path, "stopped.yaml", trainer__callbacks=at_13)
    assert cli(tmp_path, "fit", "--config", config.name, "--run", "run").code == 143
    run = tmp_path / "runs/run"
    stopped = read_card(run)
    assert (stopped["status"], stopped["error"]) == ("stopped", None)
    assert (stopped["steps"], stopped["examples_seen"]) == (13, 13 * 32)
    assert checkpoint(run)["examples_seen"] == 13 * 32
    assert stopped["metrics"]["values"]["train_loss/raw"] > 0  # of step 10; no validation, and so no other metric
    assert stopped["sessions"][0]["end"] is not None

    fit(tmp_path, "--ckpt_path", "last", data__init_args={"batch_size": 64, "repeats": 5})
    card = read_card(run)
    first, second = card["sessions"]
    was = first.pop("then")
    assert first == stopped["sessions"][0]
    assert was["command"] == COMMAND.replace("run.yaml", "stopped.yaml")
    assert was["config"]["data"]["init_args"]["batch_size"] == 32
    assert was["parallel"]["global_batch"] == 32
    assert not {"versions", "git", "seeds", "data", "hardware", "parameters", "run"} & was.keys()
    assert card["status"] == "finished"
    assert (second["from_step"], second["to_step"]) == (13, 40)
    assert second["resumed_from"] == f"runs/run/{LAST}"
    assert card["wall_seconds"] == pytest.approx(first["wall_seconds"] + second["wall_seconds"], abs=2e-3)
    assert min(first["wall_seconds"], second["wall_seconds"]) > 0
    assert (card["steps"], card["examples_seen"]) == (40, 13 * 32 + 27 * 64)


def test_a_failed_run_records_its_error_in_one_line(tmp_path: Path) -> None:
    trained(tmp_path, FailAt(11, RuntimeError("on\npurpose")))
    card = read_card(tmp_path)
    assert (card["status"], card["error"], card["steps"]) == ("failed", "RuntimeError: on purpose", 11)
    assert card["sessions"][0]["error"] == "RuntimeError: on purpose"
    assert card["sessions"][0]["end"] is not None


@pytest.mark.parametrize("hook", ["on_train_end", "teardown"])
def test_a_failure_after_the_last_step_is_one(tmp_path: Path, hook: str) -> None:
    trained(tmp_path, FailAtTheEnd(hook))
    card = read_card(tmp_path)
    assert (card["status"], card["error"], card["steps"]) == ("failed", "RuntimeError: on purpose", 20)


def test_a_killed_run_leaves_the_card_of_its_last_checkpoint(tmp_path: Path) -> None:
    look = Look(11)
    trained(tmp_path, Saver(4), look, max_steps=11)
    card = look.card
    saved = torch.load(tmp_path / LAST, weights_only=True)
    assert saved["global_step"] == 11
    assert (card["status"], card["steps"], card["sessions"][0]["end"]) == ("running", 8, None)
    assert card["examples_seen"] == 8 * 32
    assert card["wall_seconds"] > 0


def test_after_a_kill_the_next_session_says_so(tmp_path: Path) -> None:
    look = Look(9)
    trained(tmp_path, Saver(8), look, max_steps=9)
    write_card(look.card, tmp_path / "card.json")  # what a kill at step 9 would have left
    trained(tmp_path, Saver(8), ckpt_path=tmp_path / LAST)
    card = read_card(tmp_path)
    assert [session["status"] for session in card["sessions"]] == ["killed", "finished"]
    assert card["sessions"][0]["end"] is None


def test_a_training_set_smaller_than_a_batch_is_counted_as_it_is(tmp_path: Path) -> None:
    trained(tmp_path, data=tiny_data(batch_size=512, repeats=1), max_steps=3)
    card = read_card(tmp_path)
    assert card["parallel"]["batch_per_process"] == 512
    assert (card["parallel"]["global_batch"], card["examples_seen"]) == (128, 3 * 128)


def test_validate_and_test_append_what_they_find(tmp_path: Path) -> None:
    run = fit(tmp_path)
    card = read_card(run)
    args = ["--config", "run.yaml", "--run", "run", "--ckpt_path", "last"]
    for command in ("validate", "test"):
        assert cli(tmp_path, command, *args).code == 0
    result = read_card(run)
    first, second = result.pop("evaluations")
    assert result | {"evaluations": []} == card
    assert first["command"] == COMMAND.replace("fit", "validate") + " --ckpt_path last"
    assert {(e["checkpoint"], e["step"]) for e in (first, second)} == {(f"runs/run/{LAST}", 40)}
    logged = dict(scalars(run)["val_loss/ema0.999"])[40]
    assert first["metrics"]["val_loss/ema0.999"] == pytest.approx(logged, rel=1e-6)
    assert second["metrics"]["test_loss/ema0.999"] == pytest.approx(logged, rel=1e-6)

    fit(tmp_path, "--ckpt_path", "last", "--trainer.max_steps", 41)  # keeps them
    assert read_card(run)["evaluations"] == [first, second]


def test_results_appended_during_a_run_are_kept(tmp_path: Path) -> None:
    class Append(Callback):
        def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
            if trainer.global_step == 5:
                card = read_card(tmp_path)
                write_card({**card, "evaluations": [{"step": 5}]}, tmp_path / "card.json")

    trained(tmp_path, Append())
    assert read_card(tmp_path)["evaluations"] == [{"step": 5}]


def test_a_checkpoint_from_elsewhere_is_noted_on_no_card(tmp_path: Path) -> None:
    run = fit(tmp_path, trainer__max_steps=2)
    (run / LAST).rename(tmp_path / "copy.ckpt")
    before = (run / "card.json").read_bytes()
    args = ["--config", "run.yaml", "--run", "run", "--ckpt_path", "copy.ckpt"]
    assert cli(tmp_path, "validate", *args).code == 0
    assert (run / "card.json").read_bytes() == before
    assert len(list(tmp_path.rglob("card.json"))) == 1


@pytest.mark.slow
def test_two_processes_write_one_card(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, trainer__max_steps=4, trainer__devices=2, trainer__strategy="ddp")
    process = start(tmp_path, "fit", "--config", config.name, "--run", "two")
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert out.count("run: runs/two\n") == 1
    card = read_card(tmp_path / "runs/two")
    assert (card["status"], card["steps"], card["examples_seen"]) == ("finished", 4, 4 * 32)
    assert {name: card["parallel"][name] for name in ("world_size", "strategy", "batch_per_process")} == {
        "world_size": 2,
        "strategy": "DDPStrategy",
        "batch_per_process": 16,
    }
    (session,) = card["sessions"]
    assert session["world_size"] == 2
    assert card["hardware"]["devices"] == 2


def test_a_trial_run_writes_and_prints_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained(tmp_path, fast_dev_run=True)
    assert not list(tmp_path.iterdir())
    assert "run:" not in capsys.readouterr().out


# What is in the way of the card


def test_a_card_that_cannot_be_written_is_one_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "card.json").mkdir()
    (tmp_path / "card.json" / "something").touch()
    trained(tmp_path, Saver(4))
    assert torch.load(tmp_path / LAST, weights_only=True)["global_step"] == 20
    warnings = [line for line in capsys.readouterr().out.splitlines() if "warning" in line]
    assert warnings[-1] == (
        f"diffusion_pl: warning: the run card cannot be kept: cannot write {tmp_path}/card.json: Is a directory; "
        "the run itself continues"
    )
    assert len(warnings) == 2  # it could not be read either
    assert not list(tmp_path.glob(".card*"))


def test_a_full_disk_warns_and_the_card_is_written_later(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Path] = []

    def write_file(path: Path, content: str) -> None:
        calls.append(path)
        if len(calls) == 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        storage.write_file(path, content)

    monkeypatch.setattr(cards, "write_file", write_file)
    trained(tmp_path)
    assert "card.json: No space left on device; the run itself continues" in capsys.readouterr().out
    assert read_card(tmp_path)["status"] == "finished"


def test_a_damaged_card_is_put_aside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "card.json").write_text('{"status": ')
    trained(tmp_path)
    assert f"warning: {tmp_path}/card.json is damaged or no run card" in capsys.readouterr().out
    assert (tmp_path / "card.damaged.json").read_text() == '{"status": '
    (tmp_path / "card.json").write_text("[]")
    trained(tmp_path)
    assert (tmp_path / "card.damaged.json").read_text() == '{"status": '
    assert (tmp_path / "card.damaged-2.json").read_text() == "[]"
    assert len(read_card(tmp_path)["sessions"]) == 1


def test_a_run_that_is_refused_leaves_the_card_as_it_is(tmp_path: Path) -> None:
    run = fit(tmp_path, trainer__max_steps=2)
    before = (run / "card.json").read_bytes()
    config = tiny_config(tmp_path, model__schedule={"class_path": "Cosine"})
    done = cli(tmp_path, "fit", "--config", config.name, "--run", "run", "--ckpt_path", "last")
    assert done.code == 2
    assert "run:" not in done.out
    assert (run / "card.json").read_bytes() == before


# The file


def test_reading_gives_back_what_was_written_and_json_can_hold(tmp_path: Path) -> None:
    values = {"inf": float("inf"), "nan": float("nan"), "tuple": (1, 0.5), "path": Path("a/b"), "none": None}
    write_card({"sessions": [SESSION], "é": values}, tmp_path / "new" / "card.json")
    card = read_card(tmp_path / "new")
    assert card == read_card(tmp_path / "new" / "card.json")
    assert card["é"] == {"inf": "inf", "nan": "nan", "tuple": [1, 0.5], "path": "a/b", "none": None}


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"sessions": []}', '{"sessions": [{"status": "finished"}]}', "\xff"])
def test_another_file_is_no_card(tmp_path: Path, text: str) -> None:
    (tmp_path / "card.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"card\.json is damaged or no run card"):
        read_card(tmp_path)


def test_a_folder_without_a_card_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"no run card at {tmp_path}/card.json"):
        read_card(tmp_path)
