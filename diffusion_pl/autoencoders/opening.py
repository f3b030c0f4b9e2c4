"""Autoencoders in folders: our own, and those of diffusers.

Our own is a folder of two files: autoencoder.json, its class and options, and weights.pt, its state.
"""

import json
import os
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from ..tensors import Recorded
from .base import Autoencoder
from .diffusers import Diffusers, open_diffusers

DESCRIPTION, WEIGHTS = "autoencoder.json", "weights.pt"
TRUST = "DIFFUSION_PL_TRUST"  # packages whose classes a file may name, besides our own


def save_autoencoder(autoencoder: Autoencoder, folder: Path) -> list[Path]:
    """Write an autoencoder into a folder that is there, so that `open_autoencoder` opens it; the files."""
    if isinstance(autoencoder, Diffusers):
        autoencoder.save(folder)
    else:
        assert isinstance(autoencoder, Recorded)
        kind = type(autoencoder)
        options = {name: _plain(value) for name, value in autoencoder.arguments.items()}
        content = {"class_path": f"{kind.__module__}.{kind.__qualname__}", "init_args": options}
        (folder / DESCRIPTION).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        torch.save({name: value.cpu() for name, value in autoencoder.state_dict().items()}, folder / WEIGHTS)
    return sorted(path for path in folder.rglob("*") if path.is_file())


def open_autoencoder(name: str) -> Autoencoder:
    """The autoencoder of a folder, or of a name of the hub, frozen and in evaluation mode.

    Args:
        name: a folder that `save_autoencoder` or diffusers' `save_pretrained` wrote, or ORGANIZATION/NAME.

    Raises:
        ValueError: there is none, it is damaged, or of a class that is not trusted.
    """
    folder = Path(name).expanduser()
    if (folder / DESCRIPTION).is_file():
        autoencoder = _own(folder)
    elif folder.is_dir() and not (folder / "config.json").is_file():
        raise ValueError(f"autoencoder {name}: the folder has neither {DESCRIPTION} nor config.json of diffusers")
    elif not folder.is_dir() and (folder.exists() or name.count("/") not in (1, 2) or name.startswith((".", "/"))):
        raise ValueError(f"autoencoder {name}: no such folder. Fix: give a folder, a hub name or a checkpoint")
    else:
        autoencoder = open_diffusers(str(folder) if folder.is_dir() else name)
    autoencoder.name = name
    return autoencoder.eval().requires_grad_(False)


def _own(folder: Path) -> Autoencoder:
    try:
        content = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        autoencoder = trusted_class(content["class_path"])(**content["init_args"])
        state = torch.load(folder / WEIGHTS, map_location="cpu", weights_only=True)
        autoencoder.load_state_dict(state)
    except (OSError, KeyError, TypeError, AttributeError, ImportError, RuntimeError, EOFError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"autoencoder {folder} is damaged: {reason}. Fix: encode the data again") from error
    if not isinstance(autoencoder, Autoencoder):
        raise ValueError(f"autoencoder {folder}: {content['class_path']} is no autoencoder")
    return autoencoder


def trusted_class(path: str) -> Any:
    """The class of a path that a file names.

    Raises:
        ValueError: it is of a package that is neither ours nor listed in DIFFUSION_PL_TRUST.
    """
    module, _, name = path.rpartition(".")
    package = module.partition(".")[0]
    if package not in ("diffusion_pl", *os.environ.get(TRUST, "").split(",")):
        raise ValueError(
            f"{path} is not a class of diffusion_pl, so it was not imported: if you trust it, set {TRUST}={package} in "
            "the environment"
        )
    return getattr(import_module(module), name)


def _plain(value: Any) -> Any:
    """Options as JSON has them.

    Raises:
        ValueError: it cannot have them.
    """
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise ValueError(f"an autoencoder's options must be plain values, got {type(value).__name__}")
