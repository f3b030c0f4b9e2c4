"""Panels of an image model: samples during training, the forward process, and sampling as a film."""

from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer
from numpy.typing import NDArray
from torch import Tensor

from ..data import DataModule
from ..evaluation import memory
from ..pipeline import Pipeline
from ..runtime.loggers import log_now
from ..samplers import Path, Sampler, Samples
from .figures import below_conditions, shown_condition
from .images import log_image, panel_title
from .panels import SamplePanels, channel_moments, check_times, data_of, moment_scalars, noisy

NEIGHBOURS = 16  # pairs in the panel of nearest neighbours
MOST_CLASSES = 10  # of a panel
SEARCHED = 2000  # training images, for one of each class
REMEMBERED = 100_000  # training images, for neighbours of samples: more would be read, or encoded, for hours
CONSTANT = 2 / 255  # standard deviation below which an image counts as constant: one quantization level of 256


class ImagePanels(SamplePanels):
    """Panels of images, as files in the run's folder and in the loggers; each says which weights it shows.

    During training: samples, always from the same latents, below a row of training images; one row for each class if
    there are classes, or a column if there are few samples; those of the raw weights next to the EMA weights' while the
    EMA is young.  Mean and deviation of each channel are logged next
    to the data's, and constant samples are counted.  At the start the forward process of some images; at the end a film
    of x_t and of the estimate x̂_0 from noise to samples, and samples above their nearest training images, with
    their distance relative to that of held-out images (memorisation).

    Args:
        every_n_steps: optimizer steps between two panels.
        num_samples: images in a panel; with classes, the same number of each, of at most 10.
        sampler: draws them; None: the model's own.  A fast one keeps the panels cheap for a model that samples slowly.
        film: make the film at the end.
        strip_times: times of the forward process's panel, within (0, 1].
    """

    def __init__(
        self,
        every_n_steps: int = 1000,
        num_samples: int = 64,
        sampler: Sampler | None = None,
        film: bool = True,
        strip_times: tuple[float, ...] = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.75, 1.0),
    ) -> None:
        super().__init__(every_n_steps, film, sampler, num_samples=num_samples)
        check_times("ImagePanels", "strip_times", strip_times, least=1)
        self.num_samples, self.strip_times = num_samples, tuple(strip_times)
        self._data_moments: Tensor | None = None

    def check_data(self, data: Any) -> None:
        if not isinstance(data, DataModule) or not data.is_image:
            raise ValueError("ImagePanels draws images only: take it out of trainer.callbacks for other data")

    def draw_start(self, trainer: Trainer, pipeline: Pipeline) -> None:
        from .. import plots

        data = data_of(trainer)
        columns = noisy(data.training_examples(4), self.strip_times, pipeline.schedule)
        names = ["t = 0", *(f"{time:g}" for time in self.strip_times)]
        images = data.units.to_uint8(torch.stack(columns, 1).flatten(0, 1)).numpy()
        title = "Training images with more and more noise, scaled to unit variance"
        log_image(trainer, "forward_process", plots.image_grid(images, len(columns), title=title, columns_named=names))

    def draw_samples(self, trainer: Trainer, pipeline: Pipeline) -> Tensor:
        data, weights = data_of(trainer), pipeline.weights
        count = 4 if trainer.fast_dev_run else self.num_samples
        x = self._drawn(trainer, pipeline, count).x_0.float().cpu()
        moments, of_data = channel_moments(x), self._moments(data)
        constant = int((x.flatten(2).std(2).amax(1) < CONSTANT).sum())
        scalars = {f"samples_{weights}/constant": float(constant)} | moment_scalars(f"samples_{weights}", moments)
        log_now(trainer, scalars | moment_scalars("data", of_data))
        title = panel_title("Samples", trainer, weights)
        title += f"\n{_moments_text(moments)} (data: {_moments_text(of_data)})"
        if constant:
            title += f"\n{constant} of {len(x)} samples are of one colour"
        classes = dict([*zip(_classes(pipeline), _class_names(pipeline), strict=True)][:MOST_CLASSES])
        cond = None if classes else shown_condition(pipeline, range(len(x)))
        log_image(trainer, f"samples/{weights}", _samples_grid(data, x, classes, title, cond))
        return x

    def draw_end(self, trainer: Trainer, pipeline: Pipeline, x: Tensor) -> None:
        if not trainer.fast_dev_run:
            self._neighbours(trainer, pipeline, x)

    def film_path(self, trainer: Trainer, pipeline: Pipeline) -> Path | None:
        return self._drawn(trainer, pipeline, min(self.num_samples, 16), path=True).path

    def _drawn(self, trainer: Trainer, pipeline: Pipeline, count: int, path: bool = False) -> Samples:
        """`count` samples; with classes, class by class."""
        classes = len(_classes(pipeline)) or 1
        groups = min(classes, MOST_CLASSES)
        each = max(1, -(-count // groups))
        # Sample i has class i of pipeline.classes(), in turn.
        indices = [k * classes + group for group in range(groups) for k in range(each)]
        return self.samples(trainer, pipeline, indices, path)

    def _neighbours(self, trainer: Trainer, pipeline: Pipeline, x: Tensor) -> None:
        """Samples x: (N, C, H, W), those that are nearest to a training image above it."""
        from .. import plots

        data, weights = data_of(trainer), pipeline.weights
        x = x.clamp(*(data.units.value_range or (-torch.inf, torch.inf)))
        result = memory(data, x, most=REMEMBERED)
        distance = float(result.nearest.distance.median())
        scalars = {f"neighbours_{weights}/distance": distance}
        summary = f"median distance of all samples: {distance:.3f}"
        if result.ratio is not None:
            scalars[f"neighbours_{weights}/memorisation"] = result.ratio
            summary += f", {result.ratio:.2f} times that of held-out images (0: copies)"
        if (seen := len(data.part("train"))) > REMEMBERED:
            summary += f"; {REMEMBERED:,} of {seen:,} training images searched"
        log_now(trainer, scalars)
        # The nearest first, so that a copy is not overlooked.
        first = result.nearest.distance.argsort()[:NEIGHBOURS]
        both = data.units.to_uint8(torch.stack((x[first], result.examples[first]), 1)).numpy()
        title = panel_title("Samples above their nearest training image", trainer, weights)
        title += f"\nthe {len(first)} of {len(x)} that are nearest; {summary}"
        log_image(trainer, f"neighbours/{weights}", plots.pairs(both, title=title))

    def _moments(self, data: DataModule) -> Tensor:
        """Mean and standard deviation of each channel over some training images: (C, 2)."""
        if self._data_moments is None:
            self._data_moments = channel_moments(data.training_examples(2000))
        return self._data_moments


def _classes(pipeline: Pipeline) -> list[int]:
    """The classes that samples have in turn; [] of a model without a label."""
    return pipeline.classes() if "label" in pipeline.conditions else []


def _class_names(pipeline: Pipeline) -> list[str]:
    """Their names, at most 20 characters each, or their indices."""
    names = pipeline.conditions["label"].names if "label" in pipeline.conditions else ()
    return [names[k][:20] if names else str(k) for k in _classes(pipeline)]


def _samples_grid(
    data: DataModule, x: Tensor, classes: dict[int, str], title: str, cond: tuple[str, Tensor] | None
) -> NDArray[np.uint8]:
    """Samples below a row of training images, or each row of them below that of their image conditions.

    Args:
        data: of the model.
        x: (N, C, H, W), in model units; with classes, class by class.
        classes: labels and names of the classes shown; empty: there are none.
        title: above the grid.
        cond: of the samples, see `shown_condition`; None: they have none.
    """
    from .. import plots

    if cond is not None:
        columns = int(np.ceil(np.sqrt(len(x))))
        rows, names = below_conditions(cond, x, columns)
        shown = data.units.to_uint8(rows).numpy()
        return plots.image_grid(shown, columns, title=title, rows_named=names, together=2)
    each = len(x) // max(1, len(classes))
    rows_named, columns_named = ["data", *(classes.values() or ["samples"])], list[str]()
    if 2 * each < len(classes):  # a row for each class would be a tower
        x = x.unflatten(0, (len(classes), each)).transpose(0, 1).flatten(0, 1)
        rows_named, columns_named = ["data", "samples"], [*classes.values()]
        columns = len(classes)
        real = _one_of_each(data, [*classes])
    else:
        columns = each if classes else int(np.ceil(np.sqrt(len(x))))
        some = data.training_examples(4 * columns)
        number = min(columns, len(some))
        real = data.units.to_uint8(some[torch.arange(number) * len(some) // number])
    row = torch.full((columns, *real.shape[1:]), 255, dtype=torch.uint8)
    row[: len(real)] = real
    shown = torch.cat((row, data.units.to_uint8(x))).numpy()
    return plots.image_grid(shown, columns, title=title, rows_named=rows_named, columns_named=columns_named, head=1)


def _one_of_each(data: DataModule, classes: list[int]) -> Tensor:
    """A training image of each class, white if none is found soon: (classes, C, H, W), uint8."""
    assert data.image_shape is not None
    source, row = data.part("train"), [torch.full(data.image_shape, 255, dtype=torch.uint8)] * len(classes)
    missing = {label: place for place, label in enumerate(classes)}
    number = min(len(source), SEARCHED)
    for some in (torch.arange(number) * len(source) // number).split(50):  # files are read one by one
        batch = data.on_after_batch_transfer(source.__getitems__(some), 0)
        for x, label in zip(batch["x"], batch["label"].tolist(), strict=True):
            if label in missing:
                row[missing.pop(label)] = data.units.to_uint8(x)
        if not missing:
            break
    return torch.stack(row)


def _moments_text(moments: Tensor) -> str:
    """Mean and standard deviation of each channel, (C, 2); of many the first three."""
    mean, std = (", ".join(f"{value:.2f}" for value in part) for part in moments[:3].T.tolist())
    return f"mean {mean}, std {std}"
