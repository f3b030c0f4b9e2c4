"""The loss of the data that training has seen, beside the validation loss: how far apart they are is overfitting."""

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer

from ..lean import LeanCallback
from ..metrics import BinnedMean
from ..module import DiffusionModule
from ..tensors import mix
from ..trainable import VAL_BINS

EXAMPLES = 1000  # at most; as many as validation takes if those are fewer


class SeenLoss(LeanCallback):
    """seen_loss, in total and by noise level, after each validation: the same loss, weights and bins as val_loss, of
    examples spread over the training split, without augmentation.

    At low noise a model can only know what it has seen, so there the two part first.
    """

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not isinstance(pl_module, DiffusionModule) or trainer.sanity_checking or trainer.state.fn != "fit":
            return
        data: Any = trainer.datamodule
        rank, world, size = trainer.global_rank, trainer.world_size, data.batch_size
        source = data.part("train")
        validated = min(len(data.part("val")), int(sum(trainer.num_val_batches)) * size * world)
        count = min(validated, len(source), EXAMPLES)
        seen = BinnedMean(VAL_BINS).to(pl_module.device)
        for number in range(rank, -(-count // size), world):
            places = torch.arange(number * size, min((number + 1) * size, count)) * len(source) // count
            batch = {name: value.to(pl_module.device) for name, value in source.__getitems__(places).items()}
            batch = data.on_after_batch_transfer(batch, 0)
            generator = torch.Generator(pl_module.device).manual_seed(mix(number))
            with trainer.precision_plugin.forward_context():
                losses = pl_module.losses(batch, generator)
            seen.update(losses.loss, losses.t)
        pl_module.log_bins("seen_loss", seen)
