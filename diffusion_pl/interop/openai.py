"""State dicts of improved-diffusion and guided-diffusion: UNetModel, as our UNet.

A file holds the tensors of one network, the raw weights (modelNNN.pt) or an average (ema_RATE_NNN.pt), and nothing
else: widths, depths, where it attends, classes, whether the noise level scales and whether the variance is learned are
read from them; the schedule must be given, and the other flags of the training are options, assumed as they default.
"""

import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from ..networks.resnet import AttentionBlock
from .assumed import Assumptions
from .foreign import Foreign, Spec, discrete, image_shape, read_tensors, spec, tensors
from .keys import Source, sources, swap_halves, with_a_row_of_zeros
from .layouts import ATTENTION, RES, unet

Betas = Literal["linear", "cosine"]

#: The layers of a block: ours -> theirs.
LAYERS = {
    ("res", "any"): dict(
        zip(
            RES,
            ("in_layers.0", "in_layers.2", "emb_layers.1", "out_layers.0", "out_layers.3", "skip_connection"),
            strict=True,
        )
    ),
    ("attention", "any"): dict(zip(ATTENTION, ("norm", "qkv", "qkv", "qkv", "proj_out"), strict=True)),
    ("resample", "down"): {"conv": "op"},
    ("resample", "up"): {"conv": "conv"},
}
ENDS = {
    "time.dense_1": "time_embed.0",
    "time.dense_2": "time_embed.2",
    "label.table": "label_emb",
    "stem": "input_blocks.0.0",
    "norm": "out.0",
    "output": "out.2",
}
QKV = ("query", "key", "value")
HEADS, STEPS = 4, 1000  # of the flags' defaults


def modules(num_res_blocks: int, attends: Sequence[bool], resample_blocks: bool) -> dict[str, str]:
    """The modules of `networks.UNet` -> those of UNetModel, which may resample within residual blocks."""
    names = dict(ENDS)
    for part in unet(num_res_blocks, attends, every_block=True):
        place = part.name.rpartition(".")[2]
        theirs = {
            "down": f"input_blocks.{part.row + 1}.{place}",
            "middle": f"middle_block.{part.row}",
            "up": f"output_blocks.{part.row}.{place}",
        }[part.way]
        kind = "res" if part.kind == "resample" and resample_blocks else part.kind
        layers = LAYERS.get((kind, part.way)) or LAYERS[kind, "any"]
        names |= {f"{part.name}.{ours}": f"{theirs}.{name}" for ours, name in layers.items()}
    return names


def read(
    path: Path,
    trust_pickle: bool = False,
    size: list[int] | None = None,
    betas: Betas | None = None,
    steps: int | None = None,
    heads: int | None = None,
    num_head_channels: int | None = None,
    num_heads_upsample: int | None = None,
    use_new_attention_order: bool | None = None,
    predict_xstart: bool | None = None,
    rescale_timesteps: bool | None = None,
    sigma_small: bool | None = None,
    dropout: float | None = None,
) -> Foreign:
    """A state dict of UNetModel.

    Args:
        path: of the file.
        trust_pickle: See `foreign.read_tensors`.
        size: Height and width of the images.
        betas: The noise schedule of the training.
        steps: Its number of steps (diffusion_steps).
        heads: Attention heads (num_heads).
        num_head_channels, num_heads_upsample: Channels of a head, in place of heads; heads on the way up.
        use_new_attention_order: Whether all queries come before all keys and values, not head by head.
        predict_xstart: Whether it predicts x_0 and not the noise.
        rescale_timesteps: Whether steps are counted as if there were 1,000.
        sigma_small: Whether the variance of a step, where it is not learned, is the smaller one.
        dropout: Of the training.
    """
    state = tensors(read_tensors(path, trust_pickle), "state dict", path)
    if betas is None:
        raise ValueError(f"{path} does not show the noise schedule: add --betas linear or cosine")
    assume = Assumptions(
        steps=steps,
        heads=heads,
        num_head_channels=num_head_channels,
        num_heads_upsample=num_heads_upsample,
        use_new_attention_order=use_new_attention_order,
        predict_xstart=predict_xstart,
        rescale_timesteps=rescale_timesteps,
        sigma_small=sigma_small,
        dropout=dropout,
    )
    steps = int(assume("steps", STEPS))
    network, channels, classes = _network(state, path)
    shape = image_shape(channels, size, path)
    options = network["init_args"]
    attends, depth = options.pop("attends"), options["num_res_blocks"]
    options["attn_resolutions"] = [shape[1] >> level for level, attend in enumerate(attends) if attend]
    options["dropout"] = assume("dropout", 0.0)
    options |= _heads(options, attends, num_head_channels is not None, assume, path)
    whole_first = assume("use_new_attention_order", False)
    model = _model(network, betas, steps, assume)
    matters = steps != STEPS or rescale_timesteps is not None
    count = STEPS if matters and assume("rescale_timesteps", True) else steps
    model["noise_input"] = spec("denoisers.ScaledTime", scale=float(count), shift=-count / steps)
    model["guidance"] = spec("denoisers.Thresholded")

    def name_map(ours: nn.Module) -> dict[str, Source]:
        table = sources(modules(depth, attends, options["resample_blocks"]), ours)
        for name, source in table.items():
            block, _, layer = name.rpartition(".")[0].rpartition(".")
            if layer in QKV:
                attention = ours.get_submodule(block)
                assert isinstance(attention, AttentionBlock)
                number = 1 if whole_first else attention.heads
                table[name] = source._replace(convert=partial(_part, number=QKV.index(layer), heads=number))
        table["time.dense_1.weight"] = table["time.dense_1.weight"]._replace(convert=swap_halves)
        if classes is not None:
            table["label.table.weight"] = table["label.table.weight"]._replace(convert=with_a_row_of_zeros)
        return table

    notes = assume.notes(path)
    averages: dict[float, Mapping[str, Tensor]] = {}
    average = re.match(r"ema_(0\.\d+)_", path.name)
    if average:
        averages = {float(average[1]): state}
        notes.append("the file holds EMA weights only; they are used as the raw weights too")
    number = re.search(r"(\d{6,})\.pt$", path.name)
    return Foreign(
        model, shape, classes, name_map, state, averages, 0, int(number[1]) if number else None, notes=tuple(notes)
    )


def _heads(
    options: Mapping[str, Any], attends: Sequence[bool], by_width: bool, assume: Assumptions, path: Path
) -> dict[str, Any]:
    """Attention options of `networks.UNet`: heads of a fixed width, or a number of them, on each way.

    Raises:
        ValueError: the channels of a level that attends cannot be divided into so many heads.
    """
    if by_width:
        return {"head_channels": assume("num_head_channels", None), "heads": 1, "up_heads": None}
    heads = assume("heads", HEADS)
    up_heads = assume("num_heads_upsample", heads)
    widths = sorted({options["nf"] * options["ch_mult"][level] for level in _attending(attends)})
    for option, number in (("heads", heads), ("num_heads_upsample", up_heads)):
        undivided = [width for width in widths if width % number]
        if undivided:
            raise ValueError(f"{path}: {undivided[0]} channels cannot be divided into {number} heads: set --{option}")
    return {"head_channels": None, "heads": heads, "up_heads": up_heads}


def _model(network: Spec, betas: Betas, steps: int, assume: Assumptions) -> Spec:
    """The configuration of a model, but for what its network is given as the noise level."""
    ends = {"beta_min": 0.1 / steps, "beta_max": 20 / steps} if betas == "linear" else {}
    schedule = spec(f"schedules.{'LinearBetas' if betas == 'linear' else 'CosineBetas'}", steps=steps, **ends)
    learned = network["init_args"]["learned_variance"]
    variance = None if learned else 0.0 if assume("sigma_small", False) else 1.0
    sampler = spec("samplers.Ancestral", grid=spec("samplers.UniformGrid", steps=steps), variance=variance)
    # The squared error of what is predicted: of x_0 itself it is 1, in terms of x_0.
    of_data = spec("denoisers.Data"), spec("losses.P2", k=1e-12, gamma=1.0)
    of_noise = spec("denoisers.Epsilon"), spec("losses.SNR")
    parameterization, weighting = of_data if assume("predict_xstart", False) else of_noise
    model = discrete(network, schedule, steps, parameterization, weighting, sampler)
    if learned:
        model["loss"]["init_args"]["variance"] = spec("losses.VarianceBound", steps=steps, levels=256)
    return model


def _attending(attends: Sequence[bool]) -> list[int]:
    """The levels that attend; the middle is of the last."""
    return [level for level, attend in enumerate(attends) if attend or level == len(attends) - 1]


def _part(weight: Tensor, number: int, heads: int) -> Tensor:
    """Queries, keys or values of a layer that makes (heads, 3, channels of a head) of its input."""
    return weight.reshape(heads, 3, -1, *weight.shape[1:])[:, number].flatten(0, 1)


def _network(state: Mapping[str, Any], path: Path) -> tuple[Spec, int, int | None]:
    """The network's configuration but for height and width (with `attends`, by level), channels and classes."""
    numbers = {int(name.split(".")[1]) for name in state if name.startswith("input_blocks.")}
    halving = [name for name in state if re.fullmatch(r"input_blocks\.\d+\.0\.op\.weight", name)]
    # Or residual blocks halve and double (resblock_updown), which on the way up come last in their rows.
    doubling = [name for name in state if re.fullmatch(r"output_blocks\.\d+\.[12]\.in_layers\.2\.weight", name)]
    levels = 1 + max(len(halving), len(doubling))
    depth, rest = divmod(len(numbers) - levels, levels)
    if not numbers or rest or depth < 1:
        raise ValueError(f"{path}: {len(numbers)} input_blocks on {levels} levels are no UNetModel")
    firsts = [1 + level * (depth + 1) for level in range(levels)]
    try:
        nf, channels = state["input_blocks.0.0.weight"].shape[:2]
        outward = state["out.2.weight"].shape[0]
        widths = [state[f"input_blocks.{i}.0.out_layers.3.weight"].shape[0] for i in firsts]
        time_inputs = state["time_embed.0.weight"].shape[1]
        time_outputs = state["middle_block.0.emb_layers.1.weight"].shape[0]
        classes = state["label_emb.weight"].shape[0] if "label_emb.weight" in state else None
    except KeyError as error:
        raise ValueError(f"{path}: {error.args[0]} is missing: no UNetModel") from error
    except (IndexError, ValueError) as error:
        raise ValueError(f"{path}: the first and last layers have wrong shapes: no UNetModel") from error
    if (channels, outward) in ((6, 3), (6, 6)):
        raise ValueError(f"{path}: 6 channels in: a SuperResModel (upsampler), which is not supported")
    if outward not in (channels, 2 * channels):
        raise ValueError(f"{path}: {channels} channels in and {outward} out: no UNetModel of a diffusion")
    if time_inputs != nf:
        raise ValueError(
            f"{path}: a first level of {nf} channels, other than num_channels {time_inputs}, as of the models for "
            "512x512, is not supported"
        )
    half = nf // 2
    if half < 2 or any(width < nf or width % nf for width in widths):
        raise ValueError(f"{path}: levels of {widths} channels are no multiples of num_channels {nf}")
    network = spec(
        "networks.UNet",
        nf=nf,
        ch_mult=[width // nf for width in widths],
        num_res_blocks=depth,
        attends=[f"input_blocks.{i}.1.qkv.weight" in state for i in firsts],
        time_scales=time_outputs == 2 * widths[-1],
        learned_variance=outward > channels,
        groups=32,
        norm_eps=1e-5,
        padding="around",
        resample_blocks=bool(doubling),
        # Frequencies 10⁴^(−i/half) are ours, P^(−i/(half − 1)), of another P.
        time_embedding=spec("networks.Sinusoidal", features=nf, max_period=1e4 ** ((half - 1) / half)),
    )
    return network, channels, classes
