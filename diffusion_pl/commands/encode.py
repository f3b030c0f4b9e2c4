"""python -m diffusion_pl encode: the noise that an example comes from."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..samplers import Grid, Sampler


def encode(
    ckpt_path: Path,
    path: Path,
    output: Path = Path("latents"),
    sampler: Callable[[Grid], Sampler] | None = None,
    grid: Grid | None = None,
    steps: int | None = None,
    cond: dict[str, str] | None = None,
    between: int = 0,
    weights: str = "ema",
    accelerator: str = "auto",
) -> None:
    """Carry examples to noise by the probability-flow ODE, and back.

    Writes latents.npz, which `sample --latents` turns into samples again, and the examples as they come back; says how
    far these are off.  With --between 7 also the ways between each two neighbours, seven samples on each: interpolation
    along the arc of their latents.

    Args:
        ckpt_path: A checkpoint of a run.
        path: A picture or a folder of them; of points, a table with the columns of the data.
        output: Folder for the files.
        sampler: A deterministic rule, such as Heun or DDIM; None: the checkpoint's.
        grid: Another grid of times.
        steps: Number of points of the grid, with equal shares of t if --grid is not given; the more, the nearer the
            examples come back.
        cond: Condition, as --cond.label 3 or --cond.label NAME; None: of any class.
        between: Samples between each two examples.
        weights: "ema" (the run's first average), "raw", or "ema:0.999" for one of several averages.
        accelerator: "cpu", "cuda", "mps", or "auto": cuda where there is one, else cpu.
    """
    if between < 0:
        raise ValueError(f"between must not be negative, got {between}")
    import hashlib
    from itertools import pairwise

    import numpy as np
    import torch

    from ..callbacks.figures import write_samples
    from ..checkpoints.loading import load
    from ..data.base import count
    from ..runtime.drawing import choose_sampler, describe, device_of, guide, not_finite, refuse_not_finite, slerp
    from ..runtime.output_folder import OutputFolder

    model, data = load(ckpt_path, weights)
    model.sampler = rule = choose_sampler(model, sampler, grid, steps)
    guide(model, cond=cond, any_label=True, names=data.class_names)
    x_0 = data.read(path)
    call: dict[str, Any] = {
        "checkpoint": str(ckpt_path),
        "sha256": model.sha256,
        "weights": model.weights_name,
        "examples": hashlib.sha256(x_0.numpy().tobytes()).hexdigest(),
        "sampler": describe(rule),
        "cond": model.sample_cond,
        "between": between,
    }
    device = device_of(accelerator)
    with OutputFolder(output, call) as folder:
        if folder.published is None:
            model.to(device)
            eps = rule.encode(model.guided(), x_0.to(device), **model.conditions(len(x_0))) / rule.prior(
                model.schedule, torch.ones(1, device=device)
            )
            way = eps
            if between:
                share = torch.linspace(0, 1, between + 2, device=device)[:-1]
                arcs = [slerp(a, b, share) for a, b in pairwise(eps)]
                way = torch.cat([*arcs, eps[-1:]])
            model.latents = way
            every: dict[str, Any] = model.conditions(len(way))
            found = model.sample(range(len(way)), **every).x_0.cpu()

            refuse_not_finite(not_finite(eps) + not_finite(found), len(eps) + len(found))

            def write(stage: Path) -> list[Path]:
                np.savez_compressed(stage / "latents.npz", eps=eps.cpu().numpy())
                return [stage / "latents.npz", *write_samples(data, found, stage)]

            error = (found[:: between + 1] - x_0).square().mean().sqrt().item()
            name = type(rule).__name__
            folder.publish(
                write,
                f"{count(len(x_0), 'example')} carried to noise and back by {name}: root-mean-square error {error:.2g}",
            )
        folder.show()
