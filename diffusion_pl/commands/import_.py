"""python -m diffusion_pl import: what was trained with another package becomes a checkpoint."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..data import DataModule
from ..runtime.output import Report, next_command
from ..runtime.storage import remove_stale

if TYPE_CHECKING:
    from ..interop.foreign import Foreign

#: Options of the command itself; all others are a reader's.
SHARED = ("from_", "path", "output", "data", "trust_pickle")


def import_(
    from_: Literal["diffusers", "score_sde", "lucidrains", "openai", "adm", "edm", "edm2", "dit", "sit"],
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
    sigma_data: float | None = None,
    p_mean: float | None = None,
    p_std: float | None = None,
    data: Callable[[], DataModule] | None = None,
    trust_pickle: bool = False,
) -> Report:
    """Turn a model of another package into a checkpoint that sample, evaluate, sweep, export and fit take.

    Every tensor of the file is used and has the shape that it must have, or nothing is written and the first ten that
    do not fit are named.  What the file does not contain is assumed as the other package does by default, and printed
    as options: give the option to change it.  An option that does not apply to the file is refused.

    Args:
        from_: Package of the file: diffusers (folder of UNet2DModel or of a DDPMPipeline), score_sde (checkpoint.pth of
            score_sde_pytorch: DDPM, DDPM++, NCSN++), lucidrains (model-N.pt of denoising-diffusion-pytorch:
            GaussianDiffusion and LearnedGaussianDiffusion of Unet), openai or adm (modelN.pt or ema_RATE_N.pt of
            improved-diffusion and guided-diffusion), edm and edm2 (network pickle, of which no code is run, or state
            dict), dit and sit (.pt of DiT and SiT, models of latents that are multiplied by 0.18215; DiT's published
            weights are for non-commercial use).
        path: Folder or file of the model.
        output: Checkpoint to write, a new file, such as imported.ckpt.
        size: Height and width of the images in pixels, one number if they are equal; None: the file's (diffusers).
        variant: Noise schedule of score_sde: ddpm (discrete steps), vp, subvp or ve; None: the file's.
        objective: Prediction of the network of lucidrains; None: what the weights of its loss show.
        ema_decay: Decay of the EMA weights of lucidrains, in [0, 1); default 0.995.
        betas: Beta schedule of openai's training, linear or cosine, which its files do not show; None: an error there.
        steps: Number of diffusion steps of openai, at least 1; default 1000.
        heads: Number of attention heads of openai and of old releases of lucidrains, at least 1; default 4.  Of dit and
            sit: that of the published size of the file's width and depth; an error where it is none.
        num_head_channels: Channels of an attention head, of openai in place of heads; None: by heads, of edm and edm2
            64.
        num_heads_upsample: Number of attention heads of openai on the way up; default as heads.
        use_new_attention_order: Order of queries, keys and values of openai, the newer one; default false.
        predict_xstart: Prediction of x_0, not of the noise, by the network of openai; default false.
        rescale_timesteps: Counting of openai's steps as if there were 1000; default true.
        sigma_small: Smaller of the two variances of openai in sampling; default false.
        groups: Number of groups of a norm, in old releases of lucidrains, at least 1; default 8.
        sinusoidal_pos_emb_theta: Longest period of the embedding of the steps of lucidrains; default 10000.
        beta_min: Value of config.model.beta_min of score_sde; default 0.1.
        beta_max: Value of config.model.beta_max of score_sde; default 20.
        centered: Range [-1, 1] of the images of score_sde (config.data.centered), not [0, 1]; default false for ve,
            else true.
        scale_by_sigma: Value of config.model.scale_by_sigma of score_sde; default true for ve, else false.
        skip_rescale: Value of config.model.skip_rescale of score_sde; default false for DDPM, else true.
        nonlinearity: Value of config.model.nonlinearity of score_sde; default swish.
        fir: Value of config.model.fir of score_sde; default true with a pyramid or Fourier features, else false.
        fir_kernel: Value of config.model.fir_kernel of score_sde; default [1,3,3,1].
        dropout: Dropout probability of the training of score_sde, openai, edm and edm2; default 0.1, 0, 0.1 and 0.
        snr: Value of config.sampling.snr, of the corrector of ve of score_sde; default 0.16.
        sigma_data: Standard deviation of the data of edm and edm2, positive; default 0.5.
        p_mean: Mean of ln σ in the training of edm and edm2; default -1.2 and -0.4.
        p_std: Standard deviation of ln σ in the training of edm and edm2, positive; default 1.2 and 1.
        data: Data of the model, such as Folder, its options as --data.path FOLDER; None: CIFAR10 for 3x32x32, no data
            for 4 channels, else a Folder named pictures, which evaluate looks for.  Without data samples stay latents:
            for images give Latents, of dit and sit a folder of `latents --scale 0.18215`.
        trust_pickle: Permission to read a file that holds more than tensors and plain values.  Such a file can run any
            code: only of people you trust.
    """
    options = {name: value for name, value in locals().items() if name not in SHARED and value is not None}
    _check_options(options, output)
    import inspect

    from ..checkpoints.io import write
    from ..interop import READERS, to_checkpoint
    from ..interop.foreign import default_data, described, state_of

    reader = READERS[from_]
    unsupported = next((name for name in options if name not in inspect.signature(reader).parameters), None)
    if unsupported is not None:
        raise ValueError(f"--{unsupported} is not for --from {from_}")
    foreign = reader(path, trust_pickle, **options)
    config = default_data(foreign) if data is None else described(data, foreign)
    checkpoint = to_checkpoint(foreign, config, path, from_, state_of(data, foreign))
    write(checkpoint, output, replace=False)
    data_name = config["class_path"].rpartition(".")[2]
    return _report(path, foreign, f"{data_name}{'' if data else ' (a guess: --data says otherwise)'}", output)


def _check_options(options: dict[str, Any], output: Path) -> None:
    """Raise ValueError if the output exists, or a count is not from 1 to 100,000."""
    if output.exists():
        remove_stale(output)
        raise ValueError(f"{output} exists already: name another file with --output")
    for name in ("steps", "heads", "num_head_channels", "num_heads_upsample", "groups"):
        if not 1 <= options.get(name, 1) <= 100_000:
            raise ValueError(f"{name} must be from 1 to 100,000, got {options[name]}")


def _report(path: Path, foreign: "Foreign", data: str, output: Path) -> Report:
    """What was read from `path` and written to `output`; data: the data module of the checkpoint, in words."""
    network, schedule = (foreign.model[part]["class_path"].rpartition(".")[2] for part in ("network", "schedule"))
    facts = {
        "network": f"{network} of {'x'.join(map(str, foreign.shape))}",
        "schedule": schedule,
        "parameters": sum(tensor.numel() for tensor in foreign.raw.values()),
        "weights": ["raw", *(f"ema:{decay}" for decay in foreign.averages)],
        "data": data,
    }
    return Report(
        done=f"{path} is imported",
        facts=facts,
        notes=foreign.notes,
        files=[output],
        next=[next_command("sample", "--ckpt_path", output)],
    )
