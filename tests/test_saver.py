"""Saver: the newest checkpoint is there, whatever ended the run."""

import contextlib
import errno
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from images_model import NETWORK, TIME
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException
from shell import (
    LAST,
    Losses,
    Outcome,
    SignalAt,
    assert_same_training,
    checkpoint,
    cli,
    fake_scontrol,
    fit,
    start,
    tiny_config,
    tiny_data,
    tiny_module,
    tiny_trainer,
    wait_for,
)
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from diffusion_pl.__main__ import main
from diffusion_pl.callbacks import Saver
from diffusion_pl.checkpoints.io import last_checkpoint, previous_checkpoint


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of 40 steps that nothing interrupts."""
    return fit(tmp_path_factory.mktemp("whole"), run="whole")


class Saves(Callback):
    """The steps at which a checkpoint was written."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: Any) -> None:
        self.steps.append(trainer.global_step)


def saved(folder: Path, every: int, *callbacks: Callback, **options: Any) -> list[int]:
    saves = Saves()
    trainer = tiny_trainer(folder, Saver(every), saves, *callbacks, **options)
    trainer.fit(tiny_module(), datamodule=tiny_data())
    return saves.steps


@pytest.mark.parametrize(
    ("every", "steps"), [(8, [8, 16, 20]), (10, [10, 20]), (100, [20]), (20, [20])], ids=["8", "10", "100", "20"]
)
def test_it_saves_every_few_steps_and_once_at_the_end(tmp_path: Path, every: int, steps: list[int]) -> None:
    assert saved(tmp_path, every) == steps
    content = torch.load(last_checkpoint(tmp_path), weights_only=True)
    assert content["global_step"] == 20
    there = sorted(file.name for file in (tmp_path / "checkpoints").iterdir())
    assert there == ["last.ckpt", "previous.ckpt"][: len(steps)]
    if len(steps) > 1:
        previous = torch.load(previous_checkpoint(tmp_path), weights_only=True)
        assert previous["global_step"] == steps[-2]


def test_the_end_of_a_run_that_is_counted_in_epochs_is_saved_too(tmp_path: Path) -> None:
    assert saved(tmp_path, 100, max_steps=-1, max_epochs=1) == [20]


def test_accumulated_gradients_do_not_save_twice(tmp_path: Path) -> None:
    assert saved(tmp_path, 2, max_steps=4, accumulate_grad_batches=3) == [2, 4]


def test_a_trial_run_writes_nothing(tmp_path: Path) -> None:
    assert saved(tmp_path, 1, fast_dev_run=True) == []
    assert not list(tmp_path.iterdir())


class FailAt(Callback):
    """Raises after a step."""

    def __init__(self, step: int, error: BaseException) -> None:
        self.step, self.error = step, error

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Any) -> None:
        if trainer.global_step == self.step:
            raise self.error


def test_an_error_leaves_the_last_good_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="on purpose"):
        saved(tmp_path, 4, FailAt(11, RuntimeError("on purpose")))
    assert torch.load(last_checkpoint(tmp_path), weights_only=True)["global_step"] == 8


class FailAtTheEnd(Callback):
    """What draws or evaluates there may fail."""

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        raise RuntimeError("on purpose")


def test_a_failure_after_the_last_step_keeps_the_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="on purpose"):
        saved(tmp_path, 100, FailAtTheEnd())
    assert torch.load(last_checkpoint(tmp_path), weights_only=True)["global_step"] == 20


class Watch(Callback):
    """Opens the gate at a step, and looks whether there is a checkpoint before."""

    def __init__(self, gate: threading.Event, step: int) -> None:
        self.gate, self.step = gate, step

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == self.step:
            assert not last_checkpoint(trainer.default_root_dir).exists()
            self.gate.set()


def test_training_continues_during_a_write_and_waits_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, real, threads = threading.Event(), torch.save, []

    def save(content: Any, file: Any) -> None:
        threads.append(threading.current_thread() is threading.main_thread())
        assert gate.wait(30)
        real(content, file)

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(RuntimeError, match="on purpose"):
        saved(tmp_path, 8, Watch(gate, 11), FailAt(12, RuntimeError("on purpose")))
    assert torch.load(last_checkpoint(tmp_path), weights_only=True)["global_step"] == 8
    assert saved(tmp_path, 8) == [8, 16, 20]
    assert threads == [False, False, False, True]  # the last one of a run is waited for


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


class FillDisk(Callback):
    """Leaves room for some events at a step, none for a checkpoint."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        if trainer.global_step != 10:
            return
        with Path("ballast").open("wb", buffering=0) as file:
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(4096))
            file.truncate(file.tell() - 4 * 4096)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a file system")
def test_a_full_disk_is_one_line_and_the_run_resumes_later(small_disk: Path) -> None:
    changes: dict[str, Any] = {"saver": {"every_n_steps": 8}, "trainer__val_check_interval": 1000}
    fill = [{"class_path": "test_saver.FillDisk"}]
    config = tiny_config(small_disk, "full.yaml", **changes, trainer__callbacks=fill)
    run = small_disk / "runs" / "run"
    assert cli(small_disk, "fit", "--config", config, "--run", "run").error == (
        f"cannot write the checkpoint runs/run/{LAST}: No space left on device; the previous checkpoint is intact: "
        f"free some space and resume with --ckpt_path runs/run/{LAST}"
    )
    assert checkpoint(run)["global_step"] == 8
    assert [file.name for file in (run / "checkpoints").iterdir()] == ["last.ckpt"]  # and no half of one
    (small_disk / "ballast").unlink()
    fit(small_disk, "--ckpt_path", f"runs/run/{LAST}", **changes)
    assert_same_training(fit(small_disk, run="whole", **changes), run)


def test_a_failed_background_write_ends_the_run_at_the_next_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(content: Any, file: Any) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(torch, "save", refuse)
    losses = Losses()
    with pytest.raises(OSError, match=r"No space left on device; there was none before"):
        saved(tmp_path, 10, losses, SlowStep(), max_steps=50)
    assert 10 < len(losses.losses) < 19  # not with the next checkpoint


class SlowStep(Callback):
    """Gives the thread its time."""

    def on_train_batch_start(self, *args: Any) -> None:
        time.sleep(0.05)


def test_a_stop_signal_saves(tmp_path: Path) -> None:
    with pytest.raises(SIGTERMException):
        saved(tmp_path, 4, FailAt(11, SIGTERMException()))
    assert torch.load(last_checkpoint(tmp_path), weights_only=True)["global_step"] == 11


@pytest.mark.parametrize(
    "number",
    [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP, signal.SIGXCPU],
    ids=["Ctrl-C", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGHUP", "SIGXCPU"],
)
def test_a_signal_in_mid_step_stops_cleanly_and_resumes_exactly(
    whole: Path, tmp_path: Path, number: signal.Signals
) -> None:
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
    at_13 = [{"class_path": "shell.SignalAt", "init_args": {"batch": 13, "number": int(number)}}]
    config = tiny_config(tmp_path, "stopped.yaml", trainer__callbacks=at_13)
    done = cli(tmp_path, "fit", "--config", config, "--run", "stopped")
    stopped = tmp_path / "runs" / "stopped"
    assert done.code == 143
    assert "Traceback" not in done.err
    assert done.out.splitlines()[-1] == (
        "stopped; runs/stopped/checkpoints/last.ckpt is saved. Resume with "
        "--ckpt_path runs/stopped/checkpoints/last.ckpt"
    )
    assert ("Ctrl-C again" in done.out) == (number == signal.SIGINT)
    assert checkpoint(stopped)["global_step"] == 13  # the step was finished
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)] == handlers

    if number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):  # the others leave the same checkpoint
        fit(tmp_path, "--ckpt_path", "last", run="stopped")
        assert_same_training(whole, stopped)


def test_accumulated_gradients_are_not_lost(tmp_path: Path) -> None:
    """Signalled in the first of three batches of a step, the run ends after the third."""
    three = {"trainer__accumulate_grad_batches": 3, "trainer__max_steps": 12}
    whole = fit(tmp_path, run="whole", **three)
    at_13 = [{"class_path": "shell.SignalAt", "init_args": {"batch": 13, "number": int(signal.SIGTERM)}}]
    config = tiny_config(tmp_path, "stopped.yaml", trainer__callbacks=at_13, **three)
    assert cli(tmp_path, "fit", "--config", config, "--run", "stopped").code == 143
    stopped = tmp_path / "runs" / "stopped"
    assert checkpoint(stopped)["global_step"] == 5
    fit(tmp_path, "--ckpt_path", "last", run="stopped", **three)
    assert_same_training(whole, stopped)


def test_a_run_stopped_in_its_last_step_is_complete(tmp_path: Path) -> None:
    at_40 = [{"class_path": "shell.SignalAt", "init_args": {"batch": 40, "number": int(signal.SIGUSR1)}}]
    assert checkpoint(fit(tmp_path, trainer__callbacks=at_40))["global_step"] == 40


class SignalInValidation(Callback):
    """Sends SIGUSR1 in the second batch of the first validation."""

    def on_validation_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == 20 and args[3] == 1:
            signal.raise_signal(signal.SIGUSR1)


# SLURM

JOB = {"SLURM_JOB_ID": "4711", "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "1", "SLURM_NTASKS_PER_NODE": "1"}
JOB |= {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_NNODES": "1"}


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    """Trains as a job of SLURM with those variables; its signals come in the midst of batch 13."""

    def run(number: signal.Signals, status: int = 0, callback: Any = None, **variables: str) -> Outcome:
        path = f"{fake_scontrol(tmp_path, status)}{os.pathsep}{os.environ['PATH']}"
        for name, value in {**JOB, "PATH": path, **variables}.items():
            monkeypatch.setenv(name, value)
        callback = callback or {"class_path": "shell.SignalAt", "init_args": {"batch": 13, "number": int(number)}}
        config = tiny_config(tmp_path, trainer__callbacks=[callback], data__init_args={"batch_size": 4, "repeats": 5})
        done = cli(tmp_path, "fit", "--config", config, "--run", "run", "--ckpt_path", "auto")
        assert done.code == 143, done.err
        assert not list(tmp_path.rglob("hpc_ckpt*"))
        assert done.out.splitlines()[-1].startswith("stopped; runs/run/checkpoints/last.ckpt is saved.")
        return done

    return run


def test_sigusr1_requeues_a_job_after_the_save(tmp_path: Path, job: Callable[..., Outcome]) -> None:
    assert "job 4711 is requeued" in job(signal.SIGUSR1).out.splitlines()
    assert (tmp_path / "scontrol.log").read_text() == "requeue 4711\n"
    assert checkpoint(tmp_path / "runs" / "run")["global_step"] == 13


def test_sigusr1_in_a_validation_requeues_too(tmp_path: Path, job: Callable[..., Outcome]) -> None:
    job(signal.SIGUSR1, callback={"class_path": "test_saver.SignalInValidation"})
    assert (tmp_path / "scontrol.log").read_text() == "requeue 4711\n"
    assert checkpoint(tmp_path / "runs" / "run")["global_step"] == 20


def test_of_an_array_the_task_is_requeued(tmp_path: Path, job: Callable[..., Outcome]) -> None:
    job(signal.SIGUSR1, SLURM_ARRAY_JOB_ID="4700", SLURM_ARRAY_TASK_ID="11")
    assert (tmp_path / "scontrol.log").read_text() == "requeue 4700_11\n"


def test_a_failed_requeue_is_reported(job: Callable[..., Outcome]) -> None:
    warning = "`scontrol requeue 4711` failed, submit the job again (slurm says no)"
    assert warning in job(signal.SIGUSR1, status=1).out.splitlines()


@pytest.mark.parametrize(
    ("number", "variables"),
    [(signal.SIGTERM, {}), (signal.SIGINT, {}), (signal.SIGUSR1, {"SLURM_JOB_NAME": "interactive"})],
    ids=["SIGTERM", "Ctrl-C", "interactive"],
)
def test_only_usr_signals_requeue(
    tmp_path: Path, job: Callable[..., Outcome], number: signal.Signals, variables: dict[str, str]
) -> None:
    job(number, **variables)
    assert not (tmp_path / "scontrol.log").exists()


def test_a_second_ctrl_c_ends_at_once(tmp_path: Path) -> None:
    """The handler that was there before gets it."""
    caught = []
    before = signal.signal(signal.SIGINT, lambda *_: caught.append(1))
    try:
        with pytest.raises(SIGTERMException):
            saved(tmp_path, 100, SignalAt(5, signal.SIGINT), SignalAt(5, signal.SIGINT))
        assert caught == [1]
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_run_stopped_before_step_1_names_no_checkpoint(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, trainer__callbacks=[{"class_path": "test_saver.StopAtStart"}])
    done = cli(tmp_path, "fit", "--config", config, "--run", "run")
    assert done.code == 143
    assert done.out.splitlines()[-1] == "stopped; there was nothing to save yet"


class StopAtStart(Callback):
    """Gets a signal to stop before the first step."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        raise SIGTERMException


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 143, marks=pytest.mark.slow)],
    ids=["SIGTERM", "Ctrl-C"],
)
def test_a_stopped_process_resumes_exactly(tmp_path: Path, number: signal.Signals, status: int) -> None:
    steps = {"trainer__max_steps": 120, "trainer__val_check_interval": 35}
    slow = tiny_config(tmp_path, "slow.yaml", trainer__callbacks=[{"class_path": "shell.Slow"}], **steps)
    process = start(tmp_path, "fit", "--config", slow, "--run", "killed", "--saver.every_n_steps", 15)
    killed = tmp_path / "runs" / "killed"
    wait_for(killed / LAST, process)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == status, err
    assert "Traceback" not in err
    assert "Resume with --ckpt_path runs" in out
    stopped = checkpoint(killed)["global_step"]
    assert 15 <= stopped < 120
    there = {file.name for file in (killed / "checkpoints").iterdir() if file.suffix == ".ckpt"}
    assert there in ({"last.ckpt"}, {"last.ckpt", "previous.ckpt"})

    fit(tmp_path, "--ckpt_path", "last", run="killed", **steps)
    whole = fit(tmp_path, run="whole", **steps)
    assert_same_training(whole, killed)


def test_an_interval_below_1_is_named() -> None:
    with pytest.raises(ValueError, match="every_n_steps must be at least 1, got 0"):
        Saver(0)


class BreakPipe(Callback):
    """The reader of stdout goes away at step 13, in the midst of it, where something is printed."""

    reader = -1

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Any) -> None:
        if trainer.global_step == 12:
            os.close(self.reader)
            print("x" * 100_000, flush=True)


def test_output_whose_reader_is_gone_ends_the_run_saved(whole: Path, tmp_path: Path) -> None:
    config = tiny_config(tmp_path, trainer__callbacks=[{"class_path": "test_saver.BreakPipe"}])
    BreakPipe.reader, written = os.pipe()
    out = os.fdopen(written, "w")
    with contextlib.chdir(tmp_path), contextlib.redirect_stdout(out), pytest.raises(SystemExit) as end:
        main(["fit", "--config", str(config), "--run", "piped"])
    assert end.value.code == 143
    out.close()
    assert checkpoint(tmp_path / "runs/piped")["global_step"] == 13
    fit(tmp_path, "--ckpt_path", "last", run="piped")
    assert_same_training(whole, tmp_path / "runs/piped")


class NoRoom(Callback):
    """From a step on the event file cannot be written."""

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == 12:
            thread = trainer.loggers[0].experiment._get_file_writer().event_writer._async_writer._worker  # type: ignore[attr-defined]

            def refuse(data: Any) -> None:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

            thread._record_writer.write = refuse


def test_logs_that_find_no_room_end_the_run_saved_in_one_line(
    whole: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = tiny_config(tmp_path, trainer__callbacks=[{"class_path": "test_saver.NoRoom"}])
    error = cli(tmp_path, "fit", "--config", config, "--run", "run").error
    assert error.startswith(
        "cannot write the logs of TensorBoardLogger in runs/run: No space left on device. Fix: free"
    )
    assert "Traceback" not in capfd.readouterr().err
    assert checkpoint(tmp_path / "runs/run")["global_step"] == 20
    fit(tmp_path, "--ckpt_path", "last")
    assert_same_training(whole, tmp_path / "runs/run")


def test_event_files_stay_in_order_when_the_clock_is_set_back(tmp_path: Path) -> None:
    fit(tmp_path, saver={"every_n_steps": 10})
    run = tmp_path / "runs" / "run"
    (old,) = run.glob("events.*")
    parts = old.name.split(".")
    old.rename(old.with_name(".".join([*parts[:3], f"{int(parts[3]) + 5000}", *parts[4:]])))
    fit(tmp_path, "--ckpt_path", "runs/run/checkpoints/previous.ckpt", "--run", "run")
    folder = EventAccumulator(str(run), size_guidance={"scalars": 0})
    folder.Reload()
    assert [event.step for event in folder.Scalars("losses/train_loss/raw")] == [10, 20, 30, 40]


class KillWorker(Callback):
    """One of the processes that read ahead is killed, as for want of memory."""

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == 3:
            iterator = trainer.train_dataloader._ahead._iterator  # type: ignore[union-attr]
            os.kill(iterator._workers[0].pid, signal.SIGKILL)


@pytest.mark.slow
def test_a_killed_worker_is_one_line(tmp_path: Path) -> None:
    import numpy as np

    np.save(tmp_path / "x.npy", np.zeros((64, 8, 8), dtype=np.uint8))
    data = {"class_path": "Arrays", "init_args": {"path": "x.npy", "batch_size": 4, "memory_gb": 0.0, "workers": 1}}
    kill = [{"class_path": "test_saver.KillWorker"}]
    config = tiny_config(tmp_path, data=data, model__network=NETWORK, model__noise_input=TIME, trainer__callbacks=kill)
    error = cli(tmp_path, "fit", "--config", config).error
    assert "a process that reads data was ended by the system" in error
    assert "data.init_args.workers" in error


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_sample_keeps_the_block_and_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, status: int
) -> None:
    from diffusion_pl.pipeline import Pipeline

    fit(tmp_path)
    call = ("sample", "--ckpt_path", "runs/run", "--num_samples", 1000, "--batch_size", 256, "--output")
    assert cli(tmp_path, *call, "whole").code == 0
    real, drawn = Pipeline.samples, []

    def samples(self: Pipeline, indices: Any, *args: Any, **kwargs: Any) -> Any:
        drawn.append(indices[0])
        if len(drawn) == 2:
            signal.raise_signal(number)
        return real(self, indices, *args, **kwargs)

    monkeypatch.setattr(Pipeline, "samples", samples)
    done = cli(tmp_path, *call, "stopped")
    assert done.code == status
    assert done.out.splitlines()[-1] == "stopped; finished samples are kept. Repeat the command to continue"
    assert cli(tmp_path, *call, "stopped").code == 0
    assert sorted(drawn) == [0, 256, 512, 768]
    assert (tmp_path / "stopped/samples.csv").read_bytes() == (tmp_path / "whole/samples.csv").read_bytes()


def test_other_commands_end_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusion_pl.pipeline import Pipeline
    from diffusion_pl.training import DiffusionModule

    fit(tmp_path)
    config = tiny_config(tmp_path)
    monkeypatch.setattr(DiffusionModule, "losses", lambda *args, **kwargs: signal.raise_signal(signal.SIGTERM))
    monkeypatch.setattr(Pipeline, "samples", lambda *args, **kwargs: signal.raise_signal(signal.SIGHUP))
    for command in ("validate", "test"):
        done = cli(tmp_path, command, "--config", config, "--ckpt_path", "runs/run")
        assert done.code == 143
        assert done.out.splitlines()[-1] == "stopped; nothing is kept. Repeat the command to start over"
    sweep = ("sweep", "--ckpt_path", "runs/run", "--samplers", "DDIM", "--nfe", 4, "--num_samples", 10)
    assert cli(tmp_path, *sweep).code == 128 + signal.SIGHUP
