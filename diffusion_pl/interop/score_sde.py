"""checkpoint.pth of score_sde_pytorch: DDPM, DDPM++ and NCSN++ (Song et al., arXiv 2011.13456).

The file holds no configuration.  What the list of its modules shows is read from it (`score_sde_blocks`), the noise
levels of VE and the number of steps from the buffer `sigmas`, the EMA decay from the file.  What is left,
such as the noise schedule of a network without Fourier features, is an option, or as in the published configurations.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..networks.resnet import Activation
from .assumed import Assumptions
from .foreign import MOST_STEPS, OPTIMIZER, Foreign, Spec, discrete, image_shape, read_tensors, spec, tensors, whole
from .keys import Source, sources
from .layouts import ATTENTION, RES
from .score_sde_blocks import LIST, Layout, layout, modules

Variant = Literal["ddpm", "vp", "subvp", "ve"]

_BLOCK = ("GroupNorm_0", "Conv_0", "Dense_0", "GroupNorm_1", "Conv_1")
#: The layers of a block: ours -> theirs.
LAYERS: dict[str, dict[str, str]] = {
    "res": dict(zip(RES, (*_BLOCK, "NIN_0"), strict=True)),
    "biggan": dict(zip(RES, (*_BLOCK, "Conv_2"), strict=True)),
    "attention": dict(zip(ATTENTION, ("GroupNorm_0", "NIN_0", "NIN_1", "NIN_2", "NIN_3"), strict=True)),
    "combine": {"conv": "Conv_0"},
    "resample": {"conv": "Conv_0"},
    "fir": {"conv": "Conv2d_0"},
}
FREQUENCIES = f"{LIST}0.W"  # of the Fourier features, which come first
STEPS = 1000  # num_scales, where the file does not even hold sigmas


def read(
    path: Path,
    trust_pickle: bool = False,
    size: list[int] | None = None,
    variant: Variant | None = None,
    beta_min: float | None = None,
    beta_max: float | None = None,
    centered: bool | None = None,
    scale_by_sigma: bool | None = None,
    skip_rescale: bool | None = None,
    nonlinearity: Activation | None = None,
    fir: bool | None = None,
    fir_kernel: list[float] | None = None,
    dropout: float | None = None,
    snr: float | None = None,
) -> Foreign:
    """A checkpoint of score_sde_pytorch.

    Args:
        path: of the file.
        trust_pickle: See `foreign.read_tensors`.
        size: Height and width of the images.
        variant: Schedule: ddpm (vpsde with continuous false), vp, subvp or ve; None: ve if there are Fourier features.
        beta_min, beta_max: Of vpsde and subvpsde per unit of time.
        centered: Whether its images are in [−1, 1] and not in [0, 1].
        scale_by_sigma, skip_rescale, nonlinearity, fir, fir_kernel, dropout: Of config.model.
        snr: Of the Langevin corrector of ve.
    """
    content = read_tensors(path, trust_pickle)
    parts = content.get("model"), content.get("ema")
    if not all(isinstance(part, Mapping) for part in parts) or "shadow_params" not in content["ema"]:
        raise ValueError(
            f"{path} is no checkpoint of score_sde_pytorch: it needs model, ema (with shadow_params) and step, and has "
            f"{', '.join(map(str, list(content)[:10]))}"
        )
    named, ema = tensors(content["model"], "model", path), content["ema"]
    prefix = "module." if all(name.startswith("module.") for name in named) else ""  # of DataParallel
    state = {name.removeprefix(prefix): tensor for name, tensor in named.items()}
    sigmas = state.pop("sigmas", None)
    if sigmas is not None and not (sigmas.ndim == 1 and 2 <= len(sigmas) <= MOST_STEPS):
        raise ValueError(f"{path}: sigmas must be a row of 2 to {MOST_STEPS:,} numbers, got {tuple(sigmas.shape)}")
    if not any(name.startswith(LIST) for name in state):
        raise ValueError(f"{path}: no DDPM, DDPM++ or NCSN++ of score_sde_pytorch; NCSN and NCSNv2 are not supported")
    architecture = layout(state, path, prefix)
    shape = image_shape(architecture.channels, size, path)
    variant = variant or ("ve" if architecture.fourier else None)
    if variant is None:
        raise ValueError(
            f"{path} does not show the noise schedule: add --variant ddpm (discrete steps), vp, subvp or ve"
        )
    if architecture.fourier and variant != "ve":
        raise ValueError(f"variant {variant}: {path} has Fourier features, those are supported for ve only")

    assume = Assumptions(
        beta_min=beta_min,
        beta_max=beta_max,
        centered=centered,
        scale_by_sigma=scale_by_sigma,
        skip_rescale=skip_rescale,
        nonlinearity=nonlinearity,
        fir=fir,
        fir_kernel=fir_kernel,
        dropout=dropout,
        snr=snr,
    )
    in_full_range = assume("centered", variant != "ve")
    scaled = assume("scale_by_sigma", variant == "ve")
    if variant != "ve" and (scaled or not in_full_range):
        raise ValueError(f"variant {variant} is supported with --centered true --scale_by_sigma false only")
    rescaled = assume("skip_rescale", not architecture.plain)
    ddpm = architecture.plain and not rescaled
    if ddpm:
        network = _unet(architecture, shape, assume)
    else:
        network = _ncsnpp(architecture, shape, assume, rescaled, scaled, path)
    if variant == "ve":
        unit = 1.0 if in_full_range else 2.0
        model = _exploding(network, architecture.fourier, _levels(sigmas, path), unit, scaled, assume("snr", 0.16))
    else:
        betas = assume("beta_min", 0.1), assume("beta_max", 20.0)
        model = _preserving(network, variant, STEPS if sigmas is None else len(sigmas), betas)

    decay, average = _average(ema, state, architecture, path)
    idle = set() if architecture.conditional else {n for n in state if ".Dense_0." in n or n == FREQUENCIES}
    negated = variant == "ve" and scaled and not architecture.fourier
    return Foreign(
        model,
        shape,
        None,
        lambda ours: _sources(architecture, ddpm, negated, ours),
        {name: tensor for name, tensor in state.items() if name not in idle},
        {decay: {name: tensor for name, tensor in average.items() if name not in idle}},
        whole(ema.get("num_updates"), "ema.num_updates", path),
        whole(content.get("step"), "step", path),
        prefix,
        tuple(assume.notes(path)),
    )


def _average(
    ema: Mapping[str, Any], state: Mapping[str, Tensor], architecture: Layout, path: Path
) -> tuple[float, dict[str, Tensor]]:
    """The decay of the EMA weights, and those: frequencies that are not trained are as in the raw weights.

    Raises:
        ValueError: the file has another number of them than the network, or no decay.
    """
    listed = ema["shadow_params"]
    trained = [name for name in state if not (architecture.fourier and name == FREQUENCIES)]
    if not isinstance(listed, (list, tuple)) or len(listed) != len(trained):
        count = len(listed) if isinstance(listed, (list, tuple)) else "no"
        raise ValueError(f"{path}: ema.shadow_params lists {count} tensors, the network has {len(trained)}")
    average = tensors({**state, **dict(zip(trained, listed, strict=True))}, "ema", path)
    decay = ema.get("decay")
    if not isinstance(decay, float) or not 0 < decay < 1:
        raise ValueError(f"{path}: ema.decay must be a number between 0 and 1, got {decay!r}")
    return decay, average


def _sources(architecture: Layout, ddpm: bool, negated: bool, ours: nn.Module) -> dict[str, Source]:
    """The map of names; negated: the layers that give the image change their sign."""
    table = {}
    for number, (block, (name, _)) in enumerate(zip(architecture.blocks, modules(architecture, ddpm), strict=True)):
        if name:
            for layer, theirs in LAYERS.get(block.kind, {"": ""}).items():
                table[f"{name}.{layer}".strip(".")] = f"{LIST}{number}.{theirs}".strip(".")
    last = re.compile(r"output_pyramid\.\d+\.1" if architecture.progressive == "output_skip" else "output")
    name_map = {name: _in_file(source) for name, source in sources(table, ours).items()}
    if negated:
        for name, source in name_map.items():
            if last.fullmatch(name.rpartition(".")[0]):
                name_map[name] = source._replace(convert=torch.neg)
    return name_map


def _in_file(source: Source) -> Source:
    """Their 1x1 layers keep W: (in, out) and b; the Fourier features W."""
    module, _, leaf = source.name.rpartition(".")
    if leaf == "frequencies":
        return Source(f"{module}.W")
    if module.rpartition(".")[2].startswith("NIN_"):
        return Source(f"{module}.W", _transposed) if leaf == "weight" else Source(f"{module}.b")
    return source


def _transposed(weight: Tensor) -> Tensor:
    return weight.transpose(0, 1)


def _options(architecture: Layout, shape: tuple[int, int, int], assume: Assumptions) -> dict[str, Any]:
    """The options that both networks of ours share."""
    return {
        "nf": architecture.nf,
        "ch_mult": architecture.ch_mult,
        "num_res_blocks": architecture.depth,
        "attn_resolutions": [shape[1] >> level for level, attend in enumerate(architecture.attends) if attend],
        "resamp_with_conv": architecture.convolves,
        "activation": assume("nonlinearity", "swish"),
        "dropout": assume("dropout", 0.1),
        "time_conditional": architecture.conditional,
    }


def _unet(architecture: Layout, shape: tuple[int, int, int], assume: Assumptions) -> Spec:
    """The configuration of DDPM's network."""
    return spec("networks.UNet", **_options(architecture, shape, assume), up_attention="once_per_level", groups=32)


def _ncsnpp(
    architecture: Layout, shape: tuple[int, int, int], assume: Assumptions, rescaled: bool, scaled: bool, path: Path
) -> Spec:
    """The configuration of DDPM++'s or NCSN++'s network."""
    options = _options(architecture, shape, assume)
    pyramids = architecture.progressive_input != "none" or architecture.progressive != "none"
    if architecture.filters is None:
        filters = assume("fir", pyramids or architecture.fourier)
    else:
        filters = assume.shown("fir", architecture.filters, path)
    if filters:
        options["fir_kernel"] = assume("fir_kernel", [1.0, 3.0, 3.0, 1.0])
    if architecture.fourier and architecture.conditional:
        options["time_embedding"] = spec("networks.Fourier", features=2 * architecture.nf, scale=16.0)
    return spec(
        "networks.NCSNpp",
        **options,
        resblock_type="biggan" if architecture.biggan else "ddpm",
        fir=filters,
        skip_rescale=rescaled,
        progressive=architecture.progressive,
        progressive_input=architecture.progressive_input,
        progressive_combine="cat" if architecture.doubled else "sum",
        scale_by_sigma=scaled and architecture.fourier,
    )


def _levels(sigmas: Tensor | None, path: Path) -> Tensor:
    """The noise levels of VE, falling.

    Raises:
        ValueError: there are none, or they are no geometric series.
    """
    if sigmas is None:
        raise ValueError(f"{path} holds no sigmas, which are the noise levels of ve")
    logs = sigmas.double().log()
    ends = logs[0].item(), logs[-1].item()
    if not ends[0] > ends[1] or not (logs - torch.linspace(*ends, len(logs))).abs().max() < 1e-3:
        raise ValueError(f"{path}: sigmas must fall geometrically from sigma_max to sigma_min")
    return sigmas


def _exploding(network: Spec, fourier: bool, sigmas: Tensor, unit: float, scaled: bool, snr: float) -> Spec:
    """The configuration of a model of VE; ours are of images in [−1, 1], theirs, of unit 2, in [0, 1].

    A network with Fourier features gets σ, one without them the number of the noise level, 0 the largest.  Its score
    is −ε/σ, so what it gives before it is divided by σ is −ε; the last layers' sign is changed, and it is ε.
    """
    steps = len(sigmas)
    by_number = spec("denoisers.ScaledTime", scale=1.0 - steps, shift=steps - 1.0)
    by_sigma = spec("denoisers.LogSNR", scale=-0.5, shift=-math.log(unit))
    as_noise = scaled and not fourier
    score = spec("denoisers.Score", unit=unit, scaled_input=False)
    ends = {"sigma_min": unit * float(sigmas[-1]), "sigma_max": unit * float(sigmas[0])}
    return {
        "network": network,
        "schedule": spec("schedules.VE", **ends),
        "parameterization": spec("denoisers.Epsilon", scaled_input=False) if as_noise else score,
        "noise_input": by_sigma if fourier else by_number,
        "loss": spec("losses.DenoisingLoss", times=spec("losses.UniformTimes"), weighting=spec("losses.SNR")),
        "sampler": spec(
            "samplers.PredictorCorrector",
            grid=spec("samplers.UniformGrid", steps=steps, t_min=1e-5),
            corrector=spec("samplers.Langevin", snr=snr),
        ),
        "optimizer": OPTIMIZER,
    }


def _preserving(network: Spec, variant: Variant, steps: int, betas: tuple[float, float]) -> Spec:
    """The configuration of a model of VP, its discrete chain, or sub-VP."""
    if variant == "ddpm":
        schedule = spec("schedules.LinearBetas", steps=steps, beta_min=betas[0] / steps, beta_max=betas[1] / steps)
        sampler = spec("samplers.Ancestral", grid=spec("samplers.UniformGrid", steps=steps), variance=1.0)
        weighting = spec("losses.SNR")
        return discrete(network, schedule, steps, spec("denoisers.Epsilon"), weighting, sampler)
    kind = {"vp": "VP", "subvp": "SubVP"}[variant]
    return {
        "network": network,
        "schedule": spec(f"schedules.{kind}", beta_min=betas[0], beta_max=betas[1]),
        "parameterization": spec("denoisers.Epsilon", scaled_input=variant != "subvp"),
        "noise_input": spec("denoisers.ScaledTime", scale=999.0),
        "loss": spec("losses.DenoisingLoss", times=spec("losses.UniformTimes"), weighting=spec("losses.SNR")),
        "sampler": spec("samplers.EulerMaruyama", grid=spec("samplers.UniformGrid", steps=steps, t_min=1e-3)),
        "optimizer": OPTIMIZER,
    }
