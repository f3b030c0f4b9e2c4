"""model-N.pt of denoising-diffusion-pytorch: the Unet of its releases 1.8 to 2.3, under a GaussianDiffusion or a
LearnedGaussianDiffusion.

The file holds no configuration.  The network's is read from the shapes; the schedule from the betas; what the
network predicts from the weights of the loss, which are 1, SNR or SNR/(SNR + 1) (SNR capped, if so trained).  A network
with two outputs a channel is a LearnedGaussianDiffusion's: it predicts the noise, whatever its objective was called.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..schedules import BetaTable, CosineBetas, LinearBetas, SigmoidAlphaBars
from .assumed import Assumptions
from .foreign import MOST_STEPS, Foreign, Spec, discrete, image_shape, read_tensors, spec, tensors, whole
from .keys import Source, sources

Objective = Literal["pred_noise", "pred_x0", "pred_v"]

#: What GaussianDiffusion keeps besides the network; all of it follows from the betas and the loss.
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
#: objective -> parameterization, and the weighting of releases whose loss has no weights (p2_loss_weight_gamma 0).
OBJECTIVES: dict[str, tuple[str, Spec]] = {
    "pred_noise": ("Epsilon", spec("losses.SNR")),
    "pred_x0": ("Data", spec("losses.P2", k=1e-12, gamma=1.0)),
    "pred_v": ("V", spec("losses.SNR", plus=1.0)),
}
#: A part of a network's name in the file that shows another class of the package -> the class.
OTHERS = {
    "net.": "ElucidatedDiffusion",
    "log_snr.": "ContinuousTimeGaussianDiffusion",
    "model.null_classes_emb": "classifier_free_guidance",
    "model.input_block.": "KarrasUnet",
}
HEADS, GROUPS, DECAY, THETA = 4, 8, 0.995, 10_000.0  # the package's defaults, of what a file may not show


def modules(levels: int, full: list[bool]) -> dict[str, str]:
    """The modules of `networks.LinearAttentionUNet` -> those of Unet."""
    blocks = {"middle_1": "mid_block1", "middle_2": "mid_block2", "final": "final_res_block"}
    names = dict(ENDS)
    attentions = {"attention": ("mid_attn", FULL)}
    for level in range(levels):
        for way, place, last in (("down", level, levels - 1), ("up", levels - 1 - level, 0)):
            theirs = f"{way}s.{place}"
            blocks |= {f"{way}.{place}.{i}": f"{theirs}.{i}" for i in range(2)}
            attentions[f"{way}.{place}.2"] = f"{theirs}.2", FULL if full[level] else LINEAR
            resampled = "3" if level == last else "3.1"
            names[f"{way}.{place}.{resampled}"] = f"{theirs}.{resampled}"
    for ours, theirs in blocks.items():
        names |= {f"{ours}.{layer}": f"{theirs}.{name}" for layer, name in BLOCK.items()}
    for ours, (theirs, table) in attentions.items():
        names |= {f"{ours}.{layer}".strip("."): f"{theirs}.{name}".strip(".") for layer, name in table.items()}
    return names


def read(
    path: Path,
    trust_pickle: bool = False,
    size: list[int] | None = None,
    objective: Objective | None = None,
    ema_decay: float | None = None,
    heads: int | None = None,
    groups: int | None = None,
    sinusoidal_pos_emb_theta: float | None = None,
) -> Foreign:
    """A file that Trainer.save wrote.

    Args:
        path: of the file.
        trust_pickle: See `foreign.read_tensors`.
        size: Height and width of the images.
        objective: What the network predicts; None: as the weights of the loss show.
        ema_decay: Of the file's average.
        heads, groups: Of every attention and norm, where an old release's file does not show them.
        sinusoidal_pos_emb_theta: Longest period of the embedding of the steps.
    """
    content = read_tensors(path, trust_pickle)
    _known(content, path)
    raw = _of_network(tensors(content["model"], "model", path), "", path)
    averages = content["ema"]
    initted = bool(whole(averages.get("initted", 1), "ema.initted", path))
    average = _of_network(tensors(_below(averages, "ema_model."), "ema.ema_model", path), "ema_model.", path)
    extra = sorted(n for n in averages if not n.startswith(("ema_model.", "online_model.")))
    unknown = [name for name in extra if name not in ("initted", "step")]
    if unknown:
        raise ValueError(f"{path}: ema.{unknown[0]} is unexpected")

    assume = Assumptions(
        ema_decay=ema_decay, heads=heads, groups=groups, sinusoidal_pos_emb_theta=sinusoidal_pos_emb_theta
    )
    network, channels = _network(raw, assume, path)
    shape = image_shape(channels, size, path)
    betas, weight = _table(content["model"], path)
    learned = network["init_args"]["learned_variance"]
    implied = "pred_noise" if learned else implied_objective(betas, weight)
    if objective is None and implied is None:
        raise ValueError(
            f"{path} does not show what the network predicts: add --objective pred_noise, pred_x0 or pred_v"
        )
    if objective is not None and implied is not None and objective != implied:
        shown = "two outputs a channel, a LearnedGaussianDiffusion's," if learned else "the weights of the loss"
        raise ValueError(f"objective {objective}: {shown} in {path} are those of {implied}")
    steps = len(betas)
    parameterization, weighting = OBJECTIVES[objective or implied or ""]
    if weight is not None:
        weighting = spec("losses.SNR") if learned else _weighting(betas, weight, objective or implied or "")
    variance = None if learned else 0.0
    sampler = spec("samplers.Ancestral", grid=spec("samplers.UniformGrid", steps=steps), variance=variance)
    schedule = find_schedule(betas)
    model = discrete(network, schedule, steps, spec(f"denoisers.{parameterization}"), weighting, sampler)
    if learned:  # vb_loss_weight 0.001, of one step's bound
        model["loss"]["init_args"]["variance"] = spec(
            "losses.VarianceBound", steps=steps, weight=0.001 / steps, levels=256
        )
    model["guidance"] = spec("denoisers.Thresholded")
    decay = assume("ema_decay", DECAY)
    if not 0 < decay < 1:
        raise ValueError(f"ema_decay must be between 0 and 1, got {decay}")
    notes = [*assume.notes(path), "assumed: auto_normalize true, which means a network of images in [-1, 1]"]
    if not initted:
        notes.append("the EMA weights had not been started and were skipped")

    full = network["init_args"]["full_attention"]

    def name_map(ours: nn.Module) -> dict[str, Source]:
        table = sources(modules(len(full), full), ours)
        return {name: source._replace(name=_leaf(source.name)) for name, source in table.items()}

    return Foreign(
        model,
        shape,
        None,
        name_map,
        raw,
        {decay: average} if initted else {},
        whole(averages.get("step"), "ema.step", path),
        whole(content["step"], "step", path),
        "model.",
        tuple(notes),
    )


def _known(content: Mapping[str, Any], path: Path) -> None:
    """Raise ValueError for what is not of the classes that are read, naming the class where its tensors show it."""
    model, average = content.get("model"), content.get("ema")
    names = [str(name) for name in model] if isinstance(model, Mapping) else []
    other = next((kind for part, kind in OTHERS.items() if any(name.startswith(part) for name in names)), None)
    first = model["model.init_conv.weight"] if "model.init_conv.weight" in names else None  # type: ignore[index]
    if other is None and isinstance(first, Tensor) and first.ndim != 4:
        other = f"Unet{first.ndim - 2}D"
    if other is None and first is not None and "betas" not in names:
        other = "ContinuousTimeGaussianDiffusion or VParamContinuousTimeGaussianDiffusion"
    if other is not None:
        raise ValueError(
            f"{path} is of {other}, which is not supported: only GaussianDiffusion and LearnedGaussianDiffusion of Unet"
        )
    if (
        not {"model", "ema", "step"} <= content.keys()
        or "betas" not in names
        or not isinstance(average, Mapping)
        or not all(isinstance(name, str) for name in average)
    ):
        raise ValueError(
            f"{path} is no model-N.pt of denoising-diffusion-pytorch: it needs model (with betas), ema and step, and "
            f"has {', '.join(map(str, list(content)[:10]))}"
        )


def _table(model: Mapping[str, Tensor], path: Path) -> tuple[Tensor, Tensor | None]:
    """The betas and the weights of the loss, float64.

    Raises:
        ValueError: they are no such tables.
    """
    betas, weight = model["betas"].double(), model.get("loss_weight")
    if betas.ndim != 1 or not 2 <= len(betas) <= MOST_STEPS or not ((betas > 0) & (betas < 1)).all():
        raise ValueError(f"{path}: model.betas must be two or more numbers between 0 and 1")
    if weight is not None and weight.shape != betas.shape:
        raise ValueError(f"{path}: model.loss_weight has {weight.numel()} numbers for {len(betas)} betas")
    return betas, None if weight is None else weight.double()


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


def implied_objective(betas: Tensor, weight: Tensor | None) -> Objective | None:
    """What a network predicts whose loss has these weights; None: they do not show it."""
    if weight is None:
        return None
    matching: list[Objective] = []
    for objective in ("pred_noise", "pred_x0", "pred_v"):
        snr, capped = _weights(betas, weight.double(), objective)
        if torch.allclose(capped, snr.clamp(max=capped.max().item()), rtol=1e-3, atol=1e-12):
            matching.append(objective)
    return matching[0] if len(matching) == 1 else None


def _weights(betas: Tensor, weight: Tensor, objective: str) -> tuple[Tensor, Tensor]:
    """The SNR, and the weights of the error of x_0 that those of the objective's error mean."""
    kept = (1 - betas).cumprod(0)
    snr = kept / (1 - kept)
    return snr, weight * {"pred_noise": snr, "pred_x0": torch.ones_like(snr), "pred_v": snr + 1}[objective]


def _weighting(betas: Tensor, weight: Tensor, objective: str) -> Spec:
    """SNR, or MinSNR where the weights are capped (min_snr_loss_weight)."""
    snr, capped = _weights(betas, weight, objective)
    gamma = capped.max().item()
    if gamma > 0.999 * snr.max().item():
        return spec("losses.SNR")
    return spec("losses.MinSNR", gamma=round(gamma, 4))


def _network(state: Mapping[str, Tensor], assume: Assumptions, path: Path) -> tuple[Spec, int]:
    """The network's configuration, and the number of channels of the images."""
    try:
        dim = state["init_conv.weight"].shape[0]
        inward, outward = state["init_conv.weight"].shape[1], state["final_conv.weight"].shape[0]
        levels = sum(name.startswith("downs.") and name.endswith(".2.to_qkv.weight") for name in state)
        ends = [state[f"downs.{i}.3.{'weight' if i == levels - 1 else '1.weight'}"].shape[0] for i in range(levels)]
        hidden = state["mid_attn.to_qkv.weight"].shape[0] // 3
        width, embedded = state["time_mlp.1.weight"].shape
    except (KeyError, IndexError, ValueError) as error:
        what = f"model.model.{error.args[0]} is missing" if isinstance(error, KeyError) else "shapes are wrong"
        raise ValueError(f"{path}: {what}: no Unet of releases 1.8 to 2.3") from error
    channels = min(inward, outward)
    if outward == 2 * inward + 2:
        raise ValueError(
            f"{path}: {outward} outputs for {inward} channels: WeightedObjectiveGaussianDiffusion is not supported"
        )
    if inward not in (channels, 2 * channels) or outward not in (channels, 2 * channels) or channels < 1:
        raise ValueError(f"{path}: {inward} channels in and {outward} out: no Unet of releases 1.8 to 2.3")
    if width != 4 * dim or any(end % dim for end in ends):
        raise ValueError(f"{path}: init_dim {dim} is not dim {width // 4}: such a Unet is not supported")
    memory = state.get("mid_attn.mem_kv")
    if memory is not None and memory.ndim != 4:
        raise ValueError(f"{path}: model.model.mid_attn.mem_kv has {memory.ndim} axes, expected 4")
    heads = assume("heads", HEADS) if memory is None else assume.shown("heads", memory.shape[1], path)
    if heads < 1 or hidden % heads:
        raise ValueError(f"{path}: attention of {hidden} channels cannot be divided into {heads} heads: set --heads")
    grouped = "mid_block1.block1.norm.weight" in state
    if "time_mlp.0.weights" in state:
        embedding = spec("networks.LearnedFourier", features=embedded - 1)
    else:
        theta = assume("sinusoidal_pos_emb_theta", THETA)
        embedding = spec("networks.Sinusoidal", features=dim, max_period=theta)
    network = spec(
        "networks.LinearAttentionUNet",
        dim=dim,
        dim_mults=[end // dim for end in ends],
        heads=heads,
        dim_head=hidden // heads,
        groups=assume("groups", GROUPS) if grouped else None,
        memory=0 if memory is None else memory.shape[2],
        full_attention=[f"downs.{level}.2.to_out.weight" in state for level in range(levels)],
        self_condition=inward > channels,
        learned_variance=outward > channels,
        time_embedding=embedding,
    )
    return network, channels


def _of_network(state: Mapping[str, Any], prefix: str, path: Path) -> dict[str, Tensor]:
    unknown = [name for name in state if not name.startswith("model.") and name not in BUFFERS]
    if unknown:
        raise ValueError(f"{path}: {len(unknown)} tensors have no place: {', '.join(prefix + n for n in unknown[:10])}")
    return _below(state, "model.")


def _below(state: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _leaf(name: str) -> str:
    module, _, leaf = name.rpartition(".")
    return f"{module}.{LEAVES.get(leaf, leaf)}"
