"""Do noise schedule, data, network and noise levels fit each other?"""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..data.base import classes_named, count
from ..denoisers import NoiseInput
from ..losses import TimeSampler
from ..networks import Embedding
from ..schedules import Schedule
from .base import Finding
from .remedies import faster_embedding, noisier_end

_LARGEST = 5000  # of c_noise
_FASTEST = 100.0  # of an embedding, per unit of t
_LOUDEST = 100.0  # root mean square of an untrained network's output


def prior_mismatch(schedule: Schedule, second_moment: float, t: float = 1.0) -> tuple[float, float]:
    """KL in nats per dimension between q(x_t | x_0) and the prior, and the signal-to-noise ratio there.

        KL(q(x_t | x_0) ‖ N(0, s²)) = ½ [ (α² E x_0² + σ²)/s² − 1 − log(σ²/s²) ],   s² = α² + σ²

    Args:
        schedule: the forward process.
        second_moment: E x_0² per dimension.
        t: where sampling starts.
    """
    alpha, sigma, *_ = (v.item() for v in schedule(torch.tensor(t, dtype=torch.float64)))
    std = schedule.prior_std(t) ** 2
    signal = alpha**2 * second_moment
    return 0.5 * ((signal + sigma**2) / std - 1 - math.log(sigma**2 / std)), signal / sigma**2


def prior(schedule: Schedule, second_moment: float, t: float, sampler: str, max_kl: float) -> Iterator[Finding]:
    """Does the forward process end where sampling will start?

    A model never sees pure noise in training if its forward process keeps some of the data to the end; samples then
    start from inputs that it was not trained on.

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
        noisier_end(schedule) if t == 1 else f"let the sampler's grid start at t=1, or {noisier_end(schedule)}",
    )


def data(
    x_0: Tensor,
    value_range: tuple[float, float] | None,
    second_moment: float,
    sigma_data: float | None,
    levels: int | None = None,
    of: int | None = None,
) -> Iterator[Finding]:
    """Are the examples finite, within their range, and of the scale that the network's input is scaled for?

    Beyond a factor of 3, the network's input at low noise has a tenth or ten times the variance that it is made for.

    Args:
        x_0: training examples in model units, (N, *).
        value_range: that the data declare.
        second_moment: E x_0² per dimension, or that of the residuals, if the network models these.
        sigma_data: that the parameterization assumes; None: there is none.
        levels: of quantised data, over the whole range; None: they are not quantised.
        of: how many training examples there are; None: N.
    """
    of = of or len(x_0)
    bad = int((~x_0.isfinite()).flatten(1).any(1).sum())
    if bad:
        yield Finding(
            "error", "data", f"{bad} of {count(len(x_0), 'training example')} hold NaN or infinity", "remove them"
        )
        return
    low, high, rms = float(x_0.min()), float(x_0.max()), math.sqrt(second_moment)
    looked_at = f", of which {len(x_0):,} were looked at, are" if len(x_0) < of else " is" if of == 1 else " are"
    examples = f"{count(of, 'training example')}{looked_at} in [{low:.3g}, {high:.3g}]"
    if value_range and not value_range[0] - 1e-3 <= low <= high <= value_range[1] + 1e-3:
        declared = "[{:g}, {:g}]".format(*value_range)
        yield Finding(
            "error", "data", f"{examples}, the data declare {declared}", "correct their scaling or value_range"
        )
    elif value_range and levels and high - low < (value_range[1] - value_range[0]) / 4:
        yield _narrow(low, high, value_range, levels)
    elif sigma_data is not None and not sigma_data / 3 <= rms <= 3 * sigma_data:
        what = f"the training data have a root mean square of {rms:.3g}, the parameterization assumes {sigma_data:g}"
        yield Finding("warning", "data", what, f"scale them, or give EDM with sigma_data {rms:.2g}")
    else:
        yield Finding("fine", "data", f"{examples}, root mean square {rms:.3g}")


def _narrow(low: float, high: float, value_range: tuple[float, float], levels: int) -> Finding:
    """Values in less than a quarter of the range: often 10, 12 or 14 bits in files of 16."""
    least, most = (
        round((value - value_range[0]) / (value_range[1] - value_range[0]) * (levels - 1)) for value in (low, high)
    )
    used, declared = max(1, most.bit_length()), (levels - 1).bit_length()
    what = f"the values of the training examples go from {least} to {most}, the range is 0 to {levels - 1}"
    fix = f"rescale the values to 0 … {levels - 1}"
    if used < declared:
        what += f": they use {used} of {declared} bits"
        if declared > 8:
            fix = f"set data.bits to {used}, or {fix}" if used > 8 else f"save the files with 8 bits, or {fix}"
    return Finding("warning", "data", what, fix)


def classes(counts: Sequence[int] | None, names: Sequence[str] | None) -> Iterator[Finding]:
    """Does every class have training examples?

    Args:
        counts: training examples of each class; None: there are no classes.
        names: of the classes, None if they have none.
    """
    empty = [k for k, n_examples in enumerate(counts or ()) if not n_examples]
    if counts is None:
        yield Finding("fine", "classes", "none")
    elif empty:
        what = f"no training examples of {classes_named(empty, names)}: samples of them would be of an untrained label"
        fix = "let labels be 0, 1, 2, … without gaps, or leave it: such classes are not sampled unless asked for"
        yield Finding("warning", "classes", what, fix)
    else:
        text = count(len(counts), "class") if len(counts) == 1 else f"{len(counts):,} classes"
        few, many = min(counts), max(counts)
        yield Finding("fine", "classes", f"{text}, {few:,} to {many:,} training examples each")


class Probe(NamedTuple):
    """What a pass of the network showed: the output, or why there is none, and the noise level's embedding, if any;
    root mean square of its outputs at the ends of training's times, by c_noise."""

    output: Tensor | None
    error: str
    embedding: Embedding | None
    sizes: Mapping[float, float] = {}


@torch.no_grad()
def probe(network: nn.Module, call: Callable[[], Tensor], c_noise: Tensor) -> Probe:
    """One pass of the network.

    Args:
        network: in evaluation mode; if it is compiled, it is not now.
        call: makes the pass.
        c_noise: noise levels that the network gets in it, (B,), by which the embedding is recognized.
    """
    embeddings: list[Embedding] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...], _: Tensor) -> None:
        values = inputs[0].double().cpu()
        if values.shape == (len(c_noise), 1) and torch.allclose(values[:, 0], c_noise.double().cpu(), rtol=0.01):
            assert isinstance(module, Embedding)
            embeddings.append(module)

    hooks = [module.register_forward_hook(note) for module in network.modules() if isinstance(module, Embedding)]
    output, error = None, ""
    try:
        with torch.compiler.set_stance("force_eager"):
            output = call()
    except ValueError as refused:
        error = str(refused)
    except TypeError as refused:
        unknown = re.search(r"unexpected keyword argument '(\w+)'", str(refused))
        if unknown is None:
            raise
        error = f"{type(network).__name__} takes no {unknown[1]}, which the data's batches hold: choose another network"
    finally:
        for hook in hooks:
            hook.remove()
    return Probe(output, error, embeddings[0] if embeddings else None)


def network(result: Probe, shape: tuple[int, ...]) -> Iterator[Finding]:
    """Does the network accept the data, keep their shape, and return values of order one at all noise levels?

    Its training target has a root mean square of about one; an untrained network whose output has 100 does not get
    there: its input is out of range.

    Args:
        result: of two examples.
        shape: that the output must have.
    """
    if result.output is None:
        yield Finding("error", "network", result.error)
    elif result.output.shape != shape:
        what = f"the network makes {tuple(result.output.shape)} where {shape} is needed"
        yield Finding("error", "network", what, "choose another network")
    elif not result.output.isfinite().all():
        what = "the untrained network's output is not finite"
        yield Finding("error", "network", what, "look at its initialisation and noise_input")
    elif any(not size <= _LOUDEST for size in result.sizes.values()):
        c_noise, size = next((c, size) for c, size in result.sizes.items() if not size <= _LOUDEST)
        what = f"the untrained network's output has a root mean square of {size:.3g} at c_noise {c_noise:.3g}"
        yield Finding("warning", "network", what, "set model.noise_input to the c_noise that the network is made for")
    else:
        yield Finding("fine", "network", f"{count(shape[0], 'example')} of {'x'.join(map(str, shape[1:]))} pass")


def draw_times(times: TimeSampler, schedule: Schedule) -> Tensor:
    """Times from the timestep distribution of training: (4096,), float64, the same in each call."""
    generator = torch.Generator().manual_seed(0)
    return times.draw(schedule, 4096, torch.device("cpu"), generator).t.double()


@torch.no_grad()
def embedding(
    module: Embedding | None, noise_input: NoiseInput, schedule: Schedule, t: Tensor, device: torch.device
) -> Iterator[Finding]:
    """Can the network distinguish neighbouring noise levels?

    The mean distance that a hundredth of the log-SNR range moves the embedding, in units of its norm.  The
    transformer's embedding of t ∈ [0, 1] moves 0.2 to 0.3 %, that of steps up to 1000 some 60 %, t itself 3 %.  Below
    0.5 % the whole way from noise to data is shorter than half the norm: nearly all features stay what they are.

    Beyond ±5000 no common network has been trained: steps of a beta schedule go up to 1000, some to 4000, a log-SNR or
    log σ is of order one.  Such values come from a scale that belongs to another noise input.

    Args:
        module: the noise level's embedding.
        noise_input: how the network gets the noise level.
        schedule: the forward process.
        t: training times, (n,).
        device: of the embedding.
    """
    levels = schedule(t).logsnr
    ends = float(levels.min().clamp(min=-30)), float(levels.max().clamp(max=30))
    at = schedule.time(torch.linspace(*ends, 101, dtype=torch.float64))
    c_noise = noise_input(schedule, at, schedule(at)).float().to(device)
    c_noise = c_noise[c_noise.isfinite()]
    if (c_noise.abs() > _LARGEST).any():
        what = f"the network's c_noise is {c_noise.min():.3g} … {c_noise.max():.3g}, beyond ±{_LARGEST}"
        fix = f"set scale and shift of model.noise_input to values for {type(noise_input).__name__}"
        yield Finding("warning", "embedding", what, fix)
        return
    if module is None or module.width == 0:
        yield Finding("fine", "embedding", "none of the noise level")
        return
    features = module(c_noise.unsqueeze(1)).double()
    moved = float((features[1:] - features[:-1]).norm(dim=1).mean() / features.square().sum(1).mean().sqrt())
    what = f"a hundredth of the log-SNR range moves {type(module).__name__} by {moved:.2g} of its norm (at least 0.005)"
    if moved >= 0.005:
        yield Finding("fine", "embedding", what)
    else:
        what += ", so the network can hardly distinguish noise levels"
        yield Finding("warning", "embedding", what, faster_embedding(module))


def times(schedule: Schedule, t: Tensor, grid: Tensor, second_moment: float, max_kl: float) -> Iterator[Finding]:
    """Does training see the noise levels that sampling visits?

    Accepted is a tenth of the grid's log-SNR range beyond the times drawn: a timestep distribution with tails reaches
    a little less far than EDM's grid.  Levels that the prior check would take for pure noise, SNR < 2 max_kl, do not
    count.

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


@torch.no_grad()
def jumps(
    module: Embedding | None, noise_input: NoiseInput, schedule: Schedule, t: Tensor, device: torch.device
) -> Iterator[Finding]:
    """Is the network smooth in t, where its derivative with respect to t is a part of the training target?

    The rate of change of the noise level's embedding with t, in units of its norm.  DDPM's embedding of 1000 steps has
    some 200: the derivative of the network is then mostly that of its fastest features, and drowns the rest.  Fourier
    features of scale 1 have 6, Sinusoidal with max_period 32 and ScaledTime with scale 32 have 12.

    Reference: Lu & Song, arXiv 2410.11081, Sec. 4.1.

    Args:
        module: the noise level's embedding.
        noise_input: how the network gets the noise level.
        schedule: the forward process.
        t: training times, (n,).
        device: of the embedding.
    """
    if module is None or module.width == 0:
        yield Finding("fine", "jumps", "no embedding of the noise level")
        return
    ends = (t - 1e-4).clamp(min=1e-5), (t + 1e-4).clamp(max=1 - 1e-5)
    before, after = (module(noise_input(schedule, end, schedule(end)).float()[:, None].to(device)) for end in ends)
    length = (ends[1] - ends[0]).to(before)
    rate = float(((after - before).norm(dim=1) / length / before.norm(dim=1)).median())
    what = f"{type(module).__name__} changes by {rate:.2g} of its norm per unit of t (at most {_FASTEST:g})"
    if rate <= _FASTEST:
        yield Finding("fine", "jumps", what)
    else:
        what += ", and the loss is differentiated with respect to t: it will be noisy"
        fix = "set model.noise_input to ScaledTime with scale 32, and max_period of a Sinusoidal time_embedding to 32"
        yield Finding("warning", "jumps", what, fix)


def tables(lengths: Mapping[str, int]) -> Iterator[Finding]:
    """Do all parts have the same number of steps of the beta schedule?  lengths: {name: steps}."""
    each = ", ".join(f"{name} {steps}" for name, steps in lengths.items())
    if len(set(lengths.values())) > 1:
        what = f"the numbers of steps differ: {each}, so a step has another noise level in training than in sampling"
        yield Finding("warning", "tables", what, "give all of them the steps of the beta schedule")
    else:
        yield Finding("fine", "tables", f"steps: {each}" if each else "none: continuous time")
