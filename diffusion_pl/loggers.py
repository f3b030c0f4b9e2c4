"""Lightning's loggers as runs here have them: what they write lies in the run's folder, and one function feeds them.

What is measured with `self.log` reaches every logger by Lightning.  Everything else goes through `tell`: scalars that a
callback finds between steps, and pictures and films, which are files in the run's folder first of all.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger


class Custom(NamedTuple):
    """What a logger is given unless the user says otherwise; {folder} stands for the run's folder, {run} for its name.

    package: the extra that it needs;  identity: the argument by which a resumed run goes on in the same place.
    """

    defaults: dict[str, Any]
    package: str | None = None
    identity: str | None = None


CUSTOMS = {
    TensorBoardLogger: Custom({"save_dir": "{folder}", "name": "", "version": "", "default_hp_metric": False}),
    # Every session has a file of its own, csv/version_N/metrics.csv: this logger would delete that of the one before.
    CSVLogger: Custom({"save_dir": "{folder}", "name": "csv"}),
    WandbLogger: Custom({"save_dir": "{folder}", "name": "{run}", "project": "diffusion_pl"}, "wandb", "version"),
    MLFlowLogger: Custom(
        {"save_dir": "{folder}/mlruns", "run_name": "{run}", "experiment_name": "diffusion_pl"}, "mlflow", "run_id"
    ),
}
#: What loggers leave in the folder of a run that was refused before it began.
LEFTOVERS = ("events.*", "hparams.yaml", "csv", "mlruns")


def custom(kind: type[Logger]) -> Custom:
    """What holds for a class of loggers."""
    return next((found for known, found in CUSTOMS.items() if issubclass(kind, known)), Custom({}))


def make_logger(kind: type[Logger], folder: Path, run: str, identities: Mapping[str, str], **options: Any) -> Logger:
    """A logger of a run.

    Args:
        kind: its class.
        folder, run: of the run, for {folder} and {run} in the options.
        identities: by the name of the class, of what a run that is resumed logged to so far; see `identities_of`.
        options: of the class.

    Raises:
        ValueError: its package is not installed.
    """
    known = custom(kind)
    options = {
        key: value.replace("{folder}", str(folder)).replace("{run}", run) if isinstance(value, str) else value
        for key, value in options.items()
    }
    if known.identity and options.get(known.identity) is None and kind.__name__ in identities:
        options[known.identity] = identities[kind.__name__]
    # MLflow wants to be told that a store of files, which needs no database, is meant.
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    try:
        return kind(**options)
    except ModuleNotFoundError as error:
        if known.package is None:
            raise
        raise ValueError(
            f"trainer.logger: {kind.__name__} needs the package {known.package}: "
            f"pip install 'diffusion_pl[{known.package}]'"
        ) from error


def identities_of(trainer: Trainer) -> dict[str, str]:
    """Under which identity the run is known where it is logged to, such as the id of a run of W&B, by class."""
    named = ((logger, type(logger)) for logger in trainer.loggers)
    return {kind.__name__: str(logger.version) for logger, kind in named if custom(kind).identity}


def tell(trainer: Trainer, scalars: Mapping[str, float] | None = None, files: Mapping[str, Path] | None = None) -> None:
    """Hand scalars and pictures of the present step to every logger that takes them; on the first process only.

    Args:
        trainer: of the run.
        scalars: by their tags.
        files: PNGs and GIFs in the run's folder, by their tags.
    """
    if not trainer.is_global_zero or trainer.fast_dev_run:
        return
    step = max(0, trainer.global_step - 1)  # as Lightning counts in self.log, so that all lines up
    for logger in trainer.loggers:
        if scalars:
            logger.log_metrics(dict(scalars), step)
        for tag, path in (files or {}).items():
            _hand_over(logger, tag, path, step)
        logger.save()


def _hand_over(logger: Logger, tag: str, path: Path, step: int) -> None:
    """One picture or film, if the logger takes such; else it lies in the run's folder."""
    if isinstance(logger, TensorBoardLogger):
        from PIL import Image
        from tensorboard.compat.proto.summary_pb2 import Summary

        # The file as it is: the dashboard plays a GIF.
        with Image.open(path, formats=("PNG", "GIF")) as opened:
            width, height = opened.size
        content = path.read_bytes()
        picture = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=content)
        logger.experiment._get_file_writer().add_summary(Summary(value=[Summary.Value(tag=tag, image=picture)]), step)
    elif isinstance(logger, MLFlowLogger):
        logger.experiment.log_artifact(logger.run_id, str(path), path.parent.name)
    elif path.suffix == ".gif" and hasattr(logger, "log_video"):
        logger.log_video(key=tag, videos=[str(path)], step=step, format=["gif"])
    elif hasattr(logger, "log_image"):
        logger.log_image(key=tag, images=[str(path)], step=step)
