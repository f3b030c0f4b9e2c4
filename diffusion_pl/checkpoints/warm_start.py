"""Start a new run from the weights of another one: `fit --init_from CKPT`."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from ..networks import JumpEmbedding
from ..training import Trainable
from .exported import is_exported, run_folder_of
from .io import FOREIGN, checkpoint_at, read_hashed
from .loading import LINKED, from_content, select

OPTION = "--init_from"
_LISTED = 4  # names in a message


@dataclass
class WarmStart:
    """Begins a new run, at step 0, with the weights of a checkpoint.

    Args:
        path: Checkpoint of fit or import, or folder of a run.
        weights: Weights: "ema" (the first EMA weights; the raw ones where there are none), "raw", "ema:0.999" or
            "std:0.15".
        skip: Patterns of names of the network's tensors that are not taken, such as 'output.*'; * is any text.
    """

    path: Path
    weights: str = "ema"
    skip: list[str] = field(default_factory=list)

    def load(self, model: Trainable) -> dict[str, Any]:
        """Load the weights into a new model.

        Returns:
            What the run's card says of them: path, sha256, weights, step, skipped (names).

        Raises:
            FileNotFoundError, ValueError: no such checkpoint or weights; a tensor is missing, is one too many, or has
                another shape, and no pattern of `skip` names it; a pattern names none.
        """
        content, sha256 = read_hashed(self.path)
        saved, weights = select(content, self.weights, str(self.path))
        present = model.state_dict()
        kept = [name for name in present if self._skips(name)]
        kept += [name for name in _new(model, present, saved) if name not in kept]
        saved = {name: tensor for name, tensor in saved.items() if not name.startswith("loss.") or name in present}
        self._check_patterns([*present, *saved])
        self._check(
            {name: tensor for name, tensor in present.items() if name not in kept},
            {name: tensor for name, tensor in saved.items() if not self._skips(name)},
        )
        model.load_state_dict({**present, **{name: saved[name] for name in present if name not in kept}})
        return {
            "path": str(self.path),
            "sha256": sha256,
            "weights": weights,
            "step": content.get("global_step"),
            "skipped": [_short(name) for name in kept],
        }

    def _skips(self, name: str) -> bool:
        return any(fnmatchcase(_short(name), pattern) for pattern in self.skip)

    def _check_patterns(self, names: Sequence[str]) -> None:
        for pattern in self.skip:
            if not any(fnmatchcase(_short(name), pattern) for name in names):
                first = ", ".join(_short(name) for name in names[:_LISTED])
                raise ValueError(f"init_from.skip: no tensor is named {pattern!r}; the names are such as {first}")

    def _check(self, present: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> None:
        differences = [f"{_short(name)} is missing" for name in present if name not in saved]
        differences += [f"{_short(name)} is not in the new model" for name in saved if name not in present]
        differences += [
            f"{_short(name)} has shape {tuple(saved[name].shape)}, the new model's has {tuple(tensor.shape)}"
            for name, tensor in present.items()
            if name in saved and saved[name].shape != tensor.shape
        ]
        if not differences:
            return
        more = f", and {len(differences) - _LISTED} more" if len(differences) > _LISTED else ""
        name = differences[0].split(" ", 1)[0]
        pattern = f"{name.rpartition('.')[0] or name}*"
        raise ValueError(
            f"init_from: {self.path} does not fit the new model: {'; '.join(differences[:_LISTED])}{more}. Fix: begin "
            f"these newly with --init_from.skip '[\"{pattern}\"]', or give the model the options of the checkpoint"
        )


@contextmanager
def warm_started(args: Sequence[str]) -> Iterator[list[str]]:
    """A command line in which --init_from CKPT is the option of a section, with the model and data of the checkpoint.

    These come first, as a configuration file, where the command line gives none: every option can still change them.
    """
    args = _spelled(args)
    path = _path(args)
    if path is None or any(arg.partition("=")[0] in ("--config", "-c") for arg in args):
        yield args
        return
    content, _ = read_hashed(path)
    description = content.get("diffusion_pl")
    if not isinstance(description, dict):
        raise ValueError(f"{path} carries no configuration. {FOREIGN}, or give the new run a --config")
    from_content(content, path, "ema")  # refuses classes that are not trusted, or that are gone
    file = checkpoint_at(path)
    name = run_folder_of(file).name if file.parent.name == "checkpoints" or is_exported(file) else file.stem
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / (name or "run") / "tuned.yaml"  # after which the new run is named, NAME-tuned
        config.parent.mkdir()
        sections = {key: _without_links(description[key]) for key in ("model", "data")}
        config.write_text(yaml.safe_dump(sections, sort_keys=False), encoding="utf-8")
        yield ["--config", str(config), *args]


def _spelled(args: Sequence[str]) -> list[str]:
    """--init_from CKPT as --init_from.path CKPT."""
    return [f"{OPTION}.path{arg[len(OPTION) :]}" if arg.partition("=")[0] == OPTION else arg for arg in args]


def _path(args: Sequence[str]) -> Path | None:
    for arg, after in pairwise([*args, ""]):
        name, equals, value = arg.partition("=")
        if name == f"{OPTION}.path":
            return Path(value if equals else after)
    return None


def _without_links(spec: Mapping[str, Any]) -> dict[str, Any]:
    """A section without what the model takes from the data."""
    options = {key: value for key, value in spec.get("init_args", spec).items() if key not in LINKED}
    return {**spec, "init_args": options} if "init_args" in spec else options


def _new(model: Trainable, present: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> list[str]:
    """What a model has that the checkpoint cannot have: the loss's own, and an input for jumps, which is 0 at first."""
    jumps = [name for name, part in model.named_modules() if isinstance(part, JumpEmbedding)]
    return [
        name for name in present if name not in saved and name.startswith(("loss.", *(f"{jump}." for jump in jumps)))
    ]


def _short(name: str) -> str:
    """Name of a tensor within the network."""
    return name.removeprefix("denoiser.").removeprefix("network.")
