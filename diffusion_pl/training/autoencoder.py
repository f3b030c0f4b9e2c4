"""AutoencoderModule: how an autoencoder is trained."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torchmetrics import MeanMetric

from ..autoencoders import Trained
from ..conditions import Conditions
from ..data import DataModule
from ..data.augmentation import HorizontalFlip
from ..data.command_line import options_of
from ..losses import Losses
from ..runtime.bounds import build
from ..tensors import mean_data
from .base import Batch, Shape, Trainable
from .lr_schedulers import SchedulerFactory
from .perceptual import PatchDiscriminator, Perceptual, balance, frozen_call


class AutoencoderModule(Trainable):
    """An autoencoder of images, trained to reconstruct them.

        loss = distance(x, x̂) + weight · penalty(z) + w_p LPIPS(x, x̂) − w_a λ mean D(x̂)

    distance: mean |x − x̂| or (x − x̂)² per dimension.  λ = ‖∇ distance‖ / ‖∇ mean D(x̂)‖ at the decoder's last layer.
    D, a discriminator of patches, learns by the hinge loss in the same optimizer step; the gradients of the two do not
    mix.

    Reference: Rombach et al., arXiv 2112.10752, App. G; Esser et al., arXiv 2012.09841, Eq. 7 (λ).

    Args:
        autoencoder: autoencoder, KL or VQ, with its options.
        optimizer: optimizer, such as torch.optim.AdamW, of the autoencoder and the discriminator.
        lr_scheduler: learning-rate schedule, see DiffusionModule.
        distance: distance of an image and its reconstruction: l1 or l2.
        weight: weight of the penalty of the latents, at least 0: 1e-6 for KL, 1 for VQ.
        perceptual: weight of LPIPS, at least 0; above 0 it needs the package lpips and its weights.
        adversarial: weight of the discriminator, at least 0, such as 0.5; 0: there is none.
        adversarial_start: steps before the autoencoder learns from the discriminator, at least 0.
        shape: of one image; the command line takes it from the data.
        conditions: of the data, which are not used; the command line takes them from the data.
    """

    def __init__(
        self,
        autoencoder: Callable[[Shape], Trained],
        optimizer: Callable[[Any], Optimizer],
        lr_scheduler: SchedulerFactory | None = None,
        distance: Literal["l1", "l2"] = "l1",
        weight: float = 1e-6,
        perceptual: float = 0.0,
        adversarial: float = 0.0,
        adversarial_start: int = 1000,
        shape: Shape = (1, 28, 28),
        conditions: Conditions | None = None,
    ) -> None:
        super().__init__(optimizer, lr_scheduler)
        numbers = {"weight": weight, "perceptual": perceptual, "adversarial": adversarial}
        for name, number in {**numbers, "adversarial_start": adversarial_start}.items():
            if number < 0:
                raise ValueError(f"model.{name} must not be negative, got {number}")
        self.shape, self.conditions = tuple(shape), dict(conditions or {})
        if len(self.shape) != 3:
            raise ValueError(f"AutoencoderModule: expected images (C, height, width), got data of shape {self.shape}")
        made = build(partial(autoencoder, self.shape))
        assert isinstance(made, Trained)
        self.autoencoder = made
        self.distance: Callable[..., Tensor] = F.l1_loss if distance == "l1" else F.mse_loss
        self.weight, self.adversarial, self.adversarial_start = weight, adversarial, adversarial_start
        self.perceptual = Perceptual(perceptual) if perceptual else None
        self.discriminator = PatchDiscriminator(self.shape[0]) if adversarial else None
        self.val_distance, self.val_psnr = MeanMetric(), MeanMetric()

    @property
    def network(self) -> nn.Module:
        return self.autoencoder

    def losses(self, batch: Batch, generator: torch.Generator | None = None) -> Losses:
        """Distance and penalty of each image, without the discriminator; t is 0."""
        loss, _ = self._reconstructed(batch["x"], generator)
        return Losses(loss, torch.zeros_like(loss))

    def next_arguments(self, run: Path, data: DataModule) -> list[str]:
        """Latents of the same images; the augmentation is not encoded, but for mirror images."""
        mirrors = ["--mirrors"] if isinstance(data.augmentation, HorizontalFlip) else []
        return ["latents", *options_of(data), "--autoencoder", str(run), *mirrors]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self.check_first(batch, self.conditions)
        x = batch["x"]
        each, x_hat = self._reconstructed(x, None)
        loss, values = each.mean(), {"train_loss": each.mean().detach()}
        if self.discriminator is not None:
            fooled, own = self._adversarial(x, x_hat, loss)
            loss = loss + fooled + own
            values["train_discriminator"] = own.detach()
        self.log_step(**values)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        if len(batch["x"]):  # else it is another process's turn
            loss, x_hat = self._reconstructed(batch["x"], self.validation_noise(batch_idx))
            self.val_distance.update(loss)
            self.val_psnr.update(psnr(batch["x"], x_hat))

    def on_validation_epoch_end(self) -> None:
        self._log_means("val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self.validation_step(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        self._log_means("test")

    def _reconstructed(self, x: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """The loss of each image without the discriminator, (B,), and the reconstructions."""
        shape = (len(x), *self.autoencoder.latent_shape(self.shape))
        eps = torch.randn(shape, dtype=x.dtype, device=x.device, generator=generator)
        x_hat, penalty = self.autoencoder.reconstruct(x, eps)
        loss = mean_data(self.distance(x_hat.float(), x, reduction="none")) + self.weight * penalty
        return loss if self.perceptual is None else loss + self.perceptual(x, x_hat), x_hat

    def _adversarial(self, x: Tensor, x_hat: Tensor, loss: Tensor) -> tuple[Tensor, Tensor]:
        """The term of the autoencoder, and the hinge loss of the discriminator."""
        assert self.discriminator is not None
        real, made = self.discriminator(x), self.discriminator(x_hat.detach())
        own = 0.5 * (F.relu(1 - real).mean() + F.relu(1 + made).mean())
        if self.trainer.global_step < self.adversarial_start:
            return torch.zeros_like(loss), own
        fooled = -frozen_call(self.discriminator, x_hat).mean()
        return self.adversarial * balance(loss, fooled, self.autoencoder.last_layer) * fooled, own

    def _log_means(self, part: str) -> None:
        weights, fits = self.weights_name, self.trainer.state.fn == TrainerFn.FITTING
        for name, metric in (("loss", self.val_distance), ("psnr", self.val_psnr)):
            value = metric.compute()
            metric.reset()
            self.log(f"{part}_{name}/{weights}", value, prog_bar=True)
            if fits and not self.trainer.sanity_checking:
                self.history.add(self.trainer.global_step, {f"{part}_{name}/{weights}": value})


def psnr(x: Tensor, y: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of images in [−1, 1], dB: (B,);  10 log₁₀(2² / mean (x − y)²)."""
    return 10 * torch.log10(4 / mean_data((x - y.clamp(-1, 1)).square()).clamp(min=1e-12))
