"""What the sampling commands share: a pipeline with their options."""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoints.io import sha256_of
from ..checkpoints.loading import load_classifier, load_pipeline
from ..pipeline import Pipeline
from ..runtime.parsing import wrong
from ..runtime.processes import rank_label
from ..samplers import Grid, Heun, Sampler, same_ends

FEW = 5  # evaluations of an ordinary denoiser below which samples are blurred
SOLVED = 33  # grid times in which the ODE of a flow map is solved where its jumps are of no use


def choose(
    pipeline: Pipeline,
    sampler: Callable[[Grid], Sampler] | None = None,
    grid: Grid | None = None,
    steps: int | None = None,
    scale: float | None = None,
    classifier: Path | None = None,
    weak: Path | None = None,
    cond: Mapping[str, Any] | None = None,
    drop: Sequence[str] | None = None,
) -> Pipeline:
    """The pipeline with what a command line asks for; None everywhere: the pipeline itself.

    Args:
        pipeline: of a checkpoint.
        sampler, grid, steps: see Pipeline.with_sampler.
        scale: w; None: 1.
        classifier: checkpoint of a NoisyClassifier, for classifier guidance.
        weak: checkpoint of a weaker model, for autoguidance, see `weak_source`.
        cond: the conditions of the samples, as Pipeline.with_cond takes them.
        drop: names of the conditions that `scale` strengthens; None: see Pipeline.with_scale.

    Raises:
        ValueError: a condition or a scale for an unconditional model, an unknown class, two kinds of guidance, or a
            sampler of which a consistency model has learned nothing.
    """
    own = pipeline
    if drop is not None and (scale is None or classifier is not None or weak is not None):
        raise ValueError("drop: needs --scale, and neither --classifier nor --weak. Fix: give --scale 2, or remove it")
    if classifier is not None and weak is not None:
        raise ValueError("give --classifier or --weak, not both")
    if sampler is not None or grid is not None or steps is not None:
        try:
            pipeline = pipeline.with_sampler(sampler, grid, steps)
        except ValueError as error:
            key, colon, text = str(error).partition(": ")
            raise wrong(key, text) if colon and key == "sampler" else error from None
    if classifier is not None:
        pipeline = _classified(pipeline, classifier, 1.0 if scale is None else scale)
    elif weak is not None:
        pipeline = _away_from(pipeline, weak, 1.0 if scale is None else scale)
    elif scale is not None:
        if not pipeline.conditions:
            raise ValueError(
                f"scale {scale:g} is for a model of classes, and this one is unconditional: train it with "
                "data.init_args.conditional true, or add --classifier or --weak"
            )
        pipeline = pipeline.with_scale(scale, drop)
    pipeline.check_sampler()
    _say_few(pipeline, own)
    _say_names(pipeline, cond or {})
    return pipeline.with_cond(**(cond or {}))


def noted(pipeline: Pipeline, cond: Mapping[str, Any] | None) -> dict[str, Any]:
    """The conditions that all samples have, for the record: the number of a class, the numbers of a vector, a text; of
    an image its file and SHA-256.

    Args:
        pipeline: with these conditions.
        cond: what the command line gave.
    """
    kinds = {name: condition.kind for name, condition in pipeline.conditions.items()}
    return {name: _noted(kinds[name], value, (cond or {}).get(name)) for name, value in pipeline.cond.items()}


def _noted(kind: str, value: int | Tensor, given: Any) -> Any:
    if isinstance(value, int) or given is None:  # without a value it is not given, as for `encode`
        return value if isinstance(value, int) else None
    if kind == "image" and isinstance(given, (list, tuple)):  # an image and its mask
        return [_noted(kind, value, one) for one in given]
    path = Path(str(given)).expanduser()
    if isinstance(given, str) and os.path.exists(path):  # Path.exists raises for a long text
        values = hashlib.sha256(value.contiguous().numpy().tobytes()).hexdigest()
        return {"file": given, "sha256": sha256_of(path) if path.is_file() else values}
    return value.tolist() if kind == "vector" else given


def derive(pipeline: Pipeline, conditions: Mapping[str, Tensor]) -> tuple[Pipeline, dict[str, str]]:
    """The pipeline with conditions that follow from examples, where no value is given, and which: for the record.

    Args:
        pipeline: with the conditions that are given.
        conditions: of the examples, (N, *shape) each; samples get them in turn.
    """
    names = [name for name in pipeline.conditions if name in conditions and name not in pipeline.cond]
    own = {name: conditions[name] for name in names}
    if own and not rank_label():
        print(f"{', '.join(names)}: made of the examples; --cond.{names[0]} gives another")
    return pipeline.with_cond(**own), dict.fromkeys(own, "made of the examples")


def say_turns(pipeline: Pipeline) -> None:
    """Say which conditions the samples have in turn, since no value is given, of other kinds than labels; not of one
    that is the same in all examples, such as a level of noise, 0."""
    kept = [n for n, c in pipeline.conditions.items() if n in pipeline.turns and c.shape]
    turns = {n: torch.as_tensor(pipeline.turns[n]) for n in kept}
    names = [n for n, values in turns.items() if n not in pipeline.cond and (values != values[:1]).any()]
    if names and not rank_label():
        examples = f"{len(turns[names[0]])} held-out examples"
        print(f"{', '.join(names)}: not given, those of {examples} in turn; --cond.{names[0]} gives one")


def as_denoiser(pipeline: Pipeline, use: str, chosen: bool) -> Pipeline:
    """The pipeline for what uses a flow map as an ordinary denoiser; any other model's as it is.

    Args:
        pipeline: of a checkpoint.
        use: what for, as the subject of a sentence.
        chosen: whether a sampler, grid or number of steps was given; else the ODE is solved by Heun, of which a line is
            printed: the few jumps of the checkpoint's own sampler would not do.

    Raises:
        ValueError: it is a consistency model, which is no ordinary denoiser.
    """
    if pipeline.consistency:
        raise ValueError(
            f"{use} needs an ordinary denoiser, and a consistency model has learned jumps to the data only. Fix: give "
            "--ckpt_path the diffusion model that it began from, or a flow map"
        )
    if not pipeline.denoiser.flow_map or chosen:
        return pipeline
    solver = Heun(same_ends(pipeline.sampler.grid, pipeline.schedule, SOLVED))
    print(f"{use} uses the flow map as an ordinary denoiser: Heun in {SOLVED} steps, unless --steps is given")
    return pipeline.with_sampler(solver)


def _say_few(pipeline: Pipeline, own: Pipeline) -> None:
    """Warn of few evaluations of what is not exact in few: an ordinary denoiser, or a flow map used as one."""
    sampler, nfe, fixed = pipeline.sampler, pipeline.nfe, own.sampler.order > 0 or own.sampler.jumps
    if pipeline.exact_jumps or rank_label() or (sampler.order == 0 and not sampler.jumps):  # AdaptiveODE
        return
    name, usual = type(sampler).__name__, max(own.nfe, 20)
    if pipeline.denoiser.flow_map and nfe < usual:
        of = "guidance" if sampler.jumps else name
        what, fix = f"{of} uses the flow map as an ordinary denoiser", f"take {usual} steps"
        fix += "" if sampler.jumps else ", or the sampler DDIM"
        print(f"diffusion_pl: warning: {what}, for which {nfe} NFE are few. Fix: {fix}", flush=True)
    elif nfe < (min(FEW, own.nfe) if fixed else FEW):
        takes = f", this one's own sampler takes {own.nfe}" if fixed else ""
        what, fix = f"{nfe} NFE are few for a diffusion model{takes}", f"take {usual} steps, or train a flow map"
        print(f"diffusion_pl: warning: {what}: expect blurred samples. Fix: {fix}", flush=True)


def _say_names(pipeline: Pipeline, cond: Mapping[str, Any]) -> None:
    """Say which class a number is the name of, where it is not the class of that number: of folders 10, 20, 30."""
    for name, asked in cond.items():
        names = pipeline.conditions[name].names if name in pipeline.conditions else ()
        if str(asked).isdigit() and str(asked) in names and names.index(str(asked)) != int(asked) and not rank_label():
            print(f"cond.{name} {asked}: the class named '{asked}', which is number {names.index(str(asked))}")


def default_count(pipeline: Pipeline) -> int:
    """Default number of samples: 64 images, 1,000 points."""
    return 64 if len(pipeline.shape) > 1 else 1000


def _classified(pipeline: Pipeline, path: Path, scale: float) -> Pipeline:
    classifier = load_classifier(path)
    if classifier.shape != pipeline.shape:
        raise ValueError(f"{path} classifies data of shape {classifier.shape}, the model's are {pipeline.shape}")
    return pipeline.with_classifier(classifier, classifier.conditions, scale)


def weak_source(given: Path) -> tuple[Path, str]:
    """Checkpoint and weights of --weak: PATH, PATH@STEP of a snapshot of the run, or PATH@WEIGHTS as for --weights."""
    path, mark, rest = str(given).partition("@")
    if not mark or given.exists():
        return given, "ema"
    return Path(path), f"@{rest}" if rest.isdigit() else rest


def _away_from(pipeline: Pipeline, given: Path, scale: float) -> Pipeline:
    path, weights = weak_source(given)
    weak, _ = load_pipeline(path, weights)
    if weak.shape != pipeline.shape:
        raise ValueError(f"{path} is of data of shape {weak.shape}, the model's are {pipeline.shape}")
    classes, weak_classes = ({name: c.classes for name, c in each.conditions.items()} for each in (pipeline, weak))
    if weak_classes != classes:
        raise ValueError(f"{path} knows {_listed(weak_classes)}, the model {_listed(classes)}")
    return pipeline.with_weak(weak.denoiser, scale)


def _listed(classes: Mapping[str, int | None]) -> str:
    return ", ".join(f"{count} classes" if name == "label" else name for name, count in classes.items()) or "no classes"
