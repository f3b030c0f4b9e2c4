"""Does the run fit the model: its length, its precision, its disk?"""

import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from threading import Thread
from typing import Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..data.base import count
from .base import Finding


def validation(examples: int, enabled: bool, every: int | None = None) -> Iterator[Finding]:
    """Is there something to validate on?

    Args:
        examples: of the validation split.
        enabled: whether the run validates.
        every: optimizer steps between two, None: counted otherwise.
    """
    if enabled and not examples:
        fix = "raise data.init_args.val_fraction, or give --trainer.limit_val_batches 0"
        yield Finding("warning", "validation", "the validation split is empty: no val_loss will be measured", fix)
    else:
        when = "" if every is None else f", every {every:,} optimizer steps"
        yield Finding("fine", "validation", f"{count(examples, 'example')}{when}" if enabled else "not enabled")


def learning_rate(rates: Sequence[float], own: float, steps: int) -> Iterator[Finding]:
    """Does the schedule keep the learning rate near the optimizer's own?

    A schedule raises it by a factor of 25 at most in common use (OneCycleLR's from its start).  One that was meant for
    epochs, such as ExponentialLR with gamma 0.9, leaves nothing of it after some hundred optimizer steps.

    Args:
        rates: of the first steps.
        own: the optimizer's rate without the schedule.
        steps: of the run; -1: unknown.
    """
    fix = "change the options of model.lr_scheduler: it takes one step per optimizer step, not per epoch"
    worst = next((k for k, rate in enumerate(rates) if not (math.isfinite(rate) and 0 <= rate <= 100 * own)), None)
    top = max(rates, default=own)
    small = sum(rate < 1e-4 * top for rate in rates)
    if worst is not None:
        what = f"the learning rate is {rates[worst]:.3g} at step {worst}, the optimizer's own is {own:.3g}"
        yield Finding("error", "lr", what, fix)
    elif small > len(rates) / 2:
        what = f"the learning rate is below {1e-4 * top:.1g} in {small:,} of the first {len(rates):,} steps"
        yield Finding("warning", "lr", what, fix)
    else:
        part = f" in the first {len(rates):,} steps" if len(rates) not in (0, steps) else ""
        what = f"{min(rates, default=own):.3g} … {top:.3g}{part}"
        yield Finding("fine", "lr", what)


def ema(decays: Sequence[float], max_steps: int, others: Sequence[str] = ()) -> Iterator[Finding]:
    """Do the memories of the EMA weights fit the run?

    The warm-up lets an EMA forget the random start in any run, but N steps give it a memory of (10 + N)/9 at most:
    in less than one time constant 1/(1 − d), a ninth of what its name says.  A decay below ½ weighs the last step more
    than all others together: most likely 1 − d was meant.

    Args:
        decays: d of each of the EMA weights.
        max_steps: optimizer steps of the run, −1: unknown.
        others: names of EMA weights whose memory is a fraction of the run, which fits every run.
    """
    for d in decays:
        half = f"{math.log(2) / (1 - d):,.{0 if d > 0.95 else 1}f}"
        what = f"decay {d:g} has a half-life of {half} steps, the run has {max_steps:,}"
        if d < 0.5 and not 0 <= max_steps <= 1000:
            fix = f"give --ema.decays '[{1 - d if 1e-5 <= d < 0.1 else 0.999:g}]', or [] for none"
            yield Finding("error", "ema", f"{what}: no EMA of many steps", fix)
        elif 0 <= max_steps * (1 - d) < 1 - 1e-9:
            decay = (1 + max_steps) / (10 + max_steps)
            what += f", which ends while the warm-up's decay is {decay:.3g}"
            lower = f"lower the decay to {_fitting(max_steps)}" if max_steps > 1 else "give --ema.decays '[]' for none"
            yield Finding("warning", "ema", what, f"train longer, or {lower}")
        else:
            yield Finding("fine", "ema", what if max_steps >= 0 else f"decay {d:g}: half-life {half} steps")
    if others:
        yield Finding("fine", "ema", f"{', '.join(others)}: the memory is a fraction of the run")
    if not decays and not others:
        yield Finding("fine", "ema", "no EMA weights")


def precision(
    precision: str, requested: str, optimizer: Optimizer, clips: bool, decays: Sequence[float]
) -> Iterator[Finding]:
    """Is the precision sufficient for the weights and their EMA?

    An EMA step by less than half the spacing of the weights' type, 1 − d < ε/2, is rounded away.

    Args:
        precision: the trainer's.
        requested: the configuration's.
        optimizer: of the run.
        clips: whether gradients are clipped.
        decays: of the EMA weights.
    """
    if requested in ("16", "16-mixed") and precision == "bf16-mixed":
        what = "16-mixed was requested, but is bf16-mixed on a CPU"
        yield Finding("warning", "precision", what, "give --trainer.precision bf16-mixed")
    elif precision == "16-mixed" and clips and optimizer.defaults.get("fused"):
        what = "gradients in float16 cannot be clipped for a fused optimizer"
        fix = "give --trainer.precision bf16-mixed, or take fused: true out of model.optimizer"
        yield Finding("error", "precision", what, fix)
    elif precision == "16-mixed":
        what = "16-mixed overflows above 65,504 and loses what is below 6e-8; steps that do are skipped"
        yield Finding("warning", "precision", what, "prefer --trainer.precision bf16-mixed where the device has it")
    elif precision == "16-true":
        what = f"weights in float16, in which {type(optimizer).__name__}'s squared gradients vanish"
        yield Finding("error", "precision", what, "give --trainer.precision bf16-mixed")
    elif precision == "bf16-true":
        lost = [d for d in decays if 1 - d < torch.finfo(torch.bfloat16).eps / 2]
        what = "weights in bfloat16, of 8 bits, so that small steps are rounded away"
        if lost:
            what += f"; those of the EMA with decay {lost[0]:g} all are, and it stays constant"
        yield Finding("error" if lost else "warning", "precision", what, "give --trainer.precision bf16-mixed")
    else:
        yield Finding("fine", "precision", precision)


def disk(
    folder: Path, parameters: Iterable[Tensor], averages: int, snapshots: int, optimizer: Optimizer
) -> Iterator[Finding]:
    """Is there room for three checkpoints, the last, the one that replaces it, and one that is kept as the best, and
    for the snapshots in half precision?

    A checkpoint holds the weights, each of the EMA weights, and what the optimizer keeps of each weight: two values for
    Adam and its variants, else one.  Less than twice the room is a warning: others write there too.

    Args:
        folder: of the run; it need not be there.
        parameters: of the network.
        averages: number of EMA weights.
        snapshots: number of sets of EMA weights in the snapshots.
        optimizer: of the run.
    """
    sizes = [(p.numel(), p.element_size()) for p in parameters]
    weights = sum(count * size for count, size in sizes)
    need = 3 * weights * (1 + averages + (2 if "betas" in optimizer.defaults else 1))
    need += 2 * snapshots * sum(count for count, _ in sizes)
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free
    kinds = "three checkpoints and the snapshots" if snapshots else "three checkpoints"
    what = f"{kinds} take {need / 1e6:,.1f} MB, {place} has {free / 1e6:,.1f} MB free"
    level: Literal["fine", "warning", "error"]
    level = "error" if free < need else "warning" if free < 2 * need else "fine"
    yield Finding(level, "disk", what, "" if level == "fine" else "make room, or run in a folder of another disk")


def metrics(needed: bool, url: str, reachable: Callable[[str], str]) -> Iterator[Finding]:
    """Are the weights of the feature network of GenerationMetrics available?

    Args:
        needed: whether a callback measures with InceptionV3.
        url: of its weights, which are downloaded once.
        reachable: says why a URL cannot be fetched, "" if it can.
    """
    file = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if not needed or file.is_file():
        yield Finding("fine", "metrics", f"InceptionV3 at {file}" if needed else "no weights are needed")
    elif reason := reachable(url):
        what = f"GenerationMetrics needs the weights of InceptionV3, which can neither be read nor fetched ({reason})"
        fix = f"fetch {url} where there is a network and give extractor InceptionV3 with weights: FILE"
        yield Finding("error", "metrics", what, fix)
    else:
        yield Finding("fine", "metrics", "the weights of InceptionV3 will be downloaded, 96 MB")


def unreachable(url: str, seconds: float = 3.0) -> str:
    """Why the URL does not answer within some seconds; "" if it does."""
    reason = [f"no answer in {seconds:g} s"]

    def ask() -> None:
        from urllib.request import Request, urlopen

        try:
            with urlopen(Request(url, method="HEAD"), timeout=seconds):
                reason[0] = ""
        except (OSError, ValueError) as error:
            reason[0] = str(error)

    # In a thread, since the search for the host's address knows no timeout.
    thread = Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return reason[0]


def _fitting(max_steps: int) -> str:
    """A decay whose time constant is a tenth of the run, ½ at least, which fits two steps."""
    return f"{max(0.5, 1 - 10 / max_steps):.4g}"
