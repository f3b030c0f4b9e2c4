"""python -m diffusion_pl sample: samples of a checkpoint."""

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..runtime.bounds import check_counts
from ..samplers import Grid, Sampler

if TYPE_CHECKING:
    from ..callbacks.sample_writer import Drawn
    from ..data import DataModule
    from ..pipeline import Pipeline
    from ..runtime.output import Report


def sample(
    ckpt_path: Path,
    num_samples: int | None = None,
    output: Path = Path("samples"),
    seed: int = 0,
    sampler: Callable[[Grid], Sampler] | None = None,
    grid: Grid | None = None,
    steps: int | None = None,
    scale: float | None = None,
    drop: list[str] | None = None,
    cond: dict[str, str | list[Any]] | None = None,
    classifier: Path | None = None,
    weak: Path | None = None,
    latents: Path | None = None,
    data_: dict[str, str | list[Any]] | None = None,
    weights: str = "ema",
    npz: bool = False,
    film: bool = False,
    batch_size: int = 250,
    accelerator: str = "auto",
    devices: int = 1,
) -> "Report | None":
    """Draw samples from a checkpoint and write them in the units of its data.

    Points are saved to samples.csv (with a header) and samples.png; images to a PNG each, and grid.png; fields to one
    file in the format of the data, and samples.png; samples.json says how they were made.  Sample i is the same to the
    last bit for any number of samples, batches and processes; of a model with classes the samples have the labels of
    all classes in turn, unless --cond.label is given.  A call that was interrupted continues where it stopped when it
    is repeated.

    Args:
        ckpt_path: Checkpoint, or folder of a run (its newest one); it contains the model and the options of the data.
        num_samples: Number of samples, at least 1; None: 1,000 points or 64 images.
        output: Folder for the files, new or empty.
        seed: Seed of the samples, at least 0.
        sampler: Sampler, such as DPMpp, its options as --sampler.order 3; None: the checkpoint's.
        grid: Grid of times, such as KarrasGrid, its options as --grid.rho 7; None: the sampler's.
        steps: Number of grid times, at least 1, such as 20; without --grid they have equal shares of t; None: the
            checkpoint's.
        scale: Guidance scale w, such as 2; 1 is the plain conditional model. Of the label, of --classifier, or away
            from --weak. None: 1.
        drop: Names of the conditions that --scale strengthens, such as label text; the estimate without guidance lacks
            them and keeps the others.  None: those that training dropped at random.
        cond: Conditions of all samples, by name: --cond.label 3 or a class's name, --cond.size 0.3 or '0.3, 1' for a
            vector, --cond.text "a coat", --cond.low FILE for an image, or a folder of images, which samples have in
            turn.  None: all classes in turn, of other conditions those of held-out examples.
        classifier: Checkpoint of a classifier of noisy data, for classifier guidance; None: no such guidance.
        weak: Checkpoint of a weaker model of the same data, for autoguidance, or an earlier state of a run:
            runs/NAME@STEP of one of its snapshots, runs/NAME@std:0.2 of other weights.  None: no such guidance.
        latents: File latents.npz of `encode` to start from; None: noise of the seed.
        data_: Options of the checkpoint's data to replace, as --data.path FOLDER or --data.download true; None: none.
        weights: Weights: "ema" (the run's first EMA weights), "raw", "ema:0.999" for one of several, or
            "std:0.15" for power-function EMA weights of this width, made of the run's snapshots.
        npz: One file samples.npz with all samples, in place of images or a table.
        film: Film of the first samples from noise to data, film.gif, and path.npz with t, x and x_0 along the way.
        batch_size: Number of samples between two savings; samples do not depend on it.
        accelerator: Kind of device: "cpu", "cuda", "mps", or "auto" (cuda where there is one, else cpu).
        devices: Number of devices, at least 1, a process each.
    """
    check_counts(num_samples=num_samples, batch_size=batch_size, steps=steps, devices=devices)
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    from ..callbacks.sample_writer import not_finite_error
    from ..checkpoints.loading import load_pipeline
    from ..data.base import count
    from ..runtime.devices import device_of
    from ..runtime.errors import quiet
    from ..runtime.limits import check_devices
    from ..runtime.output import Report, next_command
    from ..runtime.output_folder import OutputFolder
    from ..runtime.processes import rank_label
    from .choices import choose, default_count, noted, say_turns, weak_source
    from .encode import read_latents

    quiet()
    pipeline, data = load_pipeline(ckpt_path, weights, data_)
    pipeline = choose(pipeline, sampler, grid, steps, scale, classifier, weak, cond, drop).with_seed(seed)
    say_turns(pipeline)
    if latents is not None:
        eps = read_latents(latents, pipeline.shape)
        pipeline, num_samples = pipeline.with_latents(eps), num_samples or len(eps)
    n = num_samples or default_count(pipeline)
    other, of_other = (None, "ema") if weak is None else weak_source(weak)
    files = {"classifier": classifier, "weak": other, "latents": latents}
    call = {**_call(pipeline, ckpt_path, scale, drop), "cond": noted(pipeline, cond), **_hashes(files)}
    call |= {} if of_other == "ema" else {"weak_weights": of_other}
    device = device_of(accelerator)
    check_devices(devices, device.type, "devices")
    data.to(device)
    whole = {**call, "num_samples": n, "npz": npz, "film": film}
    with OutputFolder(output, whole, leader=not rank_label()) as folder:
        if folder.published is None:
            drawn = _drawn(pipeline, data, n, folder.work, device.type, devices, batch_size)
            if drawn is None:
                return None
            write = partial(_write, pipeline.to(device), data, drawn, call, npz, film)
            report = Report(
                done=f"{count(n, 'sample')} of {ckpt_path} ({pipeline.weights} weights), {drawn.nfe} NFE each",
                error=not_finite_error(drawn.bad, n),
                next=[next_command("evaluate", "--ckpt_path", ckpt_path)],
            )
            folder.publish(write, report)
        return folder.report


def _call(pipeline: "Pipeline", ckpt_path: Path, scale: float | None, drop: list[str] | None) -> dict[str, Any]:
    """What samples depend on besides conditions and other files, for samples.json."""
    from ..runtime.provenance import describe

    return {
        "checkpoint": str(ckpt_path),
        "sha256": pipeline.sha256,
        "weights": pipeline.weights,
        "sampler": describe(pipeline.sampler),
        "seed": pipeline.seed,
        "scale": scale,
        **({"drop": drop} if drop else {}),
    }


def _hashes(files: Mapping[str, Path | None]) -> dict[str, str | None]:
    """SHA-256 of files by name; None: the file is not given."""
    from ..checkpoints.io import sha256_of

    return {name: None if path is None else sha256_of(path) for name, path in files.items()}


def _drawn(
    pipeline: "Pipeline", data: "DataModule", n: int, work: Path, accelerator: str, devices: int, batch_size: int
) -> "Drawn | None":
    """Draw n samples on all devices, kept in the folder `work`; None in every process but the first."""
    from ..callbacks.sample_writer import Drawer, draw, drawing_trainer, gathered
    from ..runtime.processes import leave_group, rank_label

    if not rank_label():
        _say_untrained(pipeline)
    with suppress(OSError, ValueError):  # the image shows the data too, where they can be read
        data.setup("predict")
    trainer = drawing_trainer(accelerator, devices)
    first = draw(Drawer(pipeline), n, work, trainer, batch_size, size=4 * math.prod(pipeline.shape))
    leave_group()
    return gathered(work, n) if first else None


def _write(
    pipeline: "Pipeline", data: "DataModule", drawn: "Drawn", call: dict[str, Any], npz: bool, film: bool, stage: Path
) -> list[Path]:
    """Write the samples, the film if it is asked for, and samples.json into the folder `stage`; the files in order."""
    from .. import __version__
    from ..callbacks.figures import SHOWN, shown_condition, write_samples
    from ..runtime.storage import write_json

    n = len(drawn.x)
    cond = shown_condition(pipeline, range(min(n, SHOWN)))
    files = data.write_npz(drawn.x, stage) if npz else write_samples(data, drawn.x, stage, cond)
    if film:
        files += _film(pipeline, data, stage, min(n, 16 if len(pipeline.shape) == 3 else 1000))
    note = {"version": __version__, "num_samples": n, "nfe": drawn.nfe, "not_finite": drawn.bad, **call}
    write_json(stage / "samples.json", {**note, **_labels(pipeline)})
    return [*files, stage / "samples.json"]


def _say_untrained(pipeline: "Pipeline") -> None:
    """Say of which classes there are no samples, since training had no examples of them."""
    from ..data.base import classes_named

    for name, condition in pipeline.conditions.items():
        drawn = pipeline.classes(name) if condition.kind == "label" else []
        untrained = [k for k in range(condition.classes or 0) if k not in drawn]
        if untrained and name not in pipeline.cond:
            print(f"no samples of {classes_named(untrained, condition.names)}: training had no examples of them")


def _labels(pipeline: "Pipeline") -> dict[str, Any]:
    """What samples.json says of labels: those that the samples have in turn, and the names of all classes."""
    label = pipeline.conditions.get("label")
    if label is None:
        return {}
    given = pipeline.cond.get("label")
    labels = pipeline.classes() if given is None else [given]
    return {"labels": labels, "class_names": list(label.names) or None}


def _film(pipeline: "Pipeline", data: "DataModule", output: Path, count: int) -> list[Path]:
    import numpy as np

    from ..callbacks.images import film_frames, save_film

    path = pipeline.samples(range(count), path=True).path
    assert path is not None
    x, x_0 = (data.decode(part.cpu()).numpy() for part in (path.x, path.x_0))
    np.savez_compressed(output / "path.npz", t=path.t.numpy(), x=x, x_0=x_0)
    return [save_film(film_frames(data, path, pipeline.schedule), output / "film.gif"), output / "path.npz"]
