"""model-N.pt of denoising-diffusion-pytorch: the U-Net of its releases 1.8 to 2.3, under a GaussianDiffusion.

The file holds no configuration.  The network's is read from the shapes; the schedule from the table of betas; what the
network predicts from the weights of the loss, which are 1, SNR or SNR/(SNR + 1) (SNR capped, if so trained).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..schedules import BetaTable, CosineBetas, LinearBetas, SigmoidAlphaBars
from .foreign import Foreign, Spec, discrete, picture_shape, read_tensors, spec
from .keys import Source, sources

Objective = Literal["pred_noise", "pred_x0", "pred_v"]

#: What GaussianDiffusion keeps beside the network; all of it follows from the betas and the loss.
BUFFERS = {
    "betas",
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
    "posterior_variance",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
    "loss_weight",
    "p2_loss_weight",
}
#: The layers of a block: ours -> theirs.
BLOCK = {
    "time": "mlp.1",
    "conv_1": "block1.proj",
    "norm_1": "block1.norm",
    "conv_2": "block2.proj",
    "norm_2": "block2.norm",
    "shortcut": "res_conv",
}
LINEAR = {"": "", "norm": "norm", "qkv": "to_qkv", "output.0": "to_out.0", "output.1": "to_out.1"}
FULL = {"": "", "norm": "norm", "qkv": "to_qkv", "output": "to_out"}
ENDS = {
    "embedding": "time_mlp.0",
    "time.0": "time_mlp.1",
    "time.2": "time_mlp.3",
    "stem": "init_conv",
    "output": "final_conv",
}
#: Tensors that are called otherwise than ours.
LEAVES = {"gain": "g", "memory": "mem_kv", "frequencies": "weights"}
#: objective -> parameterization, and the constant that its loss weights have in the denominator beside SNR.
OBJECTIVES: dict[str, tuple[str, Spec]] = {
    "pred_noise": ("Epsilon", spec("weightings.SNR")),
    "pred_x0": ("Data", spec("weightings.SNR")),
    "pred_v": ("V", spec("weightings.SNR", plus=1.0)),
}
HEADS, GROUPS, DECAY = 4, 8, 0.995  # the package's defaults, of what a file may not tell


def modules(levels: int, full: list[bool]) -> dict[str, str]:
    """The modules of `networks.LinearAttentionUNet` -> those of Unet."""
    blocks = {"middle_1": "mid_block1", "middle_2": "mid_block2", "final": "final_res_block"}
    found = dict(ENDS)
    attentions = {"attention": ("mid_attn", FULL)}
    for level in range(levels):
        for way, place, last in (("down", level, levels - 1), ("up", levels - 1 - level, 0)):
            theirs = f"{way}s.{place}"
            blocks |= {f"{way}.{place}.{i}": f"{theirs}.{i}" for i in range(2)}
            attentions[f"{way}.{place}.2"] = f"{theirs}.2", FULL if full[level] else LINEAR
            resampled = "3" if level == last else "3.1"
            found[f"{way}.{place}.{resampled}"] = f"{theirs}.{resampled}"
    for ours, theirs in blocks.items():
        found |= {f"{ours}.{layer}": f"{theirs}.{name}" for layer, name in BLOCK.items()}
    for ours, (theirs, table) in attentions.items():
        found |= {f"{ours}.{layer}".strip("."): f"{theirs}.{name}".strip(".") for layer, name in table.items()}
    return found


def read(
    path: Path,
    trust_pickle: bool = False,
    size: list[int] | None = None,
    objective: Objective | None = None,
    ema_decay: float = DECAY,
) -> Foreign:
    """A file that Trainer.save wrote.

    Args:
        path: of the file.
        trust_pickle: See `foreign.read_tensors`.
        size: Sides of the pictures.
        objective: What the network predicts; None: as the weights of the loss tell.
        ema_decay: Of the file's average.
    """
    content = read_tensors(path, trust_pickle)
    if not {"model", "ema", "step"} <= content.keys() or "betas" not in content["model"]:
        raise ValueError(
            f"{path} is no model-N.pt of denoising-diffusion-pytorch: it needs model (with betas), ema and step, and "
            f"has {', '.join(map(str, list(content)[:10]))}"
        )
    raw = _of_network(content["model"], "", path)
    averages = content["ema"]
    initted = bool(averages.get("initted", torch.tensor(True)))
    average = _of_network(_below(averages, "ema_model."), "ema_model.", path)
    extra = sorted(n for n in averages if not n.startswith(("ema_model.", "online_model.")))
    strange = [name for name in extra if name not in ("initted", "step")]
    if strange:
        raise ValueError(f"{path}: ema.{strange[0]} has no place")

    network, channels, notes = _network(raw, path)
    shape = picture_shape(channels, size, path)
    betas, weight = content["model"]["betas"].double(), content["model"].get("loss_weight")
    found = told_objective(betas, weight)
    if objective is None and found is None:
        raise ValueError(
            f"{path} does not tell what the network predicts: add --objective pred_noise, pred_x0 or pred_v"
        )
    if objective is not None and found is not None and objective != found:
        raise ValueError(f"objective {objective}: the weights of the loss in {path} are those of {found}")
    steps = len(betas)
    parameterization, weighting = OBJECTIVES[objective or found or ""]
    variance = None if network["init_args"]["learned_variance"] else 0.0
    sampler = spec("samplers.Ancestral", grid=spec("grids.UniformGrid", steps=steps), variance=variance)
    schedule = find_schedule(betas)
    model = discrete(network, schedule, steps, spec(f"parameterizations.{parameterization}"), weighting, sampler)
    model["guidance"] = spec("guidance.Thresholded")
    if ema_decay == DECAY:
        notes.append(f"the average is called {DECAY}, the package's default, since the file does not tell its decay")
    if not initted:
        notes.append("the average had not begun and was left out")

    full = network["init_args"]["full_attention"]

    def wanted(ours: nn.Module) -> dict[str, Source]:
        found = sources(modules(len(full), full), ours)
        return {name: source._replace(name=_leaf(source.name)) for name, source in found.items()}

    return Foreign(
        model,
        shape,
        None,
        wanted,
        raw,
        {ema_decay: average} if initted else {},
        int(averages.get("step", 0)),
        int(content["step"]),
        "model.",
        tuple(notes),
    )


def find_schedule(betas: Tensor) -> Spec:
    """The schedule of ours with these β_i, which may be rounded to float32; a BetaTable if none has a name for them."""
    steps = len(betas)
    scale = 1000 / steps
    named: list[tuple[type[Any], dict[str, Any]]] = [
        (LinearBetas, {"beta_min": scale * 1e-4, "beta_max": scale * 0.02}),
        (LinearBetas, {"beta_min": betas[0].item(), "beta_max": betas[-1].item()}),
        (CosineBetas, {}),
        (SigmoidAlphaBars, {}),
    ]
    for kind, options in named:
        try:
            table: BetaTable = kind(steps, **options)
        except ValueError:
            continue
        ours = -torch.expm1(2 * table.log_alpha.diff())
        if torch.allclose(ours, betas, rtol=1e-5, atol=1e-9):
            return spec(f"schedules.{kind.__name__}", steps=steps, **options)
    return spec("schedules.BetaTable", betas=betas.tolist())


def told_objective(betas: Tensor, weight: Tensor | None) -> Objective | None:
    """What a network predicts whose loss has these weights; None: they do not tell."""
    if weight is None:
        return None
    kept = (1 - betas).cumprod(0)
    snr, weight = kept / (1 - kept), weight.double()
    denominators: dict[Objective, Tensor] = {"pred_noise": snr, "pred_x0": torch.ones_like(snr), "pred_v": snr + 1}
    found = []
    for objective, denominator in denominators.items():
        capped = weight * denominator
        if torch.allclose(capped, snr.clamp(max=capped.max().item()), rtol=1e-3, atol=1e-12):
            found.append(objective)
    return found[0] if len(found) == 1 else None


def _network(found: Mapping[str, Tensor], path: Path) -> tuple[Spec, int, list[str]]:
    """The network's configuration, the number of channels of the pictures, and what was assumed."""
    notes = []
    try:
        dim = found["init_conv.weight"].shape[0]
        inward, outward = found["init_conv.weight"].shape[1], found["final_conv.weight"].shape[0]
        levels = sum(name.startswith("downs.") and name.endswith(".2.to_qkv.weight") for name in found)
        ends = [found[f"downs.{i}.3.{'weight' if i == levels - 1 else '1.weight'}"].shape[0] for i in range(levels)]
        hidden = found["mid_attn.to_qkv.weight"].shape[0] // 3
        embedded = found["time_mlp.1.weight"].shape[1]
    except KeyError as error:
        raise ValueError(f"{path}: model.model.{error.args[0]} is missing: no Unet of releases 1.8 to 2.3") from error
    channels = min(inward, outward)
    if inward not in (channels, 2 * channels) or outward not in (channels, 2 * channels):
        raise ValueError(f"{path}: {inward} channels in and {outward} out: no Unet of releases 1.8 to 2.3")
    memory = found.get("mid_attn.mem_kv")
    if memory is not None:
        heads = memory.shape[1]
    else:
        heads = HEADS
        notes.append(f"attention has {HEADS} heads, the package's default, since the file does not tell")
    grouped = "mid_block1.block1.norm.weight" in found
    if grouped:
        notes.append(f"norms have {GROUPS} groups, the package's default, since the file does not tell")
    embedding = None
    if "time_mlp.0.weights" in found:
        embedding = spec("networks.LearnedFourier", features=embedded - 1)
    network = spec(
        "networks.LinearAttentionUNet",
        dim=dim,
        dim_mults=[end // dim for end in ends],
        heads=heads,
        dim_head=hidden // heads,
        groups=GROUPS if grouped else None,
        memory=0 if memory is None else memory.shape[2],
        full_attention=[f"downs.{level}.2.to_out.weight" in found for level in range(levels)],
        self_condition=inward > channels,
        learned_variance=outward > channels,
        time_embedding=embedding,
    )
    return network, channels, notes


def _of_network(state: Mapping[str, Any], prefix: str, path: Path) -> dict[str, Tensor]:
    strange = [name for name in state if not name.startswith("model.") and name not in BUFFERS]
    if strange:
        raise ValueError(f"{path}: {len(strange)} tensors have no place: {', '.join(prefix + n for n in strange[:10])}")
    return _below(state, "model.")


def _below(state: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _leaf(name: str) -> str:
    module, _, leaf = name.rpartition(".")
    return f"{module}.{LEAVES.get(leaf, leaf)}"
