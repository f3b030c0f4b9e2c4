"""python -m diffusion_pl runs: the runs in a folder, with how far they are."""

import re
from pathlib import Path

SHOWN = 3  # metrics of a run


def runs(folder: Path = Path("runs"), json: bool = False) -> None:
    """List the runs in a folder, a line each: state, optimizer steps done and planned, size on disk, last metrics.

    State is running, finished, stopped (by a signal; resume it with --ckpt_path last), failed (an error ended it), or
    dead: its process was killed, or its computer was switched off.

    Args:
        folder: Folder of the runs.
        json: Print the same as JSON, with all metrics.
    """
    from dataclasses import asdict
    from json import dumps

    from ..runtime.run_listing import list_runs
    from ..runtime.text_table import text_table

    listed = list_runs(folder)
    if json:
        print(dumps([asdict(run) for run in listed], indent=2, ensure_ascii=False))
        return
    if not listed:
        print(f"no runs in {folder}")
        return
    rows = []
    for run in listed:
        step = "" if run.step is None else f"{run.step:,}"
        steps = f"{step} of {run.max_steps:,}" if step and run.max_steps else step
        rows.append((run.name, run.state, steps, _bytes(run.size), run.problem or _metrics(run.metrics)))
    print(text_table(("run", "state", "step", "size", "metrics"), rows))


def _metrics(values: dict[str, float | str]) -> str:
    """The first of the last values: val_loss, then those of samples, then those of the training; none of parts of t."""
    whole = [name for name in values if not re.search(r"_t\d\.\d", name)]
    of_training = ("seen_loss", "loss", "grad", "learning_rate", "epoch", "data")
    whole.sort(key=lambda name: (not name.startswith("val_loss"), name.startswith(of_training), name))
    shown = {name: values[name] for name in whole[:SHOWN]}
    return "  ".join(f"{name} {value if isinstance(value, str) else f'{value:.4g}'}" for name, value in shown.items())


def _bytes(size: int) -> str:
    value, unit = float(size), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
