"""Panels of an autoencoder: images above their reconstructions."""

import torch
from lightning.pytorch import LightningModule, Trainer

from ..data import DataModule
from ..training import AutoencoderModule, psnr
from .images import log_image, panel_title
from .panels import Panels, data_of


class ReconstructionPanels(Panels):
    """Held-out images above their reconstructions, every few steps and at the end, of the EMA weights.

    Args:
        every_n_steps: optimizer steps between two panels.
        num_images: images in a panel.
    """

    def __init__(self, every_n_steps: int = 1000, num_images: int = 16) -> None:
        super().__init__(every_n_steps, num_images=num_images)
        self.num_images = num_images

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if not isinstance(pl_module, AutoencoderModule) or not isinstance(trainer.datamodule, DataModule):
            raise ValueError("ReconstructionPanels is for AutoencoderModule: take it out of trainer.callbacks")

    @torch.no_grad()
    def draw(self, trainer: Trainer, module: LightningModule) -> None:
        from .. import plots

        data = data_of(trainer)
        assert isinstance(module, AutoencoderModule)
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
