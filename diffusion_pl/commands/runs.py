"""python -m diffusion_pl runs: the runs in a folder, with how far they are."""

import re
from pathlib import Path

from ..runtime.output import Report


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
            "metrics": run.problem or _ordered(run.metrics),
        }
        for run in list_runs(folder)
    ]
    return Report(done=f"{len(rows)} runs in {folder}" if len(rows) != 1 else f"1 run in {folder}", rows=rows)


#: Beginnings of names of metrics, in the order in which they are shown; others come after the validation loss.
FIRST = "val_loss"
LAST = (
    *("seen_loss", "train_loss", "learning_rate", "gradient_norm", "guard", "scaler"),
    *("examples_per_second", "memory_gib", "epoch", "data", "samples", "neighbours"),
)


def _ordered(values: dict[str, float | str]) -> dict[str, float | str]:
    """The last values: val_loss, other metrics of the model, of the training; noise levels at the end."""

    def place(name: str) -> tuple[bool, int, str]:
        of_a_noise_level = re.search(r"_t\d\.\d", name) is not None
        rank = next((k for k, begin in enumerate(LAST, 1) if name.startswith(begin)), 0)
        return of_a_noise_level, -1 if name.startswith(FIRST) else rank, name

    return {name: values[name] for name in sorted(values, key=place)}
