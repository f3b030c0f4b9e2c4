"""Weights as safetensors, and a config.json from which `loading.rebuild` makes the model that they belong to."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..data import DataModule
from ..pipeline import Pipeline
from ..runtime.run_card import plain
from .keys import needs, network_of

WEIGHTS, CONFIG = "model.safetensors", "config.json"


def write(pipeline: Pipeline, data: DataModule, description: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write model.safetensors, the network's tensors under our names, and config.json.

    Args:
        pipeline: with the weights to write.
        data: of the model; its state, such as shape and scale, goes into config.json as data_state.
        description: configuration of model and data, as the checkpoint has it.
        folder: where to.
    """
    save_file = needs("safetensors.torch", "diffusers").save_file
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().contiguous() for name, tensor in network_of(pipeline).network.state_dict().items()}
    save_file(tensors, folder / WEIGHTS, {"format": "pt", "weights": pipeline.weights})
    config = {**description, "weights": pipeline.weights, "data_state": data.state_dict()}
    (folder / CONFIG).write_text(json.dumps(plain(config), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return [folder / WEIGHTS, folder / CONFIG]
