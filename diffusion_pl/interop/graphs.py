"""Export the denoiser as a graph that does not need this package: ONNX, or a program of torch.export.

    (x_t, t[, label]) ↦ (x̂_0, ε̂)          of a flow map  (x_t, t, r[, label]) ↦ (X, E)

with the schedule and the parameterization inside, so that a sampler needs α and σ at its times only; those of the
model's grid are written next to it.
"""

import gc
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..conditions import class_count
from ..data import DataModule
from ..pipeline import Pipeline
from ..tensors import per_sample
from .keys import needs

ONNX, PROGRAM, GRID = "model.onnx", "model.pt2", "grid.csv"


class Graph(nn.Module):
    """A denoiser with one time for each example, and labels where it takes them."""

    def __init__(self, pipeline: Pipeline) -> None:
        super().__init__()
        self.denoiser = pipeline.guided
        self.labelled = class_count(pipeline.conditions) is not None

    def forward(self, x_t: Tensor, t: Tensor, label: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(x̂_0, ε̂), both (B, *), from x_t: (B, *), t: (B,) and label: (B,), int64, −1 for any class."""
        cond = {} if label is None else {"label": label}
        prediction = self.denoiser(x_t, per_sample(t, x_t), **cond)
        return prediction.x_0, prediction.eps


class JumpGraph(Graph):
    """A flow map with a start and an end for each example, and labels where it takes them."""

    def forward(  # type: ignore[override]
        self, x_t: Tensor, t: Tensor, r: Tensor, label: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """(X, E), both (B, *), of which x_r = α_r X + σ_r E; r: (B,), at most t, and the rest as of `Graph`."""
        cond = {} if label is None else {"label": label}
        prediction = self.denoiser(x_t, per_sample(t, x_t), per_sample(r, x_t), **cond)
        return prediction.x_0, prediction.eps


def inputs(pipeline: Pipeline) -> list[str]:
    """Names of a graph's inputs."""
    jump, label = ["r"] * pipeline.guided.flow_map, ["label"] * (class_count(pipeline.conditions) is not None)
    return ["x_t", "t", *jump, *label]


def example(pipeline: Pipeline, batch: int = 2) -> tuple[Tensor, ...]:
    """Arguments of `Graph` or `JumpGraph`: x_t, t, r for a flow map, and label for a model of classes.

    Raises:
        ValueError: the model has other conditions, for which the graph has no input.
    """
    others = ", ".join(name for name in pipeline.conditions if name != "label")
    if others:
        raise ValueError(f"a graph takes the condition label only, the model has {others}. Fix: set --to safetensors")
    generator = torch.Generator().manual_seed(0)
    x_t = torch.randn(batch, *pipeline.shape, generator=generator)
    classes = class_count(pipeline.conditions)
    label = () if classes is None else (torch.arange(batch) % classes,)
    t = torch.linspace(0.2, 0.8, batch)
    return x_t, t, *([t / 2] if pipeline.guided.flow_map else []), *label


def write_program(pipeline: Pipeline, data: DataModule, description: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write model.pt2, which torch.export.load reads, with any number of examples, and grid.csv."""
    traced = program(pipeline)
    folder.mkdir(parents=True, exist_ok=True)
    torch.export.save(traced, folder / PROGRAM)
    return [folder / PROGRAM, write_grid(pipeline, folder)]


def write_onnx(pipeline: Pipeline, data: DataModule, description: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write model.onnx with any number of examples, inputs x_t, t (r, label), outputs x_0 and eps, and grid.csv."""
    onnx, _ = needs("onnx", "onnx"), needs("onnxscript", "onnx")  # the second for torch's exporter
    example(pipeline)  # refuses what has no input
    folder.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            program(pipeline),
            (),
            folder / ONNX,
            input_names=inputs(pipeline),
            output_names=["x_0", "eps"],
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    onnx.checker.check_model(folder / ONNX)
    return [folder / ONNX, write_grid(pipeline, folder)]


def program(pipeline: Pipeline) -> torch.export.ExportedProgram:
    """The traced denoiser, its batch axis free."""
    graph = (JumpGraph if pipeline.guided.flow_map else Graph)(pipeline).eval()
    arguments = example(pipeline)
    with torch.no_grad():
        graph(*arguments)  # what is computed once and kept must not be kept from the tracing
        batch = torch.export.Dim("batch")
        shapes: tuple[Any, ...] = tuple({0: batch} for _ in arguments)
        traced = torch.export.export(graph, arguments, dynamic_shapes=shapes)
    gc.collect()  # tracing leaves classes named as ours, and a short name must stand for one class
    return traced


def write_grid(pipeline: Pipeline, folder: Path) -> Path:
    """The times of the model's sampler with α and σ there, in the order in which it visits them."""
    t = pipeline.sampler.grid(pipeline.schedule)
    kernel = pipeline.schedule(t)
    table = torch.stack((t, kernel.alpha, kernel.sigma), 1).numpy()
    np.savetxt(folder / GRID, table, delimiter=",", header="t,alpha,sigma", comments="", fmt="%.17g")
    return folder / GRID
