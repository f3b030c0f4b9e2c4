"""python -m diffusion_pl predict: samples of a run, into its folder."""

import math
from pathlib import Path
from typing import Any

from ..callbacks.figures import write_samples
from ..callbacks.sample_writer import Drawer, draw, gathered, not_finite_error
from ..checkpoints.io import read_hashed
from ..checkpoints.loading import diffusion_model, fill
from ..cli import DiffusionCLI
from ..runtime.output import Report, next_command, show
from ..runtime.output_folder import OutputFolder
from ..runtime.processes import leave_group
from .choices import default_count


def predict(cli: DiffusionCLI, leader: bool) -> None:
    """Draw samples into the run's folder; what an interrupted call has drawn is not drawn again.

    Args:
        cli: with the trainer, the model and the data.
        leader: whether this process is the first of the run.
    """
    trainer: Any = cli.trainer
    path = cli.options["ckpt_path"]
    model, data = diffusion_model(cli.model, path), cli.datamodule
    content, sha256 = read_hashed(path)
    if leader:
        data.prepare_data()
    data.setup("predict")
    fill(model, content, path, "ema")
    cli.check_checkpoint(content)
    if (state := content.get(type(data).__name__)) is not None:
        data.load_state_dict(state)
    pipeline = model.eval().live_pipeline(data)
    call = {"checkpoint": path, "sha256": sha256, "seed": pipeline.seed}
    remedy = "move it away, or use the command sample with --output"
    with OutputFolder(cli.folder / "samples", call, leader=leader, remedy=remedy) as output:
        if output.published is None:
            n = default_count(pipeline)
            first = draw(Drawer(pipeline), n, output.work, trainer, size=4 * math.prod(pipeline.shape))
            leave_group()
            if not first:
                return
            drawn = gathered(output.work, n)
            report = Report(
                done=f"{n:,} samples of {path}, {drawn.nfe} NFE each",
                error=not_finite_error(drawn.bad, n),
                next=[next_command("sample", "--ckpt_path", path, "--num_samples", 10 * n)],
            )

            def write(stage: Path) -> list[Path]:
                return write_samples(data, drawn.x, stage)

            output.publish(write, report)
        show(output.report)
