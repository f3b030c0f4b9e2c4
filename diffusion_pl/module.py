"""DiffusionModule: the five choices of a diffusion model, and how Lightning trains them.

    schedule · parameterization · loss (times, weighting) · sampler · network

The module owns no randomness: training draws from torch's global generator, which a callback keys to (seed, step,
rank); validation and sampling draw from generators of their own.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.utilities import GradClipAlgorithmType
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from tqdm import tqdm

from .denoiser import Denoiser, NetworkDenoiser, NoiseInput
from .lean import LeanHooks
from .loss import DenoisingLoss
from .metrics import BinnedMean
from .parameterizations import Parameterization
from .samplers import Sampler, Samples
from .schedules import Schedule
from .tensors import SampleNoise, mix

Shape = tuple[int, ...]
Batch = dict[str, Tensor]

VAL_BINS = 4  # equal bins of t for the validation loss


class DiffusionModule(LeanHooks, LightningModule):
    """A diffusion model in training.

    Args:
        network: makes the network from the shape of one example and the number of classes (None: unconditional); any
            class whose first two parameters are those, such as diffusion_pl.networks.MLP.
        schedule: forward process.
        parameterization: what the network's output means.
        loss: law of the training times and weighting.
        sampler: draws the samples of `predict` and of the panels.
        optimizer: of the network's parameters.
        lr_scheduler: made from the optimizer and the number of steps of the run, stepped every step; such as
            diffusion_pl.lr_schedulers.WarmupCosine.  None: constant.
        noise_input: how the network is told the noise level; None: t itself.
        guidance: wraps the denoiser when sampling, such as Thresholded; None: nothing.
        compile: compile the network with torch.compile.
        channels_last: keep the pictures' channels together in memory: faster convolutions, above all under bf16.
        shape: of one example, without the batch axis; the command line takes it from the data.
        classes: of the label, None: unconditional; the command line takes it from the data.
    """

    def __init__(
        self,
        network: Callable[[Shape, int | None], nn.Module],
        schedule: Schedule,
        parameterization: Parameterization,
        loss: DenoisingLoss,
        sampler: Sampler,
        optimizer: Callable[[Any], Optimizer],
        lr_scheduler: Callable[[Optimizer, int], LRScheduler] | None = None,
        noise_input: NoiseInput | None = None,
        guidance: Callable[[Denoiser], Denoiser] | None = None,
        compile: bool = False,
        channels_last: bool = False,
        shape: Shape = (2,),
        classes: int | None = None,
    ) -> None:
        super().__init__()
        self.shape, self.classes = tuple(shape), classes
        self.denoiser = NetworkDenoiser(network(self.shape, classes), schedule, parameterization, noise_input)
        if channels_last:
            if len(self.shape) != 3:
                raise ValueError(f"channels_last is for pictures (C, H, W), not for data of shape {self.shape}")
            self.denoiser.network.to(memory_format=torch.channels_last)  # convolutions hand it on to what they make
        if compile:
            self.denoiser.network.compile()  # in place: the names in the state dict stay
        self.loss, self.sampler, self.guidance = loss, sampler, guidance
        self.optimizer_factory, self.lr_scheduler_factory = optimizer, lr_scheduler
        self.val_loss = BinnedMean(VAL_BINS)
        self.sample_seed = 0  # of the sequence that `predict` draws
        self.weights_name = "raw"  # the EMA callback changes it while its averages are swapped in

    def __setattr__(self, name: str, value: Any) -> None:
        # Lightning notes around every hook, fifty times a step, which one is running; nn.Module's search for parameters
        # and buffers in it costs a tenth of a small network's step.
        if name == "_current_fx_name":
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    @property
    def network(self) -> nn.Module:
        """The score network, raw output F."""
        return self.denoiser.network

    @property
    def schedule(self) -> Schedule:
        """The forward process."""
        return self.denoiser.schedule

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss: Tensor = self.loss(self.denoiser, x_0=batch["x"], **_cond(batch)).loss.mean()
        # Logging costs as much as a step of a small network, so it happens only where it is written.
        trainer = self.trainer
        if trainer.log_every_n_steps and (trainer.global_step + 1) % trainer.log_every_n_steps == 0:
            self.log("train_loss/raw", loss, prog_bar=True)
            self.log("learning_rate", trainer.optimizers[0].param_groups[0]["lr"])
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        # The same (t, ε) for the same batch every time, or their noise would hide the progress.
        generator = torch.Generator(self.device).manual_seed(mix(batch_idx, self.global_rank))
        losses = self.loss(self.denoiser, x_0=batch["x"], generator=generator, **_cond(batch))
        self.val_loss.update(losses.loss, losses.t)

    def on_validation_epoch_end(self) -> None:
        self._log_bins("val_loss")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self.validation_step(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        self._log_bins("test_loss")

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """Samples by index, in model units: {"index": (B,)} -> {"index": (B,), "x": (B, *), "nfe"}."""
        hidden = self.trainer.progress_bar_callback is None or not self.trainer.is_global_zero
        progress = partial(tqdm, desc="steps", leave=False, dynamic_ncols=True, disable=hidden)
        samples = self.sample(batch["index"].tolist(), self.sample_seed, progress=progress)
        return {"index": batch["index"], "x": samples.x_0, "nfe": samples.nfe}

    def sample(self, indices: Sequence[int], seed: int = 0, sampler: Sampler | None = None, **kwargs: Any) -> Samples:
        """Samples with the module's (or the given) sampler; sample i depends on (seed, i) only.

        Of a model of classes, sample i has the label i mod classes, unless a label is among kwargs.

        Args:
            indices: which samples of the infinite sequence that the seed stands for.
            seed: of that sequence.
            sampler: None: the module's.
            kwargs: see `Sampler.__call__`: path, progress, conditions.
        """
        sampler = self.sampler if sampler is None else sampler
        denoiser = self.denoiser if self.guidance is None else self.guidance(self.denoiser)
        noise = SampleNoise(seed, indices)
        if self.classes is not None and "label" not in kwargs:
            kwargs["label"] = torch.tensor(indices, device=self.device) % self.classes
        eps = noise(torch.empty(len(indices), *self.shape, device=self.device))
        return sampler(denoiser, sampler.prior(self.schedule, eps), noise=noise, **kwargs)

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer_factory(self.network.parameters())
        if self.lr_scheduler_factory is None:
            return optimizer
        scheduler = self.lr_scheduler_factory(optimizer, int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        # Now, not before the next backward pass: the forward pass in between can have the gradients' memory.
        self.trainer.optimizers[0].zero_grad()

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        plugin = self.trainer.precision_plugin
        if gradient_clip_val and isinstance(plugin, MixedPrecision) and plugin.scaler is None:
            # Lightning refuses fused optimizers in mixed precision, for these unscale the gradients themselves; in
            # bfloat16 nothing is scaled.
            algorithm = GradClipAlgorithmType(gradient_clip_algorithm or "norm")
            Precision.clip_gradients(plugin, optimizer, gradient_clip_val, algorithm)
            return
        try:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        except RuntimeError as error:
            if "fused" not in str(error):
                raise
            raise ValueError(
                "trainer.gradient_clip_val and a fused optimizer do not go together in float16: take fused: true out "
                "of model.optimizer, or give precision bf16-mixed"
            ) from None

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        theirs, ours = checkpoint["state_dict"], self.state_dict()
        differences = [
            f"{name} is {_size(theirs, name)} in the checkpoint, {_size(ours, name)} here"
            for name in sorted(theirs.keys() | ours.keys())
            if _size(theirs, name) != _size(ours, name)
        ]
        if differences:
            more = f" (and {len(differences) - 1} more)" if len(differences) > 1 else ""
            raise ValueError(
                f"the checkpoint is of another network: {differences[0]}{more}; use the config it was made with"
            )

    def _log_bins(self, name: str) -> None:
        total, bins = self.val_loss.compute()
        self.val_loss.reset()
        self.log(f"{name}/{self.weights_name}", total, prog_bar=True, sync_dist=True)
        for k, value in enumerate(bins):
            if value.isfinite():
                span = f"t{k / VAL_BINS:.2f}-{(k + 1) / VAL_BINS:.2f}"
                self.log(f"{name}/{self.weights_name}_{span}", value, sync_dist=True)


def _cond(batch: Batch) -> dict[str, Any]:
    """What the network is conditioned on: everything in the batch but x."""
    return {name: value for name, value in batch.items() if name != "x"}


def _size(state: dict[str, Tensor], name: str) -> str:
    return "x".join(map(str, state[name].shape)) or "a number" if name in state else "absent"
