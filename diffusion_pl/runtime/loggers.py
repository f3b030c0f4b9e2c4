"""Lightning's loggers with the defaults of this package: what they write is saved to the run's folder.

Lightning sends the values of `self.log` to every logger.  Everything else goes through `log_now`: scalars that a
callback measures between steps, and images and films, which are saved to the run's folder first.
"""

import contextlib
import errno
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from . import dashboard
from .upstream.torch import event_file, writes_events


class Custom(NamedTuple):
    """Default options of a logger; {folder} means the run's folder, {run} its name.

    package: the extra that it needs;  identity: the argument by which a resumed run continues in the same place.
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
    """The defaults of a class of loggers."""
    return next((defaults for known, defaults in CUSTOMS.items() if issubclass(kind, known)), Custom({}))


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
    # Without this variable MLflow refuses a store of files, which needs no database.
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    try:
        logger = kind(**options)
    except ModuleNotFoundError as error:
        if known.package is None:
            raise
        raise ValueError(
            f"trainer.logger: {kind.__name__} needs the package {known.package}: "
            f"pip install 'diffusion_pl[{known.package}]'"
        ) from error
    if issubclass(kind, WandbLogger) and not _wandb_can_log(options):
        raise ValueError(
            "trainer.logger: WandbLogger: there is no login to Weights & Biases. Fix: run `wandb login`, or log to the "
            "run's folder only with --trainer.logger.init_args.offline true"
        )
    return _guard(logger, folder)


def _wandb_can_log(options: Mapping[str, Any]) -> bool:
    """Whether a run of W&B is offline, or a key for its server is set; else it would ask, or raise in mid-run."""
    mode = options.get("mode") or os.environ.get("WANDB_MODE") or "online"
    if options.get("offline") or mode in ("offline", "disabled", "dryrun"):
        return True
    if any(os.environ.get(name) for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "LOCAL_RANK")):
        return True
    server = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc(os.environ.get("NETRC") or None).authenticators(server) is not None
    except (OSError, NetrcParseError, RuntimeError):  # there is none, or no home
        return False


class LogError(OSError):
    """What a logger has to write cannot be written.  Loggers write after a step, so a checkpoint can still be saved."""


@contextlib.contextmanager
def writing(what: str | Path) -> Iterator[None]:
    """Within, an OSError comes as a LogError that names what was written and a way out."""
    try:
        yield
    except LogError:
        raise
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        fix = f"{'free some space' if full else 'make it writable'}; then resume with --ckpt_path last"
        raise LogError(f"cannot write {what}: {error.strerror or error}. Fix: {fix}") from error


def _guard(logger: Logger, folder: Path) -> Logger:
    """Let the logger raise LogError in place of any other OSError."""
    # Partials of what has a name, since some strategies pickle the loggers.
    methods = {name: getattr(type(logger), name) for name in ("log_metrics", "log_hyperparams", "save")}
    if isinstance(logger, TensorBoardLogger):
        methods |= {"log_metrics": dashboard.log_scalars, "save": dashboard.save}
    for name, method in methods.items():
        setattr(logger, name, partial(_guarded, method, folder, logger))
    logger.finalize = partial(_finalize, type(logger).finalize, logger)  # type: ignore[method-assign]
    return logger


def _guarded(method: Callable[..., Any], folder: Path, logger: Logger, *args: Any, **kwargs: Any) -> Any:
    with writing(f"the logs of {type(logger).__name__} in {folder}"):
        return method(logger, *args, **kwargs)


def _finalize(method: Callable[..., Any], logger: Logger, status: str) -> None:
    with contextlib.suppress(OSError):  # it was raised before, or the run is over
        method(logger, status)


@contextlib.contextmanager
def quiet_threads() -> Iterator[None]:
    """Within, the thread that writes TensorBoard's events prints no traceback: the next event raises its error."""
    before = threading.excepthook

    def hook(args: Any) -> None:
        if not (isinstance(args.exc_value, OSError) and writes_events(args.thread)):
            before(args)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = before


def in_order(logger: TensorBoardLogger) -> None:
    """Rename the event files of former sessions so that they come before this one's: TensorBoard reads them by name.

    Their names contain the time of their creation, and the clock may have been set back since.
    """
    newest = event_file(logger.experiment)
    others = sorted(path for path in newest.parent.glob("events.out.tfevents.*") if path.name != newest.name)
    if not others or others[-1].name < newest.name:
        return
    time = int(newest.name.split(".")[3])
    for back, path in enumerate(reversed(others), 1):
        head = f"events.out.tfevents.{time - back:010d}."
        path.replace(path.with_name(head + path.name.split(".", 4)[4]))


def identities_of(trainer: Trainer) -> dict[str, str]:
    """Under which identity the run is known where it is logged to, such as the id of a run of W&B, by class."""
    named = ((logger, type(logger)) for logger in trainer.loggers)
    return {kind.__name__: str(logger.version) for logger, kind in named if custom(kind).identity}


def log_now(
    trainer: Trainer, scalars: Mapping[str, float] | None = None, files: Mapping[str, Path] | None = None
) -> None:
    """Send scalars and images of the current step to every logger that accepts them; on the first process only.

    Args:
        trainer: of the run.
        scalars: by their tags.
        files: PNGs and GIFs in the run's folder, by their tags.
    """
    if not trainer.is_global_zero or trainer.fast_dev_run:
        return
    step = trainer.global_step
    for logger in trainer.loggers:
        if scalars:
            logger.log_metrics(dict(scalars), step)
        with writing(f"the logs of {type(logger).__name__} in {trainer.default_root_dir}"):
            for tag, path in (files or {}).items():
                _log_file(logger, tag, path, step)
        logger.save()


def log_config(trainer: Trainer, path: Path) -> None:
    """Show the configuration file of a run in TensorBoard; other loggers have it as hyperparameters."""
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            with writing(f"the logs of TensorBoardLogger in {trainer.default_root_dir}"):
                dashboard.log_config(logger, path.read_text(encoding="utf-8"), trainer.global_step)


def _log_file(logger: Logger, tag: str, path: Path, step: int) -> None:
    """One image or film, if the logger accepts such files; else it is only in the run's folder."""
    if isinstance(logger, TensorBoardLogger):
        dashboard.log_file(logger, tag, path, step)
    elif isinstance(logger, MLFlowLogger):
        logger.experiment.log_artifact(logger.run_id, str(path), path.parent.name)
    elif path.suffix == ".gif" and hasattr(logger, "log_video"):
        logger.log_video(key=tag, videos=[str(path)], step=step, format=["gif"])
    elif hasattr(logger, "log_image"):
        logger.log_image(key=tag, images=[str(path)], step=step)
