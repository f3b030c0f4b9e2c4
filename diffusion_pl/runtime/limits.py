"""What a configuration may ask for: checked after it is parsed, before anything is built, written or started."""

import inspect
import math
import os
import re
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

from lightning.pytorch.strategies import StrategyRegistry

from .masking import MASK
from .parsing import wrong
from .upstream.jsonargparse import parameters

ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "mps")
MAX_LR = 1000.0
_NAME_BYTES = 255  # of a folder on the usual file systems
_LEAST_PROCESSES = 8  # on a CPU: as many as this may share a few cores, for a look at how a run is dealt out

_Test = Callable[[Any], bool]
_FROM_1: tuple[_Test, str] = (lambda n: n >= 1, "at least 1")
_POSITIVE: tuple[_Test, str] = (lambda n: n > 0, "above 0")
_FROM_0: tuple[_Test, str] = (lambda n: 0 <= n < math.inf, "at least 0")
_LENGTH: tuple[_Test, str] = (lambda n: n >= 1 or n == -1, "at least 1, or -1 for no limit")
#: Numeric options of the trainer: the condition on each, and its words.
_TRAINER: dict[str, tuple[_Test, str]] = {
    "max_steps": _LENGTH,
    "max_epochs": _LENGTH,
    "limit_train_batches": _POSITIVE,
    "limit_val_batches": _FROM_0,
    "limit_test_batches": _FROM_0,
    "limit_predict_batches": _FROM_0,
    "overfit_batches": _FROM_0,
    "val_check_interval": (lambda n: n > 0, "above 0; to switch validation off, set limit_val_batches to 0"),
    "check_val_every_n_epoch": _FROM_1,
    "log_every_n_steps": _FROM_0,
    "accumulate_grad_batches": _FROM_1,
    "gradient_clip_val": (lambda n: 0 <= n < math.inf, "at least 0 (0: gradients are not clipped)"),
    "num_nodes": _FROM_1,
    "num_sanity_val_steps": (lambda n: n >= -1, "at least -1"),
    "reload_dataloaders_every_n_epochs": _FROM_0,
}
#: Callbacks of Lightning that cannot work with these models.
_UNFIT = {
    "LearningRateFinder": "needs a model with an attribute lr; set --model.optimizer.lr, and compare short runs",
}


def check(config: Any, sections: Mapping[str, type]) -> None:
    """Refuse a parsed configuration of fit, doctor, validate, test or predict.

    Args:
        config: of the command.
        sections: class of each section that is not given by a class_path.

    Raises:
        UsageError: with the key that is wrong.
    """
    if config.run is not None:
        check_run_name(config.run)
    seed = config.seed_everything
    if seed is not None and (isinstance(seed, bool) or not 0 <= seed < 2**32):
        raise wrong("seed_everything", f"expected a number from 0 to {2**32 - 1}, got {str(seed).lower()}")
    for name, cls in sections.items():
        value = config[name]
        if hasattr(value, "items"):
            _check_class(cls, value, name)
    if hasattr(config.data, "class_path"):
        _check_value(config.data, "data", None)
    if hasattr(config.model, "class_path"):
        _check_value(config.model, "model", None)
    _check_trainer(config.trainer)
    model = config.model.get("init_args", config.model)
    scheduler = str(getattr(model.get("lr_scheduler"), "class_path", ""))
    endless = config.trainer.max_steps == -1 and config.trainer.max_epochs in (-1, None)
    if endless and scheduler.startswith("diffusion_pl.training."):
        name = scheduler.rpartition(".")[2]
        raise wrong("trainer.max_steps", f"must be set, since {name} needs the length of the run, got -1")
    optimizer = model.get("optimizer")
    lr = getattr(getattr(optimizer, "init_args", None), "lr", None)
    if isinstance(lr, (int, float)) and not 0 < lr <= MAX_LR:
        raise wrong("model.optimizer.lr", f"must be above 0 and at most {MAX_LR:g}, got {lr:g}")
    if optimizer is not None and str(optimizer.get("class_path", "")).endswith(".SparseAdam"):
        raise wrong("model.optimizer", "SparseAdam needs sparse gradients; use torch.optim.AdamW")


def check_run_name(name: str) -> None:
    """Refuse a --run that is no name of a folder below runs/.

    Raises:
        UsageError: empty, absolute, with `..`, hidden, too long, or with characters that a terminal cannot show.
    """
    parts = Path(name).parts
    if not name.isprintable():
        raise wrong("run", f"must not hold line breaks or control characters, got {name!r}")
    if not name.strip() or not parts:
        raise wrong("run", f"expected the name of a folder within runs, got {name!r}")
    if Path(name).is_absolute() or ".." in parts or name.startswith("."):
        raise wrong("run", f"must name a folder within runs, got {name}")
    if any(len(os.fsencode(part)) > _NAME_BYTES - 10 for part in parts):  # -2, -3 … may be appended
        raise wrong("run", f"must be at most {_NAME_BYTES - 10} bytes long, got {len(os.fsencode(name))}")


def name_of_config(paths: list[Path]) -> str:
    """Name of a run after its configuration files: configs/datasaurus/vp.yaml gives datasaurus-vp; further files add
    their names."""
    if not paths:
        return "run"
    folder = paths[0].resolve().parent.name
    name = "-".join(filter(None, [folder, *(path.stem for path in paths)]))
    return re.sub(r"[^\w.+=@-]+", "-", name).strip("-.")[-100:].lstrip("-.") or "run"


def check_devices(devices: int | None, accelerator: str, option: str) -> None:
    """Refuse to start more processes than a machine can hold.

    Args:
        devices: number of processes; None or below 1 is not checked.
        accelerator: "cpu" or "cuda".
        option: for the message.
    """
    if not isinstance(devices, int) or devices < 1:
        return
    import torch

    if accelerator == "cuda":
        count, what = torch.cuda.device_count(), f"the number of GPUs here ({torch.cuda.device_count()})"
    elif accelerator == "cpu":
        cores = os.cpu_count() or 1
        count, what = max(cores, _LEAST_PROCESSES), f"{max(cores, _LEAST_PROCESSES)} on a CPU of {cores} core(s)"
    else:
        count, what = 1, "1 on this accelerator"
    if devices > count:
        raise wrong(option, f"must be at most {what}, got {devices}")


def _check_trainer(trainer: Any) -> None:
    if trainer.max_steps is None:
        raise wrong("trainer.max_steps", "expected int, got null; -1 for no limit")
    if isinstance(trainer.devices, str) and not re.fullmatch(r"auto|-1|\d+(, *\d+)*,?", trainer.devices):
        raise wrong("trainer.devices", f"expected a number, a list of indices, -1 or auto, got {trainer.devices}")
    if isinstance(trainer.max_time, str) and not re.fullmatch(r"\d+:\d\d:\d\d:\d\d", trainer.max_time):
        raise wrong("trainer.max_time", f"expected days:hours:minutes:seconds as 00:12:00:00, got {trainer.max_time}")
    for name, (holds, text) in _TRAINER.items():
        value = trainer.get(name)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            continue
        if not holds(value):  # a NaN holds for none of them
            raise wrong(f"trainer.{name}", f"must be {text}, got {value:g}")
    for limit in ("steps", "epochs"):
        least, most = trainer.get(f"min_{limit}"), trainer.get(f"max_{limit}")
        if least is not None and most is not None and most != -1 and least > most:
            raise wrong(f"trainer.min_{limit}", f"must be at most max_{limit}, {most}, got {least}")
    interval = trainer.val_check_interval
    if isinstance(interval, float) and trainer.check_val_every_n_epoch is None and not isinstance(interval, bool):
        hint = "a fraction of an epoch needs check_val_every_n_epoch 1"
        raise wrong("trainer.val_check_interval", f"expected a whole number of steps, got {interval:g} ({hint})")
    choices = {"profiler": ("simple", "advanced", "pytorch"), "gradient_clip_algorithm": ("norm", "value")}
    for name, known in choices.items():
        value = trainer.get(name)
        if isinstance(value, str) and value not in known:
            raise wrong(f"trainer.{name}", f"expected one of {', '.join(known)}, got {value}")
    strategy = trainer.strategy
    if isinstance(strategy, str) and strategy not in ("auto", *StrategyRegistry.available_strategies()):
        raise wrong("trainer.strategy", f"expected auto, ddp or another name that Lightning knows, got {strategy}")
    if trainer.barebones:
        raise wrong("trainer.barebones", "is not supported: it switches off logging and checkpoints")
    accelerator = trainer.accelerator
    if isinstance(accelerator, str):
        if accelerator not in ACCELERATORS:
            raise wrong("trainer.accelerator", f"expected one of {', '.join(ACCELERATORS)}, got {accelerator}")
        device = check_accelerator(accelerator, "trainer.accelerator")
        devices = trainer.devices
        count = int(devices) if re.fullmatch(r"\d+", str(devices)) else None
        if device == "cpu" or isinstance(devices, int):
            check_devices(count, device, "trainer.devices")
    if str(trainer.precision).startswith("transformer-engine"):
        raise wrong("trainer.precision", f"{trainer.precision} is not supported; use bf16-mixed")
    for callback in trainer.callbacks if isinstance(trainer.callbacks, list) else [trainer.callbacks]:
        name = str(getattr(callback, "class_path", "")).rpartition(".")[2]
        if name in _UNFIT:
            raise wrong("trainer.callbacks", f"{name} {_UNFIT[name]}")


def check_accelerator(accelerator: str, option: str) -> str:
    """The device that an accelerator is: cpu, cuda or mps; gpu is cuda, or mps on a Mac; auto is what there is.

    Raises:
        UsageError: there is no such device here.
    """
    import torch

    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if accelerator not in ACCELERATORS:
        raise wrong(option, f"expected one of {', '.join(ACCELERATORS)}, got {accelerator}")
    if accelerator == "auto":
        return "cuda" if cuda else "cpu"
    if accelerator == "gpu":
        accelerator = "mps" if mps and not cuda else "cuda"
    if (accelerator == "cuda" and not cuda) or (accelerator == "mps" and not mps):
        kind = "GPU" if accelerator == "cuda" else "Apple GPU"
        raise wrong(option, f"no {kind} is available here. Fix: set it to cpu or auto")
    return accelerator


def _check_class(cls: Any, values: Any, key: str) -> None:
    """Refuse null for parameters that cannot be None, and masked secrets, at any depth."""
    of_package = inspect.isclass(cls) and cls.__module__.startswith("diffusion_pl.")
    known = parameters(cls)
    for name, value in dict(vars(values)).items():
        parameter = known.get(name)
        where = f"{key}.{name}"
        if value is None and of_package and parameter is not None and not _takes_none(parameter):
            raise wrong(where, f"expected {_kind(parameter.annotation)}, got null")
        if isinstance(value, str) and MASK in value:
            raise wrong(where, f"the secret was masked when this file was saved; set it again as --{where}")
        _check_value(value, where, None if parameter is None else parameter.annotation)


def _check_value(value: Any, key: str, annotation: Any) -> None:
    if isinstance(value, (list, tuple)):
        for part in value:
            _check_value(part, key, annotation)
    elif hasattr(value, "class_path"):
        cls = _import(value.class_path)
        if inspect.isabstract(cls):
            raise wrong(key, f"{cls.__name__} is abstract: choose a class of this kind, --help lists them")
        if hasattr(value.get("init_args"), "items"):
            _check_class(cls, value.init_args, key)
    elif hasattr(value, "items") and inspect.isclass(annotation):
        _check_class(annotation, value, key)


def _import(path: str) -> Any:
    module, _, name = path.rpartition(".")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError):  # a nested class, or a function's name: not looked into
        return None


def _takes_none(parameter: inspect.Parameter) -> bool:
    annotation = parameter.annotation
    return (
        parameter.default is None
        or annotation in (inspect.Parameter.empty, Any, None)
        or isinstance(annotation, str)
        or type(None) in get_args(annotation)
    )


def _kind(annotation: Any) -> str:
    return annotation.__name__ if inspect.isclass(annotation) else str(annotation).replace("typing.", "")
