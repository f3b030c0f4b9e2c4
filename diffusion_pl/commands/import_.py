"""python -m diffusion_pl import: what was trained with another package becomes a checkpoint."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from ..data import DataModule
from ..storage import remove_stale


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
    data: Callable[[], DataModule] | None = None,
    trust_pickle: bool = False,
) -> None:
    """Turn a model of another package into a checkpoint that sample, evaluate, sweep, export and fit take.

    Every tensor of the file is used and has the shape that it must have, or nothing is written and the first ten that
    do not fit are named.  What the file leaves open is assumed as the other package does, and said.

    Args:
        from_: diffusers (folder of UNet2DModel or of a DDPMPipeline), score_sde (checkpoint.pth of score_sde_pytorch:
            DDPM, DDPM++, NCSN++), lucidrains (model-N.pt of denoising-diffusion-pytorch), openai (modelN.pt or
            ema_RATE_N.pt of improved-diffusion and guided-diffusion, without resblock_updown).
        path: The folder or file.
        output: The checkpoint to write, such as imported.ckpt.
        size: Side of the pictures, or height and width; only diffusers' files tell it.
        variant: Of score_sde, the process: ddpm (discrete steps), vp, subvp or ve.
        objective: Of lucidrains, what the network predicts, where the file does not tell.
        ema_decay: Of lucidrains, the decay of the average, which the file does not tell; None: 0.995.
        betas: Of openai, the noise schedule of the training.
        steps: Of openai, its number of steps; None: 1000.
        heads: Of openai, attention heads; None: 4.
        data: The data that the model is of, such as Folder; its options as --data.path.  None: CIFAR10 for 3x32x32,
            else a Folder named pictures, which evaluate looks for.
        trust_pickle: Read a file that holds more than tensors and plain values.  Such a file can run any code: only
            of people you trust.
    """
    if output.exists():
        remove_stale(output)
        raise ValueError(f"{output} exists already: name another file with --output")
    for name, number in (("steps", steps), ("heads", heads)):
        if number is not None and number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}")
    import inspect

    from ..checkpoints import write
    from ..interop import READERS, to_checkpoint
    from ..interop.foreign import default_data, described

    reader = READERS[from_]
    given: dict[str, Any] = {"size": size, "variant": variant, "objective": objective, "ema_decay": ema_decay}
    given |= {"betas": betas, "steps": steps, "heads": heads}
    options = {name: value for name, value in given.items() if value is not None}
    strange = next((name for name in options if name not in inspect.signature(reader).parameters), None)
    if strange is not None:
        raise ValueError(f"--{strange} is not for --from {from_}")
    foreign = reader(path, trust_pickle, **options)
    config = default_data(foreign.shape, foreign.classes) if data is None else described(data, foreign)
    checkpoint = to_checkpoint(foreign, config, path, from_)
    write(checkpoint, output, replace=False)
    network, process = (foreign.model[part]["class_path"].rpartition(".")[2] for part in ("network", "schedule"))
    sides = "x".join(map(str, foreign.shape))
    count = sum(tensor.numel() for tensor in foreign.raw.values())
    kept = ["raw", *(f"ema:{decay}" for decay in foreign.averages)]
    print(f"{path}: {network} of {sides} under {process}, {count:,} numbers, weights {' and '.join(kept)}")
    for note in foreign.notes:
        print(f"  note: {note}")
    print(f"  data: {config['class_path'].rpartition('.')[2]}{'' if data else ' (a guess: --data says otherwise)'}")
    weights = "" if foreign.averages else " --weights raw"
    print(f"  {output}    python -m diffusion_pl sample --ckpt_path {output}{weights}")
