"""EMA weights of a run: decays, half-lives, power functions, updates, snapshots."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from ..checkpoints import snapshots as files
from ..checkpoints.io import AtomicCheckpointIO
from ..training import Average, ConstantDecay, HalfLife, LeanCallback, PowerFunction, Trainable


class EMA(LeanCallback):
    """Lets the module keep EMA weights θ̄ ← d θ̄ + (1 − d) θ of all trained parameters, several at once.

    Each EMA has a decay d per step, or a half-life in examples, which means the same for any batch size:
    d = ½^(batch / half-life).  Power functions weigh step i by ∝ i^γ: their width is a fraction of the run.

    Warm-up, so that the random start is forgotten: at update n the decay is at most (1 + n)/(10 + n), that of a
    half-life at most ½^(1/(ramp_up n)).  The first EMA, decays before half-lives before power functions, replaces the
    weights in validation, test and panels; before its first update nothing is swapped.  A checkpoint's state_dict
    always holds the raw weights, its entry "averages" the EMA weights.

    The EMA weights of power functions are also written to snapshots/ in the run's folder every few steps, in half
    precision, so that the command `average` and `--weights std:0.15` can make those of any other width afterwards.  The
    distance of the snapshots doubles, and every second one is removed, whenever there would be more than `snapshots`.

    Reference: see `ConstantDecay`, `HalfLife` and `PowerFunction`.

    Args:
        decays: decay d of each EMA, in [0, 1), such as 0.999; empty: none.
        half_lives: half-lives of further EMAs, in examples, such as 500,000 (EDM's).
        ramp_up: bound on the half-lives, as a fraction of the examples seen so far, positive.
        stds: widths of power-function EMAs, as a fraction of the run, in (0, 0.288]; two, such as 0.05 and 0.1
            (EDM2's), are enough for all others.
        snapshots: largest number of snapshots that are kept, at least 0; 0: none.
        snapshot_every: number of optimizer steps between two snapshots at first, at least 1; None: the power of two
            that gives at most `snapshots` up to trainer.max_steps.
    """

    def __init__(
        self,
        decays: Sequence[float] = (0.999,),
        half_lives: Sequence[int] = (),
        ramp_up: float = 0.05,
        stds: Sequence[float] = (),
        snapshots: int = 64,
        snapshot_every: int | None = None,
    ) -> None:
        HalfLife(1, ramp_up)  # raises, also where no half-life is given
        for name, values in (("decays", decays), ("half_lives", half_lives), ("stds", stds)):
            twice = [value for k, value in enumerate(values) if value in list(values)[:k]]
            if twice:
                raise ValueError(f"EMA {name} must differ from each other, got {twice[0]} twice")
        for name, value, least in (("snapshots", snapshots, 0), ("snapshot_every", snapshot_every, 1)):
            if value is not None and value < least:
                raise ValueError(f"EMA {name} must be at least {least}, got {value}")
        self.averages: list[Average] = [ConstantDecay(decay) for decay in decays]
        self.averages += [HalfLife(half_life, ramp_up) for half_life in half_lives]
        self.averages += [PowerFunction(std) for std in stds]
        self.snapshots, self.snapshot_every = snapshots, snapshot_every
        self._written = 0  # step of the newest snapshot, or of the start
        self._every = 0
        self._io = AtomicCheckpointIO()
        if stds and snapshots:  # else no step has to ask
            self.on_train_batch_end = self._write_snapshot

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if isinstance(pl_module, Trainable):  # else it only draws samples
            pl_module.averages.track(self.averages)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if isinstance(pl_module, Trainable) and self.snapshots:
            self._written = pl_module.averages.updates
            self._every = self.snapshot_every or files.first_interval(trainer.max_steps, self.snapshots)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._io.wait()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if isinstance(pl_module, Trainable):
            pl_module.use_raw_weights()

    def _write_snapshot(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """After an optimizer step with which a snapshot is due; a thread writes it."""
        if not isinstance(pl_module, Trainable) or not trainer.is_global_zero or trainer.fast_dev_run:
            return
        step = pl_module.averages.updates
        if step == self._written or step % files.interval(step, self._every, self.snapshots):
            return
        io = trainer.strategy.checkpoint_io  # which ends the run if it cannot write
        io = io if isinstance(io, AtomicCheckpointIO) else self._io
        io.wait()  # for the one before, which may have to go
        run = Path(trainer.default_root_dir)
        files.overtake(run, self._written, step)
        files.thin(run, step, self._every, self.snapshots)
        self._written = step
        with io.in_background():
            io.save_checkpoint(files.content(pl_module.averages), files.path_of(run, step))
