"""A folder that `DDPMPipeline.from_pretrained` and `UNet2DModel.from_pretrained` of diffusers load."""

import inspect
import json
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoints.tensor_file import write_tensors
from ..data import DataModule
from ..denoisers import NoiseInput, ScaledTime, StepIndex, parameterizations
from ..networks import Sinusoidal, UNet
from ..pipeline import Pipeline
from ..samplers import DDIM, Ancestral, Grid, LeadingGrid, RespacedGrid, TrailingGrid
from ..schedules import BetaTable, Schedule
from .diffusers import ANY_CLASS, DOWN, PADDINGS, UP, WEIGHTS, modules
from .foreign import Spec
from .keys import network_of, sources
from .scheduler import CALL, PREDICTIONS, SCHEDULES, VARIANCES

#: Options of UNet that UNet2DModel has no other value of.
HELD = {
    "activation": "swish",
    "conv_shortcut": False,
    "resamp_with_conv": True,
    "resample_blocks": False,
    "time_conditional": True,
    "head_channels": None,
    "up_heads": None,
    "flow_map": False,
}


def write(pipeline: Pipeline, data: DataModule, description: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write the network and the noise schedule of a model.

    Args:
        pipeline: with the weights to write.
        data: of the model.
        description: its configuration, as the checkpoint has it.
        folder: where to.

    Returns:
        The files.

    Raises:
        ValueError: diffusers has no such model; the option and its value are named.
    """
    config = description["model"]
    network, tensors = _network(pipeline, config["network"])
    scheduler = _scheduler(pipeline, config)
    index = {
        "_class_name": pipeline_class(pipeline),
        "scheduler": ["diffusers", scheduler["_class_name"]],
        "unet": ["diffusers", "UNet2DModel"],
    }
    (folder / "unet").mkdir(parents=True)
    (folder / "scheduler").mkdir()
    contents = {"model_index.json": index, "unet/config.json": network, "scheduler/scheduler_config.json": scheduler}
    for name, content in contents.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    write_tensors(folder / "unet" / WEIGHTS, tensors, {"format": "pt"})
    return [folder / name for name in (*contents, f"unet/{WEIGHTS}")]


def _network(pipeline: Pipeline, config: Spec) -> tuple[Spec, dict[str, Tensor]]:
    unet = network_of(pipeline).network
    if not isinstance(unet, UNet):
        raise ValueError(f"diffusers' UNet2DModel can hold a UNet only, not a {type(unet).__name__}")
    others = ", ".join(name for name in pipeline.conditions if name != "label")
    if others or len(pipeline.shape) != 3:
        raise ValueError(
            f"UNet2DModel takes images (C, H, W) and at most the condition label, the model has the shape "
            f"{pipeline.shape} and the conditions {others or 'label, or none'}. Fix: set --to safetensors"
        )
    option = _options(config)
    for name, value in HELD.items():
        if option[name] != value:
            raise ValueError(f"UNet with {name} {option[name]} is not supported by UNet2DModel, only {name} {value}")
    if option["fourier"]:
        raise ValueError(f"UNet with fourier {option['fourier']} is not supported by UNet2DModel")
    channels, height, width = pipeline.shape
    attends = [height >> level in option["attn_resolutions"] for level in range(len(option["ch_mult"]))]
    if any(attends) and option["up_attention"] != "every_block":
        raise ValueError("UNet with up_attention once_per_level is not supported by UNet2DModel, only every_block")
    groups = {norm.num_channels: norm.num_groups for norm in unet.modules() if isinstance(norm, nn.GroupNorm)}
    if len(set(groups.values())) > 1:
        counts = ", ".join(f"{groups[c]} for {c} channels" for c in sorted(groups))
        raise ValueError(
            f"UNet2DModel has one number of groups for all norms, this UNet {counts}: give groups when training"
        )
    nf, mults, blocks = option["nf"], option["ch_mult"], option["num_res_blocks"]
    table, heads, padding = unet.label.table, option["heads"], option["padding"]
    attending = {nf * mult for mult, attend in zip(mults, attends, strict=True) if attend} | {nf * mults[-1]}
    if heads > 1 and len(attending) > 1:
        raise ValueError(
            f"UNet2DModel has heads of one width; {heads} heads on levels of {sorted(attending)} channels have several"
        )
    unet_config = {
        "_class_name": "UNet2DModel",
        "sample_size": height if height == width else [height, width],
        "in_channels": channels,
        "out_channels": channels * (1 + option["learned_variance"]),
        "freq_shift": _freq_shift(unet, nf),
        "flip_sin_to_cos": False,
        "down_block_types": [DOWN[attend] for attend in attends],
        "up_block_types": [UP[attend] for attend in reversed(attends)],
        "block_out_channels": [nf * mult for mult in mults],
        "layers_per_block": blocks,
        "downsample_padding": next(theirs for theirs, ours in PADDINGS.items() if ours == padding),
        "dropout": option["dropout"],
        "attention_head_dim": None if heads == 1 else attending.pop() // heads,
        "norm_num_groups": next(iter(groups.values())),
        "norm_eps": option["norm_eps"],
        "attn_norm_num_groups": next(iter(groups.values())),
        "resnet_time_scale_shift": "scale_shift" if option["time_scales"] else "default",
        "num_class_embeds": None if table is None else table.num_embeddings,
        **({} if table is None else {ANY_CLASS: table.num_embeddings - 1}),
    }
    state = unet.state_dict()
    names = {name: source.name for name, source in sources(modules(blocks, attends), unet).items()}
    # Their attention has dense layers where ours has 1x1 convolutions.
    tensors = {
        theirs: state[ours].flatten(1) if ".attentions." in theirs and state[ours].ndim == 4 else state[ours]
        for ours, theirs in names.items()
    }
    return unet_config, {name: tensor.detach().float().contiguous() for name, tensor in tensors.items()}


def _options(config: Spec) -> dict[str, Any]:
    """All options of a UNet."""
    defaults: dict[str, Any] = {name: p.default for name, p in inspect.signature(UNet).parameters.items()}
    return defaults | (config.get("init_args") or {})


def _freq_shift(unet: UNet, nf: int) -> float:
    """Theirs for our embedding of the noise level, see `diffusers._network`."""
    embedding = None if unet.time is None else unet.time.embedding
    if not isinstance(embedding, Sinusoidal) or embedding.width != nf:
        raise ValueError(f"UNet2DModel embeds the noise level in {nf} sines and cosines, this UNet otherwise")
    half = nf // 2
    shift = half - (half - 1) * math.log(1e4) / math.log(embedding.max_period)
    return round(shift) if abs(shift - round(shift)) < 1e-9 else shift


def _scheduler(pipeline: Pipeline, config: Spec) -> dict[str, Any]:
    schedule, noise_input = pipeline.schedule, network_of(pipeline).noise_input
    if not isinstance(schedule, BetaTable):
        raise ValueError(f"diffusers' DDPMScheduler needs a beta schedule, this model has {type(schedule).__name__}")
    steps = schedule.steps
    if not _is_index(noise_input, steps):
        raise ValueError(
            f"diffusers gives its networks the step: noise_input must be StepIndex({steps}), or ScaledTime({steps}, -1)"
        )
    kinds = {getattr(parameterizations, name): theirs for theirs, (name, _) in PREDICTIONS.items()}
    prediction = kinds.get(type(network_of(pipeline).parameterization))
    if prediction is None:
        kind = type(network_of(pipeline).parameterization).__name__
        raise ValueError(f"diffusers knows no parameterization {kind}, only Epsilon, V and Data")
    sampling = _sampling(pipeline, steps, _options(config["network"])["learned_variance"])
    return {
        "num_train_timesteps": steps,
        **_betas(schedule, config["schedule"]),
        "prediction_type": prediction,
        **_clipping(config.get("guidance")),
        **sampling,
        CALL: call(pipeline),
    }


def _is_index(noise_input: NoiseInput, steps: int) -> bool:
    """Whether the network gets the index of a chain of so many steps."""
    if isinstance(noise_input, StepIndex):
        return noise_input.steps in (None, steps)
    return isinstance(noise_input, ScaledTime) and (noise_input.scale, noise_input.shift) == (steps, -1)


def _sampling(pipeline: Pipeline, steps: int, learns: bool) -> dict[str, Any]:
    """Class of the scheduler, and its options of the sampler and the grid."""
    sampler, fix = pipeline.sampler, "Fix: add --sampler DDIM --grid TrailingGrid --grid.steps 50"
    if type(sampler) not in (DDIM, Ancestral):
        raise ValueError(
            f"diffusers has schedulers that sample as DDIM and Ancestral do, not as {type(sampler).__name__}. {fix}"
        )
    spacing = _spacing(sampler.grid, pipeline.schedule, steps, isinstance(sampler, DDIM))
    if spacing is None:
        raise ValueError(
            f"diffusers' {type(sampler).__name__} cannot visit the times of this {type(sampler.grid).__name__}, only "
            f"those of LeadingGrid, and of TrailingGrid where its steps divide {steps}. {fix}"
        )
    if isinstance(sampler, DDIM):
        if learns:
            raise ValueError(
                "diffusers' DDIMScheduler cannot take a network that predicts a variance. "
                "Fix: add --sampler Ancestral --sampler.variance null"
            )
        if sampler.end not in (0, 1 / steps):
            raise ValueError(f"diffusers' DDIMScheduler ends at 0 or 1/{steps}, this model's sampler at {sampler.end}")
        return {"_class_name": "DDIMScheduler", "set_alpha_to_one": sampler.end == 0, **spacing}
    assert isinstance(sampler, Ancestral)
    kinds = {value: theirs for theirs, value in reversed(VARIANCES.items())}
    if sampler.variance not in kinds or learns != (sampler.variance is None):
        expected = "null, as the network learned it" if learns else "0 or 1"
        raise ValueError(
            f"Ancestral: variance: expected {expected}, got {sampler.variance}: DDPMScheduler has no other"
        )
    if sampler.variance != 0 and float(sampler.grid(pipeline.schedule)[-1]) * steps > 1.5:
        raise ValueError(
            "diffusers' DDPMScheduler adds noise to the samples unless its last timestep is 0. "
            f"Fix: add --steps {steps}"
        )
    return {"_class_name": "DDPMScheduler", "variance_type": kinds[sampler.variance], **spacing}


def _spacing(grid: Grid, schedule: Schedule, steps: int, ddim: bool) -> dict[str, Any] | None:
    """timestep_spacing and steps_offset of a grid; None: DDIMScheduler, or none at all, would go to other times."""
    t = grid(schedule)
    n, last = len(t), round(float(t[-1]) * steps) - 1
    if n > steps or not 0 <= last < steps:
        return None
    offset = last if isinstance(grid, LeadingGrid) or last <= 1 else 0
    made: dict[str, Callable[[], Grid]] = {
        "trailing": lambda: TrailingGrid(n, length=steps),
        "leading": lambda: LeadingGrid(n, offset=offset, length=steps),
        "linspace": lambda: RespacedGrid(n, length=steps),
    }
    kinds: dict[type[Grid], str] = {LeadingGrid: "leading", RespacedGrid: "linspace"}
    own = kinds.get(type(grid), "trailing")
    for spacing in sorted(made, key=lambda name: name != own):
        if ddim and n < steps and (spacing == "linspace" or (spacing == "trailing" and steps % n)):
            continue
        if ddim and spacing == "leading" and offset >= steps // n:
            continue
        with suppress(ValueError):  # no such grid
            other = made[spacing]()(schedule)
            if torch.allclose(other, t, rtol=0, atol=1e-9):
                return {"timestep_spacing": spacing, "steps_offset": offset if spacing == "leading" else 0}
    return None


def pipeline_class(pipeline: Pipeline) -> str:
    """The class of diffusers' pipeline that samples as the model does."""
    return "DDIMPipeline" if isinstance(pipeline.sampler, DDIM) else "DDPMPipeline"


def call(pipeline: Pipeline) -> dict[str, Any]:
    """The arguments with which `DDIMPipeline` is to be called; no file of diffusers has them."""
    keeps = pipeline.guidance is None or getattr(pipeline.guided, "keep_eps", False)
    return {
        "num_inference_steps": len(pipeline.sampler.grid(pipeline.schedule)),
        "eta": float(getattr(pipeline.sampler, "eta", 0.0)),
        "use_clipped_model_output": not keeps,
    }


def _betas(schedule: BetaTable, config: Spec) -> dict[str, Any]:
    betas = -torch.expm1(2 * schedule.log_alpha.diff())
    name = config["class_path"].rpartition(".")[2]
    options = config.get("init_args") or {}
    if name == "ZeroTerminalSNR":
        inner = _betas(schedule, options["table"])
        if "trained_betas" not in inner:
            return {**inner, "rescale_betas_zero_snr": True}
    known = {ours: theirs for theirs, ours in SCHEDULES.items()}.get(name)
    plain = {"offset": 0.008, "max_beta": 0.999}
    if name == "CosineBetas" and any(options.get(key, value) != value for key, value in plain.items()):
        known = None
    if known is None:
        return {"trained_betas": betas.tolist()}
    ends = {"beta_start": "beta_min", "beta_end": "beta_max"}
    defaults = {"beta_min": 1e-4, "beta_max": 0.02}
    return {"beta_schedule": known, **{theirs: options.get(ours, defaults[ours]) for theirs, ours in ends.items()}}


def _clipping(guidance: Spec | None) -> dict[str, Any]:
    if guidance is None:
        return {"clip_sample": False}
    options = {"low": -1.0, "high": 1.0, "quantile": None, "max_r": math.inf} | (guidance.get("init_args") or {})
    name = guidance["class_path"].rpartition(".")[2]
    dynamic = options["quantile"] is not None
    if name != "Thresholded" or options["low"] != -options["high"] or (dynamic and options["high"] != 1):
        raise ValueError(
            f"guidance {name} is not supported by diffusers' schedulers, only Thresholded(-c, c), with a quantile c = 1"
        )
    if dynamic:
        most = min(float(options["max_r"]), 1e6)  # JSON has no infinity
        return {"thresholding": True, "dynamic_thresholding_ratio": options["quantile"], "sample_max_value": most}
    return {"clip_sample": True, "clip_sample_range": options["high"]}
