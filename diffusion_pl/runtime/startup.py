"""What a process needs before anything heavy is imported: streams that never fail, a home, and a first line."""

import atexit
import contextlib
import os
import pwd
import shutil
import sys
import tempfile

from .. import __version__


def prepare_streams() -> None:
    """Make stdout and stderr such that printing never fails, for any encoding, and also if they are closed."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        stream = getattr(sys, name)
        if stream is None:  # closed, as by >&-: its number must not go to the next file that is opened
            null = os.open(os.devnull, os.O_WRONLY if number else os.O_RDONLY)
            if null != number:
                os.dup2(null, number)
                os.close(null)
            setattr(sys, name, open(number, "w" if number else "r", encoding="utf-8", closefd=False))  # noqa: SIM115
        elif number and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def discard_output() -> None:
    """Discard what is still to be written to stdout, so that the interpreter can flush it at its end."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


def prepare_home() -> None:
    """Give libraries a name and a folder for their caches where the process has none, as in a container."""
    try:
        entry: pwd.struct_passwd | None = pwd.getpwuid(os.getuid())
    except KeyError:
        entry = None
    if entry is None and not any(os.environ.get(name) for name in ("LOGNAME", "USER", "LNAME", "USERNAME")):
        os.environ["LOGNAME"] = f"uid{os.getuid()}"  # for getpass.getuser, which torch asks
    home = os.environ.get("HOME") or (entry.pw_dir if entry else "")
    if _is_usable(home):
        return
    caches = tempfile.mkdtemp(prefix="diffusion_pl-")
    atexit.register(shutil.rmtree, caches, ignore_errors=True)
    where = f"the home folder {home} cannot be written" if home else "there is no home folder"
    print(f"diffusion_pl: warning: {where}: caches last for this call only (set HOME to keep them)", file=sys.stderr)
    if not home or not os.path.isdir(home):
        os.environ["HOME"] = caches
    os.environ.setdefault("MPLCONFIGDIR", os.path.join(caches, "matplotlib"))
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", os.path.join(caches, "inductor"))
    os.environ.setdefault("TRITON_CACHE_DIR", os.path.join(caches, "triton"))


def _is_usable(home: str) -> bool:
    """Whether the caches of libraries can be kept there; a folder that is yet to be made counts."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(home, ".cache")
    if not home or not os.path.isdir(home):
        return False
    return os.access(cache if os.path.isdir(cache) else home, os.W_OK | os.X_OK)


def say_loading() -> None:
    """The first line of a command on a terminal: the imports that follow take seconds."""
    say(f"diffusion_pl {__version__}: loading PyTorch …")


def say(what: str, shown: bool | None = None) -> None:
    """Say on stderr what is being done, so that there is no long silence.

    Args:
        what: a line.
        shown: whether somebody watches; None: if stderr is a terminal.
    """
    if sys.stderr.isatty() if shown is None else shown:
        print(what, file=sys.stderr, flush=True)
