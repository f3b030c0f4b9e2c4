"""Panels of an autoencoder: images above their reconstructions."""

import torch
from lightning.pytorch import LightningModule, Trainer

from ..data import DataModule
from ..training import AutoencoderModule, LeanCallback, psnr
from .images import log_image, panel_title


class ReconstructionPanels(LeanCallback):
    """Held-out images above their reconstructions, every few steps and at the end, of the EMA weights.

    Args:
        every_n_steps: optimizer steps between two panels.
        num_images: images in a panel.
    """

    def __init__(self, every_n_steps: int = 1000, num_images: int = 16) -> None:
        for name, value in (("every_n_steps", every_n_steps), ("num_images", num_images)):
            if value < 1:
                raise ValueError(f"ReconstructionPanels: {name} must be at least 1, got {value}")
        self.every_n_steps, self.num_images = every_n_steps, num_images
        self._drawn_step = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if not isinstance(pl_module, AutoencoderModule) or not isinstance(trainer.datamodule, DataModule):
            raise ValueError("ReconstructionPanels is for AutoencoderModule: take it out of trainer.callbacks")

    def on_train_batch_end(  # type: ignore[no-untyped-def]
        self, trainer: Trainer, pl_module: LightningModule, outputs, batch, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step % self.every_n_steps == 0 and step not in (self._drawn_step, trainer.max_steps):
            self._drawn_step = step  # while gradients are accumulated the step stays
            self._panel(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._panel(trainer, pl_module)

    @torch.no_grad()
    def _panel(self, trainer: Trainer, module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        from .. import plots

        data = trainer.datamodule
        assert isinstance(module, AutoencoderModule) and isinstance(data, DataModule)
        split = "val" if len(data.part("val")) else "train"
        x = next(data.batches(split, self.num_images))["x"].to(module.device)
        with module.evaluation(), trainer.precision_plugin.forward_context():
            x_hat = module.autoencoder.decode(module.autoencoder.encode(x).mean).float()
            weights = module.weights_name
        images = data.units.to_uint8(torch.stack((x, x_hat), 1).cpu()).numpy()
        title = panel_title("Images above their reconstructions", trainer, weights)
        title += f"\nPSNR {psnr(x, x_hat).mean():.2f} dB"
        names = ("image", "reconstruction")
        log_image(trainer, f"reconstructions/{weights}", plots.pairs(images, title=title, names=names))
