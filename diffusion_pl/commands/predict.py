"""python -m diffusion_pl predict: samples of a run, into its folder."""

from pathlib import Path
from typing import Any

from ..callbacks import SampleWriter
from ..callbacks.sample_writer import done, gathered
from ..cli import DiffusionCLI
from ..runtime.drawing import fingerprint, not_finite_error
from ..runtime.output_folder import OutputFolder
from ..runtime.processes import part


def predict(cli: DiffusionCLI, leader: bool) -> None:
    """Draw samples into the run's folder; what an interrupted call has drawn is not drawn again.

    Args:
        cli: with the trainer, the model and the data.
        leader: whether this process is the first of the run.
    """
    trainer: Any = cli.trainer
    model, data = cli.model, cli.datamodule
    path = cli.options["ckpt_path"]
    call = {"checkpoint": path, "sha256": fingerprint(Path(path)), "seed": model.sample_seed}
    remedy = "move it away, or use the command sample with --output"
    with OutputFolder(cli.folder / "samples", call, leader=leader, remedy=remedy) as output:
        if output.published is None:
            data.predict_done = done(output.work)
            trainer.callbacks.append(SampleWriter(output.work))
            trainer.predict(model, datamodule=data, **cli.options)
            part()
            if not trainer.is_global_zero:
                return
            n = data.predict_samples
            drawn = gathered(output.work, n)
            told = f", {drawn.bad:,} of them NOT FINITE" if drawn.bad else ""
            summary = f"{n:,} samples, {drawn.nfe} evaluations each{told}:"
            write, error = data.write, not_finite_error(drawn.bad, n)
            output.publish(lambda stage: write(drawn.x, stage), summary, error)
        output.show()
