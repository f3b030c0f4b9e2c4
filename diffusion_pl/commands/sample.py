"""python -m diffusion_pl sample: samples of a checkpoint."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..samplers import Grid, Sampler

if TYPE_CHECKING:
    from ..data import DataModule
    from ..training import DiffusionModule


def sample(
    ckpt_path: Path,
    num_samples: int | None = None,
    output: Path = Path("samples"),
    seed: int = 0,
    sampler: Callable[[Grid], Sampler] | None = None,
    grid: Grid | None = None,
    steps: int | None = None,
    scale: float | None = None,
    cond: dict[str, str] | None = None,
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
) -> None:
    """Draw samples from a checkpoint and write them in the units of its data.

    Points become samples.csv (with a header) and samples.png; pictures a PNG each, and grid.png; samples.json says how
    they were made.  Sample i is the same to the last bit whatever the number of samples, batches and processes; of a
    model of classes the samples have the labels of all classes in turn, unless --cond.label is given.  A call that was
    interrupted goes on where it stopped when it is repeated.

    Args:
        ckpt_path: A checkpoint of a run; it says which model, data and sampler it belongs to.
        num_samples: How many; None: 1,000 points or 64 pictures.
        output: Folder for the files.
        seed: Of the samples.
        sampler: Another rule than the checkpoint's, such as DPMpp; its own options as --sampler.order 3.
        grid: Another grid of times, such as KarrasGrid; its own options as --grid.rho 7.
        steps: Number of points of the grid; without --grid they have equal shares of t (docs/pages/howto/sampler.md).
        scale: Guidance w: of the label (1 is the plain model), of --classifier, or away from --weak.
        cond: Condition of all samples, as --cond.label 3 or --cond.label NAME.
        classifier: Checkpoint of a classifier of noisy data, for classifier guidance.
        weak: Checkpoint of a weaker model of the same data, for autoguidance.
        latents: File that `encode` wrote, to begin from instead of noise.
        data_: Options of the checkpoint's data in place of its own, as --data.path FOLDER or --data.download true.
        weights: "ema" (the run's first average), "raw", or "ema:0.999" for one of several averages.
        npz: Write pictures or points as one array, samples.npz.
        film: Also write film.gif, the way of the first samples from noise, and path.npz with t, x and x_0 along it.
        batch_size: How many between two savings; at once as many are drawn as always, or rounding would differ.
        accelerator: "cpu", "cuda", "mps", or "auto": cuda where there is one, else cpu.
        devices: On how many of them, a process each.
    """
    numbers = {"num_samples": num_samples, "batch_size": batch_size, "steps": steps, "devices": devices}
    for name, value in numbers.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    from .. import __version__
    from ..callbacks.figures import write_samples
    from ..callbacks.sample_writer import draw, gathered
    from ..checkpoints.loading import load
    from ..data.base import classes_named, count
    from ..runtime.drawing import (
        choose_sampler,
        describe,
        device_of,
        fingerprint,
        guide,
        not_finite_error,
        read_latents,
    )
    from ..runtime.errors import quiet
    from ..runtime.limits import check_devices
    from ..runtime.output_folder import OutputFolder
    from ..runtime.processes import part, place
    from ..runtime.storage import write_json

    quiet()
    model, data = load(ckpt_path, weights, data_)
    model.sampler = choose_sampler(model, sampler, grid, steps)
    guide(model, scale, classifier, weak, cond, names=data.class_names)
    if latents is not None:
        model.latents = read_latents(latents, model.shape)
        num_samples = num_samples or len(model.latents)
    data.predict_samples = n = num_samples or data.predict_samples
    call: dict[str, Any] = {
        "checkpoint": str(ckpt_path),
        "sha256": model.sha256,
        "weights": model.weights_name,
        "sampler": describe(model.sampler),
        "seed": seed,
        "scale": scale,
        "cond": model.sample_cond,
        "classifier": classifier and fingerprint(classifier),
        "weak": weak and fingerprint(weak),
        "latents": latents and fingerprint(latents),
    }
    device = device_of(accelerator)
    check_devices(devices, device.type, "devices")
    data.predict_batch, model.sample_seed = batch_size, seed
    whole = {**call, "num_samples": n, "npz": npz, "film": film}
    with OutputFolder(output, whole, leader=not place()) as folder:
        if folder.published is None:
            untrained = [k for k in range(model.classes or 0) if k not in model.labels]
            if untrained and not cond and not place():
                print(f"no samples of {classes_named(untrained, data.class_names)}: training had no examples of them")
            with suppress(OSError, ValueError):  # the image shows the data too, where they can be read
                data.setup("predict")
            first = draw(model, data, folder.work, device.type, devices)
            part()
            if not first:
                return
            drawn = gathered(folder.work, n)

            def write(stage: Path) -> list[Path]:
                files = data.write_npz(drawn.x, stage) if npz else write_samples(data, drawn.x, stage)
                if film:
                    files += _film(model, data, stage, min(n, 16 if len(model.shape) == 3 else 1000))
                note = {"version": __version__, "num_samples": n, "nfe": drawn.nfe, "not_finite": drawn.bad, **call}
                note |= labelled(model, data)
                write_json(stage / "samples.json", note)
                return [*files, stage / "samples.json"]

            weighted = f"{model.weights_name} weights"
            summary = f"{count(n, 'sample')} of {ckpt_path} ({weighted}), {count(drawn.nfe, 'evaluation')} each:"
            folder.publish(write, summary, not_finite_error(drawn.bad, n))
        folder.show()


def labelled(model: "DiffusionModule", data: "DataModule") -> dict[str, Any]:
    """What samples.json says of labels: those that the samples have in turn, and the names of all classes."""
    if model.classes is None:
        return {}
    label = model.sample_cond.get("label")
    return {"labels": model.labels if label is None else [label], "class_names": data.class_names}


def _film(model: "DiffusionModule", data: "DataModule", output: Path, count: int) -> list[Path]:
    import numpy as np

    from ..callbacks.images import film_frames, save_film

    cond: dict[str, Any] = model.conditions(count)
    path = model.sample(range(count), model.sample_seed, path=True, **cond).path
    assert path is not None
    x, x_0 = (data.decode(part.cpu()).numpy() for part in (path.x, path.x_0))
    np.savez_compressed(output / "path.npz", t=path.t.numpy(), x=x, x_0=x_0)
    return [save_film(film_frames(data, path, model.schedule), output / "film.gif"), output / "path.npz"]
