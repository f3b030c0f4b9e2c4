"""UNet2DModel and its scheduler, of the package diffusers: import, and export of folders for `DDPMPipeline`.

Neither direction needs the package, only its files: config.json and diffusion_pytorch_model.safetensors of the
network, scheduler_config.json, and model_index.json of the folder that holds both.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoints import tensor_file
from ..conditions import label
from ..networks import UNet
from . import hub, scheduler
from .foreign import Foreign, Spec, discrete, image_shape, read_tensors, spec
from .keys import Source, sources, swap_halves, take, with_a_row_of_zeros
from .layouts import ATTENTION, RES, unet
from .options import Options, is_whole, listed

#: Options of UNet2DModel that must have one of these values, the package's default where a configuration leaves them
#: out first.
HELD: dict[str, tuple[Any, ...]] = {
    "center_input_sample": (False,),
    "time_embedding_type": ("positional",),
    "mid_block_type": ("UNetMidBlock2D",),
    "mid_block_scale_factor": (1,),
    "downsample_type": ("conv",),
    "upsample_type": ("conv",),
    "act_fn": ("silu", "swish"),
    "add_attention": (True,),
    "class_embed_type": (None,),
}
DOWN, UP = ("DownBlock2D", "AttnDownBlock2D"), ("UpBlock2D", "AttnUpBlock2D")  # without and with attention
#: Our own addition to config.json: the label of "any class", which diffusers knows nothing of.
ANY_CLASS = "_any_class"
LEVELS, LAYERS_OF_A_LEVEL, CHANNELS, SIDE, CLASSES = 12, 64, 1 << 16, 1 << 16, 1 << 20  # the most that is read

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
WEIGHTS, PICKLED = "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"
#: Where a pipeline has them, of a repository; pickles only on demand.
_FILES = [
    *("model_index.json", "config.json", "scheduler_config.json", WEIGHTS),
    *("unet/config.json", f"unet/{WEIGHTS}", "scheduler/scheduler_config.json"),
]


def modules(num_res_blocks: int, attends: Sequence[bool]) -> dict[str, str]:
    """The modules of `networks.UNet` -> those of UNet2DModel."""
    names = dict(ENDS)
    for part in unet(num_res_blocks, attends, every_block=True):
        block = part.level if part.way == "down" else len(attends) - 1 - part.level
        theirs = (
            MIDDLE[part.number]
            if part.way == "middle"
            else PLACES[part.kind, part.way].format(block=block, number=part.number)
        )
        names |= {f"{part.name}.{ours}": f"{theirs}.{name}" for ours, name in LAYERS[part.kind].items()}
    return names


def read(path: Path, trust_pickle: bool = False, size: list[int] | None = None) -> Foreign:
    """A folder of UNet2DModel, or of a pipeline with one.

    Args:
        path: The folder; or owner/name of a model on the Hugging Face hub.
        trust_pickle: See `foreign.read_tensors`; for weights that are not safetensors.
        size: Height and width of the images, where the configuration does not give them.
    """
    notes = []
    fetched = (
        None if path.exists() else hub.fetch(path, [*_FILES, *([PICKLED, f"unet/{PICKLED}"] if trust_pickle else [])])
    )
    if fetched is not None:
        notes.append(f"fetched from the Hugging Face hub: {path.as_posix()}, revision {fetched.name}")
        path = fetched
    index, pipeline = path / "model_index.json", None
    folder = path
    if index.is_file():
        pipeline = _pipeline(Options(index))
        folder = path / "unet" if (path / "unet").is_dir() else path  # old releases keep all in one folder
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{path}: no config.json of a UNet2DModel, nor a pipeline's model_index.json and unet/")
    option = Options(folder / "config.json")
    kind = option.get("_class_name", "UNet2DModel")
    if kind != "UNet2DModel":
        raise ValueError(f"{folder}: a {kind}; only UNet2DModel can be held")
    network, shape, classes, attends = _network(option, size)
    any_class = option.get(ANY_CLASS, None)  # the last row of the table is its vector already
    if any_class is not None and (classes is None or classes < 2 or any_class != classes - 1):
        raise option.wrong(ANY_CLASS, "the last label of num_class_embeds")
    padded = classes is not None and any_class is None
    if classes is not None and any_class is not None:
        classes -= 1

    places = [folder / "scheduler_config.json", folder.parent / "scheduler" / "scheduler_config.json"]
    scheduler_file = next((place for place in places if place.is_file()), None)
    if scheduler_file is None:
        notes.append("there is no scheduler_config.json: the noise schedule is that of DDPMScheduler's defaults")
    learns = bool(network["init_args"]["learned_variance"])
    process = scheduler.read(Options(scheduler_file, str(scheduler_file or places[0])), learns, pipeline)
    model = discrete(
        network, process.schedule, process.steps, process.parameterization, process.weighting, process.sampler
    )
    if process.guidance is not None:
        model["guidance"] = process.guidance
    notes += process.notes
    if padded:
        notes.append("it knows no 'any class': guidance with --scale needs a model that was trained with label dropout")

    flipped = option.flag("flip_sin_to_cos", True)
    names = modules(network["init_args"]["num_res_blocks"], attends)

    def name_map(ours: nn.Module) -> dict[str, Source]:
        table = sources(names, ours)
        if flipped:
            table["time.dense_1.weight"] = table["time.dense_1.weight"]._replace(convert=swap_halves)
        if padded:
            table["label.table.weight"] = table["label.table.weight"]._replace(convert=with_a_row_of_zeros)
        return table

    unknown = option.left()
    if unknown:
        raise ValueError(f"{option.where}: unknown option of UNet2DModel: {listed(unknown)}")

    def check(header: Mapping[str, Tensor]) -> None:
        _check_blocks(header, option, len(attends))
        conditions = {} if classes is None else {"label": label(classes)}
        with torch.device("meta"):  # nothing is built at size before the file is known to hold it
            like = UNet(shape, conditions, **{**network["init_args"], "time_embedding": None})
            take(header, name_map(like), like, str(folder))

    return Foreign(
        model, shape, classes, name_map, _weights(folder, trust_pickle, check), notes=tuple(notes), folder=fetched
    )


def _pipeline(index: Options) -> str:
    """The class of a pipeline."""
    more = sorted(name for name in index.left() if name not in ("unet", "scheduler"))
    if more:
        raise ValueError(f"{index.where}: {more[0]}: expected a pipeline of unet and scheduler alone, as DDPMPipeline")
    return str(index.get("_class_name", "DDPMPipeline"))


def _network(option: Options, size: list[int] | None) -> tuple[Spec, tuple[int, ...], int | None, list[bool]]:
    """Network, shape and classes of a UNet2DModel's configuration, and which levels attend."""
    for name, values in HELD.items():
        option.choice(name, *values)
    widths = option.items("block_out_channels", [224, 448, 672, 896], LEVELS)
    down = option.items("down_block_types", [DOWN[0], *[DOWN[1]] * 3], LEVELS)
    up = option.items("up_block_types", [*[UP[1]] * 3, UP[0]], LEVELS)
    for name, blocks, known in (("down_block_types", down, DOWN), ("up_block_types", up, UP)):
        if len(blocks) != len(widths):
            raise option.wrong(name, f"{len(widths)} values, as block_out_channels")
        if any(block not in known for block in blocks):
            raise option.wrong(name, f"a list of {' and '.join(known)}")
    attends = [block == DOWN[1] for block in down]
    if attends != [block == UP[1] for block in reversed(up)]:
        raise option.wrong("up_block_types", "attention where down_block_types have it, in reverse order")
    if not all(is_whole(width, 4, CHANNELS) and width % widths[0] == 0 for width in widths):
        raise option.wrong("block_out_channels", f"multiples of the first, from 4 to {CHANNELS}")
    nf = int(widths[0])
    option.choice("time_embedding_dim", None, 4 * nf)
    groups = option.whole("norm_num_groups", 32, 1, CHANNELS)
    # With scale_shift its middle attends without a norm unless this option is given.
    scales = option.choice("resnet_time_scale_shift", "default", "scale_shift") == "scale_shift"
    option.choice("attn_norm_num_groups", *((groups,) if scales else (None, groups)))
    channels = option.whole("in_channels", 3, 1, CHANNELS)
    outward = option.choice("out_channels", *sorted({3, channels, 2 * channels}, key=lambda c: c != 3))
    if outward not in (channels, 2 * channels):
        raise option.wrong("out_channels", f"{channels} or {2 * channels}, as in_channels")
    classes = option.get("num_class_embeds", None)
    if classes is not None and not is_whole(classes, 1, CLASSES):
        raise option.wrong("num_class_embeds", f"null or a whole number from 1 to {CLASSES}")
    option.get("num_train_timesteps", None)  # of time_embedding_type learned only
    shape = image_shape(channels, size or _size(option), Path(option.where))
    # Frequencies 10⁴^(−i/(half − shift)) are ours, P^(−i/(half − 1)), of another P.
    half, shift = nf // 2, option.number("freq_shift", 0, 0, 1)
    embedding = (
        None
        if shift == 1
        else spec("networks.Sinusoidal", features=nf, max_period=1e4 ** ((half - 1) / (half - shift)))
    )
    network = spec(
        "networks.UNet",
        nf=nf,
        ch_mult=[width // nf for width in widths],
        num_res_blocks=option.whole("layers_per_block", 2, 1, LAYERS_OF_A_LEVEL),
        attn_resolutions=[shape[1] >> level for level, attend in enumerate(attends) if attend],
        dropout=float(option.number("dropout", 0.0, 0, 0.999)),
        heads=_heads(option, widths, attends),
        time_scales=scales,
        learned_variance=outward > channels,
        groups=groups,
        norm_eps=option.number("norm_eps", 1e-5, 1e-12, 0.1),
        padding=PADDINGS[option.choice("downsample_padding", *sorted(PADDINGS, reverse=True))],
        time_embedding=embedding,
    )
    return network, shape, classes, attends


def _size(option: Options) -> list[int]:
    length = option.get("sample_size", None)
    if length is None:
        raise ValueError(f"{option.where}: sample_size is null: add --size, such as --size 32")
    lengths = length if isinstance(length, list) else [length]
    if len(lengths) not in (1, 2) or not all(is_whole(length, 1, SIDE) for length in lengths):
        raise option.wrong("sample_size", f"height and width, or one number for both, from 1 to {SIDE}")
    return lengths


def _heads(option: Options, widths: list[int], attends: list[bool]) -> int:
    """The number of heads, which a UNet has the same of everywhere."""
    width = option.get("attention_head_dim", 8)
    if width is None:
        return 1
    if not is_whole(width, 1, CHANNELS):
        raise option.wrong("attention_head_dim", "null or a whole number")
    attending = sorted({width for width, attend in zip(widths, attends, strict=True) if attend} | {widths[-1]})
    heads = {number // width for number in attending}
    if len(heads) > 1 or any(number % width for number in attending):
        raise option.wrong(
            "attention_head_dim",
            f"the same whole number of heads on all levels that attend, which have {attending} channels",
        )
    return int(heads.pop())


def _check_blocks(header: Mapping[str, Tensor], option: Options, levels: int) -> None:
    """Whether the file has as many levels and layers as its configuration says."""
    parts = [name.split(".") for name in header if name.startswith("down_blocks.")]
    there = len({part[1] for part in parts if len(part) > 1})
    if there != levels:
        raise option.wrong("block_out_channels", f"{there} levels, as the weights have")
    layers = len({part[3] for part in parts if part[1:3] == ["0", "resnets"] and len(part) > 3})
    if layers != option.get("layers_per_block", 2):
        raise option.wrong("layers_per_block", f"{layers}, as the weights have")


def _weights(folder: Path, trust_pickle: bool, check: Callable[[Mapping[str, Tensor]], None]) -> dict[str, Tensor]:
    """The tensors of a folder by name; check is called with their shapes, on torch's meta device, before.

    Raises:
        FileNotFoundError, ValueError: no file, damaged, or not of tensors of numbers; what check raises.
    """
    path, pickled = folder / WEIGHTS, folder / PICKLED
    if not path.is_file():
        if not pickled.is_file():
            there = ", ".join(sorted(file.name for file in folder.iterdir()))
            raise FileNotFoundError(f"{folder}: there is no {WEIGHTS}, only {there}")
        state = read_tensors(pickled, trust_pickle)
        for name, value in state.items():
            if not (isinstance(value, Tensor) and value.is_floating_point() and value.layout == torch.strided):
                raise ValueError(f"{pickled}: {name}: expected a tensor of floating-point numbers")
        state = {_renamed(str(name)): tensor for name, tensor in state.items()}
        check({name: tensor.to("meta") for name, tensor in state.items()})
        return state
    try:
        entries = tensor_file.read_header(path)
        for name, entry in entries.items():
            if not entry.dtype.is_floating_point:
                raise ValueError(f"{name}: expected floating-point numbers, got {entry.dtype}")
        check({_renamed(name): torch.empty(entry.shape, device="meta") for name, entry in entries.items()})
        return {_renamed(name): tensor for name, tensor in tensor_file.read_tensors(path).items()}
    except ValueError as error:
        raise ValueError(f"{path} is damaged, or no safetensors ({error})") from error


def _renamed(name: str) -> str:
    module, _, leaf = name.rpartition(".")
    place, _, layer = module.rpartition(".")
    return f"{place}.{RENAMED[layer]}.{leaf}" if layer in RENAMED and "attentions" in place else name
