"""Randomness of training as a function of (seed, batch, rank)."""

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer

from ..runtime.upstream.lightning import batch_number, global_seed
from ..runtime.upstream.torch import seed_generators
from ..tensors import mix
from ..training import LeanCallback


class StepSeed(LeanCallback):
    """Reseeds torch's global generators before every training batch.

    So t, ε and dropout of a step do not depend on what happened before it: a resumed run draws what the uninterrupted
    one would have drawn, no generator's state needs saving, and no two ranks share their noise.
    """

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        reseed(run_seed(), batch_number(trainer), trainer.global_rank, pl_module.device)


def run_seed() -> int:
    """The seed of the whole run."""
    return global_seed() or 0


def reseed(run_seed: int, batch: int, rank: int, device: torch.device) -> None:
    """Set torch's global generators to what a training step draws from.

    Args:
        run_seed: of the whole run.
        batch: number of the batch, counted over the run from 0.
        rank: of the process.
        device: of the step.
    """
    seed_generators(mix(run_seed, batch, rank), device)
