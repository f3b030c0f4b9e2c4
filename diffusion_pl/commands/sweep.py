"""python -m diffusion_pl sweep: quality against cost, for several samplers."""

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..runtime.output import Report, next_command
from ..samplers import Grid, Sampler

if TYPE_CHECKING:
    from torch import Tensor

    from ..data import DataModule
    from ..metrics import SlicedWasserstein
    from ..pipeline import Pipeline


def sweep(
    ckpt_path: Path,
    samplers: list[Callable[[Grid], Sampler]],
    nfe: list[int],
    grid: Grid | None = None,
    num_samples: int = 1000,
    output: Path = Path("sweep"),
    seed: int = 0,
    scale: float | None = None,
    drop: list[str] | None = None,
    cond: dict[str, str | list[Any]] | None = None,
    data_: dict[str, str | list[Any]] | None = None,
    weights: str = "ema",
    accelerator: str = "auto",
) -> Report | None:
    """Compare samplers at equal numbers of function evaluations (NFE), from the same latents.

    For each: the NFE it took (at most as many as asked for; AdaptiveODE takes what it needs), seconds, the sliced
    Wasserstein distance of its samples to the training data (if these are not missing), and the root-mean-square
    distance to the exact solution of the ODE from the same latents (meaningless for a stochastic sampler).
    Writes sweep.csv and sweep.png.

    Args:
        ckpt_path: Checkpoint, or folder of a run (its newest one).
        samplers: Names of samplers, such as DDIM Heun DPMpp; with options as
            '{class_path: DPMpp, init_args: {order: 3}}'.
        nfe: Numbers of function evaluations, at least 1 each, such as 5 10 20 50.
        grid: Grid of times, such as KarrasGrid; its number of times is set for each.  None: equal shares of t.
        num_samples: Number of samples of each sampler, at least 2.
        output: Folder for the files, new or empty.
        seed: Seed of the latents, at least 0.
        scale: Guidance scale w of a model with conditions, such as 2; 1 is the plain model.  None: 1.
        drop: Names of the conditions that --scale strengthens, such as label text; the estimate without guidance lacks
            them and keeps the others.  None: those that training dropped at random.
        cond: Conditions of all samples, by name, as for `sample`: --cond.label 3.  None: all classes in turn, of other
            conditions those of held-out examples.
        data_: Options of the checkpoint's data to replace, as --data.path FOLDER or --data.download true; None: none.
        weights: Weights: "ema" (the run's first EMA weights), "raw", or "ema:0.999" for one of several averages.
        accelerator: Kind of device: "cpu", "cuda", "mps", or "auto" (cuda where there is one, else cpu).
    """
    if not samplers or not nfe:
        raise ValueError("give at least one of --samplers and one of --nfe")
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    if min(nfe) < 1 or num_samples < 2:
        raise ValueError(f"nfe must be at least 1 and num_samples at least 2, got {min(nfe)} and {num_samples}")
    from ..callbacks.sample_writer import not_finite_error
    from ..checkpoints.exported import run_folder_of
    from ..checkpoints.io import checkpoint_at
    from ..checkpoints.loading import load_pipeline
    from ..data.base import count
    from ..runtime.devices import device_of
    from ..runtime.output_folder import OutputFolder
    from ..runtime.provenance import describe
    from .choices import choose, noted, say_turns

    pipeline, data = load_pipeline(ckpt_path, weights, data_)
    pipeline = choose(pipeline, scale=scale, cond=cond, drop=drop).with_seed(seed).to(device_of(accelerator))
    data.to(pipeline.device)
    say_turns(pipeline)
    distance = _distance(data, fetch=bool(data_))
    call = {
        "checkpoint": str(ckpt_path),
        "sha256": pipeline.sha256,
        "weights": pipeline.weights,
        "samplers": [describe(pipeline.with_sampler(make, grid).sampler) for make in samplers],
        "nfe": sorted(set(nfe)),
        "num_samples": num_samples,
        "seed": seed,
        "scale": scale,
        "cond": noted(pipeline, cond),
        **({"drop": drop} if drop else {}),
        **({"data": data_} if data_ else {}),
    }
    plan = [(make, n) for make in samplers for n in sorted(set(nfe))]
    with OutputFolder(output, call) as folder:
        if folder.published is None:
            rows, grids, bad = _compared(pipeline, plan, grid, num_samples, distance)
            run = run_folder_of(checkpoint_at(ckpt_path)).name
            title = f"{count(num_samples, 'sample')} of {run}, {pipeline.weights} weights"
            best = _nearest(rows, grids)
            again = _options(weights, scale, drop, cond)
            report = Report(
                done=f"{len(plan)} runs of {count(len(samplers), 'sampler')}, {title}",
                rows=[{**row, "distance": None if distance is None else row["distance"]} for row in rows],
                error=not_finite_error(bad, num_samples * len(plan)),
                next=[next_command("sample", "--ckpt_path", ckpt_path, *best, *again)] if grid is None else [],
            )
            folder.publish(lambda stage: _write(rows, title, stage), report)
        return folder.report


def _compared(
    pipeline: "Pipeline",
    plan: Sequence[tuple[Callable[[Grid], Sampler], int]],
    grid: Grid | None,
    num_samples: int,
    distance: "SlicedWasserstein | None",
) -> tuple[list[dict[str, Any]], list[int], int]:
    """The row of each sampler and NFE of the plan, its number of grid times, and how many samples are not finite."""
    from tqdm.auto import tqdm

    from ..callbacks.sample_writer import refuse_not_finite
    from ..samplers import Heun, same_ends
    from ..tensors import not_finite

    # The solution, to rounding and the little that the network's roughness leaves.
    solver = Heun(same_ends(pipeline.sampler.grid, pipeline.schedule, 129))
    exact, _, _ = _draw(pipeline.with_sampler(solver), num_samples)
    refuse_not_finite(not_finite(exact), num_samples)
    rows, grids, bad = [], [], 0
    for make, most in tqdm(plan, desc="sweep", dynamic_ncols=True):
        grids.append(points(pipeline.with_sampler(make).sampler, most))
        row, failed = _measured(pipeline.with_sampler(make, grid, grids[-1]), exact, distance)
        rows.append(row)
        bad += failed
    return rows, grids, bad


def _options(
    weights: str, scale: float | None, drop: list[str] | None, cond: dict[str, str | list[Any]] | None
) -> list[Any]:
    """The options of a sweep that its next command has too."""
    options: list[Any] = ["--weights", weights] * (weights != "ema") + ["--scale", scale] * (scale is not None)
    options += ["--drop", *drop] if drop else []
    return options + [part for name, value in (cond or {}).items() for part in (f"--cond.{name}", str(value))]


def _measured(
    pipeline: "Pipeline", exact: "Tensor", distance: "SlicedWasserstein | None"
) -> tuple[dict[str, Any], int]:
    """A row of the table, of as many samples as `exact` has, and how many of them are not finite."""
    from ..tensors import not_finite

    x, taken, seconds = _draw(pipeline, len(exact))
    row = {
        "sampler": name_of(pipeline.sampler),
        "nfe": taken,
        "seconds": round(seconds, 3),
        "distance": float("nan") if distance is None else distance(x),
        "error": (x - exact).square().mean().sqrt().item(),
    }
    return row, not_finite(x)


def _distance(data: "DataModule", fetch: bool) -> "SlicedWasserstein | None":
    """The distance to the training data, or None, with a line, where they are missing."""
    from ..metrics import SlicedWasserstein

    try:
        if fetch:
            data.prepare_data()  # downloads them if --data.download says so
        data.setup("fit")
        return SlicedWasserstein(data.training_examples(10_000))
    except (OSError, ValueError) as error:
        print(f"no distance to the data, which are missing: {error}")
        return None


def _draw(pipeline: "Pipeline", n: int) -> tuple["Tensor", int, float]:
    """n samples: (n, *shape); the NFE that each took; and the seconds of all."""
    import torch

    x, taken, begin = [], 0, time.perf_counter()
    for first in range(0, n, pipeline.block):
        samples = pipeline.samples(range(first, min(first + pipeline.block, n)))
        x.append(samples.x_0.cpu())
        taken = samples.nfe
    return torch.cat(x), taken, time.perf_counter() - begin


def _write(rows: list[dict[str, Any]], title: str, folder: Path) -> list[Path]:
    import csv

    from .. import plots

    with (folder / "sweep.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    plots.save(plots.sweep_panel(rows, title), folder / "sweep.png")
    return [folder / "sweep.csv", folder / "sweep.png"]


def _nearest(rows: list[dict[str, Any]], grids: list[int]) -> list[str]:
    """The options of `sample` for the sampler nearest to the data, or to the exact solution where these are missing."""
    key = "error" if any(math.isnan(row["distance"]) for row in rows) else "distance"
    k = min(range(len(rows)), key=lambda k: rows[k][key])
    name, _, options = rows[k]["sampler"].partition("(")
    pairs = [option.partition("=") for option in options.rstrip(")").split(", ") if option]
    of_sampler = [part for key, _, value in pairs for part in (f"--sampler.{key}", value)]
    return ["--sampler", name, *of_sampler, "--steps", str(grids[k])]


def points(sampler: Sampler, nfe: int) -> int:
    """The largest number of grid times within an NFE; two for a sampler that chooses its own steps."""
    return 2 if sampler.order == 0 else 1 + (nfe - 1) // sampler.evaluations


def name_of(sampler: Sampler) -> str:
    """Class, and the arguments in which it differs from its defaults: DPMpp(order=3)."""
    import inspect

    parameters = inspect.signature(type(sampler)).parameters
    values = {name: vars(sampler).get(name, p.default) for name, p in parameters.items() if name != "grid"}
    options = [f"{k}={v}" for k, v in values.items() if v != parameters[k].default and isinstance(v, (int, float, str))]
    return type(sampler).__name__ + (f"({', '.join(options)})" if options else "")
