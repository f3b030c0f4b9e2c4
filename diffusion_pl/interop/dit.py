"""Checkpoints of facebookresearch's DiT and of SiT, its network on a straight path: `networks.DiT`.

A file is a state dict, as the published ones, or a training's: {"model": …, "ema": …, …}.  Sizes, patches, classes and
whether there is a second half of the output are read from the tensors; the number of heads is that of a published size,
or is given.

Their embedding of positions has the width first and then the height, ours the other way round: the channels of the
tokens change places, in every layer that reads or writes them, which changes nothing else.
"""

import math
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from ..networks.transformer import SIZES, positions
from .assumed import Assumptions
from .foreign import Foreign, Spec, discrete, read_tensors, spec, tensors
from .keys import Source, sources, swap_halves

STEPS = 1000
DECAY = 0.9999  # of the EMA weights, in both
POSITIONS = "pos_embed"
#: What latents are multiplied by, of which the published models are.
SCALE = 0.18215

ENDS = {
    "patch": "x_embedder.proj",
    "time.0": "t_embedder.mlp.0",
    "time.2": "t_embedder.mlp.2",
    "label.table": "y_embedder.embedding_table",
    "modulation": "final_layer.adaLN_modulation.1",
    "output": "final_layer.linear",
}
LAYERS = {
    "qkv": "attn.qkv",
    "project": "attn.proj",
    "mlp.0": "mlp.fc1",
    "mlp.2": "mlp.fc2",
    "modulation": "adaLN_modulation.1",
}
#: Which layers of a block, and of the ends, read tokens and which write them.
READS, WRITES = ("qkv", "mlp.0", "output"), ("project", "mlp.2", "modulation", "patch")


def read_dit(path: Path, trust_pickle: bool = False, heads: int | None = None) -> Foreign:
    """A checkpoint of DiT: noise prediction on the linear beta schedule of 1,000 steps, and a learned variance.

    Args:
        path: of the file.
        trust_pickle: See `foreign.read_tensors`; a training's file holds its options, and needs it.
        heads: Attention heads; None: those of the published size of this width and depth.
    """
    state, average, steps = _read(path, trust_pickle)
    network, shape, classes = _network(state, path, heads)
    outward = state["final_layer.linear.weight"].shape[0] // network["init_args"]["patch_size"] ** 2
    learned = outward == 2 * shape[0]
    network["init_args"]["learned_variance"] = learned
    sampler = spec(
        "samplers.Ancestral", grid=spec("samplers.RespacedGrid", steps=250), variance=None if learned else 0.0
    )
    schedule = spec("schedules.LinearBetas", steps=STEPS)
    model = discrete(network, schedule, STEPS, spec("denoisers.Epsilon"), spec("losses.SNR"), sampler)
    model["loss"]["init_args"]["dropout"] = {"label": 0.1}
    if learned:
        model["loss"]["init_args"]["variance"] = spec("losses.VarianceBound", steps=STEPS)
    convert = partial(_patches, outward=outward, kept=outward, sign=1.0)
    return _foreign(model, shape, classes, state, average, steps, convert, _note(classes, average, ""))


def read_sit(path: Path, trust_pickle: bool = False, heads: int | None = None) -> Foreign:
    """A checkpoint of SiT: velocity prediction on the linear path.

    Its time runs from noise to data, so that 1 − t is its input and −F our velocity; the second half of its output,
    which it does not use, is not taken.

    Args:
        path: of the file.
        trust_pickle: See `foreign.read_tensors`; a training's file holds its options, and needs it.
        heads: Attention heads; None: those of the published size of this width and depth.
    """
    state, average, steps = _read(path, trust_pickle)
    network, shape, classes = _network(state, path, heads)
    outward = state["final_layer.linear.weight"].shape[0] // network["init_args"]["patch_size"] ** 2
    model: Spec = {
        "network": network,
        "schedule": spec("schedules.Rectified"),
        "parameterization": spec("denoisers.Velocity", scaled_input=False),
        "noise_input": spec("denoisers.ScaledTime", scale=-1.0, shift=1.0),
        "loss": spec(
            "losses.DenoisingLoss",
            times=spec("losses.UniformTimes"),
            weighting=spec("losses.FlowMatching"),
            dropout={"label": 0.1},
        ),
        "sampler": spec("samplers.Heun", grid=spec("samplers.UniformGrid", steps=125)),
        "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-4, "weight_decay": 0.0}},
    }
    convert = partial(_patches, outward=outward, kept=shape[0], sign=-1.0)
    what = "it is taken for a model of the linear path and of the velocity, SiT's defaults; "
    return _foreign(model, shape, classes, state, average, steps, convert, _note(classes, average, what))


def _read(path: Path, trust_pickle: bool) -> tuple[dict[str, Tensor], dict[str, Tensor] | None, int | None]:
    """Raw weights, EMA weights if there are both, and the steps of the training, where the file's name says them."""
    content = read_tensors(path, trust_pickle)
    number = re.fullmatch(r"(\d{6,})", path.stem)
    steps = int(number[1]) if number else None
    if isinstance(content.get("model"), Mapping):
        average = content.get("ema")
        ema = None if average is None else tensors(average, "ema", path)
        return tensors(content["model"], "model", path), ema, steps
    return tensors(content, "state dict", path), None, steps


def _note(classes: int, average: Mapping[str, Tensor] | None, what: str) -> str:
    kind = "" if average is not None else "; its weights, EMA weights where published, are used as they are"
    return f"{what}the last of {classes + 1:,} label embeddings is taken for that of any class{kind}"


def _foreign(
    model: Spec,
    shape: tuple[int, ...],
    classes: int,
    state: dict[str, Tensor],
    average: dict[str, Tensor] | None,
    steps: int | None,
    convert: Callable[[Tensor], Tensor],
    note: str,
) -> Foreign:
    """What a file holds; convert: the rows of the last layer."""

    def name_map(ours: nn.Module) -> dict[str, Source]:
        depth = model["network"]["init_args"]["depth"]
        names = dict(ENDS)
        for k in range(depth):
            names |= {f"blocks.{k}.{layer}": f"blocks.{k}.{theirs}" for layer, theirs in LAYERS.items()}
        table = sources(names, ours)
        width = model["network"]["init_args"]["width"]
        for name, source in table.items():
            layer, _, leaf = re.sub(r"^blocks\.\d+\.", "", name).rpartition(".")
            table[name] = source._replace(convert=partial(_converted, layer=layer, leaf=leaf, width=width, out=convert))
        return table

    averages = {} if average is None else {DECAY: _without_positions(average)}
    return Foreign(
        model, shape, classes, name_map, _without_positions(state), averages, 0, steps, notes=(note,), scale=SCALE
    )


def _without_positions(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if name != POSITIONS}


def _converted(tensor: Tensor, layer: str, leaf: str, width: int, out: Callable[[Tensor], Tensor]) -> Tensor:
    """A tensor of theirs as ours."""
    if layer == "time.0" and leaf == "weight":
        return swap_halves(tensor)
    if layer == "patch" and leaf == "weight":
        tensor = tensor.flatten(1)
    if layer == "output":
        tensor = out(tensor)
    if layer in READS and leaf == "weight":
        tensor = swap_halves(tensor)
    if layer in WRITES:
        parts = tensor.unflatten(0, (-1, width))  # shifts, scales and gates of a modulation, one after the other
        tensor = torch.cat(parts.chunk(2, 1)[::-1], 1).flatten(0, 1)
    return tensor


def _patches(tensor: Tensor, outward: int, kept: int, sign: float) -> Tensor:
    """Rows (place in the patch, channel) -> (channel, place), of the first `kept` channels."""
    moved: Tensor = sign * tensor.unflatten(0, (-1, outward)).transpose(0, 1)[:kept].flatten(0, 1)
    return moved


def _network(state: Mapping[str, Tensor], path: Path, heads: int | None) -> tuple[Spec, tuple[int, int, int], int]:
    """The network's configuration but for its output, the shape of its data, and the number of classes.

    Raises:
        ValueError: no DiT or SiT, other positions than the fixed ones, or heads that are not known.
    """
    try:
        width, channels, patch, _ = state["x_embedder.proj.weight"].shape
        _, count, _ = state[POSITIONS].shape
        rows = state["y_embedder.embedding_table.weight"].shape[0]
        features = state["t_embedder.mlp.0.weight"].shape[1]
        hidden, outward = state["blocks.0.mlp.fc1.weight"].shape[0], state["final_layer.linear.weight"].shape[0]
    except KeyError as error:
        raise ValueError(f"{path}: {error.args[0]} is missing: no DiT or SiT") from error
    except (IndexError, ValueError) as error:
        raise ValueError(f"{path}: the first and last layers have wrong shapes: no DiT or SiT") from error
    side, numbers = math.isqrt(count), {int(n) for n in re.findall(r"\bblocks\.(\d+)\.", " ".join(state))}
    if side**2 != count or rows < 2 or features < 4 or outward % (patch**2) or not width or width % 4:
        raise ValueError(f"{path}: {count} places, {rows} label embeddings and width {width} are no DiT or SiT")
    if outward // patch**2 not in (channels, 2 * channels):
        raise ValueError(f"{path}: {channels} channels in and {outward / patch**2:g} out: no DiT or SiT")
    _check_positions(state[POSITIONS][0], side, width, path)
    depth, half = len(numbers), features // 2
    known = next((size.heads for size in SIZES.values() if (size.width, size.depth) == (width, depth)), None)
    assume = Assumptions(heads=heads)
    number = heads or known
    if number is None:
        raise ValueError(f"{path} does not show the number of attention heads: add --heads, such as --heads 16")
    if heads is not None and known is not None:
        assume.shown("heads", known, path)
    if width % number:
        raise ValueError(f"{path}: {width} channels cannot be divided into {number} heads: set --heads")
    network = spec(
        "networks.DiT",
        patch_size=patch,
        width=width,
        depth=depth,
        heads=number,
        mlp_ratio=hidden / width,
        time_features=features,
        # Frequencies 10⁴^(−i/half) are ours, P^(−i/(half − 1)), of another P.
        max_period=1e4 ** ((half - 1) / half),
    )
    return network, (channels, side * patch, side * patch), rows - 1


def _check_positions(given: Tensor, side: int, width: int, path: Path) -> None:
    """Raise ValueError unless the positions are the fixed ones, with the places along the width first."""
    grid = positions((side, side), width)
    first, second = grid.chunk(2, -1)
    expected = torch.cat((second, first), -1).flatten(0, 1)
    if given.shape != expected.shape or not torch.allclose(given.float(), expected, atol=1e-4):
        raise ValueError(f"{path}: {POSITIONS} are not the fixed positions of DiT, which alone are supported")
