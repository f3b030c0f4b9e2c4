"""The run card: what was run, on what, how it ended and what came out, in one file next to the checkpoints."""

import contextlib
import os
import shlex
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException

from ..conditions import class_names
from ..data.base import classes_named
from ..runtime import provenance
from ..runtime.loggers import identities_of
from ..runtime.run_card import CARD, one_line, plain, read_card, write_card
from ..runtime.storage import numbered
from ..runtime.upstream.lightning import batches_trained
from ..runtime.usage import peak_memory
from ..training import LeanCallback


class RunCard(LeanCallback):
    """Keeps card.json in the run's folder: written when `fit` starts, with every checkpoint, and at the end, also after
    an error.  `validate` and `test` append their metrics to the card of their run.

    The card is plain JSON; values that are not finite are strings, times UTC, durations seconds, memory bytes:

        status, error       "running", "finished", "stopped" (by a signal), or "failed" and then the error in one line
        run, config_file    the folder, and the file with the resolved configuration, which is also here as `config`
        command             as it was typed
        versions, git, seeds, data, hardware, parallel
                            see the functions of these names in `provenance`
        parameters          of the model
        logged_to           ids of the runs of W&B and MLflow, by the loggers' classes
        steps, examples_seen
                            that the model was trained with, over all that it was resumed from
        wall_seconds        from the set-up of the data to the end, over all sessions in this folder
        peak_memory         of the last session, on the first process
        metrics             the newest, {"step", "values"}, under their tags, which name the weights
        validated_step      after which the last validation came to its end: one that is due later is still to be made
        sessions            one a call of fit: start, end, status ("killed" if it wrote no end), error, from_step,
                            to_step, world_size, resumed_from, wall_seconds, and `then`: what of the above, from `run`
                            to `logged_to` and `config`, was another than in the next session
        evaluations         of validate and test: time, command, checkpoint, step, metrics
        init_from           of a run that began with another one's weights: path, sha256, weights, step, skipped
        teachers            of a run that learns from trained models: path, sha256, weights, scale of each

    Environment variables are not written, nor names of people or machines.  If the card cannot be written, a warning
    says so, and the run continues.

    Args:
        config: the resolved configuration, plain values.
        arguments: the command line after `python -m diffusion_pl`.
        init_from: what WarmStart.load returned; None: the run began with weights of its own.
        teachers: what Teacher.note returned of each.
    """

    def __init__(
        self,
        config: dict[str, Any],
        arguments: Sequence[str],
        init_from: dict[str, Any] | None = None,
        teachers: Sequence[dict[str, Any]] = (),
    ) -> None:
        self.config, self.init_from, self.teachers = config, init_from, list(teachers)
        self.command = shlex.join(["python", "-m", "diffusion_pl", *arguments])
        self._card: dict[str, Any] | None = None  # of a fit, on the first process
        self._running = False  # on any process
        self._before: tuple[int, int | None] | None = None  # batches and examples when the training of this call began
        self._metrics: dict[str, float] = {}
        self._loaded: dict[str, Any] = {}
        self._warned: set[str] = set()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._card, self._before, self._metrics, self._loaded = None, None, {}, {}
        self._start, self._began = _now(), time.monotonic()
        self._parameters = sum(p.numel() for p in pl_module.parameters())  # now: some strategies deal them out later

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._loaded = {name: checkpoint.get(name) for name in ("global_step", "examples_seen")}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Not earlier: a run that is refused leaves the card of the one before.
        parallel = provenance.parallel(trainer)
        self._batch = parallel["global_batch"]
        batches = batches_trained(trainer)
        before = self._loaded.get("examples_seen")
        if before is None and self._batch is not None:  # a new run, or a checkpoint older than these cards
            before = batches * self._batch
        self._before = batches, before
        self._running = not trainer.fast_dev_run
        if trainer.fast_dev_run or not trainer.is_global_zero:
            return
        folder = Path(trainer.default_root_dir)
        print(f"run: {folder}", flush=True)
        data = getattr(trainer, "datamodule", None)
        names = class_names(getattr(data, "conditions", {}))
        if names is not None and names != [str(k) for k in range(len(names))]:
            print(classes_named(range(len(names)), names), flush=True)
        facts = {
            "run": str(folder),
            "config_file": str(folder / "config.yaml"),
            "command": self.command,
            "versions": provenance.versions(),
            "git": {"working_directory": provenance.git_state(Path.cwd()), "package": provenance.package_state()},
            "seeds": provenance.seeds(data),
            "data": provenance.fingerprint(data),
            "hardware": provenance.hardware(trainer),
            "parallel": parallel,
            "parameters": self._parameters,
            "logged_to": identities_of(trainer),
            **({"teachers": self.teachers} if self.teachers else {}),
            "config": self.config,
        }
        session = {
            "start": self._start,
            "end": None,
            "status": "running",
            "error": None,
            "from_step": trainer.global_step,
            "to_step": trainer.global_step,
            "world_size": trainer.world_size,
            "resumed_from": None if trainer.ckpt_path is None else str(trainer.ckpt_path),
            "wall_seconds": 0.0,
        }
        self._card = self._begin(folder / CARD, plain(facts), session)
        self._refresh(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["examples_seen"] = self._examples(trainer)
        if self._running:
            # The card of a killed run must contain as much as the checkpoint from which it will be resumed.
            self._look(trainer)
            self._refresh(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._look(trainer)

    on_fit_end = on_train_end  # other callbacks may measure at the end of the training

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # Not earlier: what other callbacks do at the end of the training may fail.
        self._close(trainer, "finished")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if isinstance(exception, (SIGTERMException, KeyboardInterrupt)):
            if self._running and isinstance(exception, SIGTERMException):  # which all processes get at the same step
                self._look(trainer)
            self._close(trainer, "stopped")
        else:
            self._close(trainer, "failed", one_line(exception))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "validate":
            self._append(trainer)
        elif self._running and not trainer.sanity_checking:
            # Now that its values are logged: a run that resumes from the checkpoint of this step reads it.
            self._look(trainer)
            if self._card is not None:
                self._card["validated_step"] = trainer.global_step
            self._refresh(trainer)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._append(trainer)

    def _begin(self, path: Path, facts: dict[str, Any], session: dict[str, Any]) -> dict[str, Any]:
        """A card with this session, after those of the card that is there."""
        sessions: list[dict[str, Any]] = []
        now: dict[str, Any] = dict.fromkeys(("steps", "examples_seen", "wall_seconds", "peak_memory"))
        kept: dict[str, Any] = {"metrics": None, "validated_step": 0, "evaluations": []}
        try:
            old = read_card(path)
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as error:
            self._warn(f"{one_line(error)}; a new card is begun")
            if isinstance(error, ValueError):
                names = (f"{other.name}.json" for other in numbered(path.parent, f"{path.stem}.damaged"))
                free = next(name for name in names if not path.with_name(name).exists())
                self._try(lambda: os.rename(path, path.with_name(free)))
        else:
            sessions = old["sessions"]
            kept = {name: old.get(name, value) for name, value in kept.items()}
            if "init_from" in old:
                kept["init_from"] = old["init_from"]
            kept["validated_step"] = min(int(kept["validated_step"]), session["from_step"])  # what follows comes again
            if sessions[-1]["status"] == "running":
                sessions[-1]["status"] = "killed"
            if others := {name: old.get(name) for name, fact in facts.items() if old.get(name) != fact}:
                sessions[-1]["then"] = others
        if self.init_from is not None:
            kept["init_from"] = self.init_from
        head, config = {"status": "running", "error": None}, facts.pop("config")  # last: it is long
        return {**head, **facts, **now, **kept, "sessions": [*sessions, session], "config": config}

    def _examples(self, trainer: Trainer) -> int | None:
        """Number of examples that the model has seen so far; None if the batch size is unknown."""
        if self._before is None or self._batch is None:
            return None
        batches, examples = self._before
        return None if examples is None else int(examples + (batches_trained(trainer) - batches) * self._batch)

    def _look(self, trainer: Trainer) -> None:
        # On every process: what is averaged over all of them may have to be exchanged.
        self._metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}

    def _close(self, trainer: Trainer, status: str, error: str | None = None) -> None:
        self._running = False
        if self._card is None:
            return
        session = self._card["sessions"][-1]
        # An error after the end of training still counts; the status of a failed or stopped run stays.
        if session["status"] == "running" or (session["status"] == "finished" and status == "failed"):
            session |= {"status": status, "error": error}
            self._refresh(trainer)

    def _refresh(self, trainer: Trainer) -> None:
        """Bring the card up to the present and write it."""
        card = self._card
        if card is None:
            return
        sessions = card["sessions"]
        sessions[-1] |= {
            "end": None if sessions[-1]["status"] == "running" else _now(),
            "to_step": trainer.global_step,
            "wall_seconds": round(time.monotonic() - self._began, 3),
        }
        card |= {
            **{name: sessions[-1][name] for name in ("status", "error")},
            "steps": trainer.global_step,
            "examples_seen": self._examples(trainer),
            "wall_seconds": round(sum(session["wall_seconds"] for session in sessions), 3),
            "peak_memory": peak_memory(),
        }
        if self._metrics:
            card["metrics"] = {"step": trainer.global_step, "values": self._metrics}
        path = Path(trainer.default_root_dir) / CARD
        with contextlib.suppress(OSError, ValueError):  # validate may have appended to it meanwhile
            card["evaluations"] = read_card(path).get("evaluations", [])
        self._try(lambda: write_card(card, path))

    def _append(self, trainer: Trainer) -> None:
        """Append what was evaluated to the card of the run, if there is one."""
        self._look(trainer)
        path = Path(trainer.default_root_dir) / CARD
        if trainer.fast_dev_run or not trainer.is_global_zero or not path.exists():
            return
        entry = {
            "time": _now(),
            "command": self.command,
            "checkpoint": None if trainer.ckpt_path is None else str(trainer.ckpt_path),
            "step": self._loaded.get("global_step"),
            "metrics": self._metrics,
        }

        def append() -> None:
            card = read_card(path)
            write_card({**card, "evaluations": [*card.get("evaluations", []), entry]}, path)

        self._try(append)

    def _try(self, change: Callable[[], object]) -> None:
        try:
            change()
        except (OSError, ValueError) as error:
            self._warn(f"the run card cannot be kept: {one_line(error)}; the run itself continues")

    def _warn(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            print(f"diffusion_pl: warning: {message}", flush=True)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
