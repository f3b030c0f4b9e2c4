"""checkpoint.pth of score_sde_pytorch: DDPM, DDPM++ and NCSN++ (Song et al., arXiv 2011.13456).

The file holds no configuration, and its network is one list, all_modules.N, in the order in which the blocks run.
Widths, depths and where it attends are read from the kinds of blocks along that list, the noise levels of VE from the
buffer `sigmas`.  Which process a network without Fourier features was trained on is not in the file.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn

from .foreign import OPTIMIZER, Foreign, Spec, discrete, picture_shape, read_tensors, spec
from .keys import Source, sources
from .layouts import ATTENTION, RES, unet

Variant = Literal["ddpm", "vp", "subvp", "ve"]

_BLOCK = ("GroupNorm_0", "Conv_0", "Dense_0", "GroupNorm_1", "Conv_1")
#: The layers of a block: ours -> theirs.
LAYERS: dict[str, dict[str, str]] = {
    "res": dict(zip(RES, (*_BLOCK, "NIN_0"), strict=True)),
    "biggan": dict(zip(RES, (*_BLOCK, "Conv_2"), strict=True)),
    "attention": dict(zip(ATTENTION, ("GroupNorm_0", "NIN_0", "NIN_1", "NIN_2", "NIN_3"), strict=True)),
    "combine": {"conv": "Conv"},
    "resample": {"conv": "Conv_0"},
    "fir": {"conv": "Conv2d_0"},
}
#: A tensor that only this kind of block has, or that those above have too.
KINDS = {
    "NIN_3.W": "attention",
    "GroupNorm_1.weight": "res",
    "Conv.weight": "combine",
    "Conv_0.weight": "resample",
    "Conv2d_0.weight": "fir",
    "W": "fourier",
}
LIST = "all_modules."
BETAS = 0.1, 20.0  # of VP and sub-VP per unit of time, in all published configurations
STEPS = 1000


class Block(NamedTuple):
    """An entry of all_modules: its kind (a key of LAYERS, "fourier", "norm", "dense", "conv", or "" for a block without
    tensors), and the channels that a residual block takes and gives."""

    kind: str
    taken: int = 0
    width: int = 0
    resamples: bool = False


def read(
    path: Path, trust_pickle: bool = False, size: list[int] | None = None, variant: Variant | None = None
) -> Foreign:
    """A checkpoint of score_sde_pytorch.

    Args:
        path: of the file.
        trust_pickle: See `foreign.read_tensors`.
        size: Sides of the pictures.
        variant: Process: ddpm (the chain of discrete steps), vp, subvp, or ve; None: as the file tells.
    """
    content = read_tensors(path, trust_pickle)
    parts = content.get("model"), content.get("ema")
    if not all(isinstance(part, Mapping) for part in parts) or "shadow_params" not in content["ema"]:
        raise ValueError(
            f"{path} is no checkpoint of score_sde_pytorch: it needs model, ema (with shadow_params) and step, and has "
            f"{', '.join(map(str, list(content)[:10]))}"
        )
    prefix = "module." if all(name.startswith("module.") for name in content["model"]) else ""  # of DataParallel
    state: dict[str, Tensor] = {name.removeprefix(prefix): tensor for name, tensor in content["model"].items()}
    sigmas = state.pop("sigmas", None)
    blocks = _blocks(state)
    fourier = blocks[:1] == [Block("fourier")]
    start = 1 if fourier else 0
    if [block.kind for block in blocks[start : start + 3]] != ["dense", "dense", "conv"]:
        raise ValueError(f"{path}: {prefix}{LIST}{start} … are not the beginning of a DDPM, DDPM++ or NCSN++")
    nf, channels = state[f"{LIST}{start + 2}.weight"].shape[:2]
    shape = picture_shape(channels, size, path)
    variant = variant or ("ve" if fourier else None)
    if variant is None:
        raise ValueError(f"{path} does not tell the process: add --variant ddpm (discrete steps), vp, subvp or ve")
    if (variant == "ve") != fourier:
        raise ValueError(f"variant {variant}: {path} has {'' if fourier else 'no '}Fourier features, those are ve's")
    network, names = _network(blocks, start, nf, shape, path)

    def wanted(ours: nn.Module) -> dict[str, Source]:
        found = {}
        for number, (block, name) in enumerate(zip(blocks, names, strict=True)):
            for layer, theirs in LAYERS.get(block.kind, {"": ""}).items():
                found[f"{name}.{layer}".strip(".")] = f"{LIST}{number}.{theirs}".strip(".")
        return {name: _in_file(source) for name, source in sources(found, ours).items()}

    ema, notes = content["ema"], []
    if variant != "ve":
        notes.append(f"β runs from {BETAS[0]} to {BETAS[1]}, as in the published configurations")
    trained = [name for name in state if not (fourier and name == f"{LIST}0.W")]  # the frequencies are fixed
    listed = ema["shadow_params"]
    if len(listed) != len(trained):
        raise ValueError(f"{path}: ema.shadow_params lists {len(listed)} tensors, the network has {len(trained)}")
    return Foreign(
        _model(variant, network, sigmas, path),
        shape,
        None,
        wanted,
        state,
        {float(ema["decay"]): {**state, **dict(zip(trained, listed, strict=True))}},
        int(ema.get("num_updates") or 0),
        int(content.get("step", 0)),
        prefix,
        tuple(notes),
    )


def _in_file(source: Source) -> Source:
    """Their 1x1 layers keep W: (in, out) and b; the Fourier features W."""
    module, _, leaf = source.name.rpartition(".")
    if leaf == "frequencies":
        return Source(f"{module}.W")
    if module.rpartition(".")[2].startswith("NIN_"):
        return Source(f"{module}.W", _transposed) if leaf == "weight" else Source(f"{module}.b")
    return source


def _transposed(weight: Tensor) -> Tensor:
    return weight.T


def _blocks(state: Mapping[str, Tensor]) -> list[Block]:
    """The entries of all_modules, those without tensors among them."""
    tensors: dict[int, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        found = re.fullmatch(rf"{LIST}(\d+)\.(.+)", name)
        if found:
            tensors.setdefault(int(found[1]), {})[found[2]] = tensor
    biggan = any(block.keys() >= {"GroupNorm_1.weight", "Conv_2.weight"} for block in tensors.values())
    return [_block(tensors.get(number, {}), biggan) for number in range(max(tensors, default=-1) + 1)]


def _block(tensors: Mapping[str, Tensor], biggan: bool) -> Block:
    kind = next((kind for tensor, kind in KINDS.items() if tensor in tensors), "")
    if kind == "res" and "Conv_0.weight" in tensors:
        width, taken = tensors["Conv_0.weight"].shape[:2]
        # A block that halves or doubles the sides has a shortcut, though its channels stay.
        return Block("biggan" if biggan else "res", taken, width, width == taken and "Conv_2.weight" in tensors)
    if not kind and "weight" in tensors:
        kind = {1: "norm", 2: "dense", 4: "conv"}.get(tensors["weight"].ndim, "")
    return Block(kind)


def _network(
    blocks: Sequence[Block], start: int, nf: int, shape: tuple[int, int, int], path: Path
) -> tuple[Spec, list[str]]:
    """The network's configuration, and the module of ours that each block is ("" for blocks without tensors)."""
    kinds = [block.kind for block in blocks]
    biggan, fourier = "biggan" in kinds, start == 1
    plain = [i for i, b in enumerate(blocks) if b.kind in ("res", "biggan") and not b.resamples]
    between = [b for b in blocks if b.resamples or (not biggan and b.kind in ("resample", "fir", ""))]
    levels = len(between) // 2 + 1
    depth, rest = divmod(len(plain) - 2 - levels, 2 * levels)
    if rest or depth < 1 or not all(blocks[i].width for i in plain):
        raise ValueError(f"{path}: {len(plain)} residual blocks on {levels} levels are no DDPM, DDPM++ or NCSN++")
    firsts = [plain[level * depth] for level in range(levels)]
    attends = [kinds[i + 1] == "attention" for i in firsts]
    options: dict[str, Any] = {
        "nf": nf,
        "ch_mult": [blocks[i].width // nf for i in firsts],
        "num_res_blocks": depth,
        "attn_resolutions": [shape[1] >> level for level, attend in enumerate(attends) if attend],
    }
    names = [*(["time.embedding"] if fourier else []), "time.dense_1", "time.dense_2", "stem"]
    if biggan:
        middle = plain[levels * depth]
        below = "combine" in kinds[:middle], {"resample", "fir"} & set(kinds[:middle])
        above = {"resample", "fir"} & set(kinds[middle:]), kinds.count("norm") > 1
        doubled = levels > 1 and blocks[firsts[1]].taken == 2 * blocks[firsts[0]].width
        options |= {
            "fir": fourier or below[0] or "fir" in kinds,
            "progressive_input": "input_skip" if below[0] else "residual" if below[1] else "none",
            "progressive": "residual" if above[0] else "output_skip" if above[1] else "none",
            "progressive_combine": "cat" if doubled else "sum",
            "scale_by_sigma": fourier,
        }
        names += _ncsnpp(depth, attends, options["progressive_input"], options["progressive"])
        class_name = "NCSNpp"
    else:
        options |= {"up_attention": "once_per_level", "resamp_with_conv": "" not in kinds, "groups": 32}
        names += [part.name for part in unet(depth, attends, every_block=False)]
        class_name = "UNet"
    if not (biggan and options["progressive"] == "output_skip"):
        names += ["norm", "output"]
    if len(names) != len(blocks):
        raise ValueError(f"{path}: {len(blocks)} modules, where a {class_name} of {options} has {len(names)}")
    if fourier:
        options["time_embedding"] = spec("networks.Fourier", features=2 * nf, scale=16.0)
    return spec(f"networks.{class_name}", **options), names


def _ncsnpp(depth: int, attends: Sequence[bool], progressive_input: str, progressive: str) -> Iterator[str]:
    """The blocks of `networks.NCSNpp` between stem and last norm in the order in which they run."""
    last = len(attends) - 1
    for level, attending in enumerate(attends):
        for number in range(depth):
            yield f"down.{level}.{number}.0"
            if attending:
                yield f"down.{level}.{number}.1"
        if level < last:
            yield f"down.{level}.{depth}.0"
            if progressive_input == "input_skip":
                yield ""
            if progressive_input != "none":
                yield f"input_pyramid.{level}"
    yield from ("middle.0", "middle.1", "middle.2")
    for place, attending in enumerate(reversed(attends)):
        for number in range(depth + 1):
            yield f"up.{place}.{number}.0"
        if attending:
            yield f"up.{place}.{depth}.1"
        if progressive == "output_skip" and place > 0:
            yield ""
        if progressive == "output_skip" or (progressive == "residual" and place == 0):
            yield from (f"output_pyramid.{place}.0", f"output_pyramid.{place}.1")
        elif progressive == "residual":
            yield f"output_pyramid.{place}"
        if place < last:
            yield f"up.{place}.{depth + 1}.0"


def _model(variant: Variant, network: Spec, sigmas: Tensor | None, path: Path) -> Spec:
    """The configuration of the model; ours are of pictures in [−1, 1], theirs for VE in [0, 1]."""
    steps = STEPS if sigmas is None else len(sigmas)
    if variant == "ddpm":
        schedule = spec("schedules.LinearBetas", steps=steps, beta_min=BETAS[0] / steps, beta_max=BETAS[1] / steps)
        sampler = spec("samplers.Ancestral", grid=spec("grids.UniformGrid", steps=steps), variance=1.0)
        weighting = spec("weightings.SNR")
        return discrete(network, schedule, steps, spec("parameterizations.Epsilon"), weighting, sampler)
    model = {
        "network": network,
        "loss": {"times": spec("times.UniformTimes"), "weighting": spec("weightings.SNR")},
        "optimizer": OPTIMIZER,
    }
    if variant == "ve":
        if sigmas is None:
            raise ValueError(f"{path} holds no sigmas, which tell the noise levels of ve")
        ends = {"sigma_min": 2 * float(sigmas.min()), "sigma_max": 2 * float(sigmas.max())}
        return model | {
            "schedule": spec("schedules.VE", **ends),
            "parameterization": spec("parameterizations.Score", unit=2.0, scaled_input=False),
            "noise_input": spec("denoiser.LogSNR", scale=-0.5, shift=-math.log(2)),
            "sampler": spec("samplers.PredictorCorrector", grid=spec("grids.UniformGrid", steps=steps, t_min=1e-5)),
        }
    kind = {"vp": "VP", "subvp": "SubVP"}[variant]
    return model | {
        "schedule": spec(f"schedules.{kind}", beta_min=BETAS[0], beta_max=BETAS[1]),
        "parameterization": spec("parameterizations.Epsilon", scaled_input=variant != "subvp"),
        "noise_input": spec("denoiser.ScaledTime", scale=999.0),
        "sampler": spec("samplers.EulerMaruyama", grid=spec("grids.UniformGrid", steps=steps, t_min=1e-3)),
    }
