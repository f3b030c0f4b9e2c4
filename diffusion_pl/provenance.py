"""Where a run comes from: versions, git revision, machine, and a fingerprint of its data.  Plain values only.

Nothing here names a person or a machine, and no environment variable is looked at but the seed's.
"""

import hashlib
import importlib.metadata
import os
import platform
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer

from . import __version__
from .data import DataModule
from .data.base import SPLITS
from .data.loader import Loader

EXAMPLES = 1000  # of the data's fingerprint, at most
_PACKAGES = ("torch", "lightning", "torchvision", "torchmetrics", "torch-fidelity", "numpy")
_GIT_SECONDS = 2.0  # a slow disk or a huge repository must not hold up a run


def versions() -> dict[str, str | None]:
    """Of the package, of Python and of the libraries that figures depend on; None of one that is not installed."""
    found: dict[str, str | None] = {"diffusion_pl": __version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def git_state(folder: Path) -> dict[str, Any] | None:
    """{"revision", "dirty"} of the repository around a folder; None without one, without a commit, or without git.

    Dirty: a tracked file differs from the revision.  Untracked files do not count, or the runs' own folder would.
    """
    revision = _git(folder, "rev-parse", "HEAD")
    if revision is None:
        return None
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return {"revision": revision, "dirty": None if changes is None else changes != ""}


def package_state() -> dict[str, Any] | None:
    """`git_state` of this package's own checkout; None if it is installed, be it somewhere within a repository."""
    folder = Path(__file__).parent
    return None if _git(folder, "ls-files", "--error-unmatch", "__init__.py") is None else git_state(folder)


def _git(folder: Path, *args: str) -> str | None:
    """What git answers; None if there is no answer."""
    command = ["git", "--no-optional-locks", "-C", str(folder), *args]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_GIT_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode(errors="replace").strip() if done.returncode == 0 else None


def seeds(data: Any) -> dict[str, int | None]:
    """The run's, which seed_everything leaves in the environment, and the data's."""
    seed = os.environ.get("PL_GLOBAL_SEED")
    return {"run": None if seed is None else int(seed), "data": getattr(data, "seed", None)}


def fingerprint(data: Any) -> dict[str, Any] | None:
    """What tells one data set from another; None of what is no DataModule.  Needs ``setup``.

    Returns:
        class, splits (their sizes), shape, classes, levels; class_names, and class_counts of the training split;
        `examples` of so many (`of`), which are the first of the training split and each `every`-th after it; `sha256`
        of each of their tensors, such as x and label: of its bytes as it is stored, C order, with its dtype.
    """
    if not isinstance(data, DataModule):
        return None
    splits = {split: len(data.part(split)) for split in SPLITS}
    every = -(-splits["train"] // EXAMPLES)
    numbers = range(0, splits["train"], every)
    digests: dict[str, Any] = {}
    dtypes: dict[str, str] = {}
    for first in range(0, len(numbers), 100):  # large pictures need not be in memory all at once
        for name, values in data.stored(torch.tensor(numbers[first : first + 100])).items():
            digests.setdefault(name, hashlib.sha256()).update(values.contiguous().numpy().tobytes())
            dtypes[name] = str(values.dtype).removeprefix("torch.")
    return {
        "class": type(data).__name__,
        "splits": splits,
        "shape": list(data.shape),
        "classes": data.classes,
        "levels": data.levels,
        "class_names": data.class_names,
        "class_counts": data.class_counts,
        "examples": len(numbers),
        "of": splits["train"],
        "every": every,
        "sha256": {name: digest.hexdigest() for name, digest in digests.items()},
        "dtype": dtypes,
    }


def hardware(trainer: Trainer) -> dict[str, Any]:
    """Of this process's machine.  Memory in bytes; `accelerators` are those that the run uses here."""
    device = trainer.strategy.root_device
    indices = trainer.device_ids if device.type == "cuda" else []
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "usable_cores": usable,
        "threads": torch.get_num_threads(),
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "device": device.type,
        "devices": trainer.num_devices,
        "accelerators": [torch.cuda.get_device_name(index) for index in indices],
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def parallel(trainer: Trainer) -> dict[str, Any]:
    """How the work is shared out.  Batches in examples; `global_batch` is what all processes see between two sums of
    gradients, before accumulation."""
    loader: Any = trainer.train_dataloader
    ours = isinstance(loader, Loader)
    return {
        "precision": str(trainer.precision),
        "strategy": type(trainer.strategy).__name__,
        "world_size": trainer.world_size,
        "num_nodes": trainer.num_nodes,
        "batch_per_process": loader.batch_size // trainer.world_size if ours else None,
        # A training set smaller than one batch is one batch.
        "global_batch": min(loader.batch_size, loader.num_visits) if ours else None,
        "accumulate_grad_batches": trainer.accumulate_grad_batches,
    }


def peak_memory() -> dict[str, int | None]:
    """Of this process since it began, in bytes: resident, and allocated on the current CUDA device."""
    unit = 1 if sys.platform == "darwin" else 1024
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return {"rss": rss, "cuda": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None}
