"""Snapshots of power-function EMA weights during a run, and EMA weights of any width from them afterwards.

    runs/NAME/snapshots/step00004096.pt     {"updates": 4096, "begun": {…}, "shadows": {"std0.05": {name: tensor}, …}}

The content is that of a checkpoint's entry "averages", in half precision.  Snapshots have equal distances, which double
whenever there would be more than the run may keep: every second one is then removed.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..runtime.reading import check, reading
from ..training import Averages
from ..training.profiles import PREFIX, Fit, Profile, fit_profile, gamma_of, nearest_width, std_in
from .exported import run_folder_of
from .io import checkpoint_at, is_whole

FOLDER = "snapshots"
WARNED, REFUSED = 0.02, 0.1  # residual of the fit of a profile
UNKNOWN = 128  # steps between two snapshots at first, in a run without a planned length

_NAME = re.compile(r"step(\d{8,})\.pt")
_SPEC = re.compile(r"(?:std:(?P<std>[^@]*))?(?:@(?P<step>\d+))?")
_KIND = {"updates": int, "begun?": {"*": int}, "shadows": {"*": {"*": Tensor}}}
_NEGLIGIBLE = 1e-9  # weight of a snapshot that is not read


class Choice(NamedTuple):
    """EMA weights that `--weights` names.

    std: σ, width as a fraction of the training; None: the first one of the snapshot.
    step: number of optimizer steps at which the training is taken to end; None: those of the checkpoint.
    """

    std: float | None
    step: int | None


class Reconstruction(NamedTuple):
    """EMA weights of a chosen width.

    tensors: by the names of the parameters in the state dict.
    name: of the weights, such as "emastd0.15" or "emastd0.15@4096".
    fit: of their profile by those of the snapshots.
    snapshots: number of the sets of EMA weights in the sum.
    warning: a line about a bad fit, or "".
    """

    tensors: dict[str, Tensor]
    name: str
    fit: Fit
    snapshots: int
    warning: str


def parse(weights: str) -> Choice | None:
    """What std:WIDTH, std:WIDTH@STEP or @STEP asks for; None: other weights.

    Raises:
        ValueError: a width that no profile has.
    """
    match = _SPEC.fullmatch(weights)
    if match is None or not weights:
        return None
    std, step = match["std"], match["step"]
    if std is not None:
        try:
            gamma_of(float(std))
        except ValueError as error:
            reason = str(error) if re.fullmatch(r"[-+.\de]+", std) else f"expected a number, got {std!r}"
            raise ValueError(f"weights {weights}: {reason}. Fix: give a width such as std:0.1") from None
    return Choice(None if std is None else float(std), None if step is None else int(step))


def first_interval(max_steps: int, kept: int) -> int:
    """Steps between two snapshots of a run: a power of two, so that the snapshots of a longer run are among them.

    Args:
        max_steps: of the run, -1: unknown.
        kept: the largest number of snapshots.
    """
    return 1 << (-(-max_steps // kept) - 1).bit_length() if max_steps > 0 else UNKNOWN


def interval(step: int, every: int, kept: int) -> int:
    """Steps between two snapshots after so many steps of a run: every · 2^j with the smallest j that is enough."""
    return every << max(0, -(-step // (every * kept)) - 1).bit_length()


def path_of(run: Path, step: int) -> Path:
    return run / FOLDER / f"step{step:08d}.pt"


def find(run: Path) -> dict[int, Path]:
    """The snapshots of a run by their steps, in their order."""
    steps = {int(match[1]): path for path in run.glob(f"{FOLDER}/*") if (match := _NAME.fullmatch(path.name))}
    return dict(sorted(steps.items()))


def thin(run: Path, step: int, every: int, kept: int) -> None:
    """Make room for the snapshot of a step: at most `kept` are left up to it.  Later ones, of a run that was resumed
    from an earlier checkpoint, are left alone."""
    before = {other: path for other, path in find(run).items() if other < step}
    if len(before) < kept:
        return
    distance = interval(step, every, kept)
    for other, path in before.items():
        if other % distance:
            path.unlink(missing_ok=True)


def overtake(run: Path, after: int, before: int) -> None:
    """Remove the snapshots between two steps: what the run does there now has replaced them."""
    for step, path in find(run).items():
        if after < step < before:
            path.unlink(missing_ok=True)


def content(averages: Averages) -> dict[str, Any]:
    """What a snapshot holds of a module's averages, in half precision and on their device."""
    state = averages.state()
    shadows = {name: shadow for name, shadow in state["shadows"].items() if std_in(name) is not None}
    half = {name: {key: tensor.half() for key, tensor in shadow.items()} for name, shadow in shadows.items()}
    begun = {name: n for name, n in state.get("begun", {}).items() if name in shadows}
    return {"updates": state["updates"], "begun": begun, "shadows": half}


def reconstruct(checkpoint: Mapping[str, Any], path: str | Path, choice: Choice) -> Reconstruction:
    """EMA weights of a checkpoint and of the snapshots of its run, up to its own step.

    Args:
        checkpoint: its content.
        path: of the checkpoint or of its run.
        choice: which ones.

    Raises:
        ValueError: the snapshots that this needs are missing, damaged, or of another network.
    """
    own = checkpoint.get("averages", {"updates": checkpoint.get("global_step", 0), "shadows": {}})
    time = own["updates"] if choice.step is None else choice.step
    sources = _sources(own, Path(path), min(time, own["updates"]))
    if not sources:
        held = ", ".join(["raw", *(f"ema:{name}" for name in own["shadows"])])
        up_to = "" if choice.step is None else f" up to step {time:,}"
        raise ValueError(
            f"{path} has no snapshots of power-function EMA weights{up_to}, and holds {held}. Fix: train with "
            "--ema.stds '[0.05, 0.1]'"
        )
    if choice.step is not None and time not in sources:
        there = {*sources, *(step for step in find(_run(Path(path))) if step <= own["updates"])}
        close = sorted(there, key=lambda step: (abs(step - time), step))[:2]
        raise ValueError(
            f"{path} has no snapshot of step {time}. Fix: give the nearest, {' or '.join(map(str, close))}"
        )
    newest = max(sources)
    names = [name for name in sources[newest]["shadows"] if std_in(name) is not None]
    begun = _begun(sources[newest], names[0])
    terms = {
        Profile(std, step): (step, name)
        for step, source in sources.items()
        for name in source["shadows"]
        if (std := std_in(name)) is not None and _begun(source, name) == begun
    }
    target = Profile(std_in(names[0]) or 0.0 if choice.std is None else choice.std, time)
    fit = fit_profile(target, list(terms))
    warning = _warning(target, list(terms), fit, str(path))
    used = {place: w for place, w in zip(terms.values(), fit.weights.tolist(), strict=True) if abs(w) > _NEGLIGIBLE}
    files = {step: file for step, file in find(_run(Path(path))).items() if sources.get(step) is not own}
    tensors = _sum(used, sources, files, checkpoint["state_dict"])
    suffix = "" if time == own["updates"] else f"@{time}"
    return Reconstruction(tensors, f"ema{PREFIX}{target.std}{suffix}", fit, len(used), warning)


def _run(path: Path) -> Path:
    return run_folder_of(checkpoint_at(path))


def _begun(source: Mapping[str, Any], name: str) -> int:
    return int(source.get("begun", {}).get(name, 0))


def _sources(own: Mapping[str, Any], path: Path, latest: int) -> dict[int, Mapping[str, Any]]:
    """Sets of averages by their steps, up to the latest: of the snapshots, and the checkpoint's own."""
    sources: dict[int, Mapping[str, Any]] = {
        step: _read(file, step) for step, file in find(_run(path)).items() if step <= latest
    }
    if own["updates"] <= latest and any(std_in(name) is not None for name in own["shadows"]):
        sources[own["updates"]] = own
    return sources


def _read(path: Path, step: int) -> dict[str, Any]:
    """The content of a snapshot, its tensors not yet read from the disk."""
    with reading(path, "snapshot of EMA weights", "move it away"):
        snapshot: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        check(snapshot, _KIND)
        if snapshot["updates"] != step or not any(std_in(name) is not None for name in snapshot["shadows"]):
            raise ValueError(f"it is of step {snapshot['updates']} and holds {', '.join(snapshot['shadows'])}")
    return snapshot


def _warning(target: Profile, given: list[Profile], fit: Fit, path: str) -> str:
    """A warning about a bad fit, or ""; ValueError if it is too bad to be of use."""
    if fit.residual <= WARNED:
        return ""
    what = f"the snapshots of {path} give std:{target.std:g} with an error of {fit.residual:.1%} of its profile"
    near = nearest_width(target, given, WARNED)
    if near is None:
        fix = f"give std:{target.std:g}@{max(p.time for p in given)}, at the newest snapshot"
    else:
        fix = f"give the nearest possible, std:{near:.3g}"
    if fit.residual > REFUSED:
        raise ValueError(f"{what}. Fix: {fix}")
    return f"{what}. Fix: {fix}"


def _sum(
    used: Mapping[tuple[int, str], float],
    sources: Mapping[int, Mapping[str, Any]],
    files: Mapping[int, Path],
    state: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """Σ w θ̄ over the sets of averages, computed in float64 and in the types of the state dict."""
    total: dict[str, Tensor] = {}
    for (step, name), weight in used.items():
        where = files.get(step, f"the checkpoint's step {step}")
        if step in files and not is_whole(files[step]):
            raise ValueError(f"{where} is damaged: its checksums do not match. Fix: move it away")
        shadow = sources[step]["shadows"][name]
        if total and total.keys() != shadow.keys():
            raise ValueError(f"{where} is of another network. Fix: move it away")
        for key, tensor in shadow.items():
            if key not in state or tensor.shape != state[key].shape:
                raise ValueError(f"{where} is of another network ({key}). Fix: move it away")
            term = weight * tensor.double()
            if not term.isfinite().all():
                raise ValueError(f"{where} is not finite in half precision ({key}). Fix: move it away")
            total[key] = total[key].add_(term) if key in total else term
    return {key: tensor.to(state[key].dtype) for key, tensor in total.items()}
