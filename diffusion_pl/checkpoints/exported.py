"""A model that `export --to safetensors` wrote, read as a checkpoint; the shipped models of `zoo` are such folders.

The folder holds model.safetensors, the network's tensors (of one set of weights, maybe in half precision), and
config.json, from which the model is rebuilt.
"""

import hashlib
from difflib import get_close_matches
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..runtime.reading import read_json, reading
from .tensor_file import read_tensors

WEIGHTS, CONFIG = "model.safetensors", "config.json"
ZOO = "zoo:"  # begins the name of a shipped model: zoo:digits
_FOLDER = Path(__file__).parents[1] / "zoo"
_KIND = {
    "model": dict,
    "data": {"class_path": str, "init_args?": (dict, None)},
    "data_state": dict,
    "weights": str,
    "version?": (str, None),
}


def zoo_names() -> list[str]:
    """The names of the shipped models, sorted."""
    return sorted(path.parent.name for path in _FOLDER.glob(f"*/{WEIGHTS}"))


def zoo_folder(path: Path) -> Path:
    """The folder of the shipped model zoo:NAME; any other path as it is.

    Raises:
        FileNotFoundError: there is no model of this name; the message lists the names.
    """
    if not str(path).startswith(ZOO):
        return path
    name, known = str(path).removeprefix(ZOO), zoo_names()
    if name not in known:
        near = get_close_matches(name.lower(), known, n=1)
        hint = f"did you mean {ZOO}{near[0]}?" if near else "there are"
        listed = "" if near else f" {', '.join(f'{ZOO}{other}' for other in known)}"
        raise FileNotFoundError(f"{path}: no such shipped model; {hint}{listed}")
    return _FOLDER / name


def is_exported(path: Path) -> bool:
    """Whether a file is the weights of such a folder, by its name."""
    return path.suffix == ".safetensors"


def run_folder_of(path: Path) -> Path:
    """The folder with the card of the run that a checkpoint is of: that of an exported one, else the one above."""
    return path.absolute().parent if is_exported(path) else path.absolute().parent.parent


def sha256_of_exported(path: Path) -> str:
    """SHA-256 of the weights and the configuration, one after the other; hexadecimal."""
    digest = hashlib.sha256(path.read_bytes())
    digest.update(path.with_name(CONFIG).read_bytes())
    return digest.hexdigest()


def read_exported(path: Path) -> tuple[dict[str, Any], str]:
    """Content as of a checkpoint without an optimizer, and its SHA-256.

    Half precision is read as single precision.  The entry "weights" names the one set of weights that there is.

    Raises:
        FileNotFoundError, ValueError: a file is missing, damaged, or another one.
    """
    what = f"{WEIGHTS} of `export --to safetensors`"
    with reading(path, what, "export the model again"):
        tensors = read_tensors(path)
    with reading(path.with_name(CONFIG), f"{CONFIG} of `export --to safetensors`", "export the model again"):
        config: dict[str, Any] = read_json(path.with_name(CONFIG), _KIND)
    state = {f"denoiser.network.{name}": t.float() if t.itemsize == 2 else t for name, t in tensors.items()}
    data_state, weights = config.pop("data_state"), config.pop("weights")
    config = _with_infinity(config)
    content = {
        "pytorch-lightning_version": version("lightning"),
        "state_dict": state,
        "network_only": True,
        "weights": weights,
        "diffusion_pl": config,
        config["data"]["class_path"].rpartition(".")[2]: data_state,
    }
    return content, sha256_of_exported(path)


def _with_infinity(value: Any) -> Any:
    """Plain values with the numbers that JSON cannot hold, which are strings there; names of classes stay strings."""
    if isinstance(value, dict):
        return {name: part if name == "names" else _with_infinity(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_with_infinity(part) for part in value]
    return float(value) if value in ("inf", "-inf", "nan") else value
