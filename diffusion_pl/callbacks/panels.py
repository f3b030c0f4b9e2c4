"""What all panels have in common: when they are drawn, of which weights, and the film at the end."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from ..data import DataModule
from ..pipeline import Pipeline
from ..samplers import Path, Sampler, Samples
from ..schedules import Schedule
from ..tensors import SampleNoise
from ..training import DiffusionModule, LeanCallback
from .images import film_frames, log_film
from .pipelines import averaged_pipeline, check_model, on_its_way


class Panels(LeanCallback, ABC):
    """Draws a model in training every few steps and at the end, on the first process.

    Args:
        every_n_steps: optimizer steps between two panels, at least 1.
        counts: other numbers that must be at least 1, by the names of their options.

    Raises:
        ValueError: a number below 1.
    """

    def __init__(self, every_n_steps: int, **counts: int) -> None:
        for name, value in {"every_n_steps": every_n_steps, **counts}.items():
            if value < 1:
                raise ValueError(f"{type(self).__name__}: {name} must be at least 1, got {value}")
        self.every_n_steps = every_n_steps
        self._drawn_step = 0

    @abstractmethod
    def draw(self, trainer: Trainer, module: LightningModule) -> None:
        """Draw the panel of this step."""

    def draw_last(self, trainer: Trainer, module: LightningModule) -> None:
        """Draw what is shown after the last step."""
        self.draw(trainer, module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        due = step % self.every_n_steps == 0 and step not in (self._drawn_step, trainer.max_steps)
        if due and trainer.is_global_zero:
            self._drawn_step = step  # while gradients are accumulated the step stays
            self.draw(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            self.draw_last(trainer, pl_module)


class SamplePanels(Panels):
    """Draws samples of a diffusion model, what it starts from, and at the end a film from noise to samples.

    Subclasses say which data they draw (`check_data`) and what: `draw_samples`, `film_path`, and where there is more to
    show `draw_start` and `draw_end`.  All of them get a pipeline of the EMA weights; samples are also drawn from the
    raw weights while the EMA is young.

    Args:
        every_n_steps: optimizer steps between two panels of samples, at least 1.
        film: make the film at the end.
        sampler: draws the samples; None: the model's own.
        counts: other numbers that must be at least 1, by the names of their options.
    """

    draws_raw: ClassVar[bool] = True  #: samples of the raw weights too, while the EMA is young

    def __init__(self, every_n_steps: int, film: bool, sampler: Sampler | None = None, **counts: int) -> None:
        super().__init__(every_n_steps, **counts)
        self.film, self.sampler = film, sampler

    @abstractmethod
    def check_data(self, data: Any) -> None:
        """Raise ValueError if the data of a run, of any kind, are not what the panels draw."""

    @abstractmethod
    def draw_samples(self, trainer: Trainer, pipeline: Pipeline) -> Tensor:
        """Draw a panel of samples; returns them, (N, *shape) in model units."""

    @abstractmethod
    def film_path(self, trainer: Trainer, pipeline: Pipeline) -> Path | None:
        """Samples of the film at every time of the grid; None: they cannot be drawn."""

    def draw_start(self, trainer: Trainer, pipeline: Pipeline) -> None:
        """Draw what is shown before the first step."""

    def draw_end(self, trainer: Trainer, pipeline: Pipeline, x: Tensor) -> None:
        """Draw what is shown after the last step next to the samples x, (N, *shape) in model units."""

    def samples(
        self, trainer: Trainer, pipeline: Pipeline, indices: Sequence[int], path: bool = False, **cond: Any
    ) -> Samples:
        """Samples by the sampler of the panels in the precision of the run; see `Pipeline.samples`."""
        if self.sampler is not None:
            pipeline = pipeline.with_sampler(self.sampler)
        with trainer.precision_plugin.forward_context():
            return pipeline.samples(indices, path=path, **cond)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.check_data(trainer.datamodule)
        check_model(type(self).__name__, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero and trainer.global_step == 0:
            with averaged_pipeline(trainer, pl_module) as pipeline:
                self.draw_start(trainer, pipeline)

    def draw(self, trainer: Trainer, module: LightningModule) -> None:
        self._draw_samples(trainer, module)

    def draw_last(self, trainer: Trainer, module: LightningModule) -> None:
        x = self._draw_samples(trainer, module)
        with averaged_pipeline(trainer, module) as pipeline:
            self.draw_end(trainer, pipeline, x)
            path = self.film_path(trainer, on_its_way(pipeline)) if self.film and not trainer.fast_dev_run else None
            if path is not None:
                frames = film_frames(data_of(trainer), path, pipeline.schedule)
                log_film(trainer, f"film/{pipeline.weights}", frames)

    def _draw_samples(self, trainer: Trainer, module: LightningModule) -> Tensor:
        """Draw samples of the EMA weights, which it returns, and of the raw ones while they are worth a look."""
        with averaged_pipeline(trainer, module) as pipeline:
            x = self.draw_samples(trainer, pipeline)
        if self.draws_raw and isinstance(module, DiffusionModule) and module.averages.young:
            with averaged_pipeline(trainer, module, raw=True) as pipeline:
                self.draw_samples(trainer, pipeline)
        return x


def data_of(trainer: Trainer) -> DataModule:
    """The data of a run."""
    data = trainer.datamodule
    assert isinstance(data, DataModule)
    return data


def check_times(callback: str, name: str, times: Sequence[float], least: int = 0) -> None:
    """Raise ValueError if times are not within (0, 1], or fewer than `least`."""
    if len(times) < least or not all(0 < t <= 1 for t in times):
        raise ValueError(f"{callback}: {name} must be in (0, 1], got {list(times)}")


def noisy(x_0: Tensor, times: Sequence[float], schedule: Schedule) -> list[Tensor]:
    """x_0 and x_t = α x_0 + σ ε at each of the times with the same ε, scaled by 1/√(α² + σ²): (B, *) each.

    At the scale of the data, since the noise of a variance-exploding schedule would exceed the range of a panel.
    """
    eps, steps = SampleNoise(0, range(len(x_0)))(x_0), [x_0]
    for time in times:
        kernel = schedule(torch.tensor(time, dtype=torch.float64))
        scale = torch.sqrt(kernel.alpha.square() + kernel.sigma.square())
        steps.append(((kernel.alpha * x_0 + kernel.sigma * eps) / scale).float())
    return steps


def channel_moments(x: Tensor) -> Tensor:
    """Mean and standard deviation of each channel of x, (N, C, *sizes): (C, 2)."""
    values = x.transpose(0, 1).flatten(1)
    return torch.stack((values.mean(1), values.std(1)), 1)


def moment_scalars(name: str, moments: Tensor) -> dict[str, float]:
    """Moments of channels, (C, 2), as values to be logged: name/mean_0, name/std_0, …"""
    scalars: dict[str, float] = {}
    for channel, (mean, std) in enumerate(moments.tolist()):
        scalars |= {f"{name}/mean_{channel}": mean, f"{name}/std_{channel}": std}
    return scalars
