"""DiffusionModule: the five choices of a diffusion model, and how Lightning trains them.

    schedule · parameterization · loss (times, weighting) · sampler · network

Training draws from torch's global generator, which `Trainable` keys to (seed, batch, rank) before every step;
validation and sampling draw from generators of their own.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from tqdm import tqdm

from ..denoisers import Denoiser, NetworkDenoiser, NoiseInput, Parameterization
from ..losses import DenoisingLoss, Losses
from ..runtime.bounds import build
from ..samplers import Sampler, Samples
from ..schedules import Schedule
from ..tensors import SampleNoise
from .base import Batch, Shape, Trainable, build_network
from .lr_schedulers import SchedulerFactory


class DiffusionModule(Trainable):
    """A diffusion model in training.

    Args:
        network: makes the network from the shape of one example and the number of classes (None: unconditional); any
            class whose first two parameters are those, such as diffusion_pl.networks.MLP.
        schedule: forward process.
        parameterization: what the network's output means.
        loss: law of the training times and weighting.
        sampler: draws the samples of `predict` and of the panels.
        optimizer: of the network's parameters.
        lr_scheduler: stepped every optimizer step: diffusion_pl.training.WarmupCosine or Warmup, or one of
            torch.optim.lr_scheduler with its own options; a parameter total_steps is the run's.  None: constant.
        noise_input: how the network is told the noise level; None: t itself.
        guidance: wraps the denoiser when sampling, such as Thresholded; None: nothing.
        compile: compile the network with torch.compile; a string is its mode: reduce-overhead records CUDA graphs,
            max-autotune tries more kernels as well.
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
        lr_scheduler: SchedulerFactory | None = None,
        noise_input: NoiseInput | None = None,
        guidance: Callable[[Denoiser], Denoiser] | None = None,
        compile: bool | str = False,
        channels_last: bool = False,
        shape: Shape = (2,),
        classes: int | None = None,
    ) -> None:
        super().__init__(optimizer, lr_scheduler)
        self.shape, self.classes = tuple(shape), classes
        made = build(partial(build_network, network, self.shape, classes))
        self.denoiser = NetworkDenoiser(made, schedule, parameterization, noise_input)
        if channels_last:
            if len(self.shape) != 3:
                raise ValueError(f"channels_last is for pictures (C, H, W), not for data of shape {self.shape}")
            self.denoiser.network.to(memory_format=torch.channels_last)  # convolutions hand it on to what they make
        if compile:
            from torch._inductor import list_mode_options

            modes = list(list_mode_options())
            if isinstance(compile, str) and compile not in modes:
                raise ValueError(f"model.compile must be true, false or one of {', '.join(modes)}, got {compile}")
            # In place: the names in the state dict stay.
            self.denoiser.network.compile(mode=compile if isinstance(compile, str) else None)
        self.loss, self.sampler, self.guidance = loss, sampler, guidance
        self.sample_seed = 0  # of the sequence that `predict` draws
        self.sample_cond: dict[str, int] = {}  # of all its samples
        self.class_counts: list[int] | None = None  # training examples of each class, where a checkpoint tells them
        self.guide: nn.Module | None = None  # what guides them, such as a classifier
        self.latents: Tensor | None = None  # their starts in units of the prior, (N, *shape); None: drawn

    @property
    def network(self) -> nn.Module:
        """The score network, raw output F."""
        return self.denoiser.network

    @property
    def schedule(self) -> Schedule:
        """The forward process."""
        return self.denoiser.schedule

    def losses(self, batch: Batch, generator: torch.Generator | None = None) -> Losses:
        """The loss of each example, at random times; what is in the batch beside x conditions the network."""
        losses: Losses = self.loss(self.denoiser, x_0=batch["x"], generator=generator, **_cond(batch))
        return losses

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss: Tensor = self.losses(batch).loss.mean()
        self.log_step(train_loss=loss)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        if len(batch["x"]):  # else it is another process's turn
            losses = self.losses(batch, self.validation_noise(batch_idx))
            self.val_loss.update(losses.loss, losses.t)

    def on_validation_epoch_end(self) -> None:
        self.log_bins("val_loss", self.val_loss)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self.validation_step(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        self.log_bins("test_loss", self.val_loss)

    @property
    def block(self) -> int:
        """How many samples `predict` draws at a time: always as many, or rounding would differ with the number.

        A power of two that keeps a block's memory bounded and the processor busy.
        """
        most = (1 << 12 if self.device.type == "cpu" else 1 << 18) // math.prod(self.shape)
        return 1 << min(8, max(4, most.bit_length() - 1))

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """Samples of some blocks, in model units: {"block": (K,)} -> {"index": (B,), "x": (B, *), "nfe"}."""
        hidden = self.trainer.progress_bar_callback is None or not self.trainer.is_global_zero
        progress = partial(tqdm, desc="steps", leave=False, dynamic_ncols=True, disable=hidden)
        found = []
        for block in batch["block"].tolist():
            indices = range(block * self.block, (block + 1) * self.block)
            options: dict[str, Any] = {"progress": progress, **self.conditions(self.block)}
            samples = self.sample(indices, self.sample_seed, **options)
            found.append((torch.tensor(indices), samples.x_0, samples.nfe))
        if not found:
            return {}
        index, x, nfe = zip(*found, strict=True)
        return {"index": torch.cat(index), "x": torch.cat(x), "nfe": max(nfe)}

    def conditions(self, n: int) -> Batch:
        """The conditions of n samples, where they are the same for all."""
        return {name: torch.full((n,), value, device=self.device) for name, value in self.sample_cond.items()}

    @property
    def labels(self) -> list[int]:
        """The labels that samples get in turn: of the classes that there are training examples of, if that is known."""
        counts = getattr(getattr(self._trainer, "datamodule", None), "class_counts", None) or self.class_counts
        if counts is None or len(counts) != self.classes:  # a classifier guides, which knows other classes
            return list(range(self.classes or 0))
        return [k for k, count in enumerate(counts) if count] or list(range(len(counts)))

    def guided(self) -> Denoiser:
        """The denoiser as samplers get it, within the module's guidance."""
        return self.denoiser if self.guidance is None else self.guidance(self.denoiser)

    def sample(self, indices: Sequence[int], seed: int = 0, sampler: Sampler | None = None, **kwargs: Any) -> Samples:
        """Samples with the module's (or the given) sampler; sample i depends on (seed, i) only.

        Of a model of classes, sample i has label i of `labels`, over and over, unless a label is among kwargs.

        Args:
            indices: which samples of the infinite sequence that the seed stands for.
            seed: of that sequence.
            sampler: None: the module's.
            kwargs: see `Sampler.__call__`: path, progress, conditions.
        """
        sampler = self.sampler if sampler is None else sampler
        denoiser = self.guided()
        noise = SampleNoise(seed, indices)
        if self.classes is not None and "label" not in kwargs:
            labels = torch.tensor(self.labels, device=self.device)
            kwargs["label"] = labels[torch.tensor(indices, device=self.device) % len(labels)]
        eps = noise(torch.empty(len(indices), *self.shape, device=self.device))
        if self.latents is not None:
            eps = self.latents[torch.tensor(indices) % len(self.latents)].to(eps)
        return sampler(denoiser, sampler.prior(self.schedule, eps), noise=noise, **kwargs)


def _cond(batch: Batch) -> dict[str, Any]:
    """What the network is conditioned on: everything in the batch but x."""
    return {name: value for name, value in batch.items() if name != "x"}
