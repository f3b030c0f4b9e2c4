"""Where a picture goes: a PNG in the run's folder, and every logger that takes pictures."""

from pathlib import Path

import numpy as np
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from numpy.typing import NDArray


def panels_folder(trainer: Trainer) -> Path:
    """Where a run keeps its pictures."""
    folder = Path(trainer.default_root_dir) / "panels"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def log_film(trainer: Trainer, tag: str, frames: list[NDArray[np.uint8]], seconds: float = 4.0) -> None:
    """Write a GIF that loops, and log it to TensorBoard, whose image dashboard plays it; on the first process only.

    Args:
        trainer: of the run.
        tag: says what is shown, and of which weights.
        frames: (height, width, 3) in 0 … 255 each, all of one size.
        seconds: how long it plays; the last frame stays for another.
    """
    if not trainer.is_global_zero or trainer.fast_dev_run:
        return
    from PIL import Image

    path = panels_folder(trainer) / f"{tag.replace('/', '_')}-{trainer.global_step:08d}.gif"
    # One palette for all frames: GIF has 256 colours, and a palette a frame flickers.
    whole = Image.fromarray(np.concatenate(frames[:: max(1, len(frames) // 8)] + frames[-1:])).quantize(256)
    first, *rest = [Image.fromarray(frame).quantize(palette=whole, dither=Image.Dither.NONE) for frame in frames]
    durations = [round(1000 * seconds / len(frames))] * len(rest) + [1000]
    first.save(path, save_all=True, append_images=rest, duration=durations, loop=0)
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            from tensorboard.compat.proto.summary_pb2 import Summary

            height, width, _ = frames[0].shape
            picture = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=path.read_bytes())
            value = Summary.Value(tag=tag, image=picture)
            logger.experiment._get_file_writer().add_summary(Summary(value=[value]), max(0, trainer.global_step - 1))


def log_image(trainer: Trainer, tag: str, image: NDArray[np.uint8]) -> None:
    """Write and log one picture; on the first process only.

    Args:
        trainer: of the run.
        tag: says what is shown, and of which weights.
        image: (height, width, 3) in 0 … 255.
    """
    if not trainer.is_global_zero or trainer.fast_dev_run:
        return
    from PIL import Image

    step = trainer.global_step
    Image.fromarray(image).save(panels_folder(trainer) / f"{tag.replace('/', '_')}-{step:08d}.png")
    for logger in trainer.loggers:
        if hasattr(logger, "log_image"):
            logger.log_image(key=tag, images=[image], step=step)
        elif hasattr(logger.experiment, "add_image"):
            # Scalars logged in step n carry n − 1: the same for pictures, so that they line up.
            logger.experiment.add_image(tag, image, max(0, step - 1), dataformats="HWC")
