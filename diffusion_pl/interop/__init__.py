"""Import models trained with other packages as checkpoints, and export models for other packages."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..data import DataModule
from ..pipeline import Pipeline
from . import diffusers, dit, edm, edm2, graphs, lucidrains, openai, safetensors, score_sde, to_diffusers
from .foreign import Foreign, to_checkpoint

Reader = Callable[..., Foreign]
Writer = Callable[[Pipeline, DataModule, Mapping[str, Any], Path], list[Path]]

#: What can be read: name -> read(path, trust_pickle, options of the format).
READERS: dict[str, Reader] = {
    "diffusers": diffusers.read,
    "score_sde": score_sde.read,
    "lucidrains": lucidrains.read,
    "openai": openai.read,
    "adm": openai.read,  # guided-diffusion's network goes by this name
    "edm": edm.read,
    "edm2": edm2.read,
    "dit": dit.read_dit,
    "sit": dit.read_sit,
}
#: What can be written: name -> write(pipeline, data, description, folder) -> the files.
WRITERS: dict[str, Writer] = {
    "diffusers": to_diffusers.write,
    "safetensors": safetensors.write,
    "onnx": graphs.write_onnx,
    "torch_export": graphs.write_program,
}

__all__ = ["READERS", "WRITERS", "Foreign", "to_checkpoint"]
