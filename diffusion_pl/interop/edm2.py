"""EDM2's networks: the published network pickles, and state dicts of Precond, as our EDM2UNet.

A pickle says how its network was made; of a state dict the widths, depths, classes and where it attends are read, and
the rest is assumed as published.  Of the noise levels of training a file says nothing, but for snapshots of a run.

Reference: Karras et al., arXiv 2312.02696; the names are those of edm2's networks_edm2.py.
"""

import math
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..networks.edm2 import Block
from . import persistent
from .assumed import Assumptions
from .foreign import OPTIMIZER, Foreign, Spec, read_tensors, spec, tensors
from .keys import Source

LAYERS = {
    "conv_1": "conv_res0",
    "time": "emb_linear",
    "time_gain": "emb_gain",
    "conv_2": "conv_res1",
    "shortcut": "conv_skip",
    "qkv": "attn_qkv",
    "project": "attn_proj",
}
ENDS = {
    "waves.frequencies": "emb_fourier.freqs",
    "waves.phases": "emb_fourier.phases",
    "noise.weight": "emb_noise.weight",
    "label.weight": "emb_label.weight",
    "output.weight": "out_conv.weight",
    "gain": "out_gain",
}
#: What our network takes for granted, by the attribute of theirs.
HELD: dict[str, Any] = {
    "label_balance": 0.5,
    "concat_balance": 0.5,
    "res_balance": 0.3,
    "attn_balance": 0.3,
    "clip_act": 256,
    "resample_filter": [1, 1],
}
LICENSE = "NVIDIA's weights are licensed under CC BY-NC-SA 4.0: not for commercial use"


def names(size: int, depth: int, levels: int) -> dict[str, str]:
    """The blocks of `networks.EDM2UNet` -> those of theirs, which are named by their height."""
    sides = [f"{size >> level}x{size >> level}" for level in range(levels)]
    down: list[str] = []
    up: list[str] = []
    for level, side in enumerate(sides):
        down += [f"enc.{side}_down"] * (level > 0) + [f"enc.{side}_block{k}" for k in range(depth)]
    for level, side in reversed(list(enumerate(sides))):
        up += [f"dec.{side}_up"] * (level < levels - 1) + [f"dec.{side}_block{k}" for k in range(depth + 1)]
    table = {"stem": f"enc.{sides[0]}_conv"}
    table |= {f"middle.{k}": f"dec.{sides[-1]}_in{k}" for k in range(2)}
    table |= {f"down.{k}": name for k, name in enumerate(down)}
    return table | {f"up.{k}": name for k, name in enumerate(up)}


def read(
    path: Path,
    trust_pickle: bool = False,
    sigma_data: float | None = None,
    num_head_channels: int | None = None,
    dropout: float | None = None,
    p_mean: float | None = None,
    p_std: float | None = None,
) -> Foreign:
    """A network of EDM2.

    Args:
        path: of the file, a network pickle or a state dict.
        trust_pickle: of a state dict, see `foreign.read_tensors`; of a network pickle no code is run.
        sigma_data: Standard deviation of the data.
        num_head_channels: Channels of an attention head (channels_per_head).
        dropout: Of the training.
        p_mean, p_std: Of ln σ in the training.
    """
    assume = Assumptions(
        sigma_data=sigma_data, num_head_channels=num_head_channels, dropout=dropout, p_mean=p_mean, p_std=p_std
    )
    state, facts = _content(path, trust_pickle)
    network, shape, classes = _network(state, path)
    options = network["init_args"]
    attends = options.pop("attends")

    def known(option: str, fact: str, default: Any) -> Any:
        return assume.shown(option, facts[fact], path) if fact in facts else assume(option, default)

    options["dropout"] = float(known("dropout", "dropout", 0.0))
    options["head_channels"] = int(known("num_head_channels", "channels_per_head", 64))
    options["attn_resolutions"] = attends
    sigma = float(known("sigma_data", "sigma_data", 0.5))
    times = float(known("p_mean", "P_mean", -0.4)), float(known("p_std", "P_std", 1.0))
    blocks = names(shape[1], options["num_res_blocks"], len(options["ch_mult"]))
    notes = [*assume.notes(path), "the file holds EMA weights only; they are used as the raw weights too", LICENSE]
    if shape[0] == 4:
        notes.append(
            "latents of mean 0 and standard deviation 0.5, scaled by statistics of edm2, which our Latents are not: "
            "samples stay in these units"
        )
    return Foreign(
        _model(network, sigma, times), shape, classes, lambda ours: dict(_sources(ours, blocks)), state, {}, 0, None,
        notes=tuple(notes),
    )  # fmt: skip


def _content(path: Path, trust_pickle: bool) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of the network, without the uncertainty of training, and what else the file says.

    Raises:
        ValueError: no such file, or a network of other options than ours.
    """
    facts: dict[str, Any] = {}
    if path.suffix == ".pkl" and not (path.is_file() and zipfile.is_zipfile(path)):
        content = persistent.read(path)
        if "ema" not in content:
            raise ValueError(f"{path} holds {', '.join(map(str, content))}, expected a network under the name ema")
        loss = content.get("loss_fn")
        parts = [*persistent.modules(content["ema"]), *persistent.modules(loss)]
        for part in parts:
            for name, value in HELD.items():
                if name in part and part[name] != value:
                    raise ValueError(f"{path}: {name} is {part[name]}, only networks with {value} are supported")
            facts |= {name: part[name] for name in ("sigma_data", "dropout", "P_mean", "P_std") if name in part}
            if part.get("num_heads"):
                facts["channels_per_head"] = part["out_channels"] // part["num_heads"]
        state = dict(persistent.tensors(content["ema"]))
    else:
        state = tensors(read_tensors(path, trust_pickle), "state dict", path)
    state = {name.removeprefix("unet."): tensor for name, tensor in state.items() if not name.startswith("logvar_")}
    return state, facts


def _network(state: Mapping[str, Tensor], path: Path) -> tuple[Spec, tuple[int, int, int], int | None]:
    """The network's configuration (with the heights that attend as `attends`), shape of the data, and classes."""
    stem = next((m for name in state if (m := re.fullmatch(r"enc\.(\d+)x\1_conv\.weight", name))), None)
    if stem is None:
        raise ValueError(f"{path}: no tensor enc.NxN_conv.weight: no network of EDM2")
    size = int(stem[1])
    sides = [size >> level for level in range(size.bit_length()) if _width(state, size >> level) is not None]
    depth = sum(re.fullmatch(rf"enc\.{size}x{size}_block\d+\.conv_res1\.weight", name) is not None for name in state)
    widths = [_width(state, side) for side in sides]
    nf = math.gcd(*(width for width in widths if width))
    if depth < 1 or "out_conv.weight" not in state:
        raise ValueError(f"{path}: no blocks at {size}x{size}, or no out_conv: no network of EDM2")
    classes = state["emb_label.weight"].shape[1] if "emb_label.weight" in state else None
    network = spec(
        "networks.EDM2UNet",
        nf=nf,
        ch_mult=[width // nf for width in widths if width],
        num_res_blocks=depth,
        attends=[side for side in sides if f"enc.{side}x{side}_block0.attn_qkv.weight" in state],
    )
    return network, (state["out_conv.weight"].shape[0], size, size), classes


def _width(state: Mapping[str, Tensor], side: int) -> int | None:
    """Channels of the level of a height; None: there is none."""
    weight = state.get(f"enc.{side}x{side}_block0.conv_res1.weight")
    return None if weight is None or weight.ndim < 1 else weight.shape[0]


def _model(network: Spec, sigma_data: float, times: Sequence[float]) -> Spec:
    """The configuration of a model, with the sampler of the paper."""
    ends = {"sigma_min": 0.002, "sigma_max": 80.0}
    return {
        "network": network,
        "schedule": spec("schedules.Karras", **ends),
        "parameterization": spec("denoisers.EDM", sigma_data=sigma_data),
        "noise_input": spec("denoisers.LogSNR", scale=-0.125),
        "loss": spec(
            "losses.DenoisingLoss",
            times=spec("losses.LogNormalTimes", mean=times[0], std=times[1]),
            weighting=spec("losses.Plain"),
        ),
        "sampler": spec("samplers.Heun", grid=spec("samplers.KarrasGrid", steps=32, **ends, rho=7.0)),
        "optimizer": OPTIMIZER,
    }


def _sources(ours: nn.Module, blocks: Mapping[str, str]) -> Iterator[tuple[str, Source]]:
    """Where each tensor of ours comes from; their frequencies and phases are in radians."""
    for name in ours.state_dict():
        if name in ENDS:
            yield name, Source(ENDS[name], _cycles if name.startswith("waves.") else _same)
            continue
        block = next(block for block in (name.rpartition(".")[0], ".".join(name.split(".")[:2])) if block in blocks)
        layer, _, leaf = name.removeprefix(f"{block}.").partition(".")
        theirs = f"{blocks[block]}.{LAYERS.get(layer, layer)}{f'.{leaf}' if leaf else ''}"
        module = ours.get_submodule(block)
        heads = module.heads if isinstance(module, Block) and layer == "qkv" else 0
        yield name, Source(theirs, partial(_by_kind, heads=heads) if heads else _same)


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _cycles(radians: Tensor) -> Tensor:
    return radians.double() / (2 * math.pi)


def _by_kind(weight: Tensor, heads: int) -> Tensor:
    """Rows (heads, channels of a head, 3) -> (3, heads, channels of a head)."""
    parts: Tensor = weight.unflatten(0, (heads, -1, 3))
    return parts.movedim(2, 0).flatten(0, 2)
