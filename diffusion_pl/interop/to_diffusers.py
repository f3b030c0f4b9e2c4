"""A folder that `DDPMPipeline.from_pretrained` and `UNet2DModel.from_pretrained` of diffusers load."""

import inspect
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import parameterizations
from ..data import DataModule
from ..denoiser import ScaledTime
from ..module import DiffusionModule
from ..networks import Sinusoidal, UNet
from ..samplers import DDIM, Ancestral
from ..schedules import BetaTable
from .diffusers import DOWN, PADDINGS, PREDICTIONS, SCHEDULES, UP, VARIANCES, WEIGHTS, modules
from .foreign import Spec
from .keys import needs, sources

#: Options of UNet that UNet2DModel has no other value of.
HELD = {
    "activation": "swish",
    "conv_shortcut": False,
    "resamp_with_conv": True,
    "time_conditional": True,
    "head_channels": None,
    "up_heads": None,
}


def write(model: DiffusionModule, data: DataModule, description: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write the network and the process of a model.

    Args:
        model: with the weights to write.
        data: of the model.
        description: its configuration, as the checkpoint has it.
        folder: where to.

    Returns:
        The files.

    Raises:
        ValueError: diffusers has no such model; the option and its value are named.
    """
    save_file = needs("safetensors.torch", "diffusers").save_file
    config = description["model"]
    network, tensors = _network(model, config["network"])
    scheduler = _scheduler(model, config)
    index = {
        "_class_name": "DDPMPipeline",
        "scheduler": ["diffusers", scheduler["_class_name"]],
        "unet": ["diffusers", "UNet2DModel"],
    }
    (folder / "unet").mkdir(parents=True)
    (folder / "scheduler").mkdir()
    contents = {"model_index.json": index, "unet/config.json": network, "scheduler/scheduler_config.json": scheduler}
    for name, content in contents.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")
    save_file(tensors, folder / "unet" / WEIGHTS, {"format": "pt"})
    return [folder / name for name in (*contents, f"unet/{WEIGHTS}")]


def _network(model: DiffusionModule, config: Spec) -> tuple[Spec, dict[str, Tensor]]:
    unet = model.network
    if not isinstance(unet, UNet):
        raise ValueError(f"diffusers' UNet2DModel can hold a UNet only, not a {type(unet).__name__}")
    defaults = {name: p.default for name, p in inspect.signature(UNet).parameters.items()}
    option = defaults | config.get("init_args", {})
    for name, value in HELD.items():
        if option[name] != value:
            raise ValueError(f"UNet with {name} {option[name]} cannot be held by UNet2DModel, only {name} {value}")
    if option["fourier"]:
        raise ValueError(f"UNet with fourier {option['fourier']} cannot be held by UNet2DModel")
    channels, height, width = model.shape
    attends = [height >> level in option["attn_resolutions"] for level in range(len(option["ch_mult"]))]
    if any(attends) and option["up_attention"] != "every_block":
        raise ValueError("UNet with up_attention once_per_level cannot be held by UNet2DModel, only every_block")
    groups = {norm.num_channels: norm.num_groups for norm in unet.modules() if isinstance(norm, nn.GroupNorm)}
    if len(set(groups.values())) > 1:
        told = ", ".join(f"{groups[c]} for {c} channels" for c in sorted(groups))
        raise ValueError(
            f"UNet2DModel has one number of groups for all norms, this UNet {told}: give groups when training"
        )
    nf, mults, blocks = option["nf"], option["ch_mult"], option["num_res_blocks"]
    table, heads, padding = unet.label.table, option["heads"], option["padding"]
    attending = {nf * mult for mult, attend in zip(mults, attends, strict=True) if attend} | {nf * mults[-1]}
    if heads > 1 and len(attending) > 1:
        raise ValueError(
            f"UNet2DModel has heads of one width; {heads} heads on levels of {sorted(attending)} channels have several"
        )
    found = {
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
    }
    state = unet.state_dict()
    names = {name: source.name for name, source in sources(modules(blocks, attends), unet).items()}
    # Their attention has dense layers where ours has 1x1 convolutions.
    tensors = {
        theirs: state[ours].flatten(1) if ".attentions." in theirs and state[ours].ndim == 4 else state[ours]
        for ours, theirs in names.items()
    }
    return found, {name: tensor.detach().float().contiguous() for name, tensor in tensors.items()}


def _freq_shift(unet: UNet, nf: int) -> float:
    """Theirs for our embedding of the noise level, see `diffusers._network`."""
    embedding = None if unet.time is None else unet.time.embedding
    if not isinstance(embedding, Sinusoidal) or embedding.width != nf:
        raise ValueError(f"UNet2DModel embeds the noise level in {nf} sines and cosines, this UNet otherwise")
    half = nf // 2
    shift = half - (half - 1) * math.log(1e4) / math.log(embedding.max_period)
    return round(shift) if abs(shift - round(shift)) < 1e-9 else shift


def _scheduler(model: DiffusionModule, config: Spec) -> dict[str, Any]:
    schedule, noise_input = model.schedule, model.denoiser.noise_input
    if not isinstance(schedule, BetaTable):
        raise ValueError(f"diffusers' DDPMScheduler needs a table of betas, this model has {type(schedule).__name__}")
    steps = schedule.steps
    if not isinstance(noise_input, ScaledTime) or (noise_input.scale, noise_input.shift) != (steps, -1):
        raise ValueError(f"diffusers tells its networks the step: noise_input must be ScaledTime({steps}, -1)")
    kinds = {getattr(parameterizations, name): theirs for theirs, (name, _) in PREDICTIONS.items()}
    prediction = kinds.get(type(model.denoiser.parameterization))
    if prediction is None:
        told = type(model.denoiser.parameterization).__name__
        raise ValueError(f"diffusers knows no parameterization {told}, only Epsilon, V and Data")
    sampler = model.sampler
    found = {
        "_class_name": "DDIMScheduler" if isinstance(sampler, DDIM) else "DDPMScheduler",
        "num_train_timesteps": steps,
        **_betas(schedule, config["schedule"]),
        "prediction_type": prediction,
        **_clipping(config.get("guidance")),
    }
    if not isinstance(sampler, DDIM):
        variance = sampler.variance if isinstance(sampler, Ancestral) else 0.0
        kinds = {value: theirs for theirs, value in reversed(VARIANCES.items())}
        if variance not in kinds:
            raise ValueError(
                f"diffusers' DDPMScheduler has variance 0, 1 or as learned, this model's sampler {variance}"
            )
        found["variance_type"] = kinds[variance]
    return found


def _betas(schedule: BetaTable, config: Spec) -> dict[str, Any]:
    betas = -torch.expm1(2 * schedule.log_alpha.diff())
    name = config["class_path"].rpartition(".")[2]
    known = {ours: theirs for theirs, ours in SCHEDULES.items()}.get(name)
    options = config.get("init_args") or {}
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
    options = {"low": -1.0, "high": 1.0, "quantile": None} | (guidance.get("init_args") or {})
    name = guidance["class_path"].rpartition(".")[2]
    if name != "Thresholded" or options["low"] != -options["high"] or options["quantile"] is not None:
        raise ValueError(f"guidance {name} cannot be held by diffusers' schedulers, only a static Thresholded(-c, c)")
    return {"clip_sample": True, "clip_sample_range": options["high"]}
