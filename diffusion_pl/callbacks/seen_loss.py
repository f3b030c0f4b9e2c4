"""Loss on training data, to compare with the validation loss: the difference shows overfitting."""

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer

from ..metrics import BinnedMean
from ..tensors import mix
from ..training import DiffusionModule, LeanCallback
from ..training.base import VAL_BINS

LEAST, MOST = 256, 1000  # draws; between them, as many as validation examples


class SeenLoss(LeanCallback):
    """seen_loss, in total and by noise level, after each validation: the same loss, weights and bins as val_loss, of
    examples spread over the training split, again and again if they are few, without augmentation.

    At low noise a model can only know what it has seen, so there the two differ first.
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
