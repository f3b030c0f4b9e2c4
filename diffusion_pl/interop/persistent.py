"""Network pickles of StyleGAN, EDM and EDM2, read without running code.

Such a file pickles whole networks, with the source of their classes.  Here nothing of that is run: tensors and plain
containers are made, and every other object becomes a `Shell` that keeps what it was to be made of.
"""

import io
import pickle
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..runtime.upstream.torch import tensor_makers


class Shell(dict[Any, Any]):
    """An object of any class, which was not made: its arguments, items, and attributes (`attributes`)."""

    def __new__(cls, *args: Any, **options: Any) -> "Shell":
        made = super().__new__(cls)
        made.given = args
        return made

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__()

    given: tuple[Any, ...]

    def append(self, item: Any) -> None:
        """Of lists."""

    def extend(self, items: Any) -> None:
        """Of lists."""

    @property
    def kind(self) -> str:
        """The name of its class, of a persistent object."""
        meta = self.given[0] if self.given else None
        return str(meta.get("class_name", "")) if isinstance(meta, Mapping) else ""

    @property
    def attributes(self) -> Mapping[str, Any]:
        """Those of the object, by name; of a persistent one what its file says of them."""
        meta = self.given[0] if self.given else None
        state = meta.get("state") if isinstance(meta, Mapping) else None
        return state if isinstance(state, Mapping) else {k: v for k, v in vars(self).items() if k != "given"}


def _storage(content: bytes) -> Any:
    """A storage that was pickled as bytes of torch.save."""
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


#: The only functions and classes that are called as such.
SAFE: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("builtins", "set"): set,
    ("torch.storage", "_load_from_bytes"): _storage,
    **tensor_makers(),
}


class Reader(pickle.Unpickler):
    """Makes `Shell` of all that is not in `SAFE`."""

    def find_class(self, module: str, name: str) -> Any:
        return SAFE.get((module, name), Shell)


def read(path: Path) -> Mapping[str, Any]:
    """The entries of a network pickle, such as ema.

    Raises:
        FileNotFoundError, ValueError: no such file, or no network pickle.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: file not found")
    try:
        with path.open("rb") as file:
            content = Reader(file).load()
    except Exception as error:  # a damaged file shows itself in a dozen ways
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} is damaged, or no network pickle ({reason})") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a dictionary with a network")
    return content


def tensors(network: Any, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers of a network that was read, by their names in its state dict."""
    attributes = network.attributes if isinstance(network, Shell) else {}
    for kind in ("_parameters", "_buffers"):
        for name, value in dict(attributes.get(kind) or {}).items():
            if isinstance(value, Tensor):
                yield prefix + name, value
    for name, module in dict(attributes.get("_modules") or {}).items():
        yield from tensors(module, f"{prefix}{name}.")


def modules(network: Any) -> Iterator[Mapping[str, Any]]:
    """The attributes of a network that was read, and of all modules within."""
    attributes = network.attributes if isinstance(network, Shell) else {}
    yield attributes
    for module in dict(attributes.get("_modules") or {}).values():
        yield from modules(module)
