"""What reliability costs: how long training stands still for a checkpoint, and for the average of the weights.

    python benchmarks/checkpoint.py [FOLDER]     (where the checkpoints go; a temporary folder if not given)

`fit` of configs/cifar10/ddpm.yaml (35.7 M parameters, one average, Adam) on random images at batch 16.  After each of
some steps one of four things is timed, in turns: a checkpoint that is waited for, one that a thread writes, a plain
copy to host memory of the same tensors, nothing; and in the step after it, what the thread takes away from training.
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

KINDS = ("waited for", "in the background", "plain copy", "nothing")
WARM_UP = 4  # steps before the clock starts


class Clock(Callback):
    """Times them; medians are printed by `main`."""

    stalls: ClassVar[dict[str, list[float]]] = {kind: [] for kind in KINDS}
    steps: ClassVar[dict[str, list[float]]] = {kind: [] for kind in KINDS}
    written: ClassVar[list[float]] = []
    averages: ClassVar[list[float]] = []
    size: ClassVar[int] = 0

    def __init__(self) -> None:
        self.kind, self.start = "", 0.0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        averages: Any = pl_module.averages
        update = averages.update

        def timed() -> None:
            start = time.perf_counter()
            update()
            self.averages.append(time.perf_counter() - start)

        averages.update = timed

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        writer: Any = trainer.strategy.checkpoint_io
        if self.kind:
            self.steps[self.kind].append(time.perf_counter() - self.start)
        writer.wait()
        if self.kind == KINDS[1]:
            self.written.append(time.perf_counter() - self.start)
        turn = trainer.global_step - WARM_UP
        if turn < 0:
            return
        self.kind = KINDS[turn % len(KINDS)]
        path = Path(trainer.default_root_dir) / "checkpoints" / "last.ckpt"
        tensors = list(_tensors(trainer._checkpoint_connector.dump_checkpoint())) if self.kind == KINDS[2] else []
        start = time.perf_counter()
        if self.kind == KINDS[0]:
            trainer.save_checkpoint(path)
        elif self.kind == KINDS[1]:
            with writer.in_background():
                trainer.save_checkpoint(path)
        elif self.kind == KINDS[2]:
            copies = [tensor.detach().to("cpu", copy=True) for tensor in tensors]
            del copies
        self.stalls[self.kind].append(time.perf_counter() - start)
        if path.is_file():
            Clock.size = path.stat().st_size
        self.start = time.perf_counter()


def _tensors(value: Any) -> Any:
    import torch

    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from _tensors(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _tensors(part)


def main(folder: str, rounds: int = 7) -> None:
    """Train for as many rounds of the four, and print medians and ratios."""
    import numpy as np
    from checkpoint import Clock  # the one that the configuration names

    from diffusion_pl.__main__ import main as diffusion_pl

    np.save(Path(folder) / "x.npy", np.random.default_rng(0).integers(0, 256, (1000, 3, 32, 32), np.uint8))
    options = [
        *("--data", "Arrays", "--data.init_args.path", "x.npy", "--data.init_args.batch_size", "16"),
        *("--data.init_args.val_fraction", "0.02", "--trainer.max_steps", str(WARM_UP + 4 * rounds + 1)),
        *("--trainer.accelerator", "cpu", "--trainer.val_check_interval", "1000"),
        *("--trainer.callbacks", "checkpoint.Clock", "--trainer.enable_progress_bar", "false"),
    ]
    os.chdir(folder)
    with contextlib.redirect_stdout(io.StringIO()):
        code = diffusion_pl(["fit", "--config", str(ROOT / "configs/cifar10/ddpm.yaml"), *options])
    os.chdir(ROOT)
    assert code == 0
    stall = {kind: statistics.median(times) for kind, times in Clock.stalls.items()}
    step = {kind: statistics.median(times) for kind, times in Clock.steps.items()}
    sync, later, copy, _ = (stall[kind] for kind in KINDS)
    print(f"checkpoint of {Clock.size / 1e6:.0f} MB: {1e3 * sync:.0f} ms waited for (median of {rounds})")
    print(f"stall in the background {1e3 * later:.0f} ms, plain copy {1e3 * copy:.0f} ms: ratio {later / copy:.2f}")
    print(f"stall in the background / waited for: ratio {later / sync:.2f}")
    took = statistics.median(Clock.written)
    during, alone = step[KINDS[1]], step[KINDS[3]]
    print(f"step during the write {1e3 * during:.0f} ms, otherwise {1e3 * alone:.0f} ms: ratio {during / alone:.2f}")
    print(f"on the disk {1e3 * took:.0f} ms after the stall (no sooner than the step)")
    ema = statistics.median(Clock.averages[WARM_UP:])
    print(f"average of the weights {1e3 * ema:.1f} ms: {100 * ema / alone:.2f} % of a step", flush=True)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(sys.argv[1])
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(temporary)
