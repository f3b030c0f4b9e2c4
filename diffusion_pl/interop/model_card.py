"""README.md of an exported model, as the Hugging Face hub shows it: what it is, how to load it, how it came about.

It says what the checkpoint, the card of its run and its evaluations hold; what none of them holds is missing.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..checkpoints.exported import run_folder_of
from ..conditions import class_count
from ..evaluation import Result, number, read_results
from ..pipeline import Pipeline
from ..runtime.provenance import describe
from ..runtime.run_card import CARD, read_card
from ..training.profiles import PREFIX
from . import to_diffusers
from .graphs import inputs
from .keys import network_of

TAGS = {
    "diffusers": ["diffusers", "unconditional-image-generation"],
    "safetensors": ["safetensors"],
    "onnx": ["onnx"],
    "torch_export": ["pytorch"],
}
LIBRARY = {"diffusers": "diffusers", "onnx": "onnx"}
_OF_TRAINING = ("train_", "seen_", "gradient_", "guard/")  # metrics that say nothing of a finished model
WRITTEN = {
    "diffusers": "a pipeline of diffusers",
    "safetensors": "safetensors for diffusion_pl",
    "onnx": "a graph of ONNX",
    "torch_export": "a program of torch.export",
}
#: Data modules that are data sets of the hub.
HUB = {"CIFAR10": "uoft-cs/cifar10", "MNIST": "ylecun/mnist", "FashionMNIST": "zalando-datasets/fashion_mnist"}

_DIFFUSERS = """```python
from diffusers import {pipeline}

pipeline = {pipeline}.from_pretrained(".")
pipeline(batch_size=4, {call}).images[0].save("sample.png")
```"""
_CLASSES = """```python
import torch
from diffusers import UNet2DModel

unet = UNet2DModel.from_pretrained("unet")
x = torch.randn({shape})
output = unet(x, 10, class_labels=torch.tensor([0])).sample  # labels 0 … {last}, {classes} is "any class"
```"""
_SAFETENSORS = """```python
import diffusion_pl

samples = diffusion_pl.load(".")(4)  # the folder with model.safetensors and config.json
```"""
_ONNX = """```python
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])


def denoise(x_t, {times}):
    inputs = {{"x_t": x_t, {given}{label}}}
    return session.run(["x_0", "eps"], inputs)
{loop}
```"""
_PROGRAM = """```python
import numpy as np
import torch

program = torch.export.load("model.pt2").module()


def denoise(x_t, {times}):
    x_t = torch.from_numpy(x_t)
    with torch.no_grad():
        outputs = program(x_t, {given}{label})
    return [part.numpy() for part in outputs]
{loop}
```"""
_LOOP = """

grid = np.loadtxt("grid.csv", delimiter=",", skiprows=1)  # t, alpha, sigma, from noise to data
x = {prior:g} * np.random.default_rng(0).standard_normal({shape}).astype(np.float32)
{steps}{units}"""
_STEPS = """for (t, _, _), (_, alpha, sigma) in zip(grid[:-1], grid[1:]):  # DDIM
    x_0, eps = denoise(x, float(t))
    x = np.float32(alpha) * x_0 + np.float32(sigma) * eps
samples = denoise(x, float(grid[-1, 0]))[0]"""
_JUMPS = """for (t, _, _), (r, alpha, sigma) in zip(grid[:-1], grid[1:]):  # exact jumps t → r
    x_0, eps = denoise(x, float(t), float(r))
    x = np.float32(alpha) * x_0 + np.float32(sigma) * eps
samples = denoise(x, float(grid[-1, 0]), 0.0)[0]"""
_JUMPS_TO_DATA = """for (t, _, _), (_, alpha, sigma) in zip(grid[:-1], grid[1:]):  # jumps to the data, and fresh noise
    x_0, _ = denoise(x, float(t), 0.0)
    noise = np.random.default_rng().standard_normal(x.shape).astype(np.float32)
    x = np.float32(alpha) * x_0 + np.float32(sigma) * noise
samples = denoise(x, float(grid[-1, 0]), 0.0)[0]"""


def _scalar(text: str) -> str:
    """A text as one YAML value in the head: what is no plain word is quoted, line breaks escaped."""
    return text if re.fullmatch(r"[A-Za-z][\w.+-]*", text) else json.dumps(text)


def find_run(ckpt_path: Path) -> dict[str, Any] | None:
    """The card of the run that a checkpoint is in, if it is in one."""
    path = run_folder_of(ckpt_path) / CARD
    return read_card(path) if path.is_file() else None


def find_results(ckpt_path: Path, sha256: str, given: Path | None) -> dict[str, Result]:
    """What `evaluate` measured of a checkpoint, by metric: in a file, and in those in the folder of its run.

    Raises:
        FileNotFoundError, ValueError: the file is none of `evaluate`, or is of another checkpoint.
    """
    results: dict[str, Result] = {}
    run = run_folder_of(ckpt_path)
    inside = sorted(run.rglob("evaluation.json")) if (run / CARD).is_file() else []
    for path in [*inside, *([] if given is None else [given])]:
        matching = {name: result for name, result in read_results(path).items() if result.model["sha256"] == sha256}
        if path == given and not matching:
            raise ValueError(f"{given} has results of another checkpoint than {ckpt_path}")
        results |= matching
    return results


def model_card(
    kind: str,
    pipeline: Pipeline,
    description: Mapping[str, Any],
    checkpoint: Mapping[str, Any],
    sha256: str,
    run: Mapping[str, Any] | None = None,
    results: Mapping[str, Result] | None = None,
    licence: str | None = None,
) -> str:
    """The text of README.md.

    Args:
        kind: of the export.
        pipeline: with the exported weights.
        description: configuration of model and data, from the checkpoint.
        checkpoint: where it comes from: name, steps.
        sha256: of the checkpoint.
        run: the run's card.
        results: of `evaluate`, by metric.
        licence: of the weights, a name as the hub knows it.
    """
    data = _name(description["data"])
    head = [f"library_name: {LIBRARY.get(kind, 'diffusion_pl')}"]
    head += [f"license: {_scalar(licence)}"] if licence else []
    head += ["tags:", *(f"- {tag}" for tag in dict.fromkeys(("diffusion", "diffusion_pl", *TAGS[kind])))]
    head += ["datasets:", f"- {HUB[data]}"] if data in HUB else []
    shape = "x".join(map(str, pipeline.shape))
    parameters = sum(p.numel() for p in network_of(pipeline).network.parameters())
    config = description["model"]
    parts = {name: _name(config[name]) for name in ("network", "schedule", "parameterization", "sampler")}
    classes = (
        "unconditional" if class_count(pipeline.conditions) is None else f"{class_count(pipeline.conditions)} classes"
    )
    lines = ["---", *head, "---", "", f"# {parts['network']} of {data}, {shape}", ""]
    lines += [
        f"A diffusion model of {data} ({shape}, {classes}): {_weights(pipeline.weights)}, as {WRITTEN[kind]}.",
        "",
    ]
    lines += ["## Use", "", _use(kind, pipeline), ""]
    if kind in ("onnx", "torch_export"):
        sizes = ", ".join(map(str, pipeline.shape))
        label = ", `label` (B,), int64, −1 for any class"
        lines += [
            f"Inputs: `x_t` (B, {sizes}), float32; `t` (B,), float32, from 0 (data) to 1 (noise){label}. Outputs: the "
            "estimates `x_0` of the data and `eps` of the noise, alpha x_0 + sigma eps = x_t.",
            "",
        ]
    lines += ["## Model", "", "| part | options |", "|---|---|"]
    shown = {**config, "sampler": _spec(describe(pipeline.sampler))}  # which may be another than that of the training
    lines += [
        f"| {name} | {_described(shown[name])} |" for name in (*parts, "noise_input", "guidance") if shown.get(name)
    ]
    lines += [f"| parameters | {parameters:,} |", ""]
    lines += ["## Training", "", *_training(description, checkpoint, sha256, run, pipeline.weights), ""]
    if results:
        lines += [
            "## Evaluation",
            "",
            "| metric | value | of | weights | sampler, evaluations |",
            "|---|---|---|---|---|",
        ]
        lines += [*(_row(name, result) for name, result in results.items()), ""]
    return "\n".join(lines)


def _use(kind: str, pipeline: Pipeline) -> str:
    shape = ", ".join(map(str, (4, *pipeline.shape)))
    if kind == "safetensors":
        return _SAFETENSORS
    if kind == "diffusers":
        classes = class_count(pipeline.conditions)
        if classes is None:
            name, given = to_diffusers.pipeline_class(pipeline), to_diffusers.call(pipeline)
            used = given if name == "DDIMPipeline" else {"num_inference_steps": given["num_inference_steps"]}
            arguments = ", ".join(f"{key}={value}" for key, value in used.items())
            return _DIFFUSERS.format(pipeline=name, call=arguments)
        return _CLASSES.format(shape=shape, last=classes - 1, classes=classes)
    start = float(pipeline.sampler.grid(pipeline.schedule)[0])
    units = "  # images in [-1, 1]" if len(pipeline.shape) == 3 else ""
    steps = _STEPS
    if pipeline.guided.flow_map:
        steps = _JUMPS_TO_DATA if pipeline.sampler.to_data else _JUMPS
    loop = _LOOP.format(prior=pipeline.schedule.prior_std(start), shape=f"({shape})", units=units, steps=steps)
    times = [name for name in inputs(pipeline) if name in ("t", "r")]
    names = ", ".join(times)
    if kind == "onnx":
        label = ', "label": np.zeros(len(x_t), np.int64)' if class_count(pipeline.conditions) is not None else ""
        filled = ", ".join(f'"{time}": np.full(len(x_t), {time}, np.float32)' for time in times)
        return _ONNX.format(times=names, given=filled, label=label, loop=loop)
    label = ", torch.zeros(len(x_t), dtype=torch.int64)" if class_count(pipeline.conditions) is not None else ""
    filled = ", ".join(f"torch.full((len(x_t),), {time})" for time in times)
    return _PROGRAM.format(times=names, given=filled, label=label, loop=loop)


def _training(
    description: Mapping[str, Any],
    checkpoint: Mapping[str, Any],
    sha256: str,
    run: Mapping[str, Any] | None,
    weights: str,
) -> list[str]:
    facts = [f"checkpoint {checkpoint['name']}, SHA-256 `{sha256}`"]
    if checkpoint.get("steps"):
        facts.append(f"{checkpoint['steps']:,} steps")
    imported = description.get("imported")
    if imported:
        facts.append(f"imported from files of {imported['format']}:")
        facts += [f"  `{name}`, SHA-256 `{digest}`" for name, digest in imported["files"].items()]
        facts += [f"  {note}" for note in imported["notes"]]
        return [f"{'  ' if fact.startswith('  ') else ''}* {fact.strip()}" for fact in facts]
    facts.append(f"data: {_described(description['data'])}")
    facts.append(f"loss: {_described(description['model']['loss'])}")
    facts.append(f"optimizer: {_described(description['model']['optimizer'])}")
    if run is not None:
        data = run.get("data") or {}
        facts += [
            f"SHA-256 of {data['examples']:,} of {data['of']:,} examples' {name}: `{digest}`"
            for name, digest in (data.get("sha256") or {}).items()
        ]
        if run.get("examples_seen"):
            facts.append(f"{run['examples_seen']:,} examples seen")
        if run.get("wall_seconds"):
            facts.append(f"{run['wall_seconds'] / 3600:.2g} hours")
        seeds = run.get("seeds") or {}
        facts += [f"seeds: {', '.join(f'{name} {value}' for name, value in seeds.items())}"] if seeds else []
        metrics = (run.get("metrics") or {}).get("values") or {}
        facts += [
            f"{name}: {value:.4g}"
            for name, value in metrics.items()
            if name.endswith(f"/{weights}") and not name.startswith(_OF_TRAINING) and isinstance(value, float)
        ]
    return [f"* {fact}" for fact in facts]


def _row(name: str, result: Result) -> str:
    model = result.model
    sampler = (model.get("sampler") or {"class": "probability flow" if name == "nll" else "bound"})["class"]
    value = f"{number(result)} {result.unit}".strip()
    many = f"{result.count:,} {result.counted}"
    return f"| {name} | {value} | {many} | {model['weights']} | {sampler}, {model['nfe']:.4g} |"


def _weights(name: str) -> str:
    if name == "raw":
        return "the raw weights"
    average = name.removeprefix("ema")
    if average.startswith(PREFIX):
        width, _, step = average.removeprefix(PREFIX).partition("@")
        return f"the power-function EMA weights of width {width}" + (f" at step {int(step):,}" if step else "")
    half_life = average.removesuffix("examples")
    kind = f"decay {average}" if half_life == average else f"half-life {int(half_life):,} examples"
    return f"the EMA weights of {kind}"


def _name(config: Mapping[str, Any]) -> str:
    return str(config["class_path"]).rpartition(".")[2]


def _described(config: Any) -> str:
    """A class and its options in one line of code, those left at null out."""
    if isinstance(config, Mapping) and "class_path" in config:
        options = config.get("init_args") or {}
        given = ", ".join(f"{name}={_value(value)}" for name, value in options.items() if value is not None)
        return f"`{_name(config)}({given})`"
    return f"`{_value(config)}`"


def _spec(described: Any) -> Any:
    """What `describe` says of an object, as a configuration spells it."""
    if not isinstance(described, Mapping):
        return described
    options = {name: _spec(value) for name, value in described.items() if name != "class"}
    return {"class_path": described["class"], "init_args": options}


def _value(config: Any) -> str:
    if isinstance(config, Mapping) and "class_path" in config:
        return _described(config).strip("`")
    if isinstance(config, list) and len(config) > 12:
        return f"[{len(config)} numbers]"
    return json.dumps(config) if isinstance(config, str) else str(config)
