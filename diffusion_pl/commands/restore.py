"""python -m diffusion_pl restore: images of which only a part is known."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..runtime.bounds import check_counts
from ..runtime.output import Report, next_command
from ..samplers import Grid, Sampler

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ..denoisers import Operator
    from ..pipeline import Pipeline


def restore(
    ckpt_path: Path,
    path: Path,
    task: Literal["inpaint", "colorize", "upscale"] = "inpaint",
    mask: Path | None = None,
    factor: int = 2,
    method: Literal["replacement", "gradient"] = "replacement",
    repeats: int = 1,
    scale: float = 1.0,
    num_samples: int = 4,
    output: Path = Path("restored"),
    seed: int = 0,
    sampler: Callable[[Grid], Sampler] | None = None,
    grid: Grid | None = None,
    steps: int | None = None,
    cond: dict[str, str] | None = None,
    weights: str = "ema",
    accelerator: str = "auto",
) -> Report | None:
    """Fill in the missing parts of images with samples of a model that was never trained for it.

    The task degrades the image (masks it, makes it gray, or averages it over blocks), and it is restored `num_samples`
    times.  In grid.png each row begins with the image and what was kept of it.

    Args:
        ckpt_path: Checkpoint, or folder of a run (its newest one), of a model of images.
        path: Image or folder of images, whole or degraded.
        task: Kind of degradation: inpaint (pixels outside the mask are missing), colorize (only the mean of the
            channels is known), upscale (only the means of blocks are known).
        mask: Image that is white where pixels are known, for inpaint; None: the left half is known.
        factor: Height and width of the blocks for upscale, in pixels, at least 1.
        method: Way to restore: replacement (the known part, noised, is put in its place at every time) or gradient (the
            estimate of the image is moved towards the known part; it differentiates the network).
        repeats: Number of times that replacement takes each step, at least 1, so that both parts agree ("RePaint"); 10
            is usual.
        scale: Factor of the gradient method, at least 0.
        num_samples: Number of samples of each image, at least 1.
        output: Folder for the files, new or empty.
        seed: Seed of the samples, at least 0.
        sampler: Sampler, such as DPMpp, its options as --sampler.order 3; with --method replacement a stochastic one,
            such as Ancestral; None: the checkpoint's.
        grid: Grid of times, such as KarrasGrid, its options as --grid.rho 7; None: the sampler's.
        steps: Number of grid times, at least 1, such as 50; without --grid they have equal shares of t; None: the
            checkpoint's.
        cond: Condition, as --cond.label 3 or --cond.label NAME; None: of any class.
        weights: Weights: "ema" (the run's first EMA weights), "raw", or "ema:0.999" for one of several averages.
        accelerator: Kind of device: "cpu", "cuda", "mps", or "auto" (cuda where there is one, else cpu).
    """
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    check_counts(num_samples=num_samples, repeats=repeats)
    import hashlib

    from ..checkpoints.loading import load_pipeline
    from ..data.base import count
    from ..runtime.devices import device_of
    from ..runtime.output_folder import OutputFolder
    from ..runtime.provenance import describe
    from .choices import choose

    pipeline, data = load_pipeline(ckpt_path, weights)
    if len(pipeline.shape) != 3:
        raise ValueError(f"{ckpt_path} is a model of points: only images can be restored")
    image_shape = data.image_shape or pipeline.shape
    if image_shape != pipeline.shape and task != "inpaint":
        raise ValueError(f"--task {task} needs pixels, and {ckpt_path} is a model of latents. Fix: --task inpaint")
    pipeline = choose(pipeline, sampler, grid, steps, cond=cond).without_cond().with_seed(seed)
    pipeline = pipeline.to(device_of(accelerator))
    known = None
    if task == "inpaint":
        known = _known(image_shape, None if mask is None else data.originals.read(mask), mask)
        known = _blocks(known, image_shape[1] // pipeline.shape[1])
    operator = _operator(task, pipeline.shape, known, factor, pipeline.device)
    x_0 = data.read(path)
    call = {
        "checkpoint": str(ckpt_path),
        "sha256": pipeline.sha256,
        "weights": pipeline.weights,
        "examples": hashlib.sha256(x_0.numpy().tobytes()).hexdigest(),
        "operator": factor if task == "upscale" else task if known is None else known.flatten().tolist(),
        "method": method,
        "repeats": repeats,
        "scale": scale,
        "num_samples": num_samples,
        "seed": seed,
        "sampler": describe(pipeline.sampler),
        "cond": dict(pipeline.cond),
    }
    with OutputFolder(output, call) as folder:
        if folder.published is None:
            y = operator(x_0.repeat_interleave(num_samples, 0).to(pipeline.device))
            if method == "replacement":
                pipeline = _replacing(pipeline, operator, y, repeats)
            else:
                pipeline = _guided(pipeline, operator, y, x_0, scale)
            restored = _samples(pipeline, operator, y)
            rows = _grid_rows(x_0, operator, y, restored, masked=task == "inpaint")
            write = partial(_write, data, restored, rows, num_samples, task)
            other = "gradient" if method == "replacement" else "replacement"
            again = ["restore", "--ckpt_path", ckpt_path, "--path", path, "--task", task, "--method", other]
            report = Report(
                done=f"{count(len(x_0), 'image')} restored {count(num_samples, 'time')} each by {method}, task {task}",
                next=[next_command(*again, "--output", f"{output}-{other}")],
            )
            folder.publish(write, report)
        return folder.report


def _known(shape: tuple[int, ...], mask: "Tensor | None", path: Path | None) -> "Tensor":
    """1 where pixels are known, else 0: (1, 1, height, width); without a mask the left half is known."""
    import torch

    if mask is None:
        known = torch.zeros(1, 1, *shape[1:])
        known[..., : shape[2] // 2] = 1
        return known
    if len(mask) != 1:
        raise ValueError(f"{path}: give one mask, not a folder of {len(mask)}")
    return (mask.mean(1, keepdim=True) > 0).float()


def _blocks(known: "Tensor", factor: int) -> "Tensor":
    """1 where all pixels of a block are known, the block of a latent: (1, 1, height / factor, width / factor)."""
    from torch.nn.functional import max_pool2d

    return 1 - max_pool2d(1 - known, factor)


def _operator(
    task: str, shape: tuple[int, ...], known: "Tensor | None", factor: int, device: "torch.device"
) -> "Operator":
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


def _replacing(pipeline: "Pipeline", operator: "Operator", y: "Tensor", repeats: int) -> "Pipeline":
    """The pipeline whose sampler puts the known part y, noised, in its place at every time."""
    from ..samplers import Replacement

    return pipeline.with_sampler(Replacement(pipeline.sampler, operator, y, repeats))


def _guided(pipeline: "Pipeline", operator: "Operator", y: "Tensor", x_0: "Tensor", scale: float) -> "Pipeline":
    """The pipeline whose denoiser is pulled towards what is known, y; x_0: the images, for the scale of the data."""
    from ..denoisers import Reconstructing

    data_std = max(0.05, x_0.square().mean().sqrt().item())
    return pipeline.with_wrapper(partial(Reconstructing, operator=operator, y=y, data_std=data_std, scale=scale))


def _samples(pipeline: "Pipeline", operator: "Operator", y: "Tensor") -> "Tensor":
    """A sample for each measurement in y, with the known part put in: (N, C, H, W)."""
    from ..callbacks.sample_writer import refuse_not_finite
    from ..tensors import not_finite

    restored = operator.consistent(pipeline.samples(range(len(y))).x_0, y).cpu()
    refuse_not_finite(not_finite(restored), len(restored))
    return restored


def _grid_rows(x_0: "Tensor", operator: "Operator", y: "Tensor", restored: "Tensor", masked: bool) -> "Tensor":
    """Each image, what was kept of it, and its restored samples: (N · (2 + K), C, H, W).

    Args:
        x_0: images, (N, C, H, W).
        operator: what the task does to an image.
        y: measurements, operator(image), K equal ones per image.
        restored: samples, (N · K, C, H, W).
        masked: whether the operator masks pixels; the unknown ones are shown as 0.
    """
    import torch

    num_samples = len(restored) // len(x_0)
    kept = operator.transpose(y[::num_samples]).cpu() / operator.gram
    if masked:
        ones = torch.ones_like(x_0[:1], device=y.device)
        kept = torch.where(operator(ones).cpu() > 0, kept, torch.zeros_like(kept))
    samples = restored.reshape(len(x_0), num_samples, *x_0.shape[1:])
    return torch.cat((x_0[:, None], kept[:, None], samples), 1).flatten(0, 1)


def _write(data: Any, restored: "Tensor", rows: "Tensor", num_samples: int, title: str, stage: Path) -> list[Path]:
    """Write the restored images, and grid.png of the rows, into the folder `stage`; the files in order."""
    from .. import plots
    from ..callbacks.figures import write_samples

    files = write_samples(data, restored, stage)
    columns = ["image", "known", *(f"restored {k + 1}" for k in range(num_samples))]
    grid = plots.image_grid(data.units.to_uint8(rows).numpy(), len(columns), title=title, columns_named=columns)
    plots.save_image(grid, stage / "grid.png")
    return files
