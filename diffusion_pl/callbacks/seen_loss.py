"""Loss on training data, to compare with the validation loss: the difference shows overfitting."""

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from tqdm.auto import tqdm

from ..metrics import BinnedMean
from ..tensors import mix
from ..training import DiffusionModule, LeanCallback
from ..training.base import VAL_BINS

RISE = 1.1  # of the validation loss above its lowest value, that is said
LEAST, MOST = 256, 1000  # draws; between them, as many as validation examples


class SeenLoss(LeanCallback):
    """seen_loss, in total and by noise level, after each validation: the same loss, weights and bins as val_loss, of
    examples spread over the training split, again and again if they are few, without augmentation.

    At low noise a model can only know what it has seen, so there the two differ first.  A line says once when val_loss
    rises above its lowest value while seen_loss falls.
    """

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not isinstance(pl_module, DiffusionModule) or trainer.sanity_checking or trainer.state.fn != "fit":
            return
        data: Any = trainer.datamodule
        rank, world, size = trainer.global_rank, trainer.world_size, data.batch_size
        source = data.part("train")
        count = min(max(len(data.part("val")), LEAST), MOST)
        if trainer.fast_dev_run:
            count = min(count, size)
        seen = BinnedMean(VAL_BINS).to(pl_module.device)
        for k in range(rank, -(-count // size), world):
            indices = torch.arange(k * size, min((k + 1) * size, count)) * len(source) // count
            indices, inverse = torch.unique(indices, return_inverse=True)  # files may need indices without repeats
            columns = source.__getitems__(indices).items()
            batch = {name: value[inverse].to(pl_module.device) for name, value in columns}
            batch = data.on_after_batch_transfer(batch, 0)
            generator = torch.Generator(pl_module.device).manual_seed(mix(k))
            with trainer.precision_plugin.forward_context():
                losses = pl_module.losses(batch, generator)
            seen.update(losses.loss, losses.t)
        pl_module.log_bins("seen_loss", seen)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not isinstance(pl_module, DiffusionModule) or trainer.state.fn != "fit" or not trainer.is_global_zero:
            return
        series, weights = pl_module.history.series(), pl_module.weights_name
        validation, seen = (series.get(f"{name}/{weights}", torch.zeros(0, 2)) for name in ("val_loss", "seen_loss"))
        if note := memorises(validation, seen):
            data: Any = trainer.datamodule
            examples = f"{len(data.part('train')):,} training examples"
            tqdm.write(f"step {trainer.global_step:,}: {note}: the model memorises its {examples}")


def memorises(validation: Tensor, seen: Tensor) -> str | None:
    """That the validation loss rises while the loss of training examples falls; None if not, or if it did so before.

    Args:
        validation: (N, 2), step and loss of each validation so far.
        seen: the same, of training examples.
    """
    if not 0 < len(validation) == len(seen):
        return None

    def lowest(k: int) -> int | None:
        """Where the validation loss was lowest up to validation k, if it has risen since."""
        low = int(validation[: k + 1, 1].argmin())
        rises = validation[k, 1] > RISE * validation[low, 1] and seen[k, 1] < seen[low, 1]
        return low if rises else None

    *before, low = (lowest(k) for k in range(len(validation)))
    if low is None or any(k is not None for k in before):
        return None
    (step, least), now = validation[low].tolist(), float(validation[-1, 1])
    fell = f"seen_loss fell from {float(seen[low, 1]):.3g} to {float(seen[-1, 1]):.3g}"
    return f"val_loss rose from {least:.3g} (step {step:,.0f}) to {now:.3g}, {fell}"
