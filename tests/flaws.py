"""Networks and losses that go wrong in chosen batches.  A batch is known by its seed, so a replay goes wrong alike."""

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from diffusion_pl.callbacks.step_seed import run_seed
from diffusion_pl.conditions import Conditions
from diffusion_pl.losses import DenoisingLoss, Losses
from diffusion_pl.networks import MLP
from diffusion_pl.tensors import mix


def batch_is_one_of(bad: Sequence[int], rank: int = 0) -> bool:
    """Whether the batch under way, counted over the run, is one of these."""
    return torch.default_generator.initial_seed() in {mix(run_seed(), n, rank) for n in bad}


class Flaw(nn.Module):
    """The identity, but in some batches.

    Args:
        kind: "output": not a number; "gradient": the number is right, its derivative is none; "spike": times 1,000.
        bad: numbers of the batches.
        rank: of the process in which they are bad.
    """

    def __init__(self, kind: str, bad: Sequence[int], rank: int) -> None:
        super().__init__()
        self.kind, self.bad, self.rank = kind, tuple(bad), rank

    def forward(self, h: Tensor) -> Tensor:
        if not self.training or not batch_is_one_of(self.bad, self.rank):
            return h
        return {"output": h * torch.nan, "gradient": h + (h * 0).abs().sqrt(), "spike": h * 1000}[self.kind]


class FlawedMLP(MLP):
    """An MLP with a flaw behind its blocks."""

    def __init__(
        self,
        shape: tuple[int, ...],
        conditions: Conditions | None = None,
        kind: str = "output",
        bad: Sequence[int] = (),
        rank: int = 0,
    ) -> None:
        super().__init__(shape, conditions, width=16, depth=1)
        self.blocks.append(Flaw(kind, bad, rank))


class FlawedLoss(DenoisingLoss):
    """Not a number in some batches, with gradients that are."""

    bad: Sequence[int] = ()

    def forward(self, *args: Any, **kwargs: Any) -> Losses:
        loss, t = super().forward(*args, **kwargs)
        return Losses(loss + torch.nan if batch_is_one_of(self.bad) else loss, t)


class NaNInBatch(Callback):
    """The third example of one batch has no x."""

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.fit_loop.epoch_loop.total_batch_idx == self.batch:
            batch["x"][2, 0] = torch.nan


def flawed(kind: str, bad: Sequence[int], rank: int = 0) -> dict[str, Any]:
    """model.network of a configuration."""
    return {"class_path": "flaws.FlawedMLP", "init_args": {"kind": kind, "bad": list(bad), "rank": rank}}
