"""DiffusionModule: the five choices of a diffusion model, and how Lightning trains them.

    schedule · parameterization · loss (times, weighting) · sampler · network

Training draws from torch's global generator, which `Trainable` keys to (seed, batch, rank) before every step;
validation and sampling draw from generators of their own.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..conditions import Conditions, class_count, of_batch, prediction_of
from ..data import DataModule
from ..denoisers import Denoiser, NetworkDenoiser, NoiseInput, Parameterization
from ..losses import Loss, Losses
from ..pipeline import Pipeline
from ..runtime.bounds import build
from ..runtime.upstream.torch import compile_modes
from ..samplers import Sampler
from ..schedules import Schedule
from .base import Batch, Shape, Trainable, build_network
from .lr_schedulers import SchedulerFactory


@runtime_checkable
class DataLike(Protocol):
    """What a pipeline needs of a data module."""

    @property
    def class_counts(self) -> list[int] | None: ...

    def decode(self, x: Tensor) -> Tensor: ...


class DiffusionModule(Trainable):
    """A diffusion model in training.

    Args:
        network: network, such as UNet: any class, or function, of the shape of one example and the conditions of the
            data.
        schedule: noise schedule, such as VP.
        parameterization: meaning of the network's output, such as V or Epsilon.
        loss: loss, such as DenoisingLoss with a timestep distribution and a weighting.
        sampler: sampler of `predict` and of the panels, such as DDIM or Heun.
        optimizer: optimizer of the trained parameters, such as torch.optim.AdamW.
        lr_scheduler: learning-rate schedule, stepped every optimizer step: WarmupCosine, Warmup, or one of
            torch.optim.lr_scheduler with its own options; a parameter total_steps is the run's.  None: constant.
        noise_input: noise level as input of the network, such as LogSNR; None: t itself.
        guidance: wrapper of the denoiser when sampling, such as Thresholded; None: no wrapper.
        compile: compilation of the network by torch.compile; a string is its mode: reduce-overhead records CUDA graphs,
            max-autotune tries more kernels as well.
        channels_last: memory format of images with the channels together: faster convolutions, above all under bf16.
        shape: of one example, without the batch axis; the command line takes it from the data.
        conditions: of the data, by name, None: unconditional; the command line takes them from the data.
    """

    def __init__(
        self,
        network: Callable[[Shape, Conditions], nn.Module],
        schedule: Schedule,
        parameterization: Parameterization,
        loss: Loss,
        sampler: Sampler,
        optimizer: Callable[[Any], Optimizer],
        lr_scheduler: SchedulerFactory | None = None,
        noise_input: NoiseInput | None = None,
        guidance: Callable[[Denoiser], Denoiser] | None = None,
        compile: bool | str = False,
        channels_last: bool = False,
        shape: Shape = (2,),
        conditions: Conditions | None = None,
    ) -> None:
        super().__init__(optimizer, lr_scheduler)
        self.shape, self.conditions = tuple(shape), dict(conditions or {})
        made = build(partial(build_network, network, self.shape, self.conditions))
        self.denoiser = NetworkDenoiser(made, schedule, parameterization, noise_input, prediction_of(self.conditions))
        if channels_last:
            if len(self.shape) != 3:
                raise ValueError(f"channels_last is for images (C, H, W), not for data of shape {self.shape}")
            self.denoiser.network.to(memory_format=torch.channels_last)  # convolutions keep it in their outputs
        if compile:
            modes = compile_modes()
            if isinstance(compile, str) and compile not in modes:
                raise ValueError(f"model.compile must be true, false or one of {', '.join(modes)}, got {compile}")
            # In place: the names in the state dict stay.
            self.denoiser.network.compile(mode=compile if isinstance(compile, str) else None)
        self.loss, self.sampler, self.guidance = loss, sampler, guidance

    @property
    def network(self) -> nn.Module:
        """The score network, raw output F."""
        return self.denoiser.network

    @property
    def schedule(self) -> Schedule:
        """The noise schedule."""
        return self.denoiser.schedule

    def losses(self, batch: Batch, generator: torch.Generator | None = None) -> Losses:
        """The loss of each example, at random times; missing values (`observed` is false) do not count."""
        # As an option only where there are missing values: a loss of the user's own need not know of them.
        options: dict[str, Any] = {"observed": batch["observed"]} if "observed" in batch else {}
        if self.loss.sees_images and self.training:
            options["images"] = self._images(batch["x"])
        if self.loss.averaged_target and (names := self.averages.names):
            options["target"] = self._of_network(self.averages.of(names[0]))
        losses: Losses = self.loss(self.denoiser, batch["x"], of_batch(batch), generator, **options)
        return losses

    @torch.no_grad()
    def _images(self, x: Tensor) -> Tensor:
        """Examples as images in [−1, 1]: of latents those that they are decoded to."""
        data = getattr(self.attached, "datamodule", None)
        return data.to_pixels(x) if isinstance(data, DataModule) else x

    def _of_network(self, average: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """An average's weights of the network, by its own names."""
        prefix = "denoiser.network."
        return {name.removeprefix(prefix): value for name, value in average.items() if name.startswith(prefix)}

    def on_fit_start(self) -> None:
        self.loss.check(self.denoiser, self.shape, self.conditions)
        if self.loss.averaged_target and not self.averages.tracked:
            raise ValueError("model.loss.averaged_target needs EMA weights. Fix: add ema: {decays: [0.999]}")
        super().on_fit_start()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self.check_first(batch, self.conditions)
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

    def next_arguments(self, run: Path, data: DataModule) -> list[str]:
        return ["sample", "--ckpt_path", str(run)]

    def pipeline(self, weights: str | None = None, data: DataLike | None = None) -> Pipeline:
        """What draws samples, with a copy of the network: training on does not change it.

        Args:
            weights: "ema" (the first EMA weights), "raw", or "ema:0.999" for one of several; None: the EMA weights if
                there are any, of which a line is printed.
            data: gives the units; None: what the model was trained on in this process, or else model units.

        Raises:
            ValueError: there are no such weights.
        """
        denoiser, name = self.averaged(self.denoiser, weights)
        if weights is None and name != "raw":
            print(f"pipeline: {name} weights; pipeline(weights='raw') has those of the last step")
        trained_on = getattr(self.attached, "datamodule", None)
        if data is None and isinstance(trained_on, DataLike):
            data = trained_on
        return replace(self.live_pipeline(data), denoiser=denoiser, weights=name)

    def live_pipeline(self, data: DataLike | None = None) -> Pipeline:
        """What draws samples with the network itself, whatever weights it has at the time.

        Args:
            data: gives the units, the classes that there are examples of, and values of other conditions; None: model
                units, all classes.
        """
        counts = None if data is None else data.class_counts
        turns: dict[str, Any] = dict(getattr(data, "turns", {}))
        if counts and len(counts) == class_count(self.conditions):
            classes = torch.tensor(counts).nonzero()[:, 0]
            own = turns.get("label")
            # Of examples with other conditions too the label goes with these, in the same order where it can.
            if own is None or torch.equal(own, classes.repeat(-(-len(own) // len(classes)))[: len(own)]):
                turns["label"] = tuple(classes.tolist())
        dropout: dict[str, float] = getattr(self.loss, "dropout", {})
        return Pipeline(
            self.denoiser,
            self.sampler,
            self.shape,
            self.conditions,
            self.guidance,
            turns=turns,
            readers=getattr(data, "readers", {}),
            dropped=tuple(name for name in self.conditions if dropout.get(name, 0) > 0),
            decode=_same if data is None else data.decode,
            weights=self.weights_name,
            consistency=getattr(self.loss, "consistency", False),
        )


def _same(x: Tensor) -> Tensor:
    return x
