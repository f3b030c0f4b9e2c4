"""python -m diffusion_pl restore: pictures of which only a part is known."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..samplers import Grid, Sampler

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ..denoisers import Operator


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
) -> None:
    """Fill in what is missing of pictures with samples of a model that was never trained for it.

    The picture is spoiled by the task (masked, made gray, or averaged over blocks), and restored `num_samples` times.
    In grid.png each row begins with the picture and what was kept of it.

    Args:
        ckpt_path: A checkpoint of a run on pictures.
        path: A picture or a folder of them, whole or spoiled.
        task: inpaint what the mask does not keep; colorize from the mean of the channels; upscale from blocks.
        mask: Picture that is white where pixels are known; None: the left half.
        factor: Side of the blocks for upscale.
        method: replacement puts the known part, noised, in its place at every time; gradient pulls the estimate of the
            picture towards what is known, and differentiates the network.
        repeats: For replacement, how often each step is taken back and again, so that both parts agree ("RePaint"); 10
            is usual.
        scale: For gradient, its factor.
        num_samples: For each picture.
        output: Folder for the files.
        seed: Of the samples.
        sampler: Another rule than the checkpoint's; with --method replacement a stochastic one, such as Ancestral.
        grid: Another grid of times.
        steps: Number of points of the grid; without --grid they have equal shares of t (docs/pages/howto/sampler.md).
        cond: Condition, as --cond.label 3 or --cond.label NAME; None: of any class.
        weights: "ema" (the run's first average), "raw", or "ema:0.999" for one of several averages.
        accelerator: "cpu", "cuda", "mps", or "auto": cuda where there is one, else cpu.
    """
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    for name, value in (("num_samples", num_samples), ("repeats", repeats)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    import hashlib

    import torch

    from ..callbacks.figures import write_samples
    from ..callbacks.sample_writer import refuse_not_finite
    from ..checkpoints.loading import load_pipeline
    from ..data.base import count
    from ..denoisers import Reconstructing
    from ..runtime.devices import device_of
    from ..runtime.output_folder import OutputFolder
    from ..runtime.provenance import describe
    from ..samplers import Replacement
    from ..tensors import not_finite
    from .choices import choose

    pipeline, data = load_pipeline(ckpt_path, weights)
    if len(pipeline.shape) != 3:
        raise ValueError(f"{ckpt_path} is a model of points: only images can be restored")
    pipeline = choose(pipeline, sampler, grid, steps, cond=cond).without_cond().with_seed(seed)
    device = device_of(accelerator)
    known = None if task != "inpaint" else _known(pipeline.shape, None if mask is None else data.read(mask), mask)
    operator = _operator(task, pipeline.shape, known, factor, device)
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
            pipeline.to(device)
            many = x_0.repeat_interleave(num_samples, 0).to(device)
            y = operator(many)
            if method == "replacement":
                pipeline = pipeline.with_sampler(Replacement(pipeline.sampler, operator, y, repeats))
            else:
                std = max(0.05, x_0.square().mean().sqrt().item())
                pipeline = pipeline.with_wrapper(
                    partial(Reconstructing, operator=operator, y=y, data_std=std, scale=scale)
                )
            found = operator.consistent(pipeline.samples(range(len(many))).x_0, y).cpu()
            refuse_not_finite(not_finite(found), len(found))
            kept = operator.transpose(y[::num_samples]).cpu() / operator.gram
            if task == "inpaint":
                kept = torch.where(operator(torch.ones_like(many[:1])).cpu() > 0, kept, torch.zeros_like(kept))
            restored = found.reshape(len(x_0), num_samples, *pipeline.shape)
            rows = torch.cat((x_0[:, None], kept[:, None], restored), 1).flatten(0, 1)
            title = f"{task}: image, what is known, {num_samples} restored"

            def write(stage: Path) -> list[Path]:
                files = write_samples(data, found, stage)
                _save_grid(data, rows, num_samples + 2, title, stage / "grid.png")
                return files

            summary = f"{count(len(x_0), 'image')} restored {count(num_samples, 'time')} each by {method}, task {task}:"
            folder.publish(write, summary)
        folder.show()


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


def _save_grid(data: Any, rows: "Tensor", columns: int, title: str, path: Path) -> None:
    from .. import plots

    plots.save_image(plots.image_grid(data.units.to_uint8(rows).numpy(), columns, title=title), path)
