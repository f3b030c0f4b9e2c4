"""UNet2DModel and its scheduler, of the package diffusers: what it writes comes in, what `DDPMPipeline` loads goes out.

Neither direction needs the package, only its files: config.json and diffusion_pytorch_model.safetensors of the
network, scheduler_config.json, and model_index.json of the folder that holds both.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from .foreign import Foreign, Spec, discrete, picture_shape, read_tensors, spec
from .keys import Source, needs, sources, swap_halves, with_a_row_of_zeros
from .layouts import ATTENTION, RES, unet

#: Options of UNet2DModel that must have one of these values, the package's default where a configuration leaves them
#: out first.
HELD: dict[str, tuple[Any, ...]] = {
    "center_input_sample": (False,),
    "time_embedding_type": ("positional",),
    "time_embedding_dim": (None,),
    "mid_block_type": ("UNetMidBlock2D",),
    "mid_block_scale_factor": (1,),
    "downsample_type": ("conv",),
    "upsample_type": ("conv",),
    "act_fn": ("silu", "swish"),
    "resnet_time_scale_shift": ("default", "scale_shift"),
    "add_attention": (True,),
    "class_embed_type": (None,),
}
#: Its other options, with their defaults.
DEFAULTS: dict[str, Any] = {
    "sample_size": None,
    "in_channels": 3,
    "out_channels": 3,
    "freq_shift": 0,
    "flip_sin_to_cos": True,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    "block_out_channels": [224, 448, 672, 896],
    "layers_per_block": 2,
    "downsample_padding": 1,
    "dropout": 0.0,
    "attention_head_dim": 8,
    "norm_num_groups": 32,
    "attn_norm_num_groups": None,
    "norm_eps": 1e-5,
    "num_class_embeds": None,
    "num_train_timesteps": None,
}
DOWN, UP = ("DownBlock2D", "AttnDownBlock2D"), ("UpBlock2D", "AttnUpBlock2D")  # without and with attention

#: Of the schedulers whose chain is DDPM's; DDIMScheduler has no variance_type.
SCHEDULER_DEFAULTS: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "variance_type": "fixed_small",
    "clip_sample": True,
    "prediction_type": "epsilon",
    "thresholding": False,
    "clip_sample_range": 1.0,
    "rescale_betas_zero_snr": False,
}
SCHEDULES = {
    "linear": "LinearBetas",
    "scaled_linear": "QuadraticBetas",
    "squaredcos_cap_v2": "CosineBetas",
    "sigmoid": "SigmoidBetas",
}
#: prediction_type -> parameterization and weighting: of ε and v the plain squared error, of x_0 by SNR as in the
#: package's training example.
PREDICTIONS = {
    "epsilon": ("Epsilon", spec("weightings.SNR")),
    "v_prediction": ("V", spec("weightings.SNR", plus=1.0)),
    "sample": ("Data", spec("weightings.SNR")),
}
VARIANCES = {
    "fixed_small": 0.0,
    "fixed_small_log": 0.0,
    "fixed_large": 1.0,
    "fixed_large_log": 1.0,
    "learned_range": None,
}
PADDINGS: dict[int, str] = {0: "corner", 1: "around"}

#: The layers of a block: ours -> theirs.
LAYERS = {
    "res": dict(zip(RES, ("norm1", "conv1", "time_emb_proj", "norm2", "conv2", "conv_shortcut"), strict=True)),
    "attention": dict(zip(ATTENTION, ("group_norm", "to_q", "to_k", "to_v", "to_out.0"), strict=True)),
    "resample": {"conv": "conv"},
}
#: Of attention in files of old releases -> now.
RENAMED = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
PLACES = {
    ("res", "down"): "down_blocks.{block}.resnets.{number}",
    ("attention", "down"): "down_blocks.{block}.attentions.{number}",
    ("resample", "down"): "down_blocks.{block}.downsamplers.0",
    ("res", "up"): "up_blocks.{block}.resnets.{number}",
    ("attention", "up"): "up_blocks.{block}.attentions.{number}",
    ("resample", "up"): "up_blocks.{block}.upsamplers.0",
}
MIDDLE = ("mid_block.resnets.0", "mid_block.attentions.0", "mid_block.resnets.1")
ENDS = {
    "time.dense_1": "time_embedding.linear_1",
    "time.dense_2": "time_embedding.linear_2",
    "label.table": "class_embedding",
    "stem": "conv_in",
    "norm": "conv_norm_out",
    "output": "conv_out",
}
WEIGHTS = "diffusion_pytorch_model.safetensors"


def modules(num_res_blocks: int, attends: Sequence[bool]) -> dict[str, str]:
    """The modules of `networks.UNet` -> those of UNet2DModel."""
    found = dict(ENDS)
    for part in unet(num_res_blocks, attends, every_block=True):
        block = part.level if part.way == "down" else len(attends) - 1 - part.level
        theirs = (
            MIDDLE[part.number]
            if part.way == "middle"
            else PLACES[part.kind, part.way].format(block=block, number=part.number)
        )
        found |= {f"{part.name}.{ours}": f"{theirs}.{name}" for ours, name in LAYERS[part.kind].items()}
    return found


def read(path: Path, trust_pickle: bool = False, size: list[int] | None = None) -> Foreign:
    """A folder of UNet2DModel, or of a pipeline with one.

    Args:
        path: The folder.
        trust_pickle: See `foreign.read_tensors`; for weights that are not safetensors.
        size: Sides of the pictures, where the configuration does not tell them.
    """
    folder = path / "unet" if (path / "model_index.json").is_file() else path
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{path}: no config.json of a UNet2DModel, nor a pipeline's model_index.json and unet/")
    config = _json(folder / "config.json")
    kind = config.get("_class_name", "UNet2DModel")
    if kind != "UNet2DModel":
        raise ValueError(f"{folder}: a {kind}; only UNet2DModel can be held")
    network, shape, classes = _network(config, folder / "config.json", size)
    found = _weights(folder, trust_pickle)

    notes = []
    scheduler = folder.parent / "scheduler" / "scheduler_config.json"
    if scheduler.is_file():
        model = _model(_json(scheduler), network, scheduler)
    else:
        notes.append("there is no scheduler_config.json: the process is that of DDPMScheduler's defaults")
        model = _model({}, network, scheduler)
    if classes is not None:
        notes.append("it knows no 'any class': guidance with --scale needs a model that was trained with label dropout")

    options = network["init_args"]
    flipped, padded = config.get("flip_sin_to_cos", DEFAULTS["flip_sin_to_cos"]), classes is not None
    attends = [name == DOWN[1] for name in {**DEFAULTS, **config}["down_block_types"]]

    def wanted(ours: nn.Module) -> dict[str, Source]:
        found = sources(modules(options["num_res_blocks"], attends), ours)
        if flipped:
            found["time.dense_1.weight"] = found["time.dense_1.weight"]._replace(convert=swap_halves)
        if padded:
            found["label.table.weight"] = found["label.table.weight"]._replace(convert=with_a_row_of_zeros)
        return found

    return Foreign(model, shape, classes, wanted, found, notes=tuple(notes))


def _network(config: dict[str, Any], where: Path, size: list[int] | None) -> tuple[Spec, tuple[int, ...], int | None]:
    """Network, shape and classes of a UNet2DModel's configuration."""
    given = {name: value for name, value in config.items() if not name.startswith("_")}
    unknown = sorted(given.keys() - HELD.keys() - DEFAULTS.keys())
    if unknown:
        raise ValueError(f"{where}: unknown option {unknown[0]} of UNet2DModel: {given[unknown[0]]}")
    for name, values in HELD.items():
        _check(name, given.get(name, values[0]), values, where)
    option = DEFAULTS | given
    widths, down, up = option["block_out_channels"], option["down_block_types"], option["up_block_types"]
    if not len(widths) == len(down) == len(up) > 0:
        raise ValueError(f"{where}: block_out_channels and the block types must be equally many, got {len(widths)}, …")
    for name, blocks, known in (("down_block_types", down, DOWN), ("up_block_types", up, UP)):
        strange = next((block for block in blocks if block not in known), None)
        if strange is not None:
            raise ValueError(f"{where}: {name}: {strange} cannot be held, only {' and '.join(known)}")
    attends = [block == DOWN[1] for block in down]
    if attends != [block == UP[1] for block in reversed(up)]:
        raise ValueError(f"{where}: up_block_types must attend where down_block_types do, got {down} and {up}")
    nf = widths[0]
    if any(width % nf for width in widths):
        raise ValueError(f"{where}: block_out_channels must be multiples of the first, got {widths}")
    attending = {width for width, attend in zip(widths, attends, strict=True) if attend} | {widths[-1]}
    head = option["attention_head_dim"]
    heads = {1 if head is None else width // head for width in attending}
    if len(heads) > 1:
        raise ValueError(
            f"{where}: attention_head_dim {head} cannot be held: the levels that attend have {sorted(attending)} "
            "channels, and a UNet has one number of heads"
        )
    # With scale_shift its middle attends without a norm unless this option is given.
    groups, scales = option["norm_num_groups"], option["resnet_time_scale_shift"] == "scale_shift"
    _check("attn_norm_num_groups", option["attn_norm_num_groups"], (groups,) if scales else (None, groups), where)
    _check("downsample_padding", option["downsample_padding"], tuple(PADDINGS), where)
    channels, outward = option["in_channels"], option["out_channels"]
    _check("out_channels", outward, (channels, 2 * channels), where)
    side = option["sample_size"]
    if side is None and size is None:
        raise ValueError(f"{where}: sample_size is null: add --size, such as --size 32")
    shape = picture_shape(option["in_channels"], size or ([side] if isinstance(side, int) else list(side)), where)
    half, shift = nf // 2, option["freq_shift"]
    if not shift < half:
        raise ValueError(f"{where}: freq_shift must be below {half}, got {shift}")
    # Frequencies 10⁴^(−i/(half − shift)) are ours, P^(−i/(half − 1)), of another P.
    embedding = (
        None
        if shift == 1
        else spec("networks.Sinusoidal", features=nf, max_period=1e4 ** ((half - 1) / (half - shift)))
    )
    network = spec(
        "networks.UNet",
        nf=nf,
        ch_mult=[width // nf for width in widths],
        num_res_blocks=option["layers_per_block"],
        attn_resolutions=[shape[1] >> level for level, attend in enumerate(attends) if attend],
        dropout=float(option["dropout"]),
        heads=heads.pop(),
        time_scales=scales,
        learned_variance=outward > channels,
        groups=groups,
        norm_eps=option["norm_eps"],
        padding=PADDINGS[option["downsample_padding"]],
        time_embedding=embedding,
    )
    return network, shape, option["num_class_embeds"]


def _model(config: dict[str, Any], network: Spec, where: Path) -> Spec:
    """The configuration of the model with this network, from that of its scheduler."""
    kind = config.get("_class_name", "DDPMScheduler")
    if kind not in ("DDPMScheduler", "DDIMScheduler"):
        raise ValueError(f"{where}: a {kind}; only DDPMScheduler and DDIMScheduler can be held")
    option = SCHEDULER_DEFAULTS | config
    steps, prediction = option["num_train_timesteps"], option["prediction_type"]
    _check("beta_schedule", option["beta_schedule"], tuple(SCHEDULES), where)
    _check("prediction_type", prediction, tuple(PREDICTIONS), where)
    _check("variance_type", option["variance_type"], tuple(VARIANCES), where)
    _check("thresholding", option["thresholding"], (False,), where)
    if option["trained_betas"] is not None:
        schedule = spec("schedules.BetaTable", betas=option["trained_betas"])
        steps = len(option["trained_betas"])
    else:
        ends = {"beta_min": option["beta_start"], "beta_max": option["beta_end"]}
        cosine = option["beta_schedule"] == "squaredcos_cap_v2"
        schedule = spec(f"schedules.{SCHEDULES[option['beta_schedule']]}", steps=steps, **({} if cosine else ends))
    if option["rescale_betas_zero_snr"]:
        schedule = spec("schedules.ZeroTerminalSNR", table=schedule)
    learns = network["init_args"]["learned_variance"]
    variance = VARIANCES[option["variance_type"]]
    if learns != (variance is None) and kind == "DDPMScheduler":
        raise ValueError(
            f"{where}: variance_type {option['variance_type']} does not go with a network that tells "
            f"{'a' if learns else 'no'} variance"
        )
    sampler = spec("samplers.Ancestral", grid=spec("grids.UniformGrid", steps=steps), variance=variance)
    if kind == "DDIMScheduler":
        sampler = spec("samplers.DDIM", grid=spec("grids.RespacedGrid", length=steps, steps=min(50, steps)))
    name, weighting = PREDICTIONS[prediction]
    model = discrete(network, schedule, steps, spec(f"parameterizations.{name}"), weighting, sampler)
    if option["clip_sample"]:
        reach = float(option["clip_sample_range"])
        model["guidance"] = spec("guidance.Thresholded", low=-reach, high=reach)
    return model


def _weights(folder: Path, trust_pickle: bool) -> dict[str, Tensor]:
    if (folder / WEIGHTS).is_file():
        safetensors = needs("safetensors.torch", "diffusers")
        try:
            found = safetensors.load_file(folder / WEIGHTS)
        except needs("safetensors", "diffusers").SafetensorError as error:
            raise ValueError(f"{folder / WEIGHTS} is damaged, or no safetensors ({error})") from error
    else:
        pickled = folder / "diffusion_pytorch_model.bin"
        if not pickled.is_file():
            there = ", ".join(sorted(file.name for file in folder.iterdir()))
            raise FileNotFoundError(f"{folder}: there is no {WEIGHTS}, only {there}")
        found = read_tensors(pickled, trust_pickle)
    return {_renamed(name): tensor for name, tensor in found.items()}


def _renamed(name: str) -> str:
    module, _, leaf = name.rpartition(".")
    place, _, layer = module.rpartition(".")
    return f"{place}.{RENAMED[layer]}.{leaf}" if layer in RENAMED and "attentions" in place else name


def _check(name: str, value: Any, values: tuple[Any, ...], where: Path) -> None:
    if value not in values:
        raise ValueError(f"{where}: {name} {value} cannot be held, only {' or '.join(map(str, values))}")


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no configuration")
    return content
