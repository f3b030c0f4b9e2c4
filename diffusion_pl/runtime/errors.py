"""Errors as one line that says what is wrong, where and how to fix it."""

import logging
import re
import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .messages import explain
from .processes import rank_label, report_from_rank_zero
from .startup import discard_output
from .upstream.torch import memory_asked

# Errors of the input are of these classes; any other is unexpected.
EXPECTED = (ValueError, OSError)

#: By name, since importing their libraries takes time.
_REFUSALS = ("MisconfigurationException", "UsageError", "CommError", "AuthenticationError", "MlflowException")
_UNEXPECTED = 1  # exit status
_INTERRUPTED = 130
_ROOT = Path(__file__).parents[1]


class Status:
    """Exit status of a guarded command."""

    code = 0


@contextmanager
def guard(debug: bool, args: Sequence[str]) -> Iterator[Status]:
    """Turn every exception of the block into one line on stderr and an exit status.

    2: something is wrong with the input, and the line says what.  1: an unexpected error.  130: Ctrl-C.  141: the
    reader of the output has gone.

    Args:
        debug: print the traceback as well.
        args: the command line.
    """
    status = Status()
    try:
        yield status
    except BrokenPipeError:
        status.code = 141
        discard_output()
    except KeyboardInterrupt:
        if debug:
            traceback.print_exc()
        status.code = _INTERRUPTED
        print("diffusion_pl: interrupted", file=sys.stderr)
    except Exception as error:
        if debug:
            traceback.print_exc()
        report_from_rank_zero()
        where = f"{rank_label()}: " if rank_label() else ""
        status.code, text = status_and_line(error, args)
        text = re.sub(r"\S{300,}", lambda word: f"{word[0][:100]}…", text)  # a value too long to print
        print(f"diffusion_pl: error: {where}{text}", file=sys.stderr)


def status_and_line(error: Exception, args: Sequence[str]) -> tuple[int, str]:
    """Exit status and line of an error.

    Args:
        error: of any class.
        args: the command line.
    """
    name, text = type(error).__name__, str(error)
    if unlogged := _unlogged_metric(error):
        return 2, unlogged
    if isinstance(error, EXPECTED) or name in _REFUSALS:
        return 2, explain(error, args)
    if (size := memory_asked(error)) is not None:
        of = f" (for another {size})" if size else ""
        return 2, f"out of memory{of}. Fix: a smaller --data.batch_size or network, or --trainer.precision bf16-mixed"
    if isinstance(error, ImportError):
        return 2, f"a package is missing or broken: {explain(error)}"
    text = " ".join(text.split())
    text = f": {text[:300]}" if text else ""
    hint = "run with --debug for the traceback, and report it"
    return _UNEXPECTED, f"unexpected error: {name}{text} (at {_origin(error)}); {hint}"


def _unlogged_metric(error: BaseException) -> str:
    """The line of an error that a callback of the trainer raised since the metric it monitors is not logged; or ""."""
    frames = [frame.f_locals for frame, _ in traceback.walk_tb(error.__traceback__)]
    metrics: Mapping[str, Any] = next(
        (f["trainer"].callback_metrics for f in frames if hasattr(f.get("trainer"), "callback_metrics")), {}
    )
    callback = frames[-1].get("self") if frames else None
    metric = getattr(callback, "monitor", None)
    if not isinstance(metric, str) or metric in metrics:
        return ""
    known = [name for name in map(str, metrics) if "_t0" not in name]
    remedy = f"choose one of {', '.join(known)}" if known else "none has been logged yet"
    return f"trainer.callbacks: {type(callback).__name__}: there is no metric {metric} to monitor; {remedy}"


def _origin(error: BaseException) -> str:
    """module:line of the last function of this package on the way to an error; else of the last function."""
    frames = traceback.extract_tb(error.__traceback__)
    own_frames = [frame for frame in frames if Path(frame.filename).is_relative_to(_ROOT)]
    own_frames = [frame for frame in own_frames if Path(frame.filename).name not in ("__main__.py", "errors.py")]
    if not frames:
        return "an unknown place"
    frame = (own_frames or frames)[-1]
    path = Path(frame.filename)
    return f"{path.relative_to(_ROOT.parent) if own_frames else path.name}:{frame.lineno}"


def quiet() -> None:
    """Silence the libraries' messages about themselves; warnings about the run stay."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*`weights_only` was not set.*")
