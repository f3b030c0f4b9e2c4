"""Panels of a point model: samples during training, and at the end the forward process, field and trajectories."""

from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from ..data import DataModule
from ..denoisers import Denoiser, empirical
from ..pipeline import Pipeline
from ..samplers import Path
from ..tensors import SampleNoise
from .images import log_image, panel_title
from .panels import SamplePanels, check_times, data_of
from .pipelines import on_its_way

MOST_DOTS = 500  # of a film


class PointPanels(SamplePanels):
    """Panels of points, as PNG files in the run's folder and in the loggers; each says which weights it shows.

    During training: samples, always from the same latents, next to the data.  At the end also the forward process, the
    learned field next to the exact one of the training points, trajectories, the noise schedule, and a film of x_t and
    of the estimate x̂_0 from noise to samples.

    Args:
        every_n_steps: optimizer steps between two sample panels.
        num_samples: points in a sample panel.
        field_times: times of the field and forward panels, within (0, 1].
        num_paths: trajectories drawn.
        film: make the film at the end.
    """

    draws_raw = False

    def __init__(
        self,
        every_n_steps: int = 2500,
        num_samples: int = 2000,
        field_times: tuple[float, ...] = (0.02, 0.1, 0.25, 0.5, 0.9),
        num_paths: int = 60,
        film: bool = True,
    ) -> None:
        super().__init__(every_n_steps, film, num_samples=num_samples, num_paths=num_paths)
        check_times("PointPanels", "field_times", field_times)
        self.num_samples, self.field_times, self.num_paths = num_samples, tuple(field_times), num_paths

    def check_data(self, data: Any) -> None:
        if not isinstance(data, DataModule) or not data.is_point:
            raise ValueError("PointPanels draws point data only: take it out of trainer.callbacks for other data")

    def draw_samples(self, trainer: Trainer, pipeline: Pipeline) -> Tensor:
        from .. import plots

        data, weights = data_of(trainer), pipeline.weights
        count = 10 if trainer.fast_dev_run else self.num_samples
        x = pipeline.samples(range(count)).x_0.cpu()
        decode = data.units.decode
        shown = decode(_points(data)).numpy(), decode(x).numpy()
        figure = plots.samples_panel(*shown, panel_title("Samples", trainer, weights), data.axes)
        log_image(trainer, f"samples/{weights}", plots.to_image(figure))
        return x

    @torch.no_grad()
    def draw_end(self, trainer: Trainer, pipeline: Pipeline, x: Tensor) -> None:
        from .. import plots

        data = data_of(trainer)
        schedule, points, weights = pipeline.schedule, _points(data), pipeline.weights
        t = torch.linspace(0, 1, 201, dtype=torch.float64)[1:-1]
        kernel = schedule(t)
        title = f"Noise schedule {type(schedule).__name__}"
        curves = plots.schedule_panel(
            t.numpy(), kernel.alpha.numpy(), kernel.sigma.numpy(), kernel.logsnr.numpy(), title
        )
        log_image(trainer, "schedule", plots.to_image(curves))
        if data.shape == (1,):
            return  # the other panels are drawn in the plane

        cloud = points[torch.arange(max(1000, len(points))) % len(points)]
        eps = SampleNoise(0, range(len(cloud)))(cloud)
        decode = data.units.decode  # what has names of the axes has the units of the file
        frames = [(0.0, decode(cloud).numpy())]
        for time in self.field_times:
            at = schedule(torch.tensor(time, dtype=torch.float64))
            frames.append((time, decode(at.alpha * cloud + at.sigma * eps).numpy()))
        forward = plots.forward_panel(frames, "Training points with more and more noise", data.axes)
        log_image(trainer, "forward_process", plots.to_image(forward))

        way = on_its_way(pipeline)
        run = way.samples(range(self.num_paths), path=True).path
        assert run is not None
        title = panel_title("Paths from noise to samples", trainer, weights)
        both = decode(run.x.cpu()).numpy(), decode(points).numpy()
        log_image(
            trainer,
            f"trajectories/{weights}",
            plots.to_image(plots.trajectories_panel(run.t.numpy(), *both, title, data.axes)),
        )

        if data.shape == (2,) and not pipeline.consistency:
            axis = torch.linspace(-2.4, 2.4, 25)
            grid = torch.cartesian_prod(axis, axis)
            exact = empirical(schedule, points)
            fields = [
                (time, _field(pipeline.denoiser, grid, time).numpy(), _field(exact, grid, time).numpy())
                for time in self.field_times
            ]
            title = panel_title("Score field σ ∇ log p_t, learned and exact", trainer, weights)
            log_image(
                trainer,
                f"field/{weights}",
                plots.to_image(plots.field_panel(grid.numpy(), fields, points.numpy(), title)),
            )

    def film_path(self, trainer: Trainer, pipeline: Pipeline) -> Path | None:
        if data_of(trainer).shape == (1,):
            return None  # it is drawn in the plane
        return pipeline.samples(range(min(self.num_samples, MOST_DOTS)), path=True).path


def _field(denoiser: Denoiser, x: Tensor, time: float) -> Tensor:
    """The direction in which noise is removed: −ε̂ = σ ∇log p_t(x), (B, D)."""
    device = next((p.device for p in denoiser.parameters()), x.device)
    t = torch.tensor(time, dtype=torch.float64)
    eps: Tensor = denoiser(x.to(device), t).eps
    return -eps.cpu()


def _points(data: DataModule) -> Tensor:
    """Training points in model units: (N, D)."""
    return data.training_examples(len(data.part("train")))
