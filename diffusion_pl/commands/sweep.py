"""python -m diffusion_pl sweep: quality against cost, for several samplers."""

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..runtime.output import Report, next_command
from ..samplers import Grid, Sampler

if TYPE_CHECKING:
    from torch import Tensor

    from ..data import DataModule
    from ..metrics import SlicedWasserstein
    from ..pipeline import Pipeline


class Plan(NamedTuple):
    """A row to be measured: the pipeline with its sampler, the name of the sampler in the table, and the pipeline with
    the checkpoint's own sampler, between whose first and last time the ODE is solved; the weights as the command line
    names them."""

    pipeline: "Pipeline"
    name: str
    own: "Pipeline"
    weights: str


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
    baseline: Path | None = None,
    weights: list[str] | str = "ema",
    accelerator: str = "auto",
) -> Report | None:
    """Compare samplers at equal numbers of function evaluations (NFE), from the same latents.

    For each: the NFE it took (at most as many as asked for; AdaptiveODE takes what it needs), seconds, the sliced
    Wasserstein distance of its samples to the training data (if these are not missing), and the root-mean-square
    distance to the exact solution of the ODE from the same latents (meaningless for a stochastic sampler; a consistency
    model has no ODE of its own).  With --baseline also another checkpoint, such as the teacher of a flow map.
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
        baseline: Checkpoint, or folder of a run, of the same data to compare with, such as a flow map's teacher: its
            own sampler at the same NFE, from the same latents.  None: no other.
        weights: Weights: "ema" (the run's first EMA weights), "raw", "ema:0.999" for one of several, or
            "std:0.15" for power-function EMA weights of this width, made of the run's snapshots.  Several are compared,
            from the same latents: std:0.05 std:0.1 std:0.15.
        accelerator: Kind of device: "cpu", "cuda", "mps", or "auto" (cuda where there is one, else cpu).
    """
    if not samplers or not nfe:
        raise ValueError("give at least one of --samplers and one of --nfe")
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    if min(nfe) < 1 or num_samples < 2:
        raise ValueError(f"nfe must be at least 1 and num_samples at least 2, got {min(nfe)} and {num_samples}")
    from ..callbacks.sample_writer import not_finite_error
    from ..checkpoints.loading import load_pipeline
    from ..data.base import count
    from ..runtime.devices import device_of
    from ..runtime.output_folder import OutputFolder
    from ..runtime.provenance import describe
    from .choices import choose, noted, say_turns

    named = [weights] if isinstance(weights, str) else list(dict.fromkeys(weights)) or ["ema"]
    pipelines = []
    for each in named:
        pipeline, data = load_pipeline(ckpt_path, each, data_)
        pipeline = choose(pipeline, scale=scale, cond=cond, drop=drop).with_seed(seed).to(device_of(accelerator))
        pipelines.append(pipeline)
    data.to(pipeline.device)
    say_turns(pipeline)
    other = None
    if baseline is not None:
        other = choose(_baseline(pipeline, baseline, named[0]), scale=scale, cond=cond, drop=drop)
        other = other.with_seed(seed).to(device_of(accelerator))
    distance = _distance(data, fetch=bool(data_))
    call = {
        "checkpoint": str(ckpt_path),
        "sha256": pipeline.sha256,
        "weights": pipeline.weights if len(named) == 1 else [each.weights for each in pipelines],
        "samplers": [describe(pipeline.with_sampler(make, grid).sampler) for make in samplers],
        "nfe": sorted(set(nfe)),
        "num_samples": num_samples,
        "seed": seed,
        "scale": scale,
        "cond": noted(pipeline, cond),
        **({"drop": drop} if drop else {}),
        **({"data": data_} if data_ else {}),
        **({"baseline": str(baseline), "baseline_sha256": other.sha256} if other is not None else {}),
    }
    plan: list[Plan] = []
    for each, of_plan in zip(named, pipelines, strict=True):
        rows_of = _plan(of_plan, samplers, grid, sorted(set(nfe)), each)
        prefix = f"{of_plan.weights}: " if len(named) > 1 else ""
        plan += [row._replace(name=f"{prefix}{row.name}") for row in rows_of]
    compared = list(plan)
    if other is not None and baseline is not None:
        compared += _plan_baseline(other, _run(baseline), sorted(set(nfe)), named[0])
    with OutputFolder(output, call) as folder:
        if folder.published is None:
            rows, bad = _compared(compared, num_samples, distance)
            of = ", ".join(each.weights for each in pipelines)
            title = f"{count(num_samples, 'sample')} of {_run(ckpt_path)}, {of} weights"
            best = _nearest(rows[: len(plan)], plan)
            again = _options(scale, drop, cond)
            report = Report(
                done=f"{len(plan)} runs of {count(len(samplers), 'sampler')}, {title}",
                rows=[{k: None if v != v else v for k, v in row.items()} for row in rows],
                error=not_finite_error(bad, num_samples * len(compared)),
                next=[next_command("sample", "--ckpt_path", ckpt_path, *best, *again)] if grid is None else [],
            )
            folder.publish(lambda stage: _write(rows, title, stage), report)
        return folder.report


def _run(path: Path) -> str:
    """Name of a checkpoint's run."""
    from ..checkpoints.exported import run_folder_of
    from ..checkpoints.io import checkpoint_at

    return run_folder_of(checkpoint_at(path)).name


def _baseline(pipeline: "Pipeline", path: Path, weights: str) -> "Pipeline":
    """The pipeline of another checkpoint of the same data.

    Raises:
        ValueError: it is of data of another shape or with other conditions, so nothing could be compared.
    """
    from ..checkpoints.loading import load_pipeline

    other, _ = load_pipeline(path, weights)
    if other.shape != pipeline.shape or other.conditions.keys() != pipeline.conditions.keys():
        kinds = [f"{each.shape} with {', '.join(each.conditions) or 'no conditions'}" for each in (other, pipeline)]
        raise ValueError(f"baseline: {path} is a model of data of shape {kinds[0]}, the other of {kinds[1]}")
    return other


def _plan(
    pipeline: "Pipeline",
    samplers: Sequence[Callable[[Grid], Sampler]],
    grid: Grid | None,
    nfe: Sequence[int],
    weights: str,
) -> list[Plan]:
    """Each sampler at each NFE.

    Raises:
        ValueError: a consistency model has learned nothing of what a sampler needs.
    """
    plan = []
    for make in samplers:
        for most in nfe:
            drawn = pipeline.with_sampler(make, grid, points(pipeline.with_sampler(make).sampler, most))
            drawn.check_sampler()
            plan.append(Plan(drawn, name_of(drawn.sampler), pipeline, weights))
    return plan


def _plan_baseline(other: "Pipeline", run: str, nfe: Sequence[int], weights: str) -> list[Plan]:
    """The own sampler of another checkpoint at each NFE."""
    drawn = [other.with_sampler(steps=points(other.sampler, most)) for most in nfe]
    return [Plan(each, f"{run}: {name_of(each.sampler)}", other, weights) for each in drawn]


def _compared(
    plan: Sequence[Plan], num_samples: int, distance: "SlicedWasserstein | None"
) -> tuple[list[dict[str, Any]], int]:
    """The row of each sampler and NFE of the plan, and how many samples are not finite."""
    from tqdm.auto import tqdm

    from ..callbacks.sample_writer import refuse_not_finite
    from ..tensors import not_finite

    exact: dict[Any, Tensor | None] = {}  # by the model
    rows, bad = [], 0
    for drawn, name, own, _ in tqdm(plan, desc="sweep", dynamic_ncols=True):
        if drawn.denoiser not in exact:
            solution = _solution(own, num_samples)
            refuse_not_finite(0 if solution is None else not_finite(solution), num_samples)
            exact[drawn.denoiser] = solution
        row, failed = _measured(drawn, name, num_samples, exact[drawn.denoiser], distance)
        rows.append(row)
        bad += failed
    return rows, bad


def _solution(pipeline: "Pipeline", num_samples: int) -> "Tensor | None":
    """The ODE's solution, to rounding and the little that the network's roughness leaves: (num_samples, *shape); None
    of a consistency model, which has no ODE."""
    from ..samplers import Heun, same_ends

    if pipeline.consistency:
        return None
    solver = Heun(same_ends(pipeline.sampler.grid, pipeline.schedule, 129))
    return _draw(pipeline.with_sampler(solver), num_samples)[0]


def _options(scale: float | None, drop: list[str] | None, cond: dict[str, str | list[Any]] | None) -> list[Any]:
    """The options of a sweep that its next command has too."""
    options: list[Any] = ["--scale", scale] * (scale is not None)
    options += ["--drop", *drop] if drop else []
    return options + [part for name, value in (cond or {}).items() for part in (f"--cond.{name}", str(value))]


def _measured(
    pipeline: "Pipeline", name: str, n: int, exact: "Tensor | None", distance: "SlicedWasserstein | None"
) -> tuple[dict[str, Any], int]:
    """A row of the table, of n samples, and how many of them are not finite."""
    from ..tensors import not_finite

    x, taken, seconds = _draw(pipeline, n)
    row = {
        "sampler": name,
        "nfe": taken,
        "seconds": round(seconds, 3),
        "distance": float("nan") if distance is None else distance(x),
        "error": float("nan") if exact is None else (x - exact).square().mean().sqrt().item(),
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


def _nearest(rows: list[dict[str, Any]], plan: Sequence[Plan]) -> list[str]:
    """The options of `sample` for the row nearest to the data, or to the exact solution where these are missing."""
    key = "error" if any(math.isnan(row["distance"]) for row in rows) else "distance"  # NaN of both: the first row
    k = min(range(len(rows)), key=lambda k: rows[k][key])
    name, _, options = name_of(plan[k].pipeline.sampler).partition("(")
    pairs = [option.partition("=") for option in options.rstrip(")").split(", ") if option]
    of_sampler = [part for key, _, value in pairs for part in (f"--sampler.{key}", value)]
    times = len(plan[k].pipeline.sampler.grid(plan[k].pipeline.schedule))
    of_weights = ["--weights", plan[k].weights] * (plan[k].weights != "ema")
    return ["--sampler", name, *of_sampler, "--steps", str(times), *of_weights]


def points(sampler: Sampler, nfe: int) -> int:
    """The largest number of grid times within an NFE; two for a sampler that chooses its own steps."""
    return 2 if sampler.order == 0 and not sampler.jumps else 1 + (nfe - 1) // sampler.evaluations


def name_of(sampler: Sampler) -> str:
    """Class, and the arguments in which it differs from its defaults: DPMpp(order=3)."""
    import inspect

    parameters = inspect.signature(type(sampler)).parameters
    values = {name: vars(sampler).get(name, p.default) for name, p in parameters.items() if name != "grid"}
    options = [f"{k}={v}" for k, v in values.items() if v != parameters[k].default and isinstance(v, (int, float, str))]
    return type(sampler).__name__ + (f"({', '.join(options)})" if options else "")
