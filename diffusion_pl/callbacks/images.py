"""Images and films of a run: a file in its folder, and every logger that takes them."""

from pathlib import Path as FilePath

import numpy as np
import torch
from lightning.pytorch import Trainer
from numpy.typing import NDArray

from ..data import DataModule
from ..runtime.loggers import log_now, writing
from ..runtime.storage import write_file
from ..samplers import Path
from ..schedules import Schedule
from .figures import film_images

FRAMES = 60  # of a film, at most


def panels_folder(trainer: Trainer) -> FilePath:
    """The folder of a run's images."""
    folder = FilePath(trainer.default_root_dir) / "panels"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def film_frames(data: DataModule, path: Path, schedule: Schedule) -> list[NDArray[np.uint8]]:
    """x_t, scaled to unit variance where noise exceeds it, and x̂_0 along the way: (height, width, 3) each."""
    steps, last = [], len(path.t) - 1
    for k in sorted({*range(0, last, -(-last // FRAMES)), last}):
        kernel = schedule(path.t[k].to(torch.float64))
        scale = torch.sqrt(kernel.alpha.square() + kernel.sigma.square()).clamp(min=1).item()
        x, x_0 = (part.float().cpu() for part in (path.x[k] / scale, path.x_0[k]))
        steps.append((f"step {k} of {last}, t = {path.t[k].item():.2f}", x, x_0))
    return film_images(data, steps)


def save_film(frames: list[NDArray[np.uint8]], path: FilePath, seconds: float = 4.0) -> FilePath:
    """Write frames of one size as a GIF that loops; the last stays for another second."""
    from PIL import Image

    # One palette for all frames: GIF has 256 colours, and a palette a frame flickers.
    whole = Image.fromarray(np.concatenate(frames[:: max(1, len(frames) // 8)] + frames[-1:])).quantize(256)
    first, *rest = [Image.fromarray(frame).quantize(palette=whole, dither=Image.Dither.NONE) for frame in frames]
    durations = [round(1000 * seconds / len(frames))] * len(rest) + [1000]
    options = {"save_all": True, "append_images": rest, "duration": durations, "loop": 0}
    write_file(path, lambda file: first.save(file, "GIF", **options))
    return path


def log_film(trainer: Trainer, tag: str, frames: list[NDArray[np.uint8]], seconds: float = 4.0) -> None:
    """Write a GIF that loops, and log it; on the first process only.

    Args:
        trainer: of the run.
        tag: says what is shown, and of which weights.
        frames: (height, width, 3) in 0 … 255 each, all of one size.
        seconds: how long it plays; the last frame stays for another.
    """
    if trainer.is_global_zero and not trainer.fast_dev_run:
        path = _path(trainer, tag, "gif")
        with writing(path):
            save_film(frames, path, seconds)
        log_now(trainer, files={tag: path})


def panel_title(what: str, trainer: Trainer, weights: str) -> str:
    """What a panel shows, when and of which weights."""
    return f"{what}: step {trainer.global_step:,}, {weights} weights"


def log_image(trainer: Trainer, tag: str, image: NDArray[np.uint8]) -> None:
    """Write and log one image; on the first process only.

    Args:
        trainer: of the run.
        tag: says what is shown, and of which weights.
        image: (height, width, 3) in 0 … 255.
    """
    if not trainer.is_global_zero or trainer.fast_dev_run:
        return
    from PIL import Image

    path = _path(trainer, tag, "png")
    with writing(path):
        write_file(path, lambda file: Image.fromarray(image).save(file, "PNG"))
    log_now(trainer, files={tag: path})


def _path(trainer: Trainer, tag: str, ending: str) -> FilePath:
    return panels_folder(trainer) / f"{tag.replace('/', '_')}-{trainer.global_step:08d}.{ending}"
