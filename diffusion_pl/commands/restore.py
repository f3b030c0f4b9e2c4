"""python -m diffusion_pl restore: pictures of which only a part is known."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from ..samplers import Grid, Sampler


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

    from .. import plots
    from ..callbacks.figures import write_samples
    from ..checkpoints.loading import load
    from ..data.base import count
    from ..denoisers import Coarse, Gray, Masked, Operator, Reconstructing
    from ..runtime.drawing import choose_sampler, describe, device_of, guide, not_finite, refuse_not_finite
    from ..runtime.output_folder import OutputFolder
    from ..samplers import Replacement

    model, data = load(ckpt_path, weights)
    if not data.is_image:
        raise ValueError(f"{ckpt_path} is a model of points: only pictures can be restored")
    rule = choose_sampler(model, sampler, grid, steps)
    guide(model, cond=cond, any_label=True, names=data.class_names)
    channels, height, width = model.shape
    operator: Operator
    if task == "inpaint":
        known = torch.zeros(1, 1, height, width)
        known[..., : width // 2] = 1
        if mask is not None:
            known = (data.read(mask).mean(1, keepdim=True) > 0).float()
            if len(known) != 1:
                raise ValueError(f"{mask}: give one mask, not a folder of {len(known)}")
        operator = Masked(known.to(device_of(accelerator)))
    elif task == "colorize":
        if channels != 3:
            raise ValueError(f"colorize needs a model of colour pictures, this one has {channels} channel(s)")
        operator = Gray(channels)
    else:
        operator = Coarse(factor)
        if height % factor or width % factor:
            raise ValueError(f"factor {factor} does not divide the sides {height}x{width}")
    x_0 = data.read(path)
    call = {
        "checkpoint": str(ckpt_path),
        "sha256": model.sha256,
        "weights": model.weights_name,
        "examples": hashlib.sha256(x_0.numpy().tobytes()).hexdigest(),
        "operator": task if task == "colorize" else factor if task == "upscale" else known.flatten().tolist(),
        "method": method,
        "repeats": repeats,
        "scale": scale,
        "num_samples": num_samples,
        "seed": seed,
        "sampler": describe(rule),
        "cond": model.sample_cond,
    }
    device = device_of(accelerator)
    with OutputFolder(output, call) as folder:
        if folder.published is None:
            model.to(device)
            many = x_0.repeat_interleave(num_samples, 0).to(device)
            y = operator(many)
            if method == "replacement":
                rule = Replacement(rule, operator, y, repeats)
            else:
                inner, std = model.guidance, max(0.05, x_0.square().mean().sqrt().item())
                model.guidance = lambda denoiser: Reconstructing(
                    denoiser if inner is None else inner(denoiser), operator, y, data_std=std, scale=scale
                )
            found = model.sample(range(len(many)), seed, rule, **model.conditions(len(many))).x_0
            found = operator.consistent(found, y).cpu()
            refuse_not_finite(not_finite(found), len(found))
            kept = operator.transpose(y[::num_samples]).cpu() / operator.gram
            if task == "inpaint":
                kept = torch.where(operator(torch.ones_like(many[:1])).cpu() > 0, kept, torch.zeros_like(kept))
            restored = found.reshape(len(x_0), num_samples, *model.shape)
            rows = torch.cat((x_0[:, None], kept[:, None], restored), 1).flatten(0, 1)

            def write(stage: Path) -> list[Path]:
                files = write_samples(data, found, stage)
                title = f"{task}: image, what is known, {num_samples} restored"
                grid_image = plots.image_grid(data.units.to_uint8(rows).numpy(), num_samples + 2, title=title)
                plots.save_image(grid_image, stage / "grid.png")
                return files

            folder.publish(
                write,
                f"{count(len(x_0), 'image')} restored {count(num_samples, 'time')} each by {method}, task {task}:",
            )
        folder.show()
