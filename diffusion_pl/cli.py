"""The configuration of fit, validate, test and predict over Lightning.  The only file that knows of YAML.

A configuration has the sections model, data, trainer, ema, saver, guard and doctor, and may state which metrics
are expected of it; `run` names the folder runs/RUN that everything of the run is saved to.  The data's shape and
conditions are linked to the model, so they are written nowhere.
"""

from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.accelerators import MPSAccelerator
from lightning.pytorch.callbacks import GradientAccumulationScheduler, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.strategies import (
    DeepSpeedStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    Strategy,
    StrategyRegistry,
)

from .callbacks import EMA, Curves, Description, Doctor, Guard, RunCard, Saver, SeenLoss, StepProgress
from .callbacks.measurement import judge_fresh_values
from .checkpoints.io import AtomicCheckpointIO
from .checkpoints.loading import DEFAULT_LOSS, link_data
from .checkpoints.teacher import Teacher, with_teacher
from .checkpoints.warm_start import WarmStart
from .checks import Finding
from .conditions import to_plain
from .data import DataModule
from .denoisers import guidance  # noqa: F401  short names
from .evaluation import Band, check_names
from .runtime.config_files import OFF, OPTIONAL, SUFFIXES, check_files, config_files, find, with_config_files
from .runtime.errors import EXPECTED
from .runtime.help_pages import PAGES
from .runtime.limits import check
from .runtime.loggers import custom, make_logger
from .runtime.masking import masked, masked_arguments
from .runtime.messages import explain
from .runtime.parsing import RaisingParser
from .runtime.processes import rank_label
from .runtime.run_card import CARD, read_card
from .runtime.run_folder import RunFolder
from .runtime.storage import write_file
from .runtime.upstream.jsonargparse import make_optional, own_defaults
from .runtime.upstream.loops import count_steps
from .training import DiffusionModule, LeanProfiler, Trainable

SECTIONS: dict[str, type] = {"trainer": Trainer, "ema": EMA, "saver": Saver, "guard": Guard, "doctor": Doctor}
_OF_THE_CALL = ("config", "ckpt_path", "weights_only")  # not of the experiment


class Parser(RaisingParser, LightningArgumentParser):
    """Knows the defaults of loggers, and builds nothing of a section that is null or false."""

    def add_class_arguments(self, theclass: Any, *args: Any, **kwargs: Any) -> list[str]:
        added: list[str] = super().add_class_arguments(theclass, *args, **kwargs)
        if isinstance(theclass, type) and issubclass(theclass, Logger):
            defaults = custom(theclass).defaults
            self.set_defaults(defaults)
            make_optional(self, defaults)
        return added

    def instantiate(self, namespace: Any, *args: Any, **kwargs: Any) -> Any:
        off = [name for name in OPTIONAL if name in namespace and not namespace[name]]
        if off:
            namespace = namespace.clone()
        for name in off:
            namespace.pop(name)
        built = super().instantiate(namespace, *args, **kwargs)
        for name in off:
            built[name] = None
        return built


class DiffusionCLI(LightningCLI):
    """What LightningCLI makes of a command line: trainer, model and data, with the callbacks that every run has, and
    one folder for each run.  The caller runs the trainer.

    Args:
        command: fit, validate, test or predict.
        args: the command line after it.
        run: the folder of the run.
        diagnose: only check what the command would do; `diagnose` returns the findings.
    """

    def __init__(self, command: str, args: list[str], run: RunFolder, diagnose: bool = False) -> None:
        check_files(args)
        self.command, self._args, self._run = command, args, run
        self._names_model = names_model(args)
        self._diagnose, self._refused = diagnose, list[Finding]()
        page = PAGES["doctor" if diagnose else command]
        super().__init__(
            DiffusionModule,
            DataModule,
            trainer_class=Trainer,
            trainer_defaults={
                "max_epochs": -1,  # the length of a run is max_steps
                "max_steps": 10_000,
                "num_sanity_val_steps": 0,
                "check_val_every_n_epoch": None,
                "val_check_interval": 1000,
                "log_every_n_steps": 100,
                "use_distributed_sampler": False,  # our loaders deal out the data themselves, without padding
                "inference_mode": False,  # likelihood differentiates during evaluation
                "enable_model_summary": False,
            },
            seed_everything_default=0,
            save_config_callback=None,  # Description does it
            parser_class=Parser,
            parser_kwargs={
                "prog": f"diffusion_pl {command}",
                "usage": page.usage,  # made of all options else, which takes time
                "page": page,
                "json": diagnose,
                "allow_abbrev": False,
            },
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            args=args,
            run=False,  # nothing is trained while an object is made
        )

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        # What is changed most often comes first, in the help and in the saved configuration.
        if self._names_model:
            parser.add_lightning_class_args(Trainable, "model", subclass_mode=True)
        else:
            parser.add_lightning_class_args(DiffusionModule, "model")
            if gives_loss(self._args):  # else the message is that the loss is missing
                parser.set_defaults(DEFAULT_LOSS)
        parser.add_lightning_class_args(DataModule, "data", subclass_mode=True)
        parser.add_lightning_class_args(Trainer, "trainer")
        parser.set_defaults({f"trainer.{name}": value for name, value in self.trainer_defaults.items()})

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        # Their help is in help_pages.
        parser.add_argument("--run", type=str | None, default=None)
        parser.add_lightning_class_args(EMA, "ema")
        parser.add_lightning_class_args(Saver, "saver")
        parser.add_lightning_class_args(Guard, "guard")
        parser.add_lightning_class_args(Doctor, "doctor")
        if self.command == "fit":
            parser.add_argument("--init_from", type=WarmStart | None, default=None)
        parser.add_argument("--expected", type=dict[str, Band] | None, default=None)
        link_data(parser, "model.init_args" if self._names_model else "model")
        parser.add_argument("--ckpt_path", type=str | Path | None, default=None)
        skipped = {"ckpt_path", *LightningCLI.subcommands()[self.command]}
        self._options = ["ckpt_path", *parser.add_method_arguments(Trainer, self.command, skip=skipped)]

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        args, off = switched_off(with_teacher(with_config_files(args)))
        with own_defaults():
            self.config = parser.parse_args(args)
        for name in off:
            self.config[name] = None
        check(self.config, SECTIONS if self._names_model else {"model": DiffusionModule, **SECTIONS})

    def before_instantiate_classes(self) -> None:
        dropped = _dropped_callbacks(self._args, _as_list(self.config.trainer.callbacks))
        if dropped and not rank_label():
            what = f"trainer.callbacks replaces {', '.join(dropped)} of an earlier --config"
            print(f"diffusion_pl: warning: {what}; write callbacks+ to add to them", flush=True)
        self.folder, self.config.ckpt_path = self._run.choose(self.config, self.command, claim=not self._diagnose)
        if not self._diagnose:
            self._run.publish()
        self.parser.add_instantiator(self._make_logger, Logger)

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
            check_names(self.config_init["expected"] or {})
        except EXPECTED as error:
            if not self._diagnose:
                raise
            self._refused = [Finding("error", "build", explain(error, self._args))]

    @property
    def options(self) -> dict[str, Any]:
        """What the trainer's method of the command takes besides model and data: the checkpoint and others."""
        return {name: self.config_init[name] for name in self._options}

    def check_checkpoint(self, content: dict[str, Any]) -> None:
        """Raise ValueError if the content of a checkpoint is of another model than the configuration's."""
        self._description.on_load_checkpoint(self.trainer, self.model, content)

    def diagnose(self) -> list[Finding]:
        """The doctor's findings, or the error that ended the construction of model and data."""
        if self._refused:
            return self._refused
        if ema := self.config_init["ema"]:  # as its setup would
            self.model.averages.track(ema.averages)
        doctor = self.config_init["doctor"] or Doctor()
        return doctor.diagnose(self.trainer, self.model, self.datamodule)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        plain = self.parser.dump(self.config, skip_link_targets=False, skip_none=False, format="yaml")
        described: dict[str, Any] = yaml.safe_load(plain)
        section, data = self.config_init["trainer"], self.config_init["data"]
        if not self._names_model:  # linked, so written nowhere
            described["model"] |= {"shape": list(data.shape), "conditions": to_plain(data.conditions)}
        if doctor := self.config_init["doctor"]:
            doctor.asked = section.precision
        config = masked({key: value for key, value in described.items() if key not in _OF_THE_CALL})
        card = RunCard(config, masked_arguments([self.command, *self._args]), self._start_warm(), self._teachers())
        self._description = Description({key: described[key] for key in ("model", "data")}, self._save_config)
        always: list[Callback] = [
            SeenLoss(),
            self._description,
            Curves(),
            card,
        ]
        configured = [self.config_init[name] for name in ("ema", "saver", "guard", "doctor")]
        chosen = _as_list(section.callbacks)
        if section.enable_progress_bar is not False and not any(isinstance(c, ProgressBar) for c in chosen):
            always.append(StepProgress())
        if any(isinstance(callback, GradientAccumulationScheduler) for callback in chosen):
            raise ValueError(
                "GradientAccumulationScheduler changes how many batches an optimizer step takes, by which everything "
                "here is counted: set trainer.accumulate_grad_batches instead"
            )
        refuse_sharding(section.strategy)
        if section.accelerator == "auto" and MPSAccelerator.is_available():
            section.accelerator = "cpu"  # Apple's GPUs have no float64, in which beta schedules are kept
        try:
            options = {
                **section,
                "callbacks": [*always, *chosen, *(callback for callback in configured if callback is not None)],
                "plugins": [*_as_list(section.plugins), AtomicCheckpointIO()],
                "profiler": LeanProfiler() if section.profiler is None else section.profiler,
                "default_root_dir": str(self.folder),
                **self._logger(),
                **kwargs,
            }
            trainer = Trainer(**options)
            # The doctor runs before every other callback.
            trainer.callbacks.sort(key=lambda c: not isinstance(c, Doctor))
            count_steps(trainer)
            judge_fresh_values(trainer)
            return trainer
        except TypeError as error:  # so Lightning refuses some values, such as devices: -3
            raise ValueError(f"trainer: {error}") from error

    def _start_warm(self) -> dict[str, Any] | None:
        """Give a new run the weights of another checkpoint, if it asks for them; a resumed one has its own."""
        start = self.config_init.get("init_from")
        if start is None or self.config_init["ckpt_path"] is not None:
            return None
        note: dict[str, Any] = start.load(self.model)
        if not rank_label():
            fresh = f", newly initialized: {', '.join(note['skipped'][:8])}" if note["skipped"] else ""
            step = "" if note["step"] is None else f" of step {note['step']:,}"
            print(f"init_from: {note['weights']} weights{step} from {note['path']}{fresh}", flush=True)
        return note

    def _teachers(self) -> list[dict[str, Any]]:
        """What the card says of the trained models that this one learns from, in fit."""
        loss = getattr(self.model, "loss", None)
        teachers = [getattr(part, "teacher", None) for part in (loss, getattr(loss, "coupling", None))]
        notes = [each.note() for each in teachers if self.command == "fit" and isinstance(each, Teacher)]
        for note in notes if not rank_label() else ():
            guided = "" if note["scale"] == 1 else f", guided with scale {note['scale']:g}"
            print(f"teacher: {note['weights']} weights from {note['path']}{guided}", flush=True)
        return notes

    def _save_config(self, path: Path) -> None:
        # Without what belongs to the call, not to the experiment, the file can be given back as --config.
        config = self.config.clone()
        for name in _OF_THE_CALL:
            config.pop(name, None)
        text = self.parser.dump(config, skip_none=False)
        plain = yaml.safe_load(text)
        if masked(plain) != plain:  # else as it is, with its order
            text = yaml.safe_dump(masked(plain), sort_keys=False)
        write_file(path, text)

    def _logger(self) -> dict[str, Any]:
        if self.config.trainer.logger is not None:
            return {}
        return {"logger": self._make_logger(TensorBoardLogger, **custom(TensorBoardLogger).defaults)}

    def _make_logger(self, kind: type[Logger], **options: Any) -> Logger:
        try:
            identities = read_card(self.folder / CARD).get("logged_to", {})
        except (OSError, ValueError):  # a new run; or the card is damaged, which RunCard reports
            identities = {}
        return make_logger(kind, self.folder, str(self.folder.relative_to(self._run.root)), identities, **options)


def switched_off(args: Sequence[str]) -> tuple[list[str], list[str]]:
    """A command line without --ema false and the like, and the sections that are switched off so."""
    kept, off = list[str](), list[str]()
    values = iter(args)
    for arg in values:
        name, equals, value = arg.partition("=")
        if name.removeprefix("--") not in OPTIONAL or not name.startswith("--"):
            kept.append(arg)
            continue
        if not equals:
            value = next(values, "")
        if value.lower() in OFF:
            off.append(name.removeprefix("--"))
        else:
            kept += [name, value]
    return kept, off


def names_model(args: Sequence[str]) -> bool:
    """Whether the command line or a configuration gives the model by its class, as it must all but diffusion models."""
    for arg, after in pairwise([*args, ""]):
        option, equals, value = arg.partition("=")
        value = value if equals else after
        if option == "--model.class_path" or (option == "--model" and not value.endswith(SUFFIXES)):
            return True
    for path in config_files(args):
        try:
            config = yaml.safe_load(path.read_text(encoding="utf-8"))
        except yaml.YAMLError:  # reported, with its line, when it is parsed
            continue
        if isinstance(config, dict) and isinstance(config.get("model"), dict) and "class_path" in config["model"]:
            return True
    return False


def gives_loss(args: Sequence[str]) -> bool:
    """Whether the command line or a configuration says something of the loss."""
    as_text = any(str(path).lstrip().startswith("{") or "\n" in str(path) for path in config_files(args))
    return as_text or bool(find("model.loss", args)) or any(arg.startswith("--model.loss") for arg in args)


def refuse_sharding(strategy: Strategy | str) -> None:
    """Raise ValueError for a strategy, or the registered name of one, under which no process has the whole model."""
    kind = type(strategy)
    if isinstance(strategy, str):
        kind = StrategyRegistry[strategy]["strategy"] if strategy in StrategyRegistry else str  # auto is none yet
    if issubclass(kind, (FSDPStrategy, DeepSpeedStrategy, ModelParallelStrategy)):
        raise ValueError(
            f"trainer.strategy {kind.__name__} shards the model, but the averages and checkpoints here are of "
            "whole weights; use ddp"
        )


def _dropped_callbacks(args: Sequence[str], kept: list[Any]) -> list[str]:
    """Names of the callbacks in the configuration files that a later list took the place of; none if it is empty."""
    named: list[str] = []
    for path in config_files(args):
        with suppress(yaml.YAMLError, AttributeError, UnicodeDecodeError):  # reported when it is parsed
            trainer = (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get("trainer") or {}
            named += [_class_name(entry) for key in ("callbacks", "callbacks+") for entry in _as_list(trainer.get(key))]
    names = {_class_name(entry) for entry in kept}
    return [name for name in dict.fromkeys(named) if name not in names] if kept else []


def _class_name(entry: Any) -> str:
    path = entry if isinstance(entry, str) else entry.get("class_path")
    return str(path).rpartition(".")[2]


def _as_list(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]
