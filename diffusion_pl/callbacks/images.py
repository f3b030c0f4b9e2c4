"""Where a picture goes: a PNG in the run's folder, and every logger that takes pictures."""

from pathlib import Path

import numpy as np
from lightning.pytorch import Trainer
from numpy.typing import NDArray


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
    folder = Path(trainer.default_root_dir) / "panels"
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(folder / f"{tag.replace('/', '_')}-{step:08d}.png")
    for logger in trainer.loggers:
        if hasattr(logger, "log_image"):
            logger.log_image(key=tag, images=[image], step=step)
        elif hasattr(logger.experiment, "add_image"):
            # Scalars logged in step n carry n − 1: the same for pictures, so that they line up.
            logger.experiment.add_image(tag, image, max(0, step - 1), dataformats="HWC")
