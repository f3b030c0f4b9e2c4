"""python -m diffusion_pl evaluate: how good a model is, in results that say how they were measured."""

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from ..data import DataModule
from ..likelihood import ChainBound, ContinuousBound, FlowLikelihood
from ..metrics import InceptionV3
from ..runtime.bounds import check_counts
from ..runtime.output import Report, next_command
from ..samplers import Grid, Sampler

if TYPE_CHECKING:
    from ..evaluation import Plan


#: Options that have no effect on images that exist already.
OF_MODELS = (
    "ckpt_path",
    "seed",
    "sampler",
    "grid",
    "steps",
    "scale",
    "drop",
    "cond",
    "likelihood",
    "likelihood_split",
    "likelihood_examples",
    "dequantizations",
    "bound",
    "ensemble",
    "labels",
    "per_class",
    "weights",
    "batch_size",
    "devices",
)


def evaluate(
    ckpt_path: Path | None = None,
    images: Path | None = None,
    metrics: list[str] | None = None,
    num_samples: int | None = None,
    repeats: int = 1,
    output: Path = Path("evaluation"),
    seed: int = 0,
    sampler: Callable[[Grid], Sampler] | None = None,
    grid: Grid | None = None,
    steps: int | None = None,
    scale: float | None = None,
    drop: list[str] | None = None,
    cond: dict[str, str | list[Any]] | None = None,
    extractor: InceptionV3 | nn.Module | None = None,
    reference: Path | None = None,
    trust_pickle: bool = False,
    split: str = "train",
    likelihood: FlowLikelihood | None = None,
    likelihood_split: str = "test",
    likelihood_examples: int | None = None,
    dequantizations: int = 1,
    bound: ChainBound | ContinuousBound | None = None,
    ensemble: int = 16,
    labels: str = "balanced",
    per_class: bool = False,
    data_: Callable[[], DataModule] | dict[str, str | list[Any]] | None = None,
    weights: str = "ema",
    batch_size: int = 250,
    accelerator: str = "auto",
    devices: int = 1,
) -> Report | None:
    """Measure a model, samples against the data and the likelihood of the data under it; or a folder of images.

    Writes evaluation.json, in which every result says how many samples, which features and weights, which data and
    split, which sampler it is of, and prints a table.  `compare` shows two of them side by side.  A call that was
    interrupted continues where it stopped when it is repeated.

    Args:
        ckpt_path: Checkpoint, or folder of a run (its newest one).
        images: Folder of images that exist already, in place of a checkpoint; compared with --data CLASS and its
            options, such as --data Folder --data.path FOLDER, or with --reference.  None: a checkpoint is given.
        metrics: Names of metrics, such as fid is: of images fid, is, kid, prc (precision and recall), sfid, cmmd; of
            points energy, mmd, sliced, prc; of continuous fields moments, marginals, spectrum, energy; of all nll
            (probability-flow ODE), elbo (variational bound), and of models with conditions crps and spread.  None: all
            but the last four, sfid and cmmd.
        num_samples: Number of samples in each repeat, at least 2; published results of images take 50,000.
            None: 1,000, and all of --images.
        repeats: Number of repeats with other samples and noise, at least 1, for a mean and a standard deviation.
        output: Folder for the files, new or empty.
        seed: Seed of samples and noise, at least 0.
        sampler: Sampler, such as DPMpp, its options as --sampler.order 3; None: the checkpoint's.
        grid: Grid of times, such as KarrasGrid, its options as --grid.rho 7; None: the sampler's.
        steps: Number of grid times, at least 1, such as 20; without --grid they have equal shares of t; None: the
            checkpoint's.
        scale: Guidance scale w of a model with conditions, such as 2; 1 is the plain model.  None: 1.
        drop: Names of the conditions that --scale strengthens, such as label text; the estimate without guidance lacks
            them and keeps the others.  None: those that training dropped at random.
        cond: Conditions of all samples, by name, as for `sample`: --cond.label 3, --cond.low FILE.  None: all classes
            in turn, of other conditions those of examples of the split.
        extractor: Network of features: InceptionV3 (the default; --extractor.weights FILE without a network
            connection), DINOv2 or CLIP (--extractor.folder FOLDER), DigitsClassifier, or any module by class path that
            maps uint8 images to rows.
        reference: File reference.npz of another evaluation, or statistics of other packages (ADM, EDM, EDM2, JiT,
            torch-fidelity), in place of the data; for fid, is and sfid, of ADM's files also kid and prc.  None: the
            data.
        trust_pickle: Permission to read a reference that is a pickle, such as EDM2's, which runs any code in it.
        split: Split of the data that samples are compared with: train, val or test.
        likelihood: Method for nll, such as FlowLikelihood, its options as --likelihood.probes 4; None: FlowLikelihood.
        likelihood_split: Split of the data for nll, elbo, crps and spread: train, val or test.
        likelihood_examples: Number of examples for nll, elbo, crps and spread, the first of that split; None: all.
        dequantizations: Number K of noises for each example of quantized data, at least 1; the bound on nll is tighter
            for more.
        bound: Bound for elbo: ContinuousBound or ChainBound (--bound.variance 1); None: ContinuousBound.
        ensemble: Number of samples under the conditions of each example, for crps and spread, at least 2.
        labels: Labels of the samples of a model with classes: balanced (all classes in turn) or drawn (at random); they
            are recorded, since FID is a little lower for balanced ones.
        per_class: Metrics of the samples of each class against its examples too, in evaluation.json.
        data_: Options of the checkpoint's data to replace, as --data.path FOLDER or --data.download true;
            with --images the class of the data and its options.  None: none.
        weights: Weights: "ema" (the run's first EMA weights), "raw", "ema:0.999" for one of several, or
            "std:0.15" for power-function EMA weights of this width, made of the run's snapshots.
        batch_size: Number of samples between two savings; samples do not depend on it.
        accelerator: Kind of device: "cpu", "cuda", "mps", or "auto" (cuda where there is one, else cpu).
        devices: Number of devices, at least 1, a process each.
    """
    options = dict(locals())
    check_counts(devices=devices, steps=steps)
    from ..evaluation import Plan

    plan = Plan(
        metrics=None if metrics is None else tuple(metrics),
        num_samples=1000 if num_samples is None else num_samples,
        repeats=repeats,
        seed=seed,
        extractor=extractor,
        reference=reference,
        trust_pickle=trust_pickle,
        split=split,
        likelihood=likelihood or FlowLikelihood(),
        likelihood_split=likelihood_split,
        likelihood_examples=likelihood_examples,
        dequantizations=dequantizations,
        bound=bound or ContinuousBound(),
        ensemble=ensemble,
        labels=labels,
        per_class=per_class,
        batch_size=batch_size,
    )
    if images is not None:
        _refuse(options)
        return _evaluate_images(images, data_() if callable(data_) else None, plan, num_samples, output, accelerator)
    return _evaluate_model(
        ckpt_path, plan, (sampler, grid, steps, scale, drop, cond), data_, weights, output, accelerator, devices
    )


def _evaluate_model(
    ckpt_path: Path | None,
    plan: "Plan",
    choices: tuple[Any, Any, int | None, float | None, list[str] | None, Mapping[str, Any] | None],
    data_: Any,
    weights: str,
    output: Path,
    accelerator: str,
    devices: int,
) -> Report | None:
    """Measure a checkpoint; choices: sampler, grid, steps, scale, drop and cond in place of its own."""
    from ..checkpoints.loading import load_pipeline
    from ..evaluation import expected_of, paper_columns
    from ..evaluation.run import Evaluation
    from ..runtime.devices import device_of
    from ..runtime.errors import quiet
    from ..runtime.limits import check_devices
    from ..runtime.output_folder import OutputFolder
    from ..runtime.processes import rank_label
    from .choices import choose, noted

    if ckpt_path is None:
        raise ValueError("missing: --ckpt_path CHECKPOINT, or --images FOLDER")
    if callable(data_):
        raise ValueError(
            "--data: the checkpoint names the class of its data. Fix: give its options only, as --data.path"
        )
    quiet()
    check_devices(devices, device_of(accelerator).type, "devices")
    pipeline, data = load_pipeline(ckpt_path, weights, data_)
    sampler, grid, steps, scale, drop, cond = choices
    pipeline = choose(pipeline, sampler, grid, steps, scale, cond=cond, drop=drop)
    pipeline.guided.requires_grad_(False)
    given = noted(pipeline, cond)
    evaluation = Evaluation(pipeline, data, plan, str(ckpt_path), scale, accelerator, prepare=bool(data_), cond=given)
    with OutputFolder(
        output, {**evaluation.call, "data": data_ or None, **({"drop": drop} if drop else {})}, leader=not rank_label()
    ) as folder:
        if folder.published is None:
            results = evaluation.run(folder.work, devices)
            if results is None:
                return None
            bands = expected_of(ckpt_path)
            report = Report(
                done=f"{ckpt_path} ({pipeline.weights} weights)",
                rows=[row | paper_columns(row["metric"], results[row["metric"]], bands) for row in results.rows],
                error=results.problem,
                next=[next_command("sweep", "--ckpt_path", ckpt_path, "--samplers", "DDIM", "DPMpp", "--nfe", 10, 20)],
            )
            folder.publish(results.write, report)
        return folder.report


def _evaluate_images(
    images: Path, data: DataModule | None, plan: "Plan", num_samples: int | None, output: Path, accelerator: str
) -> Report | None:
    from ..evaluation.stored import StoredEvaluation
    from ..runtime.errors import quiet
    from ..runtime.output_folder import OutputFolder

    quiet()
    evaluation = StoredEvaluation(images, data, plan, num_samples, accelerator)
    with OutputFolder(output, evaluation.call) as folder:
        if folder.published is None:
            results = evaluation.run()
            folder.publish(results.write, Report(done=f"{evaluation.count:,} images of {images}", rows=results.rows))
        return folder.report


def _refuse(options: Mapping[str, Any]) -> None:
    """Raise ValueError for options that have no effect with --images."""
    defaults = {name: parameter.default for name, parameter in inspect.signature(evaluate).parameters.items()}
    given = next((name for name in OF_MODELS if options[name] != defaults[name]), None)
    if given is not None:
        raise ValueError(f"--{given} is for a model, and --images are measured as they are. Fix: remove one of them")
    if isinstance(options["data_"], dict):
        raise ValueError("--data: expected a class and its options, such as --data Folder --data.path FOLDER")
