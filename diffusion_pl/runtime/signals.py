"""Signals that stop a run or a command, in one process or many."""

import os
import signal
import subprocess
import threading
from enum import IntEnum
from typing import Any

import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException

from .stopping import STOPPING, Stopped, numbers, stop_now
from .upstream.lightning import signal_started_processes, stop_after_batch


class Wish(IntEnum):
    """What a signal asks of a process; of several, the largest counts."""

    GO_ON = 0
    STOP = 1
    REQUEUE = 2


class Signals:
    """Handles signals from its construction until Lightning restores the former handlers at the end of a fit.

    Lightning's own handlers would communicate with the other processes in the middle of a step, where these may be in
    another collective, and would write a checkpoint under another name before requeueing.

    Args:
        trainer: whose fit is to stop.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.wish = Wish.GO_ON
        self._trainer = trainer
        if threading.current_thread() is not threading.main_thread():
            return  # only the main thread may handle signals
        self._previous = signal.getsignal(signal.SIGINT)
        self._ended = False
        for number in numbers(STOPPING):
            signal.signal(number, self._on_signal)

    def end(self) -> None:
        """The run's last checkpoint is written: from now on a signal ends the process at once."""
        self._ended = self._trainer.world_size == 1  # others would wait for one that is gone

    def _on_signal(self, number: int, frame: Any) -> None:
        requeue = number in numbers(("SIGUSR1",)) and SLURMEnvironment.job_id() is not None
        self.wish = max(self.wish, Wish.REQUEUE if requeue else Wish.STOP)
        if self._ended:
            raise SIGTERMException
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, self._previous)
            if self._trainer.is_global_zero:
                print("\nstopping after this step (Ctrl-C again to stop immediately)", flush=True)
        if self._trainer.validating and self._trainer.world_size == 1:
            stop_after_batch(self._trainer)


class AfterBlock:
    """Within `stoppable`, lets the current samples be finished and kept first; a second signal ends at once.

    Args:
        trainer: that predicts; its other processes get the signal too.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._number: int | None = None
        if threading.current_thread() is threading.main_thread():
            # Lightning's own handler is there by now, which would only note the signal.
            for number in numbers(STOPPING):
                signal.signal(number, self._on_signal)

    def check(self) -> None:
        """Raise Stopped if the process got a signal."""
        if self._number is not None:
            raise Stopped(self._number)

    def _on_signal(self, number: int, frame: Any) -> None:
        if self._number is not None:
            stop_now(number, frame)
        self._number = number
        signal_started_processes(self._trainer, number)
        if self._trainer.is_global_zero:
            print("\nstopping after these samples (Ctrl-C again to stop immediately)", flush=True)


class Agreement:
    """The largest wish of all processes, which all get at the same step: one step after it was sent.

    By then it has arrived, and no process and no GPU waits for it.
    """

    def __init__(self) -> None:
        self._work: Any = None

    def __call__(self, wish: Wish, device: torch.device) -> Wish:
        """The largest wish at the previous call; every process must call equally often.

        Args:
            wish: of this process.
            device: on which the processes' tensors are reduced.
        """
        largest = self.last()
        self._flag = torch.full((1,), int(wish), dtype=torch.int32, device=device)
        self._work = dist.all_reduce(self._flag, dist.ReduceOp.MAX, async_op=True)
        if device.type == "cuda":
            self._work.wait()  # the stream, not this process
            self._flag = self._flag.to("cpu", non_blocking=True)
            self._work = torch.cuda.Event()
            self._work.record()
        return largest

    def last(self) -> Wish:
        """The largest wish at the last call."""
        if self._work is None:
            return Wish.GO_ON
        self._work.synchronize() if isinstance(self._work, torch.cuda.Event) else self._work.wait()
        self._work = None
        return Wish(int(self._flag.item()))


def requeue() -> str:
    """Have SLURM run this job again; the result, in words."""
    array, job = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ["SLURM_JOB_ID"]
    if array is not None:  # the job number of an array's last task alone is that of the whole array
        job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"`scontrol requeue {job}` failed, submit the job again ({error})"
    if done.returncode:
        return f"`scontrol requeue {job}` failed, submit the job again ({done.stderr.strip()})"
    return f"job {job} is requeued"
