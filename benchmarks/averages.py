"""What snapshots of power-function EMA weights cost: the share of a training step, spread over all steps.

    python benchmarks/averages.py [CONFIG] [STEPS]

`fit` of a configuration (by default cifar10/ddpm, 35.7 M parameters, on random images, batch 16) with two
power-function EMAs and a snapshot every eighth step.  An ordinary step is the median of those that are far from a
snapshot; a snapshot costs the median excess of the three steps from it on, in which a thread writes it.
"""

import contextlib
import io
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, ClassVar

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT)]

from lightning.pytorch import Callback, LightningModule, Trainer  # noqa: E402

EVERY, SPAN = 8, 3  # steps between snapshots; steps that a snapshot may slow down


class Clock(Callback):
    """The time at the start of every step; `main` prints the medians."""

    times: ClassVar[list[float]] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        self.times.append(time.perf_counter())


def main(config: str = "", steps: int = 66) -> None:
    """Train, and print what a snapshot costs as a share of a step, at the distance that a run of 10,000 steps has."""
    import numpy as np
    from averages import Clock  # the one that the configuration names

    from diffusion_pl.__main__ import main as diffusion_pl
    from diffusion_pl.checkpoints.snapshots import find, first_interval

    options = ["--trainer.max_steps", str(steps), "--trainer.accelerator", "cpu", "--doctor", "false"]
    options += [
        "--ema.stds",
        "[0.05, 0.1]",
        "--ema.snapshot_every",
        str(EVERY),
        "--trainer.callbacks",
        "averages.Clock",
    ]
    options += ["--trainer.enable_progress_bar", "false", "--run", "run", "--trainer.val_check_interval", "100000"]
    if not config:
        np.save("x.npy", np.random.default_rng(0).integers(0, 256, (1200, 3, 32, 32), np.uint8))
        options += ["--data", "Arrays", "--data.init_args.path", "x.npy", "--data.init_args.batch_size", "16"]
        options += ["--data.init_args.val_fraction", "0.02"]
    with contextlib.redirect_stdout(io.StringIO()):
        code = diffusion_pl(["fit", "--config", config or str(ROOT / "configs/cifar10/ddpm.yaml"), *options])
    assert code == 0
    took = [after - before for before, after in zip(Clock.times, Clock.times[1:], strict=False)]
    # took[k] ends when step k + 2 starts, so it contains what happens after step k + 1.
    starts = range(2 * EVERY - 1, len(took) - SPAN, EVERY)
    ordinary = statistics.median(t for k, t in enumerate(took) if k > EVERY and (k + 1) % EVERY >= SPAN)
    excess = statistics.median(sum(took[k : k + SPAN]) - SPAN * ordinary for k in starts)
    size = max(path.stat().st_size for path in find(Path("runs/run")).values())
    print(f"a step {1e3 * ordinary:.1f} ms, a snapshot of {size / 1e6:.1f} MB {1e3 * excess:.1f} ms more")
    for length in (10_000, 100_000, 1_000_000):
        every = first_interval(length, 64)
        print(
            f"a run of {length:,} steps, every {every:,}: {100 * excess / ordinary / every:.3f} % of a step", flush=True
        )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        main(*sys.argv[1:2], *map(int, sys.argv[2:3]))
        os.chdir(ROOT)
