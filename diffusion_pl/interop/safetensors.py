"""Weights as safetensors, and a config.json from which the model is rebuilt; `checkpoints.exported` reads them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..checkpoints.exported import CONFIG, WEIGHTS
from ..checkpoints.tensor_file import write_tensors
from ..data import DataModule
from ..pipeline import Pipeline
from ..runtime.run_card import plain
from .keys import network_of


def write(
    pipeline: Pipeline, data: DataModule, description: Mapping[str, Any], folder: Path, half: bool = False
) -> list[Path]:
    """Write model.safetensors, the network's tensors under our names, and config.json.

    Args:
        pipeline: with the weights to write.
        data: of the model; its state, such as shape and scale, goes into config.json as data_state.
        description: configuration of model and data, as the checkpoint has it.
        folder: where to.
        half: round parameters in single precision to half precision.
    """
    folder.mkdir(parents=True, exist_ok=True)
    network = network_of(pipeline).network
    tensors = network.state_dict()
    if half:
        tensors |= {name: p.half() for name, p in network.named_parameters() if p.dtype == torch.float32}
    write_tensors(folder / WEIGHTS, tensors, {"format": "pt", "weights": pipeline.weights})
    config = {**description, "weights": pipeline.weights, "data_state": _lists(data.state_dict())}
    (folder / CONFIG).write_text(json.dumps(plain(config), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return [folder / WEIGHTS, folder / CONFIG]


def _lists(state: Any) -> Any:
    """A state with its tensors as lists."""
    if isinstance(state, Mapping):
        return {name: _lists(part) for name, part in state.items()}
    return state.tolist() if isinstance(state, torch.Tensor) else state
