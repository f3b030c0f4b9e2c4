"""python -m diffusion_pl restore: images and fields of which only a part is known."""

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from ..denoisers import Clipped
from ..runtime.bounds import check_counts
from ..runtime.output import Report, next_command
from ..samplers import Grid, Sampler

if TYPE_CHECKING:
    from torch import Tensor

    from ..data import DataModule
    from ..pipeline import Pipeline
    from .restoring import Known, Method

_DECODED = 16  # samples that are decoded together


def restore(
    ckpt_path: Path,
    path: Path,
    task: Literal["inpaint", "colorize", "upscale"] = "inpaint",
    mask: Path | None = None,
    factor: int | list[int] = 2,
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
    data_: dict[str, str | list[Any]] | None = None,
    weights: str = "ema",
    accelerator: str = "auto",
) -> Report | None:
    """Fill in the missing parts of images or fields with samples of a model that was never trained for it.

    The task degrades the image (masks it, makes it gray, or averages it over blocks), and it is restored `num_samples`
    times.  In grid.png each row begins with the image and what was kept of it.

    Args:
        ckpt_path: Checkpoint, or folder of a run (its newest one), of a model of images, their latents, or fields.
        path: Image or folder of images, whole or degraded; of fields, a file of arrays with the axes of the data.
        task: Kind of degradation: inpaint (values outside the mask are missing), colorize (only the mean of the
            channels is known), upscale (only the means of blocks are known).
        mask: Part that is known, for inpaint: an image, white there; of fields, an array, above 0 there; or a box,
            start:stop for each axis, such as --mask :,8:16 (all rows, columns 8 to 15).  None: the first half of the
            last axis, of images the left one.
        factor: Size of the blocks for upscale, at least 1: of all axes, or one for each, such as [1,2,2].
        operator: Measurement in place of a task, which may be nonlinear: Clipped (--operator.low -0.5 --operator.high
            0.5, in model units), Magnitude (of Fourier modes), or any module by class path, of latents applied to the
            decoded images in [-1, 1]; for the methods posterior and dps.  None: the task.
        method: Way to restore: replacement (the known part, noised, is put in its place at every time), gradient (the
            estimate of the image is moved towards the known part), posterior (the same with the covariance that the
            network implies; slower, and the most exact) or dps (an ancestral step, then one towards what is known).
            All but the first differentiate the network.  Of latents the first two are for masks of whole patches and
            an autoencoder that encodes each patch alone; the others differentiate the decoder too.
        repeats: Number of times that replacement takes each step, at least 1, so that both parts agree ("RePaint"); 10
            is usual.
        scale: Factor of the methods gradient and dps, at least 0.
        noise: Standard deviation of the noise in what is known, in model units, for the method posterior; at least 0.
        num_samples: Number of samples of each image or field, at least 1.
        output: Folder for the files, new or empty.
        seed: Seed of the samples, at least 0.
        sampler: Sampler, such as DPMpp, its options as --sampler.order 3; with --method replacement a stochastic one,
            such as Ancestral; None: the checkpoint's.
        grid: Grid of times, such as KarrasGrid, its options as --grid.rho 7; None: the sampler's.
        steps: Number of grid times, at least 1, such as 50; without --grid they have equal shares of t; None: the
            checkpoint's.
        cond: Conditions of all examples, by name, as for `sample`: --cond.label 3 or a class's name.  None: of any
            class; those that can be made of what is known, as low and masked, are; others are not given, if training
            dropped them at random.
        data_: Options of the checkpoint's data to replace, as --data.autoencoder FOLDER; None: none.
        weights: Weights: "ema" (the run's first EMA weights), "raw", "ema:0.999" for one of several, or
            "std:0.15" for power-function EMA weights of this width, made of the run's snapshots.
        accelerator: Kind of device: "cpu", "cuda", "mps", or "auto" (cuda where there is one, else cpu).
    """
    check_counts(num_samples=num_samples, repeats=repeats)
    from ..checkpoints.loading import load_pipeline
    from ..data.base import count
    from ..runtime.devices import device_of
    from ..runtime.output_folder import OutputFolder
    from .choices import as_denoiser, choose, derive, noted
    from .degrading import known_of, operator_of
    from .restoring import METHODS

    pipeline, data = load_pipeline(ckpt_path, weights, data_)
    if len(pipeline.shape) < 2:
        raise ValueError(f"{ckpt_path} is a model of points: only images and fields can be restored")
    pipeline = choose(pipeline, sampler, grid, steps, cond=cond).with_seed(seed)
    pipeline = as_denoiser(pipeline, "restore", not (sampler is None and grid is None and steps is None))
    pipeline = pipeline.to(device_of(accelerator))
    data.to(pipeline.device)
    way, pixels = METHODS[method], data.pixels
    _check(method, way, operator, task, mask, sampler)
    measure: Any
    if operator is None:
        measure = operator_of(task, data, mask, factor, pipeline.device)
    else:
        measure = operator.to(pipeline.device).requires_grad_(False)
    x_0 = pixels.read(path)
    conditions = {} if operator is not None else data.conditions_from(_kept(measure, x_0), _mask_of(measure))
    each = {name: value.cpu().repeat_interleave(num_samples, 0) for name, value in conditions.items()}
    pipeline, made = derive(pipeline, each)
    pipeline = pipeline.without_cond()
    every = x_0.repeat_interleave(num_samples, 0).to(pipeline.device)
    options = {"repeats": repeats, "scale": scale, "noise": noise}
    known = known_of(data, measure, every, method, way.linear, **options)
    call = {
        **_model(pipeline, ckpt_path),
        "examples": hashlib.sha256(x_0.numpy().tobytes()).hexdigest(),
        "operator": _note(measure),
        "method": method,
        **options,
        "num_samples": num_samples,
        "cond": noted(pipeline, {**(cond or {}), **made}),
    }
    of = f"task {task}" if operator is None else f"operator {type(operator).__name__}"
    what = "field" if pixels.is_field else "image"
    with OutputFolder(output, call) as folder:
        if folder.published is None:
            restored = _restored(data, way, pipeline, known, measure, every)
            rows = _grid_rows(every[::num_samples], measure, restored, pixels.is_field)
            write = partial(_write, pixels, restored, rows, num_samples, task)
            report = Report(
                done=f"{count(len(x_0), what)} restored {count(num_samples, 'time')} each by {method}, {of}",
                next=[]
                if operator is not None
                else [_again(data, ckpt_path, path, task, mask, factor, method, output)],
            )
            folder.publish(write, report)
        return folder.report


def _check(method: str, way: "Method", operator: nn.Module | None, task: str, mask: Path | None, sampler: Any) -> None:
    """Raise ValueError for options that do not go together."""
    if operator is not None and way.linear:
        raise ValueError(f"--method {method} needs a linear task, not --operator. Fix: --method posterior or dps")
    if operator is not None and mask is not None:
        raise ValueError("--mask is for --task inpaint, and --operator replaces the task. Fix: remove one of them")
    if task != "inpaint" and mask is not None:
        raise ValueError(f"--mask is for --task inpaint and has no effect with --task {task}. Fix: remove one of them")
    if sampler is not None and way.own:
        raise ValueError(f"--sampler has no effect with --method {method}, which is a sampler. Fix: remove it")


def _again(
    data: "DataModule",
    ckpt_path: Path,
    path: Path,
    task: str,
    mask: Path | None,
    factor: int | list[int],
    method: str,
    output: Path,
) -> str:
    """The command that does the same task by another method."""
    size = factor[0] if isinstance(factor, list) and len(factor) == 1 else factor
    other = "posterior" if method != "posterior" else "gradient" if data.pixels is data else "dps"
    what = ["--task", task, *(["--mask", mask] if mask else []), *(["--factor", size] if task == "upscale" else [])]
    call = ["restore", "--ckpt_path", ckpt_path, "--path", path, *what, "--method", other]
    return next_command(*call, "--output", f"{output}-{other}")


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


def _note(measure: Any) -> dict[str, Any]:
    """What is measured, as plain values."""
    from ..denoisers import Masked
    from ..metrics.extractors import identity
    from ..runtime.provenance import describe

    if isinstance(measure, Masked):
        return {"mask": hashlib.sha256(measure.mask.cpu().numpy().tobytes()).hexdigest()}
    return {"operator": describe(measure), **(identity(measure) if isinstance(measure, nn.Module) else {})}


def _mask_of(measure: Any) -> "Tensor | None":
    """The mask of what is known, on the CPU; None: something else than a part of the values is known."""
    from ..denoisers import Masked

    return measure.mask.cpu() if isinstance(measure, Masked) else None


def _kept(measure: Any, x_0: "Tensor") -> "Tensor":
    """What a linear operator keeps of x_0, as examples, on the CPU."""
    y = measure(x_0.to(measure.mask.device if hasattr(measure, "mask") else x_0.device))
    kept: Tensor = measure.transpose(y).cpu() / measure.gram
    return kept


def _restored(
    data: "DataModule", way: "Method", pipeline: "Pipeline", known: "Known", measure: Any, x_0: "Tensor"
) -> "Tensor":
    """A sample for each of x_0, (N, *shape), in units of `data.pixels`; a linear part that is known is put in."""
    import torch

    from ..callbacks.sample_writer import refuse_not_finite
    from ..denoisers import Operator
    from ..tensors import not_finite

    with torch.no_grad():
        samples = way.samples(pipeline, known)
        restored = torch.cat([data.to_pixels(some) for some in samples.split(_DECODED)])
    if isinstance(measure, Operator):
        restored = measure.consistent(restored, measure(x_0))
    restored = restored.cpu()
    refuse_not_finite(not_finite(restored), len(restored))
    return restored


def _grid_rows(x_0: "Tensor", measure: Any, restored: "Tensor", field: bool) -> "Tensor":
    """Each example, what was kept of it, and its restored samples: (N · (2 + K), C, *sizes).

    Args:
        x_0: examples, (N, C, *sizes).
        measure: what the task does to an example, or another operator; what it gives is shown if it has that shape.
        restored: samples, (N · K, C, *sizes).
        field: whether these are fields, of which unknown values are missing; of images they are 0, which is gray.
    """
    import torch

    from ..denoisers import Masked, Operator

    y, blank = measure(x_0), torch.full_like(x_0, torch.nan if field else 0.0)
    if isinstance(measure, Operator):
        kept = measure.transpose(y) / measure.gram
    else:
        kept = y if y.shape == x_0.shape else blank
    if isinstance(measure, Masked):
        kept = torch.where(measure.mask > 0, kept, blank)
    samples = restored.reshape(len(x_0), -1, *x_0.shape[1:])
    return torch.cat((x_0[:, None].cpu(), kept[:, None].cpu(), samples), 1).flatten(0, 1)


def _write(
    pixels: "DataModule", restored: "Tensor", rows: "Tensor", num_samples: int, title: str, stage: Path
) -> list[Path]:
    """Write the restored examples, and grid.png of the rows, into the folder `stage`; the files in order."""
    from ..callbacks.figures import write_restored, write_samples

    files, grid = write_samples(pixels, restored, stage), stage / "grid.png"
    columns = ["field" if pixels.is_field else "image", "known", *(f"restored {k + 1}" for k in range(num_samples))]
    write_restored(pixels, rows, columns, title, grid)
    return files if grid in files else [grid, *files]
