"""Network pickles as StyleGAN's, EDM's and EDM2's programs write them."""

import pickle
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor


class Persistent:
    """Pickles as edm2's classes do: by a function of torch_utils and a dictionary with the source of the class."""

    def __init__(self, _name: str = "Module", **attributes: Any) -> None:
        self._name, self.state = _name, attributes

    def __reduce__(self) -> Any:
        function = sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj
        source = "raise SystemExit('code of the file was run')"
        return function, (
            {"type": "class", "version": 6, "module_src": source, "class_name": self._name, "state": self.state},
        )


def nested(state: dict[str, Tensor], _name: str = "Module", **attributes: Any) -> Persistent:
    """The modules of a state dict, as nn.Module keeps them."""
    own = {name: tensor for name, tensor in state.items() if "." not in name}
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        head, _, rest = name.partition(".")
        if rest:
            parts.setdefault(head, {})[rest] = tensor
    buffers = {name: tensor for name, tensor in own.items() if name in ("freqs", "phases", "resample_filter")}
    weights = {name: torch.nn.Parameter(tensor) for name, tensor in own.items() if name not in buffers}
    inner = {name: nested(part) for name, part in parts.items()}
    return Persistent(_name, _parameters=weights, _buffers=buffers, _modules=inner, **attributes)


def write(path: Path, monkeypatch: pytest.MonkeyPatch, **content: Any) -> None:
    """The modules that the file names are gone when it is read."""
    package, module = types.ModuleType("torch_utils"), types.ModuleType("torch_utils.persistence")

    def rebuild(meta: Any) -> None:
        raise AssertionError

    rebuild.__module__, rebuild.__qualname__ = module.__name__, "_reconstruct_persistent_obj"
    module._reconstruct_persistent_obj = rebuild  # type: ignore[attr-defined]
    with monkeypatch.context() as context:
        context.setitem(sys.modules, "torch_utils", package)
        context.setitem(sys.modules, "torch_utils.persistence", module)
        path.write_bytes(pickle.dumps(content))
