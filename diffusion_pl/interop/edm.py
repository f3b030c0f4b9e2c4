"""EDM's networks: the published network pickles, and state dicts of EDMPrecond, as our NCSNpp or UNet.

SongUNet, without classes, is DDPM++ or NCSN++; DhariwalUNet is ADM's.  Networks of other preconditionings (VPPrecond,
VEPrecond, iDDPMPrecond), with which EDM's authors repeat older work, are refused.

Reference: Karras et al., arXiv 2206.00364; the names are those of edm's training/networks.py.
"""

import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from ..networks.resnet import AttentionBlock
from . import persistent
from .assumed import Assumptions
from .edm2 import LICENSE
from .foreign import OPTIMIZER, Foreign, Spec, read_tensors, spec, tensors
from .keys import Source, sources, swap_halves, with_a_row_of_zeros
from .layouts import ATTENTION, RES, unet

#: The layers of a block: ours -> theirs.
LAYERS = {
    **dict(zip(RES, ("norm0", "conv0", "affine", "norm1", "conv1", "skip"), strict=True)),
    **dict(zip(ATTENTION, ("norm2", "qkv", "qkv", "qkv", "proj"), strict=True)),
    "conv": "",  # of the input pyramid, itself a convolution
}
QKV = ("query", "key", "value")
TIME = {"time.dense_1": "map_layer0", "time.dense_2": "map_layer1"}


class Layout(NamedTuple):
    """What the tensors show: channels and height, channels of the levels in units of nf, blocks of a level, which
    levels attend, whether it is ADM's, and of others taps of the filter, Fourier features, a residual input pyramid."""

    channels: int
    size: int
    nf: int
    ch_mult: list[int]
    depth: int
    attends: list[bool]
    adm: bool
    filtered: bool
    fourier: bool
    pyramid: bool

    @property
    def sides(self) -> list[str]:
        """The names of the levels."""
        return [f"{self.size >> level}x{self.size >> level}" for level in range(len(self.ch_mult))]


def read(
    path: Path,
    trust_pickle: bool = False,
    sigma_data: float | None = None,
    num_head_channels: int | None = None,
    dropout: float | None = None,
    p_mean: float | None = None,
    p_std: float | None = None,
) -> Foreign:
    """A network of EDM.

    Args:
        path: of the file, a network pickle or a state dict.
        trust_pickle: of a state dict, see `foreign.read_tensors`; of a network pickle no code is run.
        sigma_data: Standard deviation of the data.
        num_head_channels: Channels of an attention head of ADM's (channels_per_head).
        dropout: Of the training.
        p_mean, p_std: Of ln σ in the training.
    """
    assume = Assumptions(
        sigma_data=sigma_data, num_head_channels=num_head_channels, dropout=dropout, p_mean=p_mean, p_std=p_std
    )
    state, facts = _content(path, trust_pickle)
    layout = _layout(state, path)
    known = partial(_known, assume, facts, path)
    classes = state["map_label.weight"].shape[1] if "map_label.weight" in state else None
    options: dict[str, Any] = {"dropout": float(known("dropout", "dropout", 0.1))}
    notes = ["the file holds EMA weights only; they are used as the raw weights too", LICENSE]
    if layout.adm:
        options["head_channels"] = int(assume("num_head_channels", 64))
        if state.pop("map_augment.weight", None) is not None:
            notes.append("map_augment is skipped: it is for augmented images in training")
    elif classes is not None:
        raise ValueError(f"{path}: a SongUNet with classes, whose embedding our NCSNpp does not have, is not supported")
    else:
        options["augment_dim"] = state["map_augment.weight"].shape[1] if "map_augment.weight" in state else 0
    sigma = float(known("sigma_data", "sigma_data", 0.5))
    times = float(known("p_mean", "P_mean", -1.2)), float(known("p_std", "P_std", 1.2))
    model = _model(_network(layout, options), layout.size, sigma, times)
    shape = layout.channels, layout.size, layout.size
    notes = [*assume.notes(path), *notes]
    return Foreign(model, shape, classes, lambda ours: _sources(ours, layout), state, {}, 0, None, notes=tuple(notes))


def _known(assume: Assumptions, facts: Mapping[str, Any], path: Path, option: str, fact: str, default: Any) -> Any:
    """What the file says, or else what the user gave, or the default."""
    return assume.shown(option, facts[fact], path) if fact in facts else assume(option, default)


def _content(path: Path, trust_pickle: bool) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of the network but for its filters, and what else the file says.

    Raises:
        ValueError: no such file, or another preconditioning.
    """
    facts: dict[str, Any] = {}
    if path.suffix == ".pkl":
        content = persistent.read(path)
        network = content.get("ema")
        if not isinstance(network, persistent.Shell):
            raise ValueError(f"{path} holds {', '.join(map(str, content))}, expected a network under the name ema")
        if network.kind != "EDMPrecond":
            raise ValueError(f"{path}: {network.kind or 'a network without a class'}, only EDMPrecond is supported")
        for part in (*persistent.modules(network), *persistent.modules(content.get("loss_fn"))):
            facts |= {name: part[name] for name in ("sigma_data", "dropout", "P_mean", "P_std") if name in part}
        state = dict(persistent.tensors(network))
    else:
        state = tensors(read_tensors(path, trust_pickle), "state dict", path)
    return {name.removeprefix("model."): tensor for name, tensor in state.items()}, facts


def _layout(state: dict[str, Tensor], path: Path) -> Layout:
    """What the tensors show; those of the filters are taken out.

    Raises:
        ValueError: no network of EDM, or one with an encoder, decoder or filter that ours do not have.
    """
    stem = next((m for name in state if (m := re.fullmatch(r"enc\.(\d+)x\1_conv\.weight", name))), None)
    if stem is None or "map_layer0.weight" not in state:
        raise ValueError(f"{path}: no tensors enc.NxN_conv.weight and map_layer0.weight: no network of EDM")
    filters = [state.pop(name) for name in list(state) if name.endswith(".resample_filter")]
    size, nf = int(stem[1]), state["map_layer0.weight"].shape[0] // 4
    widths = {}
    for level in range(size.bit_length()):
        weight = state.get(f"enc.{size >> level}x{size >> level}_block0.conv1.weight")
        if weight is not None:
            widths[size >> level] = weight.shape[0]
    depth = sum(re.fullmatch(rf"enc\.{size}x{size}_block\d+\.conv1\.weight", name) is not None for name in state)
    if depth < 1 or nf < 4 or any(width % nf for width in widths.values()):
        raise ValueError(f"{path}: levels of {list(widths.values())} channels are no multiples of {nf}")
    if any("_aux_skip" in name or "_aux_up" in name for name in state):
        raise ValueError(f"{path}: encoder_type and decoder_type skip are not supported")
    filtered = any(f.shape[-1] == 4 for f in filters)
    if any(f.shape[-1] not in (2, 4) for f in filters):
        raise ValueError(f"{path}: a resample_filter of {filters[0].shape[-1]} taps is not supported")
    return Layout(
        channels=state[stem[0]].shape[1],
        size=size,
        nf=nf,
        ch_mult=[width // nf for width in widths.values()],
        depth=depth,
        attends=[f"enc.{side}x{side}_block0.qkv.weight" in state for side in widths],
        adm="out_conv.weight" in state,
        filtered=filtered,
        fourier="map_noise.freqs" in state,
        pyramid=any("_aux_residual" in name for name in state),
    )


def _network(layout: Layout, options: Mapping[str, Any]) -> Spec:
    """The configuration of our network."""
    shared = {
        "nf": layout.nf,
        "ch_mult": layout.ch_mult,
        "num_res_blocks": layout.depth,
        "attn_resolutions": [layout.size >> level for level, attend in enumerate(layout.attends) if attend],
        **options,
    }
    half = layout.nf // 2
    if layout.adm:
        # Frequencies 10⁴^(−i/half) are ours, P^(−i/(half − 1)), of another P.
        positions = spec("networks.Sinusoidal", features=layout.nf, max_period=1e4 ** ((half - 1) / half))
        held = {"resample_blocks": True, "time_scales": True, "norm_eps": 1e-5, "time_embedding": positions}
        return spec("networks.UNet", **shared, **held)
    waves = spec("networks.Fourier", features=2 * layout.nf, scale=16.0)
    return spec(
        "networks.NCSNpp",
        **shared,
        fir=layout.filtered,
        progressive_input="residual" if layout.pyramid else "none",
        **({"time_embedding": waves} if layout.fourier else {}),
    )


def _model(network: Spec, size: int, sigma_data: float, times: tuple[float, float]) -> Spec:
    """The configuration of a model, with the deterministic sampler of the paper: 18 steps for 32x32, else 40."""
    ends = {"sigma_min": 0.002, "sigma_max": 80.0}
    grid = spec("samplers.KarrasGrid", steps=18 if size <= 32 else 40, **ends, rho=7.0)
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
        "sampler": spec("samplers.Heun", grid=grid),
        "optimizer": OPTIMIZER,
    }


def _blocks(layout: Layout) -> Iterator[tuple[str, str]]:
    """The blocks of our network -> those of theirs, which are named by their height."""
    sides, last = layout.sides, len(layout.sides) - 1
    for part in unet(layout.depth, layout.attends, every_block=layout.adm):
        side, place = sides[part.level], last - part.level
        if part.way == "middle":
            yield part.name, f"dec.{side}_in{part.row // 2}"
        elif part.kind == "resample":
            level, number, lists = (
                (part.level + 1, f"{part.level}.{layout.depth}", "enc.{}_down")
                if part.way == "down"
                else (part.level - 1, f"{place}.{layout.depth + 1}", "dec.{}_up")
            )
            yield part.name if layout.adm else f"{part.way}.{number}.0", lists.format(sides[level])
        else:
            list_of, level = ("enc", part.level) if part.way == "down" else ("dec", place)
            ours = f"{part.way}.{level}.{part.number}.{int(part.kind == 'attention')}"
            yield part.name if layout.adm else ours, f"{list_of}.{side}_block{part.number}"
    if layout.pyramid:
        yield from ((f"input_pyramid.{level}", f"enc.{sides[level + 1]}_aux_residual") for level in range(last))


def _sources(ours: nn.Module, layout: Layout) -> dict[str, Source]:
    """The map of names."""
    top = layout.sides[0]
    norm, output = ("out_norm", "out_conv") if layout.adm else (f"dec.{top}_aux_norm", f"dec.{top}_aux_conv")
    modules = {**TIME, "stem": f"enc.{top}_conv", "norm": norm, "output": output, "label.table": "map_label"}
    modules |= {"time.extra": "map_augment", "time.embedding": "map_noise"}
    for block, theirs in _blocks(layout):
        modules |= {f"{block}.{layer}": f"{theirs}.{name}".strip(".") for layer, name in LAYERS.items()}
    table = sources(modules, ours)
    for name, source in table.items():
        block, _, layer = name.rpartition(".")[0].rpartition(".")
        if layer in QKV:
            attention = ours.get_submodule(block)
            assert isinstance(attention, AttentionBlock)
            table[name] = source._replace(convert=partial(_part, number=QKV.index(layer), heads=attention.heads))
    if layout.adm:
        table["time.dense_1.weight"] = table["time.dense_1.weight"]._replace(convert=swap_halves)
    if "label.table.weight" in table:
        table["label.table.weight"] = Source("map_label.weight", _vectors)
    if "time.embedding.frequencies" in table:
        table["time.embedding.frequencies"] = Source("map_noise.freqs")
    return table


def _vectors(weight: Tensor) -> Tensor:
    return with_a_row_of_zeros(weight.T)


def _part(weight: Tensor, number: int, heads: int) -> Tensor:
    """Queries, keys or values of a layer whose rows are (heads, channels of a head, 3)."""
    part: Tensor = weight.unflatten(0, (heads, -1, 3)).select(2, number).flatten(0, 1)
    return part
