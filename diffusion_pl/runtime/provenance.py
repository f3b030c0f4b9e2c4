"""Where a run comes from: versions, git revision, machine, and a fingerprint of its data.  Plain values only.

Nothing here names a person or a machine, and no environment variable is read but the seed's.
"""

import hashlib
import importlib.metadata
import math
import os
import platform
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer

from .. import __version__
from ..conditions import class_count, class_names
from ..data import DataModule
from ..data.base import SPLITS
from ..data.loader import Loader
from ..training import global_batch
from .upstream.lightning import global_seed

EXAMPLES = 1000  # of the data's fingerprint, at most
_PACKAGES = ("torch", "lightning", "torchvision", "torchmetrics", "torch-fidelity", "numpy")
_GIT_SECONDS = 2.0  # a slow disk or a huge repository must not hold up a run


def versions() -> dict[str, str | None]:
    """Of the package, of Python and of the libraries that results depend on; None of one that is not installed."""
    of_packages: dict[str, str | None] = {"diffusion_pl": __version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            of_packages[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            of_packages[name] = None
    return of_packages


def git_state(folder: Path) -> dict[str, Any] | None:
    """{"revision", "dirty"} of the repository around a folder; None without one, without a commit, or without git.

    Dirty: a tracked file differs from the revision.  Untracked files do not count, or the runs' own folder would.

    Nothing that the repository configures is run: a downloaded one may name programs in its .git/config (fsmonitor,
    filters, hooks) that git would start.
    """
    repository = _repository(folder)
    revision = None if repository is None else _revision(*repository[1:])
    if repository is None or revision is None:
        return None
    changes = _git(
        folder, repository, revision, "status", "--porcelain", "--untracked-files=no", "--ignore-submodules=all"
    )
    return {"revision": revision, "dirty": None if changes is None else changes != ""}


def package_state() -> dict[str, Any] | None:
    """`git_state` of this package's own checkout; None if it is installed, be it somewhere within a repository."""
    folder = Path(__file__).parent
    repository = _repository(folder)
    revision = None if repository is None else _revision(*repository[1:])
    if repository is None or revision is None:
        return None
    known = _git(folder, repository, revision, "ls-files", "--error-unmatch", "__init__.py")
    return None if known is None else git_state(folder)


def _repository(folder: Path) -> tuple[Path, Path, Path] | None:
    """The work tree around a folder, its .git, and the .git that it shares with other work trees."""
    for root in (folder.absolute(), *folder.absolute().parents):
        git = root / ".git"
        if git.is_file():  # of a further work tree, or a submodule
            text = git.read_text(encoding="utf-8", errors="replace")
            git = root / text.partition("gitdir:")[2].strip()
        if (git / "HEAD").is_file():
            shared = git / "commondir"
            common = git / shared.read_text(encoding="utf-8").strip() if shared.is_file() else git
            return root, git, common
    return None


def _revision(git: Path, common: Path) -> str | None:
    """The commit of HEAD, read from files; None before the first commit."""
    try:
        name = (git / "HEAD").read_text(encoding="utf-8").strip()
        for _ in range(5):  # symbolic references
            if re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", name):
                return name
            name = name.removeprefix("ref:").strip()
            if ".." in name:
                return None
            file = next((place / name for place in (git, common) if (place / name).is_file()), None)
            if file is None:
                packed = (common / "packed-refs").read_text(encoding="utf-8", errors="replace")
                return next((line.split()[0] for line in packed.splitlines() if line.endswith(f" {name}")), None)
            name = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError, IndexError):
        pass
    return None


def _git(folder: Path, repository: tuple[Path, Path, Path], revision: str, *args: str) -> str | None:
    """Output of git with a configuration of our own, and the repository's objects and index; None if it fails."""
    root, git, common = repository
    version, hashes = ("1", "[extensions]\nobjectFormat = sha256\n") if len(revision) == 64 else ("0", "")
    settings = f"[core]\nrepositoryFormatVersion = {version}\nbare = false\nfileMode = false\n{hashes}"
    try:
        with tempfile.TemporaryDirectory(prefix="diffusion_pl-") as name:
            own = Path(name)
            (own / "objects").mkdir()
            (own / "refs").mkdir()
            (own / "HEAD").write_text(f"{revision}\n", encoding="utf-8")
            (own / "config").write_text(settings, encoding="utf-8")
            for file in (git / "index", *git.glob("sharedindex.*")):
                # With its time, by which git knows files that may have changed in the same tick and must be read.
                shutil.copy2(file, own / file.name)
            environment = {
                **{key: value for key, value in os.environ.items() if not key.startswith("GIT_")},
                "GIT_DIR": str(own),
                "GIT_WORK_TREE": str(root),
                "GIT_OBJECT_DIRECTORY": str(common / "objects"),
                "GIT_CONFIG_NOSYSTEM": "1",
                "GIT_CONFIG_GLOBAL": os.devnull,
                "GIT_ATTR_NOSYSTEM": "1",
                "GIT_ALLOW_PROTOCOL": "",
                "GIT_NO_LAZY_FETCH": "1",
                "GIT_OPTIONAL_LOCKS": "0",
            }
            options: dict[str, Any] = {"stdin": subprocess.DEVNULL, "capture_output": True, "timeout": _GIT_SECONDS}
            done = subprocess.run(["git", *args], cwd=folder, env=environment, **options)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode(errors="replace").strip() if done.returncode == 0 else None


def seeds(data: Any) -> dict[str, int | None]:
    """The run's, which seed_everything leaves in the environment, and the data's."""
    return {"run": global_seed(), "data": getattr(data, "seed", None)}


def fingerprint(data: Any) -> dict[str, Any] | None:
    """What identifies a data set; None of what is no DataModule.  Needs ``setup``.

    Returns:
        class, splits (their sizes), shape, classes, levels; class_names, and class_counts of the training split;
        `examples` of so many (`of`), which are the first of the training split and each `every`-th after it; `sha256`
        of each of their tensors, such as x and label: of its bytes as it is stored, C order, with its dtype.
    """
    if not isinstance(data, DataModule):
        return None
    splits = {split: len(data.part(split)) for split in SPLITS}
    every = -(-splits["train"] // EXAMPLES)
    indices = range(0, splits["train"], every)
    digests: dict[str, Any] = {}
    dtypes: dict[str, str] = {}
    for first in range(0, len(indices), 100):  # large images need not be in memory all at once
        for name, values in data.stored(torch.tensor(indices[first : first + 100])).items():
            digests.setdefault(name, hashlib.sha256()).update(values.contiguous().numpy().tobytes())
            dtypes[name] = str(values.dtype).removeprefix("torch.")
    return {
        "class": type(data).__name__,
        "splits": splits,
        "shape": list(data.shape),
        "classes": class_count(data.conditions),
        "levels": data.units.levels,
        "class_names": class_names(data.conditions),
        "class_counts": data.class_counts,
        "examples": len(indices),
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
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def parallel(trainer: Trainer) -> dict[str, Any]:
    """How the work is divided.  Batches in examples; `global_batch` is the batch of all processes together, before
    accumulation."""
    loader: Any = trainer.train_dataloader
    own_loader = isinstance(loader, Loader)
    return {
        "precision": str(trainer.precision),
        "strategy": type(trainer.strategy).__name__,
        "world_size": trainer.world_size,
        "num_nodes": trainer.num_nodes,
        "batch_per_process": loader.batch_size // trainer.world_size if own_loader else None,
        "global_batch": global_batch(trainer),
        "accumulate_grad_batches": trainer.accumulate_grad_batches,
    }


def describe(thing: Any) -> Any:
    """An object of this package as plain values: {"class": its name, and its numbers, names and parts}."""
    if isinstance(thing, float) and not math.isfinite(thing):
        return str(thing)  # JSON has no infinity
    if thing is None or isinstance(thing, (bool, int, float, str)):
        return thing
    if isinstance(thing, (list, tuple)):
        return [describe(part) for part in thing]
    parts = {name: describe(part) for name, part in sorted(vars(thing).items()) if not name.startswith("_")}
    return {"class": type(thing).__name__, **parts}
