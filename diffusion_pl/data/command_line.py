"""The options of a command line that name the same examples."""

import inspect
import json
from pathlib import Path
from typing import Any

from .base import DataModule

#: Options that say how training goes through the examples, not which they are.
PASSES = ("batch_size", "repeats", "workers")
#: Values of the options that change training examples at random, with which they do not.
PLAIN = {"horizontal_flip": False, "augment": 0.0, "low_noise": 0.0}


def options_of(data: DataModule) -> list[str]:
    """The arguments --data CLASS and --data.NAME VALUE that give these data without augmentation.

    Options that have their default value are not among them.
    """
    kind, defaults = type(data), dict[str, Any]()
    for base in reversed(kind.__mro__):
        parameters = inspect.signature(vars(base).get("__init__", object)).parameters.values()
        defaults |= {p.name: p.default for p in parameters if p.default is not p.empty}
    own = kind.__module__.startswith("diffusion_pl.")  # these have short names
    options = ["--data", kind.__name__ if own else f"{kind.__module__}.{kind.__name__}"]
    values = data.arguments | {name: value for name, value in PLAIN.items() if name in defaults}
    for name, value in values.items():
        if name not in PASSES and (name not in defaults or value != defaults[name]):
            text = str(value) if isinstance(value, (str, Path)) else json.dumps(value, default=str)
            options += [f"--data.{name}", text]
    return options
