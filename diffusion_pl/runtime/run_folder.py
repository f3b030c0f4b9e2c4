"""The folder of a run: chosen once, by rank 0, and locked while `fit` writes to it."""

import contextlib
import os
import shutil
from pathlib import Path
from typing import Any

from ..checkpoints.exported import is_exported
from ..checkpoints.io import checkpoint_at, last_checkpoint, or_else, previous_checkpoint
from .limits import name_of_config
from .loggers import LEFTOVERS
from .processes import agree, find_peers
from .run_card import LOCK
from .storage import Lock, claim_folder, numbered

RUNS = Path("runs")  # unless trainer.default_root_dir names another folder
_VARIABLE = "DIFFUSION_PL_RUN"  # by which the first process of a run sends the others the folder that it chose


class RunFolder:
    """runs/NAME, or NAME-2, NAME-3 … where those are taken: chosen, published to the run's other processes, discarded.

    Attributes:
        path: the folder; None before `choose`.
        root: the folder of all runs: trainer.default_root_dir, or runs.
    """

    def __init__(self) -> None:
        self.path: Path | None = None
        self.root = RUNS
        self._published = os.environ.get(_VARIABLE)
        self._new = False
        self._lock: Lock | None = None

    @property
    def inherited(self) -> bool:
        """Whether another process of the run has chosen and published the folder."""
        return self._published is not None

    def choose(self, config: Any, command: str, claim: bool) -> tuple[Path, str | None]:
        """The folder, and the checkpoint to begin with, if any; the same in all processes of the run.

        Args:
            config: with run, ckpt_path, config (the files), trainer.num_nodes and trainer.default_root_dir.
            command: fit, validate, test or predict.
            claim: whether to make the folder, so that no other run gets it, and to lock it for fit.

        Raises:
            ValueError: a bad name, no checkpoint where the command needs one, or another process trains there.
            FileNotFoundError: there is no such checkpoint.
        """
        self.root = Path(config.trainer.default_root_dir or RUNS)
        if self.inherited:
            chosen = self._find(config, command, False)
        else:
            chosen = agree(lambda: self._find(config, command, claim), find_peers(config.trainer.num_nodes))
        self.path = Path(chosen["folder"])
        return self.path, chosen["ckpt_path"]

    def publish(self) -> None:
        """Pass the chosen folder to the processes that Lightning will start from this one, until `close`."""
        os.environ[_VARIABLE] = str(self.path)

    def close(self) -> None:
        """Release the folder for other processes."""
        os.environ.pop(_VARIABLE, None)
        if self._lock is not None:
            self._lock.release()

    def discard(self) -> None:
        """Remove the folder of a run that never began: this process has made it, and it contains only logs."""
        if self.path is None or not self._new or not self.path.is_dir():
            return
        if all(any(path.match(left) for left in (*LEFTOVERS, LOCK)) for path in self.path.iterdir()):
            shutil.rmtree(self.path, ignore_errors=True)
            if self.root == RUNS:
                with contextlib.suppress(OSError):  # there are other runs
                    RUNS.rmdir()

    def _find(self, config: Any, command: str, claim: bool) -> dict[str, Any]:
        if config.ckpt_path not in (None, "last", "auto"):
            named = config.ckpt_path
            config.ckpt_path = str(checkpoint_at(named))
            if command == "fit" and is_exported(Path(config.ckpt_path)):
                raise ValueError(f"{named} holds weights only, no run to resume. Fix: --init_from {named}")
        root = self.root
        ckpt_path, resumed = config.ckpt_path, config.ckpt_path in ("last", "auto")
        name = config.run or _default_name(config, root)
        folder = _folder_of(config, root) if self._published is None else Path(self._published)
        fresh = folder is None and not resumed
        if folder is None:
            folder = newest(name, root) if resumed else next(f for f in numbered(root, name) if not f.exists())
        if ckpt_path == "auto":
            candidates = (last_checkpoint(folder), previous_checkpoint(folder))
            ckpt_path = next((str(path) for path in candidates if path.is_file()), None)
        elif ckpt_path == "last":
            ckpt_path = str(last_checkpoint(folder))
        if ckpt_path is not None and not Path(ckpt_path).is_file():
            hint = or_else(Path(ckpt_path)) or ": nothing to continue from"
            raise FileNotFoundError(f"no checkpoint at {ckpt_path}{hint}")
        if command != "fit" and ckpt_path is None:
            raise ValueError(f"{command} needs trained weights: add --ckpt_path last (or a checkpoint's path)")
        if claim:
            folder = self._claim(folder, name if fresh else None, command)
        return {"folder": str(folder), "ckpt_path": ckpt_path}

    def _claim(self, folder: Path, name: str | None, command: str) -> Path:
        """Make the folder, or the first free one of a name for a new run, and lock it for fit."""
        new = name is not None
        if name is not None:  # another run that starts at the same time may have made it meanwhile
            folder = claim_folder(self.root, name)
        else:
            with contextlib.suppress(FileExistsError):
                folder.mkdir(parents=True)
                new = True
        self.path, self._new = folder, new  # of several processes that begin at once it is new to one
        if command == "fit":
            self._lock = Lock(folder / LOCK, f"{folder} is being trained by another process: wait, or stop it")
        return folder


def newest(name: str, root: Path = RUNS) -> Path:
    """The newest of root/NAME, NAME-2, NAME-3 … that holds a checkpoint; root/NAME if none does."""
    used = []
    for folder in numbered(root, name):
        if not folder.exists():
            break
        used.append(folder)
    kept = (f for f in reversed(used) if last_checkpoint(f).is_file() or previous_checkpoint(f).is_file())
    return next(kept, root / name)


def _folder_of(config: Any, root: Path) -> Path | None:
    """The run to which a checkpoint given by its path belongs, unless --run names another."""
    path = Path(str(config.ckpt_path)).absolute()
    folder = path.parent.parent
    if not folder.is_relative_to(root.absolute()) or path not in (last_checkpoint(folder), previous_checkpoint(folder)):
        return None
    name = folder.relative_to(root.absolute())
    return root / name if config.run in (None, str(name)) else None


def _default_name(config: Any, root: Path) -> str:
    """configs/datasaurus/vp.yaml -> datasaurus-vp; further files add their names."""
    paths = [Path(str(path)) for path in config.config or []]
    if len(paths) == 1 and paths[0].absolute().parent.parent == root.absolute():  # runs/NAME/config.yaml
        return paths[0].absolute().parent.name
    return name_of_config(paths)
