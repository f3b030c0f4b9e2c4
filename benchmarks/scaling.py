"""What a second process brings.

    python benchmarks/scaling.py [--rounds 3]

`fit` of configs/cifar10/ddpm.yaml (35.7 M parameters) on random images, on one process with one thread and on two
with one thread each, in turns: batch 16 a process, images per second from the second step on.  Target: 1.8 times.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

ROOT = Path(__file__).resolve().parent.parent
PER_PROCESS, STEPS, SKIP = 16, 8, 2


class Rate(Callback):
    """Writes the images per second of all processes together to rate.txt, after the last step but one."""

    def __init__(self) -> None:
        self.start = 0.0

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        if trainer.global_step == SKIP:
            self.start = time.perf_counter()
        elif trainer.global_step == trainer.max_steps - 1 and trainer.is_global_zero:
            seconds = (time.perf_counter() - self.start) / (trainer.max_steps - 1 - SKIP)
            Path("rate.txt").write_text(str(trainer.world_size * PER_PROCESS / seconds))


def images_per_second(processes: int) -> float:
    """Of a fit in a folder of its own."""
    import numpy as np

    with tempfile.TemporaryDirectory() as folder:
        np.save(f"{folder}/x.npy", np.random.default_rng(0).integers(0, 256, (512, 3, 32, 32), dtype=np.uint8))
        options = {
            "data": "Arrays",
            "data.init_args.path": "x.npy",
            "data.init_args.batch_size": PER_PROCESS * processes,
            "data.init_args.val_fraction": 0,
            "trainer.accelerator": "cpu",
            "trainer.devices": processes,
            "trainer.strategy": "ddp" if processes > 1 else "auto",
            "trainer.max_steps": STEPS,
            "trainer.callbacks": "scaling.Rate",
            "trainer.logger": "false",
            "trainer.enable_progress_bar": "false",
        }
        call = [part for name, value in options.items() for part in (f"--{name}", str(value))]
        config = ROOT / "configs/cifar10/ddpm.yaml"
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'benchmarks'}"}
        command = [sys.executable, "-m", "diffusion_pl", "fit", "--config", str(config), *call]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stderr)
        return float(Path(folder, "rate.txt").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    rates: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(rounds):
        for processes, measured in rates.items():
            measured.append(images_per_second(processes))
    one, two = (statistics.median(measured) for measured in rates.values())
    ratios = ", ".join(f"{b / a:.2f}" for a, b in zip(*rates.values(), strict=True))
    print(f"images/s: one process {one:.2f}, two {two:.2f}: {two / one:.2f} times (by round {ratios}; target 1.8)")


if __name__ == "__main__":
    main()
