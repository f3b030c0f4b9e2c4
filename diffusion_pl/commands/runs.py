"""python -m diffusion_pl runs: the runs in a folder, with how far they are."""

import re
from pathlib import Path

from ..runtime.output import Report

SHOWN = 3  # metrics of a run


def runs(folder: Path = Path("runs")) -> Report:
    """List the runs in a folder, a line each: state, optimizer steps done and planned, size on disk, last metrics.

    State is running, finished, stopped (by a signal; resume it with --ckpt_path last), failed (an error ended it), or
    dead: its process was killed, or its computer was switched off.

    Args:
        folder: Folder of the runs.
    """
    from ..runtime.run_listing import list_runs

    rows = [
        {
            "run": run.name,
            "state": run.state,
            "step": run.step,
            "of": run.max_steps,
            "MB": run.size / 1e6,
            "metrics": run.problem or _metrics(run.metrics),
        }
        for run in list_runs(folder)
    ]
    return Report(done=f"{len(rows)} runs in {folder}" if len(rows) != 1 else f"1 run in {folder}", rows=rows)


def _metrics(values: dict[str, float | str]) -> str:
    """The first of the last values: val_loss, then those of samples, then those of the training; none of parts of t."""
    whole = [name for name in values if not re.search(r"_t\d\.\d", name)]
    of_training = ("seen_loss", "loss", "grad", "learning_rate", "epoch", "data")
    whole.sort(key=lambda name: (not name.startswith("val_loss"), name.startswith(of_training), name))
    shown = {name: values[name] for name in whole[:SHOWN]}
    return "  ".join(f"{name} {value if isinstance(value, str) else f'{value:.4g}'}" for name, value in shown.items())
