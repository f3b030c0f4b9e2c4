"""python -m diffusion_pl sweep: quality against cost, for several samplers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..samplers import Grid, Sampler


def sweep(
    ckpt_path: Path,
    samplers: list[Callable[[Grid], Sampler]],
    nfe: list[int],
    grid: Grid | None = None,
    num_samples: int = 1000,
    output: Path = Path("sweep"),
    seed: int = 0,
    scale: float | None = None,
    cond: dict[str, str] | None = None,
    data_: dict[str, str | list[Any]] | None = None,
    weights: str = "ema",
    accelerator: str = "auto",
) -> None:
    """Compare samplers at equal numbers of evaluations, from the same latents.

    For each: the evaluations it took (at most as many as asked for; AdaptiveODE takes what it needs), seconds, the
    sliced Wasserstein distance of its samples to the training data (where these are at hand), and the root-mean-square
    distance to the exact solution of the ODE from the same latents (which of a stochastic sampler says nothing).
    Writes sweep.csv and sweep.png.

    Args:
        ckpt_path: A checkpoint of a run.
        samplers: Names, such as DDIM Heun DPMpp; with options as '{class_path: DPMpp, init_args: {order: 3}}'.
        nfe: Numbers of evaluations, such as 5 10 20 50.
        grid: A grid of times, such as KarrasGrid; the number of its points is set for each.  None: equal shares of t.
        num_samples: For each.
        output: Folder for the files.
        seed: Of the latents.
        scale: Guidance w of a model of classes.
        cond: Condition of all samples, as --cond.label 3 or --cond.label NAME.
        data_: Options of the checkpoint's data in place of its own, as --data.path FOLDER or --data.download true.
        weights: "ema" (the run's first average), "raw", or "ema:0.999" for one of several averages.
        accelerator: "cpu", "cuda", "mps", or "auto": cuda where there is one, else cpu.
    """
    if not samplers or not nfe:
        raise ValueError("give at least one of --samplers and one of --nfe")
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    if min(nfe) < 1 or num_samples < 2:
        raise ValueError(f"nfe must be at least 1 and num_samples at least 2, got {min(nfe)} and {num_samples}")
    import csv
    import time

    import torch
    from tqdm import tqdm

    from .. import plots
    from ..checkpoints.io import checkpoint_at
    from ..checkpoints.loading import load
    from ..data.base import count
    from ..metrics import SlicedWasserstein
    from ..runtime.drawing import (
        choose_sampler,
        describe,
        device_of,
        guide,
        not_finite,
        not_finite_error,
        refuse_not_finite,
    )
    from ..runtime.output_folder import OutputFolder
    from ..samplers import Heun, same_ends

    model, data = load(ckpt_path, weights, data_)
    guide(model, scale, cond=cond)
    model.to(device_of(accelerator))
    try:
        if data_:
            data.prepare_data()  # fetches them if --data.download says so
        data.setup("fit")
        distance = SlicedWasserstein(data.training_examples(10_000))
    except (OSError, ValueError) as error:
        print(f"no distance to the data, which are missing: {error}")
        distance = None

    def draw(sampler: Sampler) -> tuple[torch.Tensor, int]:
        found, taken = [], 0
        for start in range(0, num_samples, model.block):
            indices = range(start, min(start + model.block, num_samples))
            samples = model.sample(indices, seed, sampler, **model.shared_cond(len(indices)))
            found.append(samples.x_0.cpu())
            taken = samples.nfe
        return torch.cat(found), taken

    call = {
        "checkpoint": str(ckpt_path),
        "sha256": model.sha256,
        "weights": model.weights_name,
        "samplers": [describe(choose_sampler(model, make, grid)) for make in samplers],
        "nfe": sorted(set(nfe)),
        "num_samples": num_samples,
        "seed": seed,
        "scale": scale,
        "cond": model.sample_cond,
    }
    bad, plan = 0, [(make, n) for make in samplers for n in sorted(set(nfe))]
    with OutputFolder(output, call) as folder:
        if folder.published is None:
            # The solution, to rounding and the little that the network's roughness leaves.
            exact, _ = draw(Heun(same_ends(model.sampler.grid, model.schedule, 129)))
            rows: list[dict[str, Any]] = []
            refuse_not_finite(not_finite(exact), num_samples)
            for make, wanted in tqdm(plan, desc="sweep", dynamic_ncols=True):
                sampler = choose_sampler(model, make, grid, points(make(model.sampler.grid), wanted))
                begin = time.perf_counter()
                x, taken = draw(sampler)
                seconds = time.perf_counter() - begin
                bad += not_finite(x)
                rows.append(
                    {
                        "sampler": name_of(sampler),
                        "nfe": taken,
                        "seconds": round(seconds, 3),
                        "distance": float("nan") if distance is None else distance(x),
                        "error": (x - exact).square().mean().sqrt().item(),
                    }
                )
            run = checkpoint_at(ckpt_path).parent.parent.name
            title = f"{count(num_samples, 'sample')} of {run}, {model.weights_name} weights"

            def write(stage: Path) -> list[Path]:
                with (stage / "sweep.csv").open("w", newline="", encoding="utf-8") as file:
                    table = csv.DictWriter(file, list(rows[0]))
                    table.writeheader()
                    table.writerows(rows)
                plots.save(plots.sweep_panel(rows, title), stage / "sweep.png")
                return [stage / "sweep.csv", stage / "sweep.png"]

            folder.publish(write, _table(rows), not_finite_error(bad, num_samples * len(plan)))
        folder.show()


def _table(rows: list[dict[str, Any]]) -> str:
    width = max(len(str(row["sampler"])) for row in rows)
    line = "{sampler:<{width}}  {nfe:>3}  {seconds:>7.2f}  {distance:>16.4f}  {error:.4f}"
    head = f"{'sampler':<{width}}  nfe  seconds  distance to data  error"
    return "\n".join([head, *(line.format(width=width, **row) for row in rows)])


def points(sampler: Sampler, nfe: int) -> int:
    """The most grid points that take no more than nfe evaluations; two for a sampler that chooses its own steps."""
    return 2 if sampler.order == 0 else 1 + (nfe - 1) // sampler.evaluations


def name_of(sampler: Sampler) -> str:
    """Class, and the arguments in which it differs from its defaults: DPMpp(order=3)."""
    import inspect

    parameters = inspect.signature(type(sampler)).parameters
    given = {name: vars(sampler).get(name, p.default) for name, p in parameters.items() if name != "grid"}
    told = [f"{k}={v}" for k, v in given.items() if v != parameters[k].default and isinstance(v, (int, float, str))]
    return type(sampler).__name__ + (f"({', '.join(told)})" if told else "")
