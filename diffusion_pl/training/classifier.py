"""A classifier of noisy data, log p(y | x_t), for classifier guidance."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from ..conditions import Conditions
from ..data import DataModule
from ..denoisers import NoiseInput, ScaledTime, check_time
from ..losses import Losses, TimeSampler
from ..metrics import BinnedMean
from ..runtime.bounds import build
from ..schedules import Schedule
from .base import VAL_BINS, Batch, Shape, Trainable, build_network
from .lr_schedulers import SchedulerFactory


class NoisyClassifier(Trainable):
    """p(y | x_t) = softmax(network(x_t/√(α² + σ²), c_noise)), trained by cross-entropy at noise levels of all kinds.

    Reference: Song et al., arXiv 2011.13456, App. I; Dhariwal & Nichol, arXiv 2105.05233, Sec. 4.

    Args:
        network: makes the network from the shape of one example and the conditions of the data; forward(x: (B, *),
            c_noise: (B,)) -> logits: (B, classes of the label).  Such as diffusion_pl.networks.UNetEncoder.
        schedule: noise schedule, that of the diffusion model to be guided.
        times: distribution of t.
        optimizer: of the network's parameters.
        lr_scheduler: see DiffusionModule.
        noise_input: how the network gets the noise level; None: t itself.
        shape: of one example, without the batch axis; the command line takes it from the data.
        conditions: of the data, with a label; the command line takes them from the data.
    """

    def __init__(
        self,
        network: Callable[[Shape, Conditions], nn.Module],
        schedule: Schedule,
        times: TimeSampler,
        optimizer: Callable[[Any], Optimizer],
        lr_scheduler: SchedulerFactory | None = None,
        noise_input: NoiseInput | None = None,
        shape: Shape = (2,),
        conditions: Conditions | None = None,
    ) -> None:
        super().__init__(optimizer, lr_scheduler)
        if not conditions or "label" not in conditions:
            raise ValueError("NoisyClassifier: the data have no labels: give data.init_args.conditional true")
        self.shape, self.conditions = tuple(shape), dict(conditions)
        self.classifier = build(partial(build_network, network, self.shape, self.conditions))
        self.schedule, self.times = schedule, times
        self.noise_input = ScaledTime() if noise_input is None else noise_input
        self.val_accuracy = BinnedMean(VAL_BINS)

    @property
    def network(self) -> nn.Module:
        return self.classifier

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Logits: (B, classes).

        Args:
            x_t: (B, *).
            t: () or (B, 1, …, 1).
        """
        check_time(x_t, t)
        kernel = self.schedule(t)
        c_in = torch.rsqrt(kernel.alpha.square() + kernel.sigma.square())
        c_noise = self.noise_input(self.schedule, t, kernel).reshape(-1).expand(len(x_t)).to(x_t.device, torch.float32)
        logits: Tensor = self.classifier((c_in * x_t).float(), c_noise)
        return logits

    def losses(self, batch: Batch, generator: torch.Generator | None = None) -> Losses:
        loss, _, t = self._evaluate(batch, generator)
        return Losses(loss, t)

    def next_arguments(self, run: Path, data: DataModule) -> list[str]:
        """Samples of MODEL, a run of a diffusion model of the same data, guided by the classifier."""
        return ["sample", "--ckpt_path", "MODEL", "--classifier", str(run), "--scale", "1"]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self.check_first(batch, self.conditions)
        loss, correct, _ = self._evaluate(batch, None)
        self.log_step(train_loss=loss.mean(), train_accuracy=correct.mean())
        return loss.mean()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        if len(batch["x"]):  # else it is another process's turn
            loss, correct, t = self._evaluate(batch, self.validation_noise(batch_idx))
            self.val_loss.update(loss, t)
            self.val_accuracy.update(correct, t)

    def on_validation_epoch_end(self) -> None:
        self.log_bins("val_loss", self.val_loss)
        self.log_bins("val_accuracy", self.val_accuracy)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self.validation_step(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        self.log_bins("test_loss", self.val_loss)
        self.log_bins("test_accuracy", self.val_accuracy)

    def _evaluate(self, batch: Batch, generator: torch.Generator | None) -> tuple[Tensor, Tensor, Tensor]:
        """Cross-entropy in nats, whether the likeliest label is correct, and t: (B,) each."""
        x_0, label = batch["x"], batch["label"]
        t, importance = self.times(self.schedule, x_0, generator)
        eps = torch.randn(x_0.shape, dtype=x_0.dtype, device=x_0.device, generator=generator)
        kernel = self.schedule(t)
        logits = self(kernel.alpha * x_0 + kernel.sigma * eps, t).float()
        weight = importance.flatten() if isinstance(importance, Tensor) else importance
        return weight * cross_entropy(logits, label, reduction="none"), (logits.argmax(1) == label).float(), t.flatten()
