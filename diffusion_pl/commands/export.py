"""python -m diffusion_pl export: a model as other packages read it."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from ..runtime.output import Report
from ..samplers import Grid, Sampler


def export(
    ckpt_path: Path,
    to: Literal["diffusers", "safetensors", "onnx", "torch_export"],
    output: Path,
    sampler: Callable[[Grid], Sampler] | None = None,
    grid: Grid | None = None,
    steps: int | None = None,
    weights: str = "ema",
    evaluation: Path | None = None,
    license: str | None = None,
) -> Report | None:
    """Write a checkpoint's model for another package, with a README.md that says what it is and how to load it.

    The README.md is a model card as the Hugging Face hub shows it: what the checkpoint, the card of its run and its
    evaluations contain, and nothing else.

    Args:
        ckpt_path: Checkpoint of a run or of `import`, or folder of a run (its newest one).
        to: Format: diffusers (a folder for DDPMPipeline.from_pretrained; a UNet on a beta schedule), safetensors
            (weights, and config.json to rebuild the model from), onnx (the denoiser: x_t, t to the estimates of data
            and noise), torch_export (the same as a program of PyTorch).  All but the second take any number of
            examples at once.
        output: Folder for the files, new or empty.
        sampler: Sampler, its options as --sampler.eta 1; diffusers has DDIM and Ancestral; None: the checkpoint's.
        grid: Grid of times, such as TrailingGrid; None: the sampler's.
        steps: Number of grid times, at least 1, such as 50; None: the checkpoint's.
        weights: Weights: "ema" (the run's first EMA weights), "raw", "ema:0.999" for one of several, or
            "std:0.15" for power-function EMA weights of this width, made of the run's snapshots.
        evaluation: File evaluation.json of this checkpoint, for the card; None: those in the folder of its run.
        license: License of the weights, for the card, such as mit; None: not stated.
    """
    import logging

    from ..checkpoints.io import checkpoint_at, read_hashed
    from ..checkpoints.loading import diffusion_model, from_content
    from ..interop import WRITERS
    from ..interop.model_card import find_results, find_run, model_card
    from ..runtime.errors import quiet
    from ..runtime.output_folder import OutputFolder
    from .choices import choose

    quiet()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    ckpt_path = checkpoint_at(ckpt_path)
    content, sha256 = read_hashed(ckpt_path)
    module, data = from_content(content, ckpt_path, weights)
    model = diffusion_model(module, ckpt_path)
    model.requires_grad_(False)
    pipeline = choose(model.live_pipeline(data), sampler, grid, steps)
    results, run = find_results(ckpt_path, sha256, evaluation), find_run(ckpt_path)
    description, steps = content["diffusion_pl"], content.get("global_step")
    description.pop("places", None)  # of this machine
    origin = {"name": ckpt_path.name, "steps": steps}
    card = model_card(to, pipeline, description, origin, sha256, run, results, license)
    call = {"checkpoint": str(ckpt_path), "sha256": sha256, "weights": pipeline.weights, "to": to, "card": card}
    with OutputFolder(output, call) as folder:
        if folder.published is None:

            def write(stage: Path) -> list[Path]:
                files = WRITERS[to](pipeline, data, description, stage)
                (stage / "README.md").write_text(card, encoding="utf-8")
                return [*files, stage / "README.md"]

            report = Report(done=f"{ckpt_path} ({pipeline.weights} weights) for {to}; README.md says how to load it")
            folder.publish(write, report)
        return folder.report
