"""Signals that tell a run to stop, in one process or many."""

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


class Wish(IntEnum):
    """What a process was told; of several, the largest counts."""

    GO_ON = 0
    STOP = 1
    REQUEUE = 2


class Signals:
    """Listens, from its making until Lightning puts the former handlers back, which it does at the end of a fit.

    Lightning's own handlers would talk to the other processes in the midst of a step, where these may be talking of
    something else, and would write a checkpoint under another name before requeueing.

    Args:
        trainer: whose fit is to stop.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.wish = Wish.GO_ON
        self._trainer = trainer
        if threading.current_thread() is not threading.main_thread():
            return  # only the main thread may handle signals
        self._previous = signal.getsignal(signal.SIGINT)
        for name in ("SIGINT", "SIGTERM", "SIGUSR1"):
            if hasattr(signal, name):  # Windows has no SIGUSR1
                signal.signal(getattr(signal, name), self._told)

    def _told(self, number: int, frame: Any) -> None:
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, self._previous)
            if self._trainer.is_global_zero:
                print("\nstopping after this step (once more: at once)", flush=True)
        requeue = number != signal.SIGINT and number != signal.SIGTERM and SLURMEnvironment.job_id() is not None
        self.wish = max(self.wish, Wish.REQUEUE if requeue else Wish.STOP)
        if self._trainer.validating and self._trainer.world_size == 1:
            stop(self._trainer)


class Agreement:
    """The largest wish of all processes, which all learn at the same step: one later than it is uttered.

    By then it has arrived, and no process and no GPU waits for it.
    """

    def __init__(self) -> None:
        self._work: Any = None

    def __call__(self, wish: Wish, device: torch.device) -> Wish:
        """The largest wish at the previous call; every process must call equally often.

        Args:
            wish: of this process.
            device: where the processes' tensors meet.
        """
        heard = self.last()
        self._flag = torch.full((1,), int(wish), dtype=torch.int32, device=device)
        self._work = dist.all_reduce(self._flag, dist.ReduceOp.MAX, async_op=True)
        if device.type == "cuda":
            self._work.wait()  # the stream, not this process
            self._flag = self._flag.to("cpu", non_blocking=True)
            self._work = torch.cuda.Event()
            self._work.record()
        return heard

    def last(self) -> Wish:
        """The largest wish at the last call."""
        if self._work is None:
            return Wish.GO_ON
        self._work.synchronize() if isinstance(self._work, torch.cuda.Event) else self._work.wait()
        self._work = None
        return Wish(int(self._flag.item()))


def stop(trainer: Trainer, now: bool = True) -> None:
    """Let Lightning end the fit after the batch at hand, where resuming is exact; or, with now=False, not yet."""
    trainer._signal_connector.received_sigterm = now


def requeue() -> str:
    """Have SLURM run this job again; what came of it, in words."""
    array, job = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ["SLURM_JOB_ID"]
    if array is not None:  # the number alone of an array's last task is that of the whole array
        job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"`scontrol requeue {job}` failed, submit the job again ({error})"
    if done.returncode:
        return f"`scontrol requeue {job}` failed, submit the job again ({done.stderr.strip()})"
    return f"job {job} is requeued"
