"""What a run takes: memory of each device, examples, time and money, from a step that was measured."""

from collections.abc import Iterator
from typing import NamedTuple

from ..data.base import count
from .base import Finding

GB = 1e9
_ROOM = 0.9  # of the free memory: the rest is for temporary values and the allocator


class Need(NamedTuple):
    """Memory in bytes on one device.

    weights: of the trained parameters;  gradients, optimizer, averages: of what training keeps of them;  example: of
    what one example keeps for the backward pass, None: not known.
    """

    weights: int
    gradients: int
    optimizer: int
    averages: int
    example: int | None = None

    @property
    def state(self) -> int:
        """Memory that does not depend on the batch."""
        return self.weights + self.gradients + self.optimizer + self.averages


class Speed(NamedTuple):
    """Seconds of a measured step: one example, and each further one;  device: where;  examples: of the largest step."""

    first: float
    further: float
    device: str
    examples: int

    def of(self, examples: int) -> float:
        """Seconds of a step of so many examples, on one device."""
        return self.first + (examples - 1) * self.further


class Length(NamedTuple):
    """steps: of the optimizer, −1: not known;  batch: examples of a batch, on all devices;  accumulated: batches of a
    step;  devices: number;  examples: of the training split."""

    steps: int
    batch: int
    accumulated: int
    devices: int
    examples: int

    @property
    def share(self) -> int:
        """Examples of a batch on one device."""
        return -(-self.batch // self.devices)


def memory(need: Need, length: Length, free: int | None) -> Iterator[Finding]:
    """Does a step fit into a device?

    Args:
        need: of the model.
        length: of the run.
        free: bytes free on the device; None: not known.
    """
    activations = 0 if need.example is None else need.example * length.share
    parts = f"{need.state / GB:.2g} GB for weights, gradients, optimizer and EMA weights"
    if need.example is not None:
        parts += f", {activations / GB:.2g} GB for {count(length.share, 'example')}"
    what = f"about {(need.state + activations) / GB:.2g} GB on each device: {parts}"
    what += "" if free is None else f"; {free / GB:.3g} GB free"
    if free is None or need.state + activations <= _ROOM * free:
        yield Finding("fine", "memory", what)
    elif need.state > _ROOM * free:
        yield Finding("error", "memory", what, "choose a smaller network, or a device with more memory")
    else:
        fitting = max(1, int((_ROOM * free - need.state) // (need.example or 1))) * length.devices
        times = -(-length.batch // fitting)
        fix = f"give --data.batch_size {-(-length.batch // times)} --trainer.accumulate_grad_batches "
        yield Finding(
            "warning", "memory", what, f"{fix}{times * length.accumulated}, or --trainer.precision bf16-mixed"
        )


def cost(speed: Speed | str, length: Length, price_per_hour: float | None = None) -> Iterator[Finding]:
    """How long the run takes, and what it costs.

    Args:
        speed: measured; or why it was not.
        length: of the run.
        price_per_hour: of one device, in any currency; None: not asked for.
    """
    batch = length.batch * length.accumulated
    seen = ""
    if length.steps >= 0:
        total = length.steps * batch
        epochs = f", {total / length.examples:,.3g} epochs" if length.examples else ""
        seen = f"{count(length.steps, 'step')} of {count(batch, 'example')}: {_large(total)} examples{epochs}"
    if isinstance(speed, str):
        yield Finding("fine", "cost", "; ".join(part for part in (seen, f"time not measured: {speed}") if part))
        return
    step = length.accumulated * speed.of(length.share)
    each = f"{step:.2g} s a step on {speed.device} (measured with {count(speed.examples, 'example')})"
    if length.steps < 0:
        yield Finding("fine", "cost", f"the length is not known, since trainer.max_steps is -1; {each}")
        return
    hours = length.steps * step / 3600
    what = f"{seen}; {each}: {_duration(3600 * hours)}"
    if price_per_hour is not None:
        devices = f"{length.devices} x " if length.devices > 1 else ""
        what += f", {devices}{hours:,.2f} hours at {price_per_hour:g}: {hours * length.devices * price_per_hour:,.2f}"
    yield Finding("fine", "cost", f"{what}; validation and panels not counted")


def _large(number: int) -> str:
    return f"{number:,}" if number < 10**7 else f"{number / 1e6:,.1f} million"


def _duration(seconds: float) -> str:
    for unit, size in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:,.0f} seconds"
