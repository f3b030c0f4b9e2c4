"""What TensorBoard shows of a run, and where.

It groups tags by what is before their first "/", in alphabetical order, and opens the first two groups.  So each tag of
a run is written with a section before it, such as losses/val_loss/ema0.999: the losses come first, then metrics and
panels.  All other loggers have the names as they are.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger

from .upstream.torch import add_event

PANELS = "panels"
#: Of scalars, by what their names begin with, the first that matches; other names stay as they are.
SECTIONS = {
    r"\w+_(loss|accuracy)/[^/]+_t\d": "per_noise_level",
    r"\w+_loss/": "losses",
    r"(\w+_accuracy|\w+_n\d+)/": "metrics",
    r"(samples|data|neighbours)[_/]": "samples",
    r"(learning_rate|epoch|examples_per_second|memory_gib)$|(gradient_norm|guard|scaler)/": "training",
}


def dashboard_tag(name: str) -> str:
    """The tag of a scalar in TensorBoard: its name with the section before it."""
    section = next((section for pattern, section in SECTIONS.items() if re.match(pattern, name)), None)
    return name if section is None else f"{section}/{name}"


def log_scalars(logger: TensorBoardLogger, metrics: Mapping[str, Any], step: int | None = None) -> None:
    """`log_metrics` of the logger, with the scalars in their sections."""
    TensorBoardLogger.log_metrics(logger, {dashboard_tag(name): value for name, value in metrics.items()}, step)


def log_file(logger: TensorBoardLogger, tag: str, path: Path, step: int) -> None:
    """Log a PNG or GIF as it is: TensorBoard plays a GIF."""
    from PIL import Image
    from tensorboard.compat.proto.summary_pb2 import Summary

    with Image.open(path, formats=("PNG", "GIF")) as opened:
        width, height = opened.size
    image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=path.read_bytes())
    summary = Summary(value=[Summary.Value(tag=f"{PANELS}/{tag}", image=image)])
    add_event(logger.experiment, step, summary=summary)


def log_config(logger: TensorBoardLogger, text: str, step: int) -> None:
    """Show a configuration, YAML, in the text tab."""
    logger.experiment.add_text("configuration", f"```yaml\n{text}\n```", step)
    logger.experiment.flush()


def save(logger: TensorBoardLogger) -> None:
    """`save` of the logger, without the hparams.yaml that it would write: config.yaml is in the same folder."""
    logger.experiment.flush()
