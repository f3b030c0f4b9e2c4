"""python -m diffusion_pl encode: the noise that an example comes from."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..runtime.output import Report, next_command
from ..samplers import Grid, Sampler

if TYPE_CHECKING:
    from torch import Tensor


def encode(
    ckpt_path: Path,
    path: Path,
    output: Path = Path("latents"),
    sampler: Callable[[Grid], Sampler] | None = None,
    grid: Grid | None = None,
    steps: int | None = None,
    cond: dict[str, str | list[Any]] | None = None,
    between: int = 0,
    weights: str = "ema",
    accelerator: str = "auto",
) -> Report | None:
    """Carry examples to noise by the probability-flow ODE, and back.

    Writes latents.npz, which `sample --latents` turns into samples again, and the reconstructed examples; prints their
    root-mean-square error.  A flow map, whose jumps lead to data only, is carried to noise by Heun's method, and back
    by its own sampler.  With --between 7 also interpolates between each two neighbours, seven samples each, along
    the arc of their latents.

    Args:
        ckpt_path: Checkpoint, or folder of a run (its newest one).
        path: Image or folder of images; of points, a table with the columns of the data, such as points.csv; of fields,
            a file of arrays with the axes of the data.
        output: Folder for the files, new or empty.
        sampler: Deterministic sampler, such as Heun or DDIM, its options as --sampler.order 3; None: the checkpoint's.
        grid: Grid of times, such as KarrasGrid, its options as --grid.rho 7; None: the sampler's.
        steps: Number of grid times, at least 1, such as 50; the more, the smaller the error.  Without --grid they have
            equal shares of t.  None: the checkpoint's.
        cond: Conditions of all examples, by name, as for `sample`: --cond.label 3 or a class's name.  None: of any
            class; those that can be made of the examples, as low, are; others are not given, if training dropped them
            at random.
        between: Number of samples between each two examples, at least 0.
        weights: Weights: "ema" (the run's first EMA weights), "raw", "ema:0.999" for one of several, or
            "std:0.15" for power-function EMA weights of this width, made of the run's snapshots.
        accelerator: Kind of device: "cpu", "cuda", "mps", or "auto" (cuda where there is one, else cpu).
    """
    if between < 0:
        raise ValueError(f"between must not be negative, got {between}")
    import hashlib
    from itertools import pairwise

    import numpy as np
    import torch

    from ..callbacks.figures import write_samples
    from ..callbacks.sample_writer import refuse_not_finite
    from ..checkpoints.loading import load_pipeline
    from ..data.base import count
    from ..pipeline import slerp
    from ..runtime.devices import device_of
    from ..runtime.output_folder import OutputFolder
    from ..runtime.provenance import describe
    from ..tensors import not_finite
    from .choices import as_denoiser, choose, derive, noted

    pipeline, data = load_pipeline(ckpt_path, weights)
    pipeline = choose(pipeline, sampler, grid, steps, cond=cond)
    device = device_of(accelerator)
    data.to(device)
    chosen = not (sampler is None and grid is None and steps is None)
    x_0 = data.read(path)
    pipeline, made = derive(pipeline, data.conditions_from(x_0))
    pipeline = pipeline.without_cond()
    encoder = as_denoiser(pipeline, "the way to noise", chosen)
    call: dict[str, Any] = {
        "checkpoint": str(ckpt_path),
        "sha256": pipeline.sha256,
        "weights": pipeline.weights,
        "examples": hashlib.sha256(x_0.numpy().tobytes()).hexdigest(),
        "sampler": describe(pipeline.sampler),
        **({} if encoder is pipeline else {"encoder": describe(encoder.sampler)}),
        "cond": noted(pipeline, {**(cond or {}), **made}),
        "between": between,
    }
    with OutputFolder(output, call) as folder:
        if folder.published is None:
            eps = encoder.to(device).encode(x_0)
            latents = eps
            if between:
                fractions = torch.linspace(0, 1, between + 2, device=device)[:-1]
                arcs = [slerp(a, b, fractions) for a, b in pairwise(eps)]
                latents = torch.cat([*arcs, eps[-1:]])
            conditions: dict[str, Any] = {
                name: _along(value, between) for name, value in pipeline.values(range(len(x_0))).items()
            }
            decoded = pipeline.to(device).with_latents(latents).samples(range(len(latents)), **conditions).x_0.cpu()
            refuse_not_finite(not_finite(eps) + not_finite(decoded), len(eps) + len(decoded))

            def write(stage: Path) -> list[Path]:
                np.savez_compressed(stage / "latents.npz", eps=eps.cpu().numpy())
                return [stage / "latents.npz", *write_samples(data, decoded, stage)]

            error = (decoded[:: between + 1] - x_0).square().mean().sqrt().item()
            names = dict.fromkeys(type(each.sampler).__name__ for each in (encoder, pipeline))
            latents_file = output / "latents.npz"
            images = [name for name in made if pipeline.conditions[name].kind == "image"]
            again = [*(word for name in images for word in (f"--cond.{name}", path)), "--output", "again"]
            report = Report(
                done=f"{count(len(x_0), 'example')} carried to noise and back by {' and '.join(names)}",
                facts={"root-mean-square error": error},
                next=[next_command("sample", "--ckpt_path", ckpt_path, "--latents", latents_file, *again)],
            )
            folder.publish(write, report)
        return folder.report


def _along(values: "Tensor", between: int) -> "Tensor":
    """Values of a condition for examples and `between` samples between each two: on the line; labels, the first's."""
    from itertools import pairwise

    import torch

    if not values.is_floating_point():
        return torch.cat((values[:-1].repeat_interleave(between + 1), values[-1:]))
    share = torch.linspace(0, 1, between + 2, device=values.device)[:-1].reshape(-1, *[1] * (values.ndim - 1))
    lines = [torch.lerp(a, b, share) for a, b in pairwise(values)]
    return torch.cat((*lines, values[-1:]))


def read_latents(path: Path, shape: tuple[int, ...]) -> "Tensor":
    """The latents that `encode` wrote: (N, *shape)."""
    import numpy as np
    import torch

    from ..runtime.reading import reading

    with reading(path, "latents.npz of `encode`"), np.load(path, allow_pickle=False) as file:
        eps = torch.from_numpy(file["eps"])
        if not eps.is_floating_point() or not eps.isfinite().all() or not len(eps):
            raise ValueError(f"{eps.dtype} of shape {tuple(eps.shape)}, or not finite")
    if eps.shape[1:] != shape:
        raise ValueError(f"{path}: its latents are of shape {tuple(eps.shape[1:])}, the model's data of {shape}")
    return eps.float()
