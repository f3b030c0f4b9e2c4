"""python -m diffusion_pl sample: samples of a checkpoint."""

from contextlib import suppress
from pathlib import Path


def sample(
    ckpt_path: Path,
    num_samples: int | None = None,
    output: Path = Path("samples"),
    seed: int = 0,
    batch_size: int = 250,
    weights: str = "ema",
    accelerator: str = "auto",
) -> None:
    """Draw samples from a checkpoint with its own sampler and write them in the units of its data.

    Points become samples.csv (with a header) and samples.png; pictures a PNG each, and grid.png.  Sample i is the same,
    up to rounding, whatever the batch size; of a model of classes it has the label i mod classes.

    Args:
        ckpt_path: A checkpoint of a run; it says which model and data it belongs to.
        num_samples: How many; None: 1,000 points or 64 pictures.
        output: Folder for the files.
        seed: Of the samples.
        batch_size: How many at a time.
        weights: "ema" (the run's first average), "raw", or "ema:0.999" for one of several averages.
        accelerator: "cpu", "cuda", "mps", or "auto" for the best there is.
    """
    for name, value in (("num_samples", num_samples), ("batch_size", batch_size)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    from ..console import quiet, refuse_samples_in

    refuse_samples_in(output, "name another folder with --output")
    from lightning.pytorch import Trainer

    from ..callbacks import SampleWriter, StepProgress
    from ..loading import load

    quiet()
    model, data = load(ckpt_path, weights)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:  # told now, not after the sampling
        raise ValueError(f"--output {output} cannot be made a folder: {error.strerror}") from error
    num_samples = num_samples or data.predict_samples
    data.predict_samples, data.batch_size, model.sample_seed = num_samples, min(batch_size, num_samples), seed
    writer = SampleWriter(data.write, output)
    trainer = Trainer(
        accelerator=accelerator, devices=1, logger=False, enable_checkpointing=False, callbacks=[StepProgress(), writer]
    )
    with suppress(OSError, ValueError):  # the picture shows the data too, where they are at hand
        data.setup("predict")
    trainer.predict(model, dataloaders=data.predict_dataloader())
    print(f"{num_samples:,} samples of {ckpt_path} ({model.weights_name} weights), {writer.nfe} evaluations each:")
    for file in writer.files:
        print(f"  {file}")
