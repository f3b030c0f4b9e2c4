"""A file with all inputs of a training step, from which the step can be repeated bit for bit.

Randomness is a function of (seed, batch, rank), see `training.step_noise`, so no generator's state is needed.
"""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from ..checkpoints.io import write
from ..training import Trainable, run_seed
from .description import Description


def write_dump(
    trainer: Trainer, pl_module: LightningModule, batches: list[tuple[int, Any]], losses: list[Tensor]
) -> Path:
    """Write dumps/step-N.ckpt into the run's folder, on all processes at once, before an optimizer step.

    Args:
        trainer: with the step's gradients in place.
        pl_module: what is trained.
        batches: of this process in this step, as the training step got them, each with its index over the run.
        losses: of each batch, what the backward pass started from.

    Returns:
        The file.

    Raises:
        OSError: it cannot be written.
    """
    path = Path(trainer.default_root_dir) / "dumps" / f"step-{trainer.global_step:08d}.ckpt"
    share = {
        "rank": trainer.global_rank,
        "numbers": [number for number, _ in batches],
        "batches": [{name: value.detach().cpu().clone() for name, value in batch.items()} for _, batch in batches],
        "losses": [loss_value(trainer, loss) for loss in losses],
    }
    shares: list[Any] = [share]
    if trainer.world_size > 1:
        shares = [None] * trainer.world_size
        torch.distributed.all_gather_object(shares, share)
    try:
        if trainer.is_global_zero:
            write(_content(trainer, pl_module, shares), path)
    finally:
        trainer.strategy.barrier()  # Lightning ends all processes once one has ended badly: not while this one writes
    return path


def _content(trainer: Trainer, pl_module: LightningModule, shares: list[Any]) -> dict[str, Any]:
    """In the format of a checkpoint, so that the same functions read it."""
    content: dict[str, Any] = {
        "state_dict": {name: value.detach().cpu() for name, value in pl_module.state_dict().items()},
        "dump": {
            "step": trainer.global_step,
            "seed": run_seed(),
            "world_size": trainer.world_size,
            "accumulate_grad_batches": trainer.accumulate_grad_batches,
            "precision": trainer.precision,
            "scaler": trainer.precision_plugin.state_dict(),
            "accelerator": pl_module.device.type,
            "threads": torch.get_num_threads(),  # on the CPU, sums are rounded by it
            "not_finite": not_finite(pl_module),
            "ranks": shares,
        },
    }
    if trainer.datamodule is not None:  # as Lightning files it
        content[type(trainer.datamodule).__qualname__] = trainer.datamodule.state_dict()
    for callback in trainer.callbacks:
        if isinstance(callback, Description):
            callback.on_save_checkpoint(trainer, pl_module, content)
    return content


def loss_value(trainer: Trainer, loss: Tensor) -> float:
    """The training step's loss from what the backward pass starts from: scaled in float16, divided by accumulation."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return loss.item() * trainer.accumulate_grad_batches / (1 if scaler is None else scaler.get_scale())


def not_finite(pl_module: LightningModule) -> list[str]:
    """Names, within the network if they are in it, of the parameters with a gradient that is not finite."""
    assert isinstance(pl_module, Trainable)
    short = {id(p): name for name, p in pl_module.network.named_parameters()}
    named = pl_module.trained_parameters().items()
    return [short.get(id(p), name) for name, p in named if p.grad is not None and not p.grad.isfinite().all()]
