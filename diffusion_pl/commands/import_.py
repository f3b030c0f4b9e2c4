"""python -m diffusion_pl import: what was trained with another package becomes a checkpoint."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..data import DataModule
from ..runtime.storage import remove_stale

if TYPE_CHECKING:
    from ..interop.foreign import Foreign

#: Options of the command itself; all others are a reader's.
SHARED = ("from_", "path", "output", "data", "trust_pickle")


def import_(
    from_: Literal["diffusers", "score_sde", "lucidrains", "openai"],
    path: Path,
    output: Path,
    size: list[int] | None = None,
    variant: Literal["ddpm", "vp", "subvp", "ve"] | None = None,
    objective: Literal["pred_noise", "pred_x0", "pred_v"] | None = None,
    ema_decay: float | None = None,
    betas: Literal["linear", "cosine"] | None = None,
    steps: int | None = None,
    heads: int | None = None,
    num_head_channels: int | None = None,
    num_heads_upsample: int | None = None,
    use_new_attention_order: bool | None = None,
    predict_xstart: bool | None = None,
    rescale_timesteps: bool | None = None,
    sigma_small: bool | None = None,
    groups: int | None = None,
    sinusoidal_pos_emb_theta: float | None = None,
    beta_min: float | None = None,
    beta_max: float | None = None,
    centered: bool | None = None,
    scale_by_sigma: bool | None = None,
    skip_rescale: bool | None = None,
    nonlinearity: Literal["swish", "relu", "lrelu", "elu"] | None = None,
    fir: bool | None = None,
    fir_kernel: list[float] | None = None,
    dropout: float | None = None,
    snr: float | None = None,
    data: Callable[[], DataModule] | None = None,
    trust_pickle: bool = False,
) -> None:
    """Turn a model of another package into a checkpoint that sample, evaluate, sweep, export and fit take.

    Every tensor of the file is used and has the shape that it must have, or nothing is written and the first ten that
    do not fit are named.  What the file does not contain is assumed as the other package does by default, and printed
    as options: give the option to change it.  An option that does not apply to the file is refused.

    Args:
        from_: diffusers (folder of UNet2DModel or of a DDPMPipeline), score_sde (checkpoint.pth of score_sde_pytorch:
            DDPM, DDPM++, NCSN++), lucidrains (model-N.pt of denoising-diffusion-pytorch: GaussianDiffusion and
            LearnedGaussianDiffusion of Unet), openai (modelN.pt or ema_RATE_N.pt of improved-diffusion and
            guided-diffusion, without resblock_updown).
        path: The folder or file.
        output: The checkpoint to write, such as imported.ckpt.
        size: Height and width of the images, one number if they are equal; only diffusers' files contain it.
        variant: Of score_sde, the noise schedule: ddpm (discrete steps), vp, subvp or ve.
        objective: Of lucidrains, what the network predicts, where the file does not say.
        ema_decay: Of lucidrains, the decay of the EMA weights, default 0.995.
        betas: Of openai, the beta schedule of the training.
        steps: Of openai, diffusion_steps, default 1000.
        heads: Of openai and of old releases of lucidrains, attention heads, default 4.
        num_head_channels: Of openai, channels of an attention head, in place of heads.
        num_heads_upsample: Of openai, attention heads on the way up, default as heads.
        use_new_attention_order: Of openai, order of queries, keys and values, default false.
        predict_xstart: Of openai, whether the network predicts x_0 and not the noise, default false.
        rescale_timesteps: Of openai, whether steps are counted as if there were 1000, default true.
        sigma_small: Of openai, whether sampling has the smaller of the two variances, default false.
        groups: Of old releases of lucidrains, groups of a norm, default 8.
        sinusoidal_pos_emb_theta: Of lucidrains, longest period of the embedding of the steps, default 10000.
        beta_min: Of score_sde, config.model.beta_min, default 0.1.
        beta_max: Of score_sde, config.model.beta_max, default 20.
        centered: Of score_sde, config.data.centered: images in [-1, 1], not [0, 1]; default false for ve, else true.
        scale_by_sigma: Of score_sde, config.model.scale_by_sigma, default true for ve, else false.
        skip_rescale: Of score_sde, config.model.skip_rescale, default false for DDPM, else true.
        nonlinearity: Of score_sde, config.model.nonlinearity, default swish.
        fir: Of score_sde, config.model.fir, default true with a pyramid or Fourier features, else false.
        fir_kernel: Of score_sde, config.model.fir_kernel, default [1,3,3,1].
        dropout: Of score_sde and openai, dropout of the training, default 0.1 and 0.
        snr: Of score_sde, config.sampling.snr of the corrector of ve, default 0.16.
        data: Data of the model, such as Folder; its options as --data.path.  None: CIFAR10 for 3x32x32,
            else a Folder named pictures, which evaluate looks for.
        trust_pickle: Read a file that holds more than tensors and plain values.  Such a file can run any code: only
            of people you trust.
    """
    options = {name: value for name, value in locals().items() if name not in SHARED and value is not None}
    _check_options(options, output)
    import inspect

    from ..checkpoints.io import write
    from ..interop import READERS, to_checkpoint
    from ..interop.foreign import default_data, described

    reader = READERS[from_]
    unsupported = next((name for name in options if name not in inspect.signature(reader).parameters), None)
    if unsupported is not None:
        raise ValueError(f"--{unsupported} is not for --from {from_}")
    foreign = reader(path, trust_pickle, **options)
    config = default_data(foreign.shape, foreign.classes) if data is None else described(data, foreign)
    checkpoint = to_checkpoint(foreign, config, path, from_)
    write(checkpoint, output, replace=False)
    data_name = config["class_path"].rpartition(".")[2]
    _print_summary(path, foreign, f"{data_name}{'' if data else ' (a guess: --data says otherwise)'}", output)


def _check_options(options: dict[str, Any], output: Path) -> None:
    """Raise ValueError if the output exists, or a count is not from 1 to 100,000."""
    if output.exists():
        remove_stale(output)
        raise ValueError(f"{output} exists already: name another file with --output")
    for name in ("steps", "heads", "num_head_channels", "num_heads_upsample", "groups"):
        if not 1 <= options.get(name, 1) <= 100_000:
            raise ValueError(f"{name} must be from 1 to 100,000, got {options[name]}")


def _print_summary(path: Path, foreign: "Foreign", data: str, output: Path) -> None:
    """Say what was read from `path` and written to `output`; data: the data module of the checkpoint, in words."""
    network, schedule = (foreign.model[part]["class_path"].rpartition(".")[2] for part in ("network", "schedule"))
    shape = "x".join(map(str, foreign.shape))
    count = sum(tensor.numel() for tensor in foreign.raw.values())
    kept = ["raw", *(f"ema:{decay}" for decay in foreign.averages)]
    print(f"{path}: {network} of {shape} under {schedule}, {count:,} numbers, weights {' and '.join(kept)}")
    for note in foreign.notes:
        print(f"  note: {note}")
    print(f"  data: {data}")
    print(f"  {output}    python -m diffusion_pl sample --ckpt_path {output}")
