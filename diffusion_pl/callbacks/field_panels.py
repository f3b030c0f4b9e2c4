"""Panels of a model of fields: samples next to the data, the forward process, and sampling as a film."""

from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from numpy.typing import NDArray
from torch import Tensor

from .. import plots
from ..data import DataModule
from ..pipeline import Pipeline
from ..runtime.loggers import log_now
from ..samplers import Sampler, Samples
from ..tensors import SampleNoise
from ..training import DiffusionModule, LeanCallback
from .figures import decoded
from .images import film_frames, log_film, log_image, panel_title
from .pipelines import averaged_pipeline, check_model


class FieldPanels(LeanCallback):
    """Panels of fields in the user's units, as files in the run's folder and in the loggers, with the weights shown.

    Fields of one axis are curves, of two colour-mapped images with a scale, of three their central slices.

    During training: samples, always from the same latents, below examples; of a model with conditions, each sample has
    the conditions of the held-out example above it, and rows show the image conditions with as many channels.  Mean and
    deviation of each channel are logged next to the data's, in model units.  At the start the forward process of some
    examples; at the end a film of x_t and of the estimate x̂_0 from noise to samples.

    Args:
        every_n_steps: optimizer steps between two panels, at least 1.
        num_samples: fields in a panel, at least 1; at most 16 are drawn.
        sampler: draws them; None: the model's own.
        film: make the film at the end.
        strip_times: times of the forward process's panel, within (0, 1].
    """

    def __init__(
        self,
        every_n_steps: int = 1000,
        num_samples: int = 16,
        sampler: Sampler | None = None,
        film: bool = True,
        strip_times: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0),
    ) -> None:
        for name, value in (("every_n_steps", every_n_steps), ("num_samples", num_samples)):
            if value < 1:
                raise ValueError(f"FieldPanels: {name} must be at least 1, got {value}")
        if not strip_times or not all(0 < t <= 1 for t in strip_times):
            raise ValueError(f"FieldPanels: strip_times must be in (0, 1], got {list(strip_times)}")
        self.every_n_steps, self.num_samples, self.sampler, self.film = every_n_steps, num_samples, sampler, film
        self.strip_times = tuple(strip_times)
        self._drawn_step = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        data = trainer.datamodule
        if not isinstance(data, DataModule) or not data.is_field:
            raise ValueError("FieldPanels draws fields of real numbers only: take it out of trainer.callbacks")
        check_model("FieldPanels", pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero and trainer.global_step == 0:
            with averaged_pipeline(trainer, pl_module) as pipeline:
                self._strip(trainer, pipeline)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        due = step % self.every_n_steps == 0 and step not in (self._drawn_step, trainer.max_steps)
        if due and trainer.is_global_zero:
            self._drawn_step = step  # while gradients are accumulated the step stays
            self._panels(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            self._panels(trainer, pl_module)
            if self.film and not trainer.fast_dev_run:
                with averaged_pipeline(trainer, pl_module) as pipeline:
                    path = self._draw(trainer, pipeline, min(self.num_samples, 8), path=True).path
                    assert path is not None
                    frames = film_frames(_data(trainer), path, pipeline.schedule)
                    log_film(trainer, f"film/{pipeline.weights}", frames)

    def _panels(self, trainer: Trainer, module: LightningModule) -> None:
        """Shows samples of the EMA weights, and of the raw ones while they are worth a look."""
        with averaged_pipeline(trainer, module) as pipeline:
            self._samples(trainer, pipeline)
        if isinstance(module, DiffusionModule) and module.averages.young:
            with averaged_pipeline(trainer, module, raw=True) as pipeline:
                self._samples(trainer, pipeline)

    def _draw(self, trainer: Trainer, pipeline: Pipeline, count: int, path: bool = False) -> Samples:
        """`count` samples in the precision of the run, with the conditions of `_examples`."""
        if self.sampler is not None:
            pipeline = pipeline.with_sampler(self.sampler)
        cond = {name: value for name, value in self._examples(trainer, count).items() if name in pipeline.conditions}
        size = len(next(iter(cond.values()))) if cond else count
        with trainer.precision_plugin.forward_context():
            return pipeline.samples(range(size), path=path, progress=iter, **cond)

    def _examples(self, trainer: Trainer, most: int) -> dict[str, Tensor]:
        """A batch of some examples, in model units: held-out ones, or of the training split if none are held out."""
        data = _data(trainer)
        split = "val" if len(data.part("val")) else "train"
        return next(data.batches(split, min(most, plots.MOST_FIELDS)))

    def _samples(self, trainer: Trainer, pipeline: Pipeline) -> None:
        data, weights = _data(trainer), pipeline.weights
        count = 2 if trainer.fast_dev_run else self.num_samples
        x = self._draw(trainer, pipeline, count).x_0.float().cpu()
        batch = self._examples(trainer, count)
        scalars: dict[str, float] = {}
        for name, fields in ((f"samples_{weights}", x), ("data", batch["x"])):
            values = fields.transpose(0, 1).flatten(1)
            for channel, (mean, std) in enumerate(zip(values.mean(1).tolist(), values.std(1).tolist(), strict=True)):
                scalars |= {f"{name}/mean_{channel}": mean, f"{name}/std_{channel}": std}
        log_now(trainer, scalars)
        rows = {"data": _shown(data, batch, None if pipeline.conditions else plots.FIELD_COLUMNS)}
        for name, condition in data.conditions.items():
            if condition.shape == data.shape:
                rows[name] = data.decode_condition(name, batch[name].double()).numpy()
        rows["samples"] = decoded(data, x)
        panel = plots.fields_panel(rows, title=panel_title("Samples", trainer, weights))
        log_image(trainer, f"samples/{weights}", plots.to_image(panel))

    def _strip(self, trainer: Trainer, pipeline: Pipeline) -> None:
        data = _data(trainer)
        x_0 = data.training_examples(1)[:1]
        eps = SampleNoise(0, range(len(x_0)))(x_0)
        steps = [x_0]
        for time in self.strip_times:
            kernel = pipeline.schedule(torch.tensor(time, dtype=torch.float64))
            # At the scale of the data, or the noise of a variance-exploding schedule would exceed the scale.
            scale = torch.sqrt(kernel.alpha.square() + kernel.sigma.square())
            steps.append(((kernel.alpha * x_0 + kernel.sigma * eps) / scale).float())
        limits = plots.field_limits(decoded(data, data.training_examples(plots.MOST_FIELDS)))
        times = [f"t = {time:g}" for time in (0, *self.strip_times)]
        title = "An example with more and more noise, scaled to unit variance"
        panel = plots.fields_panel(
            {n: decoded(data, x) for n, x in zip(times, steps, strict=True)}, limits, title, True
        )
        log_image(trainer, "forward_process", plots.to_image(panel))


def _shown(data: DataModule, batch: dict[str, Tensor], most: int | None) -> NDArray[Any]:
    """The examples of a batch in the user's units, NaN where values are missing."""
    fields = decoded(data, batch["x"][:most])
    return np.where(batch["observed"][:most].numpy(), fields, np.nan) if "observed" in batch else fields


def _data(trainer: Trainer) -> DataModule:
    data = trainer.datamodule
    assert isinstance(data, DataModule)
    return data
