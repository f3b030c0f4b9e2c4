"""How a checkpoint's model is to be sampled: its sampler and guidance, or others in their place."""

import copy
import hashlib
import math
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..checkpoints.io import checkpoint_at
from ..checkpoints.loading import load, load_classifier
from ..conditions import Conditions, check_names, class_number
from ..denoisers import AutoGuided, ClassifierFree, ClassifierGuided, Denoiser
from ..samplers import Grid, Sampler, few_steps, same_ends
from ..schedules import Schedule
from ..training import DiffusionModule
from .limits import check_accelerator
from .parsing import wrong
from .reading import reading


def choose_sampler(
    model: DiffusionModule,
    sampler: Callable[[Grid], Sampler] | None = None,
    grid: Grid | None = None,
    steps: int | None = None,
) -> Sampler:
    """The model's sampler, with another rule, grid or number of grid points where these are given.

    Args:
        model: of a checkpoint.
        sampler: makes the sampler from a grid.
        grid: None: without `steps` that of the model's sampler, with `steps` the one that suits few (`few_steps`).
        steps: number of grid points; None: as the grid has.
    """
    own = model.sampler.grid
    chosen = copy.copy(model.sampler) if sampler is None else _made(sampler, own if grid is None else grid)
    if steps is not None and grid is None:
        if chosen.order == 0:  # its error does not depend on the points between the ends
            grid = same_ends(own, model.schedule, steps)
        else:
            grid = few_steps(own, model.schedule, steps, chosen.evaluations)
    elif steps is not None and grid is not None:
        grid = grid.with_steps(steps)
    if sampler is not None:
        return _made(sampler, grid or own)
    chosen.grid = grid or own
    return chosen


def steps_hint(sampler: Sampler, schedule: Schedule, device: torch.device) -> str | None:
    """A line on the faster way, where sampling takes long: many evaluations on a CPU; else None."""
    evaluations = 1 + (len(sampler.grid(schedule)) - 1) * sampler.evaluations
    if device.type != "cpu" or evaluations < 200 or sampler.order == 0:
        return None
    faster = round(evaluations / 20)
    return f"{evaluations:,} evaluations per sample; --sampler DPMpp --steps 20 is about {faster} times faster"


def _made(sampler: Callable[[Grid], Sampler], grid: Grid) -> Sampler:
    try:
        return sampler(grid)
    except TypeError as error:
        if "abstract" not in str(error):
            raise
        raise wrong("sampler", "Sampler is abstract: choose one such as DDIM, Heun, DPMpp") from None


def guide(
    model: DiffusionModule,
    scale: float | None = None,
    classifier: Path | None = None,
    weak: Path | None = None,
    cond: Mapping[str, int | str] | None = None,
    any_label: bool = False,
) -> None:
    """Set the guidance and the conditions under which the model samples.

    Args:
        model: of a checkpoint.
        scale: w; None: 1.
        classifier: checkpoint of a NoisyClassifier, for classifier guidance.
        weak: checkpoint of a weaker model, for autoguidance.
        cond: the conditions of all samples; a label is a class's number or its name.
        any_label: whether a model of classes is asked for any class, where no label is given; else the samples have
            the labels of all classes in turn.

    Raises:
        ValueError: a condition or a scale for a model that knows no labels, a label it has not, two kinds of guidance.
    """
    if classifier is not None and weak is not None:
        raise ValueError("give --classifier or --weak, not both")
    conditions: Conditions = model.conditions
    wrap: Callable[[Denoiser], Denoiser] | None = None
    if classifier is not None:
        guiding = load_classifier(classifier)
        if guiding.shape != model.shape:
            raise ValueError(f"{classifier} classifies data of shape {guiding.shape}, the model's are {model.shape}")
        conditions = {"label": guiding.conditions["label"]}
        model.guide = guiding  # so that it goes where the model goes
        wrap = partial(ClassifierGuided, classifier=guiding, scale=1.0 if scale is None else scale)
    elif weak is not None:
        weaker = load(weak)[0]
        if weaker.shape != model.shape:
            raise ValueError(f"{weak} is of data of shape {weaker.shape}, the model's are {model.shape}")
        ours, theirs = ({name: c.classes for name, c in each.conditions.items()} for each in (model, weaker))
        if theirs != ours:
            raise ValueError(f"{weak} knows {_known(weaker.conditions)}, the model {_known(model.conditions)}")
        model.guide = weaker.denoiser
        wrap = partial(AutoGuided, weak=weaker.denoiser, scale=1.0 if scale is None else scale)
    elif scale is not None:
        if "label" not in conditions:
            raise ValueError(
                f"scale {scale:g} is for a model of classes, and this one is unconditional: train it with "
                "data.init_args.conditional true, or add --classifier or --weak"
            )
        wrap = partial(ClassifierFree, scale=scale)
    model.sample_cond, model.conditions = _numbered(cond or {}, conditions), dict(conditions)
    if any_label and "label" in conditions:
        model.sample_cond.setdefault("label", -1)
    if wrap is not None:
        model.guidance = wrap if model.guidance is None else partial(_both, wrap, model.guidance)


def device_of(accelerator: str) -> torch.device:
    """The torch device of "cpu", "gpu" (or "cuda"), "mps", or "auto": a GPU of CUDA where there is one, else cpu.

    Apple's GPUs (mps) have no float64, in which tables of betas are kept.
    """
    device = check_accelerator(accelerator, "accelerator")
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise wrong("accelerator", f"{accelerator} cannot be used: {str(error).splitlines()[0]}") from error


def read_latents(path: Path, shape: tuple[int, ...]) -> Tensor:
    """The latents that `encode` wrote: (N, *shape)."""
    with reading(path, "latents.npz of `encode`"), np.load(path, allow_pickle=False) as file:
        eps = torch.from_numpy(file["eps"])
        if not eps.is_floating_point() or not eps.isfinite().all() or not len(eps):
            raise ValueError(f"{eps.dtype} of shape {tuple(eps.shape)}, or not finite")
    if eps.shape[1:] != shape:
        raise ValueError(f"{path}: its latents are of shape {tuple(eps.shape[1:])}, the model's data of {shape}")
    return eps.float()


def not_finite(x: Tensor) -> int:
    """How many of the samples x: (N, *) hold a number that is not finite."""
    return int((~x.isfinite()).flatten(1).any(1).sum()) if x.is_floating_point() and len(x) else 0


def not_finite_error(bad: int, count: int) -> str:
    """The line about samples of which so many are not finite; "" if all are."""
    if not bad:
        return ""
    return (
        f"{bad:,} of {count:,} samples are not finite: the model or its sampler diverges. Fix: take more --steps or "
        "another --sampler, or an earlier checkpoint"
    )


def refuse_not_finite(bad: int, count: int) -> None:
    """Raise ValueError if some of the samples are not finite."""
    if bad:
        raise ValueError(not_finite_error(bad, count))


def slerp(a: Tensor, b: Tensor, share: Tensor) -> Tensor:
    """The points at `share`: (K,) of the way from a to b: (*), on the arc around the origin: (K, *).

    Between latents the straight line would pass through points of too small a norm, which no sample comes from.
    """
    cosine = (a * b).sum() / (a.norm() * b.norm())
    angle = torch.acos(cosine.clamp(-1 + 1e-6, 1 - 1e-6))
    share = share.reshape(-1, *[1] * a.ndim)
    return (torch.sin((1 - share) * angle) * a + torch.sin(share * angle) * b) / torch.sin(angle)


def fingerprint(path: Path) -> str:
    """SHA-256 of a file, or of the newest checkpoint in the folder of a run; hexadecimal."""
    digest = hashlib.sha256()
    with checkpoint_at(path).open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def describe(thing: Any) -> Any:
    """An object of ours as plain values: {"class": its name, and its numbers, names and parts}."""
    if isinstance(thing, float) and not math.isfinite(thing):
        return str(thing)  # JSON has no infinity
    if thing is None or isinstance(thing, (bool, int, float, str)):
        return thing
    if isinstance(thing, (list, tuple)):
        return [describe(part) for part in thing]
    parts = {name: describe(part) for name, part in sorted(vars(thing).items()) if not name.startswith("_")}
    return {"class": type(thing).__name__, **parts}


def _both(inner: Callable[[Denoiser], Denoiser], outer: Callable[[Denoiser], Denoiser], denoiser: Denoiser) -> Denoiser:
    return outer(inner(denoiser))


def _known(conditions: Conditions) -> str:
    return ", ".join(f"{c.classes or name} classes" for name, c in conditions.items()) or "no classes"


def _numbered(cond: Mapping[str, int | str], conditions: Conditions) -> dict[str, int]:
    """Conditions with the numbers of classes in place of their names."""
    check_names(cond, conditions)
    found = {name: class_number(name, conditions[name], asked) for name, asked in cond.items()}
    for name, number in found.items():
        asked = str(cond[name])
        if re.fullmatch(r"[+-]?\d+", asked) and int(asked) != number:  # of folders 10, 20, 30 the first is meant by 10
            print(f"cond.{name} {asked}: the class named {asked!r}, which is number {number}")
    return found
