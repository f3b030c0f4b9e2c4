"""Figures of a model of images: samples as it learns, the way of the data to noise, and the way back as a film."""

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from ..data import DataModule
from ..evaluation import memory
from ..runtime.loggers import tell
from ..samplers import Sampler, Samples
from ..tensors import SampleNoise
from ..training import DiffusionModule, LeanCallback
from .ema import ema_of, judged_weights
from .images import film_frames, log_film, log_image

NEIGHBOURS = 16  # pairs in the panel of nearest neighbours
CONSTANT = 2 / 255  # standard deviation below which an image counts as constant: one grey level of 256


class ImagePanels(LeanCallback):
    """Panels for images, as files in the run's folder and in the loggers; each says which weights it shows.

    During training: samples, always from the same latents, one row for each class if there are classes; those of the
    raw weights beside the average's while it is young.  Mean and deviation of each channel are logged beside the
    data's, and samples that are one colour are counted.  At the start the forward process of some images; at the end
    a film of x_t and of the estimate x̂_0 on the way from noise to samples, and samples beside the training images
    they are nearest to, with how far they are from them beside how far held-out images are (memorisation).

    Args:
        every_n_steps: optimizer steps between two panels.
        num_samples: images in a panel; with classes, rounded up to whole rows, at most 10 rows.
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
        for name, value in (("every_n_steps", every_n_steps), ("num_samples", num_samples)):
            if value < 1:
                raise ValueError(f"ImagePanels: {name} must be at least 1, got {value}")
        if not strip_times or not all(0 < t <= 1 for t in strip_times):
            raise ValueError(f"ImagePanels: strip_times must be in (0, 1], got {list(strip_times)}")
        self.every_n_steps, self.num_samples, self.sampler, self.film = every_n_steps, num_samples, sampler, film
        self.strip_times = tuple(strip_times)
        self._drawn_step = 0
        self._data_moments: tuple[Tensor, Tensor] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if not isinstance(trainer.datamodule, DataModule) or not trainer.datamodule.is_image:
            raise ValueError("ImagePanels draws images only: take it out of trainer.callbacks for other data")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero and trainer.global_step == 0:
            self._strip(trainer, _module(pl_module))

    def on_train_batch_end(  # type: ignore[no-untyped-def]
        self, trainer: Trainer, pl_module: LightningModule, outputs, batch, batch_idx: int
    ) -> None:
        step = trainer.global_step
        due = step % self.every_n_steps == 0 and step not in (self._drawn_step, trainer.max_steps)
        if due and trainer.is_global_zero:
            self._drawn_step = step  # while gradients are accumulated the step stays
            self._panels(trainer, _module(pl_module))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            x = self._panels(trainer, _module(pl_module))
            if trainer.fast_dev_run:
                return
            with judged_weights(trainer, pl_module):
                self._neighbours(trainer, _module(pl_module), x)
                if self.film:
                    self._film(trainer, _module(pl_module))

    def _panels(self, trainer: Trainer, model: DiffusionModule) -> Tensor:
        """Shows samples of the weights that are judged, which it returns, and of others worth a look."""
        with judged_weights(trainer, model):
            x = self._samples(trainer, model)
        ema = ema_of(trainer)
        if ema is not None and ema.young:
            with judged_weights(trainer, model, raw=True):
                self._samples(trainer, model)
        return x

    def _draw(self, trainer: Trainer, model: DiffusionModule, count: int, path: bool = False) -> Samples:
        """`count` samples in the precision of the run; with classes, row by row."""
        classes = len(model.labels) or 1
        rows = min(classes, 10)
        columns = max(1, -(-count // rows))
        # `sample` gives index i label i of model.labels, over and over.
        indices = [column * classes + row for row in range(rows) for column in range(columns)]
        with trainer.precision_plugin.forward_context():
            return model.sample(indices, sampler=self.sampler, path=path)

    def _samples(self, trainer: Trainer, model: DiffusionModule) -> Tensor:
        from .. import plots

        data, weights = _data(trainer), model.weights_name
        x = self._draw(trainer, model, 4 if trainer.fast_dev_run else self.num_samples).x_0.float().cpu()
        moments = torch.stack((x.mean((0, 2, 3)), x.std((0, 2, 3))), 1)
        wanted = torch.stack(self._moments(data), 1)
        constant = int((x.flatten(2).std(2).amax(1) < CONSTANT).sum())
        scalars = {f"samples_{weights}/constant": float(constant)}
        told = []
        for channel, ((mean, std), (data_mean, data_std)) in enumerate(
            zip(moments.tolist(), wanted.tolist(), strict=True)
        ):
            scalars[f"samples_{weights}/mean_{channel}"], scalars[f"samples_{weights}/std_{channel}"] = mean, std
            scalars[f"data/mean_{channel}"], scalars[f"data/std_{channel}"] = data_mean, data_std
            told.append(f"{mean:+.2f} ± {std:.2f} (data {data_mean:+.2f} ± {data_std:.2f})")
        tell(trainer, scalars)
        parts = [f"step {trainer.global_step:,}", f"{weights} weights", "channels " + ", ".join(told[:3])]
        if constant:
            parts.append(f"{constant} of {len(x)} are ONE COLOUR")
        names = data.class_names
        named = [names[k][:20] if names else str(k) for k in model.labels[:10]]
        columns = len(x) // len(named) if named else None
        grid = plots.image_grid(data.units.to_uint8(x).numpy(), columns, title="  ·  ".join(parts), rows_named=named)
        log_image(trainer, f"samples/{weights}", grid)
        return x

    def _neighbours(self, trainer: Trainer, model: DiffusionModule, x: Tensor) -> None:
        """Samples x: (N, C, H, W), those nearest to a training image above it."""
        from .. import plots

        data, weights = _data(trainer), model.weights_name
        x = x.clamp(*(data.units.value_range or (-torch.inf, torch.inf)))
        found = memory(data, x)
        scalars = {f"neighbours_{weights}/distance": float(found.nearest.distance.median())}
        told = f"median distance of all {scalars[f'neighbours_{weights}/distance']:.3f}"
        if found.ratio is not None:
            scalars[f"neighbours_{weights}/memorisation"] = found.ratio
            told += f", {found.ratio:.2f} times that of held-out images (near 0: copies)"
        tell(trainer, scalars)
        # The nearest first: a copy is not to be overlooked.
        first = found.nearest.distance.argsort()[:NEIGHBOURS]
        both = data.units.to_uint8(torch.stack((x[first], found.examples[first]), 1)).numpy()
        title = f"step {trainer.global_step:,}  ·  {weights} weights  ·  samples above their nearest training image"
        title += f", the {len(first)} nearest of {len(x)}  ·  {told}"
        log_image(trainer, f"neighbours/{weights}", plots.pairs(both, title=title))

    def _moments(self, data: DataModule) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each channel over some training images: (C,) each."""
        if self._data_moments is None:
            x = data.training_examples(2000)
            self._data_moments = x.mean((0, 2, 3)), x.std((0, 2, 3))
        return self._data_moments

    def _strip(self, trainer: Trainer, model: DiffusionModule) -> None:
        from .. import plots

        data = _data(trainer)
        x_0 = data.training_examples(4)
        eps = SampleNoise(0, range(len(x_0)))(x_0)
        columns = [x_0]
        names = ["t = 0"]
        for time in self.strip_times:
            kernel = model.schedule(torch.tensor(time, dtype=torch.float64))
            # At the scale of the data, or the noise of a variance-exploding process would only be clipped.
            scale = torch.sqrt(kernel.alpha.square() + kernel.sigma.square())
            columns.append(((kernel.alpha * x_0 + kernel.sigma * eps) / scale).float())
            names.append(f"{time:g}")
        images = data.units.to_uint8(torch.stack(columns, 1).flatten(0, 1)).numpy()
        title = f"forward process of training images, scaled to unit variance: {', '.join(names)}"
        log_image(trainer, "forward_process", plots.image_grid(images, len(columns), title=title))

    def _film(self, trainer: Trainer, model: DiffusionModule) -> None:
        data = _data(trainer)
        path = self._draw(trainer, model, min(self.num_samples, 16), path=True).path
        assert path is not None
        frames = film_frames(data, path, model.schedule)
        log_film(trainer, f"film/{model.weights_name}", frames)


def _module(module: LightningModule) -> DiffusionModule:
    if not isinstance(module, DiffusionModule):
        name = type(module).__name__
        raise ValueError(f"ImagePanels shows samples, and a {name} has none: take it out of trainer.callbacks")
    return module


def _data(trainer: Trainer) -> DataModule:
    data = trainer.datamodule
    assert isinstance(data, DataModule)
    return data
