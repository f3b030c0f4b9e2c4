"""Before step 1: what can be known of a run that has not begun.

Each check is a function of what it looks at and yields findings: what was found, with its numbers, and how to mend it.
An error spoils a run or ends it; a warning is worth a thought.  The thresholds are given with their reasons.
"""

import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from threading import Thread
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .denoiser import NoiseInput
from .networks import Embedding
from .schedules import Schedule
from .times import TimeSampler

#: In the order in which they are told.
CHECKS = (
    "prior",
    "data",
    "network",
    "embedding",
    "times",
    "tables",
    "validation",
    "ema",
    "precision",
    "disk",
    "metrics",
)


class Finding(NamedTuple):
    """One line of the outcome: how grave, of which check, what was found, and how to mend it ("" if nothing is)."""

    level: Literal["fine", "warning", "error"]
    name: str
    what: str
    fix: str = ""

    def __str__(self) -> str:
        return f"{self.what}. To mend it, {self.fix}" if self.fix else self.what


def table(findings: Sequence[Finding]) -> str:
    """A line for each finding, and one that sums up."""
    lines = [f"{f.name:<10}  {'ok' if f.level == 'fine' else f.level:<7}  {f}" for f in findings]
    errors, warnings = (sum(f.level == level for f in findings) for level in ("error", "warning"))
    count = f"{errors or 'no'} error{'s' * (errors != 1)}, {warnings or 'no'} warning{'s' * (warnings != 1)}"
    return "\n".join([*lines, f"{count}: {'mend the errors first' if errors else 'ready for fit'}"])


def prior_mismatch(schedule: Schedule, second_moment: float, t: float = 1.0) -> tuple[float, float]:
    """KL in nats per dimension between q(x_t | x_0) and the prior, and the signal-to-noise ratio there.

        KL(q(x_t | x_0) ‖ N(0, s²)) = ½ [ (α² E x_0² + σ²)/s² − 1 − log(σ²/s²) ],   s² = α² + σ²

    Args:
        schedule: the forward process.
        second_moment: E x_0² per dimension.
        t: where sampling starts.
    """
    alpha, sigma, *_ = (float(v) for v in schedule(torch.tensor(t, dtype=torch.float64)))
    std = schedule.prior_std(t) ** 2
    signal = alpha**2 * second_moment
    return 0.5 * ((signal + sigma**2) / std - 1 - math.log(sigma**2 / std)), signal / sigma**2


def prior(schedule: Schedule, second_moment: float, t: float, sampler: str, max_kl: float) -> Iterator[Finding]:
    """Does the forward process end where sampling will start?

    A model never sees pure noise in training if its process keeps some of the data to the end; samples then start from
    a place it does not know.

    Args:
        schedule, second_moment, t: see `prior_mismatch`.
        sampler: name for the message.
        max_kl: largest mismatch accepted, nats per dimension.
    """
    kl, snr = prior_mismatch(schedule, second_moment, t)
    start = "" if t == 1 else f", where {sampler}'s grid starts"
    if kl <= max_kl:  # not so if NaN
        what = f"{kl:.2g} nats per dimension from the noise that sampling starts from (at most {max_kl:g})"
        yield Finding("fine", "prior", what)
        return
    yield Finding(
        "error",
        "prior",
        f"{type(schedule).__name__} does not end in noise: at t={t:g}{start}, the signal-to-noise ratio is still "
        f"{snr:.2g} for these data (root mean square {math.sqrt(second_moment):.3g}), {kl:.2g} nats per dimension "
        f"from the prior that sampling starts from (at most {max_kl:g})",
        schedule.remedy if t == 1 else f"let the sampler's grid start at t=1, or {schedule.remedy}",
    )


def data(
    x_0: Tensor, value_range: tuple[float, float] | None, second_moment: float, sigma_data: float | None
) -> Iterator[Finding]:
    """Are the examples finite, within their range, and of the scale that the network's input is scaled for?

    Beyond a factor of 3, the network's input at low noise has a tenth or ten times the variance that it is made for.

    Args:
        x_0: training examples in model units, (N, *).
        value_range: what the data declare.
        second_moment: E x_0² per dimension.
        sigma_data: that the parameterization assumes; None: there is none.
    """
    bad = int((~x_0.isfinite()).flatten(1).any(1).sum())
    if bad:
        yield Finding("error", "data", f"{bad} of {len(x_0)} training examples hold NaN or infinity", "leave them out")
        return
    low, high, rms = float(x_0.min()), float(x_0.max()), math.sqrt(second_moment)
    seen = f"{len(x_0)} training examples lie in [{low:.3g}, {high:.3g}]"
    if value_range and not value_range[0] - 1e-3 <= low <= high <= value_range[1] + 1e-3:
        declared = "[{:g}, {:g}]".format(*value_range)
        yield Finding("error", "data", f"{seen}, the data declare {declared}", "mend their scaling or value_range")
    elif sigma_data is not None and not sigma_data / 3 <= rms <= 3 * sigma_data:
        what = f"the training data have a root mean square of {rms:.3g}, the parameterization assumes {sigma_data:g}"
        yield Finding("warning", "data", what, f"scale them, or give EDM with sigma_data {rms:.2g}")
    else:
        yield Finding("fine", "data", f"{seen}, root mean square {rms:.3g}")


class Probe(NamedTuple):
    """What a pass of the network showed: the output, or why there is none, and the noise level's embedding, if any."""

    output: Tensor | None
    error: str
    embedding: Embedding | None


@torch.no_grad()
def probe(network: nn.Module, call: Callable[[], Tensor], c_noise: Tensor) -> Probe:
    """One pass of the network.

    Args:
        network: in evaluation mode; if it is compiled, it is not now.
        call: makes the pass.
        c_noise: noise levels that the network is told in it, (B,), by which the embedding is known.
    """
    found: list[Embedding] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...], _: Tensor) -> None:
        given = inputs[0].double().cpu()
        if given.shape == (len(c_noise), 1) and torch.allclose(given[:, 0], c_noise.double().cpu(), rtol=0.01):
            assert isinstance(module, Embedding)
            found.append(module)

    hooks = [module.register_forward_hook(note) for module in network.modules() if isinstance(module, Embedding)]
    output, error = None, ""
    try:
        with torch.compiler.set_stance("force_eager"):
            output = call()
    except ValueError as refused:
        error = str(refused)
    finally:
        for hook in hooks:
            hook.remove()
    return Probe(output, error, found[0] if found else None)


def network(seen: Probe, shape: tuple[int, ...]) -> Iterator[Finding]:
    """Does the network take the data, keep their shape, and give numbers?

    Args:
        seen: of two examples.
        shape: that the output must have.
    """
    if seen.output is None:
        yield Finding("error", "network", seen.error)
    elif seen.output.shape != shape:
        what = f"the network makes {tuple(seen.output.shape)} where {shape} is needed"
        yield Finding("error", "network", what, "choose another network")
    elif not seen.output.isfinite().all():
        what = "the untrained network's output is not finite"
        yield Finding("error", "network", what, "look at its initialisation and noise_input")
    else:
        yield Finding("fine", "network", f"{shape[0]} examples of {'x'.join(map(str, shape[1:]))} pass")


def draw_times(times: TimeSampler, schedule: Schedule) -> Tensor:
    """Some thousand times as training draws them: (4096,), float64, the same in each call."""
    generator = torch.Generator().manual_seed(0)
    return times.draw(schedule, 4096, torch.device("cpu"), generator).t.double()


@torch.no_grad()
def embedding(
    found: Embedding | None, noise_input: NoiseInput, schedule: Schedule, t: Tensor, device: torch.device
) -> Iterator[Finding]:
    """Can the network tell neighbouring noise levels apart?

    The mean distance that a hundredth of the log-SNR range moves the embedding, in units of its norm.  The
    transformer's embedding of t ∈ [0, 1] moves 0.2 to 0.3 %, that of steps up to 1000 some 60 %, t itself 3 %.  Below
    0.5 % the whole way from noise to data is shorter than half the norm: nearly all features stay what they are.

    Args:
        found: the noise level's embedding.
        noise_input: how the network is told the noise level.
        schedule: the forward process.
        t: training times, (n,).
        device: of the embedding.
    """
    if found is None or found.width == 0:
        yield Finding("fine", "embedding", "none of the noise level")
        return
    levels = schedule(t).logsnr
    ends = float(levels.min().clamp(min=-30)), float(levels.max().clamp(max=30))
    at = schedule.time(torch.linspace(*ends, 101, dtype=torch.float64))
    c_noise = noise_input(schedule(at), at).float().to(device)
    features = found(c_noise[c_noise.isfinite()].unsqueeze(1)).double()
    moved = float((features[1:] - features[:-1]).norm(dim=1).mean() / features.square().sum(1).mean().sqrt())
    what = f"a hundredth of the log-SNR range moves {type(found).__name__} by {moved:.2g} of its norm (at least 0.005)"
    if moved >= 0.005:
        yield Finding("fine", "embedding", what)
    else:
        what += ", so the network can hardly tell noise levels apart"
        yield Finding("warning", "embedding", what, found.remedy)


def times(schedule: Schedule, t: Tensor, grid: Tensor, second_moment: float, max_kl: float) -> Iterator[Finding]:
    """Does training see the noise levels that sampling visits?

    Accepted is a tenth of the grid's log-SNR range beyond the times drawn: a law with tails reaches a little less far
    than EDM's grid.  Levels that the prior check would take for pure noise, SNR < 2 max_kl, do not count.

    Args:
        schedule: the forward process.
        t: training times, (n,).
        grid: the sampler's times, (N,).
        second_moment: E x_0² per dimension.
        max_kl: see `prior`.
    """
    drawn, visited = schedule(t).logsnr, schedule(grid).logsnr
    noise = math.log(2 * max_kl / max(second_moment, 1e-12))
    low, high = max(float(visited.min()), noise), float(visited.max())
    unseen = max(0.0, float(drawn.min()) - low), max(0.0, high - float(drawn.max()))
    share = min(1.0, sum(unseen) / max(high - low, 1e-6))
    what = (
        f"training draws log-SNR {drawn.min():.3g} … {drawn.max():.3g}, the sampler visits "
        f"{visited.min():.3g} … {visited.max():.3g}, {share:.0%} of it never seen"
    )
    if share <= 0.1:
        yield Finding("fine", "times", what)
    else:
        end = "t=1" if unseen[0] > unseen[1] else "t=0"
        fix = f"let model.loss.times reach nearer to {end}, or the sampler's grid less near"
        yield Finding("warning", "times", what, fix)


def tables(lengths: Mapping[str, int]) -> Iterator[Finding]:
    """Do all that count steps of a table count the same?  lengths: {name: steps}."""
    told = ", ".join(f"{name} {steps}" for name, steps in lengths.items())
    if len(set(lengths.values())) > 1:
        what = f"the numbers of steps differ: {told}, so training and sampling stand at different points of the process"
        yield Finding("warning", "tables", what, "give all of them the steps of the table")
    else:
        yield Finding("fine", "tables", f"steps: {told}" if told else "none: continuous time")


def validation(examples: int, wanted: bool) -> Iterator[Finding]:
    """Is there something to validate on?"""
    if wanted and not examples:
        fix = "raise data.init_args.val_fraction, or give --trainer.limit_val_batches 0"
        yield Finding("warning", "validation", "the validation split is empty: no val_loss will be measured", fix)
    else:
        yield Finding("fine", "validation", f"{examples} examples" if wanted else "not wanted")


def ema(decays: Sequence[float], max_steps: int) -> Iterator[Finding]:
    """Do the averages' memories fit the run?

    The warm-up lets an average forget the random start in any run, but N steps give it a memory of (10 + N)/9 at most:
    in less than one time constant 1/(1 − d), a ninth of what its name says.  A decay below ½ weighs the last step more
    than all others together: no average, but most likely 1 − d.

    Args:
        decays: d of each average.
        max_steps: optimizer steps of the run, −1: unknown.
    """
    for d in decays:
        half = f"{math.log(2) / (1 - d):,.{0 if d > 0.95 else 1}f}"
        what = f"decay {d:g} has a half-life of {half} steps, the run has {max_steps:,}"
        if d < 0.5 and not 0 <= max_steps <= 1000:
            fix = f"give --ema.decays '[{1 - d if 1e-5 <= d < 0.1 else 0.999:g}]', or [] for none"
            yield Finding("error", "ema", f"{what}: that is no average", fix)
        elif 0 <= max_steps * (1 - d) < 1 - 1e-9:
            decay = (1 + max_steps) / (10 + max_steps)
            what += f", which ends while the warm-up's decay is {decay:.3g}"
            yield Finding("warning", "ema", what, f"train longer, or lower the decay, say to {_fitting(max_steps)}")
        else:
            yield Finding("fine", "ema", what if max_steps >= 0 else f"decay {d:g}: half-life {half} steps")
    if not decays:
        yield Finding("fine", "ema", "no averages")


def precision(
    precision: str, asked: str, optimizer: Optimizer, clips: bool, decays: Sequence[float]
) -> Iterator[Finding]:
    """Does the arithmetic carry what is done in it?

    A step of an average by less than half the spacing of the weights' type, 1 − d < ε/2, is rounded away.

    Args:
        precision: the trainer's.
        asked: the configuration's.
        optimizer: of the run.
        clips: whether gradients are clipped.
        decays: of the averages.
    """
    if asked in ("16", "16-mixed") and precision == "bf16-mixed":
        what = "16-mixed was asked for, but is bf16-mixed on a CPU"
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
            what += f"; those of the average with decay {lost[0]:g} all are, and it stays at its start"
        yield Finding("error" if lost else "warning", "precision", what, "give --trainer.precision bf16-mixed")
    else:
        yield Finding("fine", "precision", precision)


def disk(folder: Path, parameters: Iterable[Tensor], averages: int, optimizer: Optimizer) -> Iterator[Finding]:
    """Is there room for three checkpoints: the last, the one that replaces it, and one that is kept as the best?

    A checkpoint holds the weights, each average, and what the optimizer keeps of each weight: two numbers for Adam and
    its kin, else one.  Less than twice the room is a warning: others write there too.

    Args:
        folder: of the run; it need not be there.
        parameters: of the network.
        averages: their number.
        optimizer: of the run.
    """
    weights = sum(p.numel() * p.element_size() for p in parameters)
    need = 3 * weights * (1 + averages + (2 if "betas" in optimizer.defaults else 1))
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free
    what = f"three checkpoints take {need / 1e6:,.1f} MB, {place} has {free / 1e6:,.1f} MB free"
    level: Literal["fine", "warning", "error"]
    level = "error" if free < need else "warning" if free < 2 * need else "fine"
    yield Finding(level, "disk", what, "" if level == "fine" else "make room, or run in a folder of another disk")


def metrics(needed: bool, url: str, reachable: Callable[[str], str]) -> Iterator[Finding]:
    """Can the weights of the network that judges samples be had?

    Args:
        needed: whether a callback measures with InceptionV3.
        url: of its weights, which are downloaded once.
        reachable: says why a URL cannot be had, "" if it can.
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
    """A decay whose time constant is a tenth of the run, 0.9 at least."""
    return f"{1 - 10 / max(100, max_steps):.4g}"
