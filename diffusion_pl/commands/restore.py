"""python -m diffusion_pl restore: images of which only a part is known."""

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from torch import nn

from ..denoisers import Clipped
from ..runtime.bounds import check_counts
from ..runtime.output import Report, next_command
from ..samplers import Grid, Sampler

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ..data import DataModule
    from ..pipeline import Pipeline


def restore(
    ckpt_path: Path,
    path: Path,
    task: Literal["inpaint", "colorize", "upscale"] = "inpaint",
    mask: Path | None = None,
    factor: int = 2,
    operator: Clipped | nn.Module | None = None,
    method: Literal["replacement", "gradient", "posterior", "dps"] = "replacement",
    repeats: int = 1,
    scale: float = 1.0,
    noise: float = 0.01,
    num_samples: int = 4,
    output: Path = Path("restored"),
    seed: int = 0,
    sampler: Callable[[Grid], Sampler] | None = None,
    grid: Grid | None = None,
    steps: int | None = None,
    cond: dict[str, str | list[Any]] | None = None,
    weights: str = "ema",
    accelerator: str = "auto",
) -> Report | None:
    """Fill in the missing parts of images with samples of a model that was never trained for it.

    The task degrades the image (masks it, makes it gray, or averages it over blocks), and it is restored `num_samples`
    times.  In grid.png each row begins with the image and what was kept of it.

    Args:
        ckpt_path: Checkpoint, or folder of a run (its newest one), of a model of images.
        path: Image or folder of images, whole or degraded; of fields, a file of arrays with the axes of the data.
        task: Kind of degradation: inpaint (pixels outside the mask are missing), colorize (only the mean of the
            channels is known), upscale (only the means of blocks are known).
        mask: Image that is white where pixels are known, for inpaint; of fields, an array above 0 there; None: the left
            half is known.
        factor: Height and width of the blocks for upscale, in pixels, at least 1.
        operator: Measurement in place of a task, which may be nonlinear: Clipped (--operator.low -0.5 --operator.high
            0.5, in model units), Magnitude (of Fourier modes), or any module by class path; for the methods posterior
            and dps.  None: the task.
        method: Way to restore: replacement (the known part, noised, is put in its place at every time), gradient (the
            estimate of the image is moved towards the known part), posterior (the same with the covariance that the
            network implies; slower, and the most exact) or dps (an ancestral step, then one towards what is known).
            All but the first differentiate the network.
        repeats: Number of times that replacement takes each step, at least 1, so that both parts agree ("RePaint"); 10
            is usual.
        scale: Factor of the methods gradient and dps, at least 0.
        noise: Standard deviation of the noise in what is known, in model units, for the method posterior; at least 0.
        num_samples: Number of samples of each image, at least 1.
        output: Folder for the files, new or empty.
        seed: Seed of the samples, at least 0.
        sampler: Sampler, such as DPMpp, its options as --sampler.order 3; with --method replacement a stochastic one,
            such as Ancestral; None: the checkpoint's.
        grid: Grid of times, such as KarrasGrid, its options as --grid.rho 7; None: the sampler's.
        steps: Number of grid times, at least 1, such as 50; without --grid they have equal shares of t; None: the
            checkpoint's.
        cond: Conditions of all examples, by name, as for `sample`: --cond.label 3 or a class's name.  None: of any
            class; other conditions are not given either, if training dropped them at random.
        weights: Weights: "ema" (the run's first EMA weights), "raw", or "ema:0.999" for one of several averages.
        accelerator: Kind of device: "cpu", "cuda", "mps", or "auto" (cuda where there is one, else cpu).
    """
    check_counts(num_samples=num_samples, repeats=repeats)
    from ..checkpoints.loading import load_pipeline
    from ..data.base import count
    from ..runtime.devices import device_of
    from ..runtime.output_folder import OutputFolder
    from .choices import as_denoiser, choose, noted

    pipeline, data = load_pipeline(ckpt_path, weights)
    image_shape = _image_shape(pipeline, data, ckpt_path, None if operator is not None else task)
    pipeline = choose(pipeline, sampler, grid, steps, cond=cond).without_cond().with_seed(seed)
    pipeline = as_denoiser(pipeline, "restore", not (sampler is None and grid is None and steps is None))
    pipeline = pipeline.to(device_of(accelerator))
    way = _WAYS[method]
    way.check(method, operator, mask, sampler)
    known = _mask(pipeline, data, image_shape, mask) if task == "inpaint" else None
    if operator is not None:
        operator.to(pipeline.device).requires_grad_(False)
    measure = operator or _operator(task, pipeline.shape, known, factor, pipeline.device)
    x_0 = data.read(path)
    call = {
        **_model(pipeline, ckpt_path),
        "examples": hashlib.sha256(x_0.numpy().tobytes()).hexdigest(),
        "operator": _note(operator, factor if task == "upscale" else task if known is None else known),
        "method": method,
        "repeats": repeats,
        "scale": scale,
        "noise": noise,
        "num_samples": num_samples,
        "cond": noted(pipeline, cond),
    }
    of = f"task {task}" if operator is None else f"operator {type(operator).__name__}"
    with OutputFolder(output, call) as folder:
        if folder.published is None:
            y = measure(x_0.repeat_interleave(num_samples, 0).to(pipeline.device))
            restored = _samples(way.build(pipeline, Known(measure, y, x_0, repeats, scale, noise)), measure, y)
            rows = _grid_rows(x_0, measure, y, restored, masked=known is not None and operator is None)
            write = partial(_write, data, restored, rows, num_samples, task)
            report = Report(
                done=f"{count(len(x_0), 'image')} restored {count(num_samples, 'time')} each by {method}, {of}",
                next=_again(ckpt_path, path, task, mask, factor, method, output) if operator is None else [],
            )
            folder.publish(write, report)
        return folder.report


def _image_shape(pipeline: "Pipeline", data: "DataModule", ckpt_path: Path, task: str | None) -> tuple[int, ...]:
    """Shape of what a person gives, which of latents is that of the images.

    Raises:
        ValueError: a model of other data than images, or a task that latents do not allow.
    """
    if len(pipeline.shape) != 3:
        kind = "points" if data.is_point else f"data of shape {pipeline.shape}"
        raise ValueError(f"{ckpt_path} is a model of {kind}: only images can be restored")
    shape = data.image_shape or pipeline.shape
    if shape != pipeline.shape and task not in (None, "inpaint"):
        raise ValueError(f"--task {task} needs pixels, and {ckpt_path} is a model of latents. Fix: --task inpaint")
    return shape


def _again(
    ckpt_path: Path, path: Path, task: str, mask: Path | None, factor: int, method: str, output: Path
) -> list[str]:
    """The command that does the same task by another method."""
    other = "posterior" if method != "posterior" else "gradient"
    what = ["--task", task, *(["--mask", mask] if mask else []), *(["--factor", factor] if task == "upscale" else [])]
    call = ["restore", "--ckpt_path", ckpt_path, "--path", path, *what, "--method", other]
    return [next_command(*call, "--output", f"{output}-{other}")]


def _model(pipeline: "Pipeline", ckpt_path: Path) -> dict[str, Any]:
    """What draws the samples, for the record."""
    from ..runtime.provenance import describe

    return {
        "checkpoint": str(ckpt_path),
        "sha256": pipeline.sha256,
        "weights": pipeline.weights,
        "seed": pipeline.seed,
        "sampler": describe(pipeline.sampler),
    }


def _note(operator: nn.Module | None, task: Any) -> Any:
    """What is measured, as plain values."""
    import torch

    from ..metrics.extractors import identity
    from ..runtime.provenance import describe

    if operator is not None:
        return {"operator": describe(operator), **identity(operator)}
    return task.flatten().tolist() if isinstance(task, torch.Tensor) else task


def _mask(pipeline: "Pipeline", data: "DataModule", shape: tuple[int, ...], mask: Path | None) -> "Tensor":
    """1 where values of an example are known, else 0: (1, 1, *sizes); of latents, where all pixels of a block are."""
    known = _known(shape, None if mask is None else data.originals.read_mask(mask))
    return _blocks(known, shape[1] // pipeline.shape[1])


def _known(shape: tuple[int, ...], mask: "Tensor | None") -> "Tensor":
    """1 where pixels are known, else 0: (1, 1, height, width); without a mask the left half is known."""
    import torch

    if mask is None:
        known = torch.zeros(1, 1, *shape[1:])
        known[..., : shape[2] // 2] = 1
        return known
    return mask.float()


def _blocks(known: "Tensor", factor: int) -> "Tensor":
    """1 where all pixels of a block are known, the block of a latent: (1, 1, height / factor, width / factor)."""
    from torch.nn.functional import max_pool2d

    return 1 - max_pool2d(1 - known, factor)


def _operator(task: str, shape: tuple[int, ...], known: "Tensor | None", factor: int, device: "torch.device") -> Any:
    """What a task does to an image of a shape."""
    from ..denoisers import Coarse, Gray, Masked

    channels, height, width = shape
    if known is not None:
        return Masked(known.to(device))
    if task == "colorize":
        if channels != 3:
            raise ValueError(f"colorize needs a model of colour images, this one has {channels} channel(s)")
        return Gray(channels)
    operator = Coarse(factor)
    if height % factor or width % factor:
        raise ValueError(f"factor {factor} does not divide height x width {height}x{width}")
    return operator


class Known(NamedTuple):
    """What is known of images, and the options of the methods.

    measure: A, a linear Operator or any module;  y: A x_0 of each sample;  x_0: the images;  the rest: see `restore`.
    """

    measure: Any
    y: "Tensor"
    x_0: "Tensor"
    repeats: int
    scale: float
    noise: float


def _replacing(pipeline: "Pipeline", known: Known) -> "Pipeline":
    """The pipeline whose sampler puts the known part y, noised, in its place at every time."""
    from ..samplers import Replacement

    return pipeline.with_sampler(Replacement(pipeline.sampler, known.measure, known.y, known.repeats))


def _guided(pipeline: "Pipeline", known: Known) -> "Pipeline":
    """The pipeline whose denoiser is pulled towards what is known, by the scale of the data."""
    from ..denoisers import Reconstructing

    data_std = max(0.05, known.x_0.square().mean().sqrt().item())
    options = {"operator": known.measure, "y": known.y, "data_std": data_std, "scale": known.scale}
    return pipeline.with_wrapper(partial(Reconstructing, **options))


def _matched(pipeline: "Pipeline", known: Known) -> "Pipeline":
    """The pipeline whose denoiser estimates x_0 given what is known."""
    from ..denoisers import MomentMatched

    return pipeline.with_wrapper(partial(MomentMatched, operator=known.measure, y=known.y, noise=known.noise))


def _dps(pipeline: "Pipeline", known: Known) -> "Pipeline":
    """The pipeline whose sampler follows each ancestral step with one towards what is known."""
    from ..samplers import DPS

    return pipeline.with_sampler(DPS(pipeline.sampler.grid, known.measure, known.y, known.scale))


class _Way(NamedTuple):
    """A method: build makes its pipeline;  linear: it needs a linear operator;  own: it has a sampler of its own."""

    build: "Callable[[Pipeline, Known], Pipeline]"
    linear: bool = True
    own: bool = False

    def check(self, method: str, operator: nn.Module | None, mask: Path | None, sampler: Any) -> None:
        """Raise ValueError for options that do not go together."""
        if operator is not None and self.linear:
            raise ValueError(f"--method {method} needs a linear task, not --operator. Fix: --method posterior or dps")
        if operator is not None and mask is not None:
            raise ValueError("--mask is for --task inpaint, and --operator replaces the task. Fix: remove one of them")
        if sampler is not None and self.own:
            raise ValueError(f"--sampler has no effect with --method {method}, which is a sampler. Fix: remove it")


_WAYS = {
    "replacement": _Way(_replacing),
    "gradient": _Way(_guided),
    "posterior": _Way(_matched, linear=False),
    "dps": _Way(_dps, linear=False, own=True),
}


def _samples(pipeline: "Pipeline", measure: Any, y: "Tensor") -> "Tensor":
    """A sample for each measurement in y: (N, C, H, W); with the known part put in if the operator is linear."""
    from ..callbacks.sample_writer import refuse_not_finite
    from ..denoisers import Operator
    from ..tensors import not_finite

    restored = pipeline.samples(range(len(y))).x_0
    if isinstance(measure, Operator):
        restored = measure.consistent(restored, y)
    restored = restored.cpu()
    refuse_not_finite(not_finite(restored), len(restored))
    return restored


def _grid_rows(x_0: "Tensor", measure: Any, y: "Tensor", restored: "Tensor", masked: bool) -> "Tensor":
    """Each image, what was kept of it, and its restored samples: (N · (2 + K), C, H, W).

    Args:
        x_0: images, (N, C, H, W).
        measure: what the task does to an image, or another operator; what it gives is shown if it has that shape.
        y: measurements, measure(image), K equal ones per image.
        restored: samples, (N · K, C, H, W).
        masked: whether the operator masks pixels; the unknown ones are shown as 0.
    """
    import torch

    from ..denoisers import Operator

    num_samples = len(restored) // len(x_0)
    if isinstance(measure, Operator):
        kept = measure.transpose(y[::num_samples]).cpu() / measure.gram
    else:
        kept = y[::num_samples].cpu() if y.shape[1:] == x_0.shape[1:] else torch.zeros_like(x_0)
    if masked:
        ones = torch.ones_like(x_0[:1], device=y.device)
        kept = torch.where(measure(ones).cpu() > 0, kept, torch.zeros_like(kept))
    samples = restored.reshape(len(x_0), num_samples, *x_0.shape[1:])
    return torch.cat((x_0[:, None], kept[:, None], samples), 1).flatten(0, 1)


def _write(data: Any, restored: "Tensor", rows: "Tensor", num_samples: int, title: str, stage: Path) -> list[Path]:
    """Write the restored images, and grid.png of the rows, into the folder `stage`; the files in order."""
    from ..callbacks.figures import write_restored, write_samples

    files = write_samples(data, restored, stage)
    columns = ["image", "known", *(f"restored {k + 1}" for k in range(num_samples))]
    write_restored(data, rows, columns, title, stage / "grid.png")
    return files
