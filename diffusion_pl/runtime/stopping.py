"""Signals and broken pipes that end a process, as one line and an exit status; without torch."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any, NoReturn, TextIO

from .processes import rank_label

#: Signals that end a process: of Ctrl-C, schedulers, a closed terminal, a time limit.
STOPPING = ("SIGINT", "SIGTERM", "SIGHUP", "SIGXCPU", "SIGUSR1", "SIGUSR2")


class Stopped(SystemExit):
    """A signal ended a command; the exit status is that of the shell, 128 and the signal's number."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)


@contextlib.contextmanager
def stoppable(how: str) -> Iterator[None]:
    """Within, signals end the command with one line and their own exit status.

    Args:
        how: what is kept and how to continue, for that line.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in numbers(STOPPING)}
    for number in before:
        signal.signal(number, stop_now)
    try:
        yield
    except Stopped:
        if not rank_label():  # of several processes the first prints
            print(f"\nstopped; {how}", flush=True)
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def output_may_break() -> Iterator[None]:
    """Within, a reader of the output that goes away, such as `tee`, ends this process as SIGTERM does."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (None if stream is None else _Unbroken(stream) for stream in before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


class _Unbroken:
    """A stream that discards what is written after its pipe has broken."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.broken = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except BrokenPipeError:
            self._silence()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except BrokenPipeError:
            self._silence()

    def _silence(self) -> None:
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, self._stream.fileno())  # its buffer, and everything else that writes there, goes here too
        os.close(nothing)
        self.broken = True
        os.kill(os.getpid(), signal.SIGTERM)


def stop_now(number: int, frame: Any) -> NoReturn:
    """A handler that raises Stopped."""
    raise Stopped(number)


def numbers(names: tuple[str, ...]) -> tuple[signal.Signals, ...]:
    """The signals that the system has, except a SIGHUP that nohup ignores."""
    there = [signal.Signals[name] for name in names if name in signal.Signals.__members__]
    return tuple(n for n in there if n.name != "SIGHUP" or signal.getsignal(n) is not signal.SIG_IGN)
