"""Convert a model trained with another package to a checkpoint as `fit` writes it.

A reader of a format finds out what the file is about, as our configuration spells it, and gives its tensors under
their own names with the map to ours; here the network is built, filled, and written with all of that.
"""

import math
import pickle
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jsonargparse import ArgumentParser
from torch import Tensor, nn

from .. import __version__
from ..checkpoints.io import sha256_of
from ..checkpoints.loading import DEFAULT_LOSS, rebuild
from ..conditions import Condition, Conditions, class_count, label, to_plain
from ..training import DiffusionModule
from ..training.base import Shape
from .keys import Source, take

Spec = dict[str, Any]
Tensors = Mapping[str, Tensor]


class Foreign(NamedTuple):
    """What a file of another package holds.

    model: the configuration of DiffusionModule;  shape, classes: of the data;  sources: the map of names, for a network
    so configured;  raw: the weights;  averages: by their decay;  updates: of the averages;  steps: of the training,
    None: not known;  prefix: of the names in the file, for messages;  notes: what was assumed, each a sentence;
    folder: with the files, where it is another than the path given;  scale: what latents were multiplied by, of a model
    of latents.
    """

    model: Spec
    shape: tuple[int, ...]
    classes: int | None
    sources: Callable[[nn.Module], dict[str, Source]]
    raw: Tensors
    averages: Mapping[float, Tensors] = {}
    updates: int = 0
    steps: int | None = None
    prefix: str = ""
    notes: tuple[str, ...] = ()
    folder: Path | None = None
    scale: float | None = None

    @property
    def conditions(self) -> dict[str, Condition]:
        """Of the model: the label, without names, that `classes` says."""
        return {} if self.classes is None else {"label": label(self.classes)}


def spec(name: str, **options: Any) -> Spec:
    """A class of ours with its options, as a configuration spells it: spec("schedules.VP", beta_max=20.0)."""
    return {"class_path": f"diffusion_pl.{name}", "init_args": options}


def discrete(network: Spec, schedule: Spec, steps: int, parameterization: Spec, weighting: Spec, sampler: Spec) -> Spec:
    """The configuration of a model of DDPM's chain of so many steps."""
    return {
        "network": network,
        "schedule": schedule,
        "parameterization": parameterization,
        "noise_input": spec("denoisers.ScaledTime", scale=float(steps), shift=-1.0),
        "loss": spec("losses.DenoisingLoss", times=spec("losses.GridTimes", steps=steps), weighting=weighting),
        "sampler": sampler,
        "optimizer": OPTIMIZER,
    }


MOST_STEPS = 100_000  # of a chain; a file that has more of them is wrong

#: No file has an optimizer that we could read; whoever resumes training gives one.
OPTIMIZER = {"class_path": "torch.optim.Adam", "init_args": {"lr": 1e-4}}


def read_tensors(path: Path, trust_pickle: bool) -> dict[str, Any]:
    """The content of a file that torch.save wrote.

    Args:
        path: of the file.
        trust_pickle: also make the objects of classes that it names, which runs whatever code the file holds.

    Raises:
        FileNotFoundError, ValueError: no such file, or damaged; more than tensors and plain values, untrusted.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: file not found")
    try:
        _check_sizes(path)
        content = torch.load(path, map_location="cpu", weights_only=not trust_pickle)
    except pickle.UnpicklingError as error:
        with path.open("rb") as file:
            pickled = file.read(1) == b"\x80" or zipfile.is_zipfile(path)
        if trust_pickle or not pickled:
            raise ValueError(f"{path} is damaged, or no file of torch.save") from error
        raise ValueError(
            f"{path} holds more than tensors and plain values, and reading that can run code: it was not read; if you "
            "trust who made it, add --trust_pickle true"
        ) from error
    except Exception as error:  # a damaged file shows itself in a dozen ways
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} is damaged, or no file of torch.save ({reason})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a dictionary of tensors")
    return content


def _check_sizes(path: Path) -> None:
    """Raise ValueError for an archive that unpacks to more than its own size; torch.save compresses nothing."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > path.stat().st_size:
            raise ValueError(f"it would unpack to {size:,} bytes")


def tensors(content: Any, what: str, path: Path) -> dict[str, Tensor]:
    """The entries of a state dict.

    Args:
        content: what the file holds as such.
        what: its name in the file, for messages.
        path: the file.

    Raises:
        ValueError: it is no dictionary of dense tensors with names.
    """
    if not isinstance(content, Mapping):
        raise ValueError(f"{path}: {what} is a {type(content).__name__}, not a dictionary of tensors")
    for name, tensor in content.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor) or tensor.layout != torch.strided:
            kind = "sparse tensor" if isinstance(tensor, Tensor) else type(tensor).__name__
            raise ValueError(f"{path}: {what}.{name} is a {kind}, not a dense tensor")
        if tensor.nbytes > tensor.untyped_storage().nbytes():
            raise ValueError(f"{path}: {what}.{name} has {tensor.numel():,} numbers and stores fewer")
    return dict(content)


def whole(value: Any, what: str, path: Path) -> int:
    """A count that a file holds, as a number or as a tensor of one; None: 0.

    Raises:
        ValueError: it is none.
    """
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    if value is None:
        return 0
    if not isinstance(value, (int, float)) or not (0 <= value < math.inf and value == int(value)):
        raise ValueError(f"{path}: {what} must be a whole number from 0 on, got {value!r}")
    return int(value)


def image_shape(channels: int, size: list[int] | None, where: Path) -> tuple[int, int, int]:
    """(C, H, W) of a file that does not show height and width.

    Raises:
        ValueError: they are not given, or are none.
    """
    if size is None:
        raise ValueError(f"{where} does not show the height and width of the images: add --size, such as --size 32")
    if len(size) not in (1, 2) or min(size) < 1:
        raise ValueError(f"size must be height and width, or one number for both, got {size}")
    return channels, size[0], size[-1]


def to_checkpoint(
    foreign: Foreign, data: Spec, path: Path, kind: str, state: dict[str, Any] | None = None
) -> dict[str, Any]:
    """A checkpoint as `fit` writes it.

    Args:
        foreign: what was read.
        data: configuration of the data module.
        state: of the data module; None: what is known of images.
        path: what it was read from, a file or a folder.
        kind: the format.

    Raises:
        ValueError: the tensors do not fit.
    """
    path = foreign.folder or path
    if state is None:
        state = {"shape": list(foreign.shape), "conditions": to_plain(foreign.conditions), "levels": 256}
    described = {"model": complete(foreign.model), "data": data}
    # Without memory first: sizes that a few tensors promise are compared with all of them before they are built.
    network = sketch(foreign)
    name_map = foreign.sources(network)

    def taken(state_dict: Tensors, what: str) -> dict[str, Tensor]:
        return take(state_dict, name_map, network, f"{path}{what}", foreign.prefix)

    raw = taken(foreign.raw, "")
    trained = [name for name, p in network.named_parameters() if p.requires_grad]
    averages = {f"{decay}": taken(state_dict, f" (average {decay})") for decay, state_dict in foreign.averages.items()}
    rebuild(described, state)
    shadows = {
        decay: {f"denoiser.network.{name}": average[name] for name in trained} for decay, average in averages.items()
    }
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    source = {"format": kind, "files": {str(f.relative_to(path.parent)): sha256_of(f) for f in files}}
    return {
        "pytorch-lightning_version": version("lightning"),
        "epoch": 0,
        "global_step": foreign.steps or 0,
        "state_dict": {f"denoiser.network.{name}": tensor for name, tensor in raw.items()},
        **({"averages": {"updates": foreign.updates, "shadows": shadows}} if shadows else {}),
        "optimizer_states": [],
        "lr_schedulers": [],
        data["class_path"].rpartition(".")[2]: state,
        "diffusion_pl": {"version": __version__, **described, "imported": {**source, "notes": list(foreign.notes)}},
    }


def sketch(foreign: Foreign) -> nn.Module:
    """The network of ours on torch's meta device: names and shapes, no numbers.

    Raises:
        ValueError: there is none of these sizes.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--network", type=Callable[[Shape, Conditions], nn.Module])
    try:
        with torch.device("meta"):
            factory = parser.instantiate(parser.parse_object({"network": foreign.model["network"]})).network
            network: nn.Module = factory(foreign.shape, foreign.conditions)
    except (RuntimeError, OverflowError, TypeError) as error:  # sizes beyond what torch counts
        raise ValueError(f"no network can be built of the file's sizes: {str(error).splitlines()[0]}") from error
    return network


def complete(model: Spec) -> Spec:
    """The configuration of a model with all options spelled out, as `fit` keeps it."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(DiffusionModule, "model", skip={"shape", "conditions"})
    parser.set_defaults(DEFAULT_LOSS)
    completed: Spec = _plain(parser.parse_object({"model": model}).model.as_dict())
    return completed


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, (list, tuple)) else value


def default_data(foreign: Foreign) -> Spec:
    """Data that the model may be of; of latents, whose autoencoder is not known, samples stay as they are."""
    shape, classes = foreign.shape, foreign.classes
    if foreign.scale is not None or shape[0] == 4:
        return spec("data.Unknown", shape=list(shape), conditions=to_plain(foreign.conditions))
    if shape == (3, 32, 32) and classes in (None, 10):
        return spec("data.CIFAR10", conditional=classes is not None)
    return spec("data.Folder", path="pictures", size=list(shape[1:]), conditional=classes is not None)


def described(factory: Callable[[], Any], foreign: Foreign) -> Spec:
    """The configuration of the data module that the command line made a factory of.

    Raises:
        ValueError: its data can be read, and are of another shape or number of classes than the model's.
    """
    data = factory()
    kind = type(data)
    with suppress(OSError):  # they need not be on this computer
        classes = class_count(data.conditions)
        if (tuple(data.shape), classes) != (foreign.shape, foreign.classes):
            raise ValueError(
                f"data: {kind.__name__} has {tuple(data.shape)} and {classes or 'no'} classes, the model "
                f"{foreign.shape} and {foreign.classes or 'no'}"
            )
    if foreign.scale is not None:
        _check_scale(data, foreign.scale)
    options = getattr(factory, "keywords", {})
    return {"class_path": f"{kind.__module__}.{kind.__qualname__}", "init_args": dict(options)}


def state_of(factory: Callable[[], Any] | None, foreign: Foreign) -> dict[str, Any] | None:
    """What a checkpoint keeps of latents that were given, or of unknown data; None: of images, see `to_checkpoint`."""
    if foreign.scale is None:
        return None
    return {} if factory is None else dict(factory().state_dict())


def _check_scale(data: Any, scale: float) -> None:
    """Raise ValueError unless the data are latents that are multiplied by this scale, and by nothing else."""
    record = getattr(data, "record", None)
    if record is None:
        raise ValueError(
            f"--data {type(data).__name__}: the model is one of latents. Fix: give --data Latents --data.path FOLDER, "
            f"of `latents --scale {scale:g}`, or remove --data"
        )
    if any(record["mean"]) or any(abs(std * scale - 1) > 1e-6 for std in record["std"]):
        raise ValueError(
            f"--data.path {data.path}: the model needs latents that are multiplied by {scale:g}. Fix: encode the "
            f"images with `latents --scale {scale:g}`"
        )
