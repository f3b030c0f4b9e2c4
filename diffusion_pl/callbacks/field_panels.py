"""Panels of a model of fields: samples next to the data, the forward process, and sampling as a film."""

from typing import Any

import numpy as np
from lightning.pytorch import Trainer
from numpy.typing import NDArray
from torch import Tensor

from .. import plots
from ..data import DataModule
from ..pipeline import Pipeline
from ..runtime.loggers import log_now
from ..samplers import Path, Sampler, Samples
from .figures import decoded
from .images import log_image, panel_title
from .panels import SamplePanels, channel_moments, check_times, data_of, moment_scalars, noisy


class FieldPanels(SamplePanels):
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
        super().__init__(every_n_steps, film, sampler, num_samples=num_samples)
        check_times("FieldPanels", "strip_times", strip_times, least=1)
        self.num_samples, self.strip_times = num_samples, tuple(strip_times)

    def check_data(self, data: Any) -> None:
        if not isinstance(data, DataModule) or not data.is_field:
            raise ValueError("FieldPanels draws fields of real numbers only: take it out of trainer.callbacks")

    def draw_start(self, trainer: Trainer, pipeline: Pipeline) -> None:
        data = data_of(trainer)
        steps = noisy(data.training_examples(1)[:1], self.strip_times, pipeline.schedule)
        limits = plots.field_limits(decoded(data, data.training_examples(plots.MOST_FIELDS)))
        times = [f"t = {time:g}" for time in (0, *self.strip_times)]
        title = "An example with more and more noise, scaled to unit variance"
        panel = plots.fields_panel(
            {n: decoded(data, x) for n, x in zip(times, steps, strict=True)}, limits, title, True
        )
        log_image(trainer, "forward_process", plots.to_image(panel))

    def draw_samples(self, trainer: Trainer, pipeline: Pipeline) -> Tensor:
        data, weights = data_of(trainer), pipeline.weights
        count = 2 if trainer.fast_dev_run else self.num_samples
        x = self._drawn(trainer, pipeline, count).x_0.float().cpu()
        batch = _examples(data, count)
        scalars = moment_scalars(f"samples_{weights}", channel_moments(x))
        log_now(trainer, scalars | moment_scalars("data", channel_moments(batch["x"])))
        rows = {"data": _shown(data, batch, None if pipeline.conditions else plots.FIELD_COLUMNS)}
        for name, condition in data.conditions.items():
            if condition.shape == data.shape:
                rows[name] = data.decode_condition(name, batch[name].double()).numpy()
        rows["samples"] = decoded(data, x)
        panel = plots.fields_panel(rows, title=panel_title("Samples", trainer, weights))
        log_image(trainer, f"samples/{weights}", plots.to_image(panel))
        return x

    def film_path(self, trainer: Trainer, pipeline: Pipeline) -> Path | None:
        return self._drawn(trainer, pipeline, min(self.num_samples, 8), path=True).path

    def _drawn(self, trainer: Trainer, pipeline: Pipeline, count: int, path: bool = False) -> Samples:
        """`count` samples with the conditions of `_examples`."""
        examples = _examples(data_of(trainer), count)
        cond = {name: value for name, value in examples.items() if name in pipeline.conditions}
        size = len(next(iter(cond.values()))) if cond else count
        return self.samples(trainer, pipeline, range(size), path, **cond)


def _examples(data: DataModule, most: int) -> dict[str, Tensor]:
    """A batch of some examples, in model units: held-out ones, or of the training split if none are held out."""
    split = "val" if len(data.part("val")) else "train"
    return next(data.batches(split, min(most, plots.MOST_FIELDS)))


def _shown(data: DataModule, batch: dict[str, Tensor], most: int | None) -> NDArray[Any]:
    """The examples of a batch in the user's units, NaN where values are missing."""
    fields = decoded(data, batch["x"][:most])
    return np.where(batch["observed"][:most].numpy(), fields, np.nan) if "observed" in batch else fields
