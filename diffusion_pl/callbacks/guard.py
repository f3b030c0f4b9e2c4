"""Losses and gradients that are not finite: such steps are skipped; spikes of the gradient norm are reported."""

import math
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer
from tqdm.auto import tqdm

from ..runtime.upstream.lightning import batch_number
from ..runtime.upstream.torch import norms, unscales_gradients, version
from ..training import LeanCallback, Trainable, logs_now
from .dump import write_dump

_COUNTS = ("skipped", "in_a_row", "spikes", "scaler_skipped")
WINDOW = 100  # steps: of the running median, and between two lines about the same


class Guard(LeanCallback):
    """Checks before every optimizer step whether loss and gradients are finite.

    A step that is not is skipped: weights, buffers, the optimizer's moments and its count stay as they are, to the last
    bit; only the learning rate and the step count advance.  After `stop_after` such steps in a row the run ends, and
    runs/RUN/dumps/step-N.ckpt holds what `python -m diffusion_pl replay` needs to repeat that step.

    In float16 the gradients of some steps overflow until the scale of the loss is right.  The scaler skips those
    itself; they are counted separately, and end the run only when the scale has fallen below 1.

    Logged: gradient_norm/raw (before clipping), guard/skipped_steps, guard/spikes, in float16 scaler/scale and
    scaler/skipped_steps.

    Args:
        stop_after: number of skipped steps in a row after which the run ends, at least 1.
        spike: ratio of a gradient norm to the median of the last 100 steps, above 1; larger ones are reported, counted.
    """

    state_key = "Guard"

    def __init__(self, stop_after: int = 10, spike: float = 10.0) -> None:
        if stop_after < 1:
            raise ValueError(f"stop_after must be at least 1, got {stop_after}")
        if not spike > 1:
            raise ValueError(f"spike must be more than 1, got {spike}")
        self.stop_after, self.spike = stop_after, spike
        self.skipped = self.in_a_row = self.spikes = self.scaler_skipped = 0
        self._norms = RunningMedian(WINDOW)
        self._reported_at: dict[str, int] = {}  # step at which a line of each kind was last printed
        self._batches: list[tuple[int, Any]] = []  # with their indices, and the losses: of the current step
        self._losses: list[Tensor] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, Trainable)
        self._parameters = [p for p in pl_module.trained_parameters().values() if p.requires_grad]
        # Squares of large values of the narrow types are summed in a wider one.
        self._dtype = torch.float64 if any(p.dtype == torch.float64 for p in self._parameters) else torch.float32
        self._buffers = Buffers(pl_module)
        self._world_size = trainer.world_size
        self._scaler: Any = getattr(trainer.precision_plugin, "scaler", None)
        self._batches, self._losses = [], []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._batches.append((batch_number(trainer), batch))

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        self._losses.append(loss.detach())

    # After the backward pass, the reduction over processes and unscaling; before clipping.
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        batches, losses = self._batches, self._losses
        self._batches, self._losses = [], []
        finite, norm = self._look(trainer, losses)
        step, scale, scaled = trainer.global_step, None, False
        if self._scaler is not None:
            scale = self._scaler.get_scale()
            scaled = unscales_gradients(optimizer)  # fused: it unscales in its own step
            norm = norm / scale if scaled else norm
        if finite and math.isfinite(norm):
            self.in_a_row = 0
            self._buffers.keep()
            self._compare(trainer, norm)
        elif finite and scale is not None:
            self.scaler_skipped += 1
            if scale < 1:
                why = f"the gradients overflow at a loss scale of {scale:g} (step {step})"
                self._stop(trainer, pl_module, batches, losses, why)
        else:
            self.skipped += 1
            self.in_a_row += 1
            what = "gradients" if finite else "loss"
            if self.in_a_row >= self.stop_after:
                steps = f"{self.in_a_row} steps in a row" if self.in_a_row > 1 else "one step"
                self._stop(trainer, pl_module, batches, losses, f"{what} not finite in {steps}, at last in step {step}")
            self._report(trainer, "skip", f"{what} not finite: the step is skipped ({self.skipped} so far)")
            if scaled:
                self._scaler.unscale_(optimizer)  # else it would miss its own check of the gradients
            for p in self._parameters:
                p.grad = None
            self._buffers.restore()
        if logs_now(trainer):
            values = {"gradient_norm/raw": norm, "guard/skipped_steps": self.skipped, "guard/spikes": self.spikes}
            if scale is not None:
                values |= {"scaler/scale": scale, "scaler/skipped_steps": self.scaler_skipped}
            for name, value in values.items():
                pl_module.log(name, float(value))

    def _look(self, trainer: Trainer, losses: Sequence[Tensor]) -> tuple[bool, float]:
        """Whether the losses are finite, and the norm of all gradients: the same on all processes."""
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        values = torch.stack([*norms(gradients, self._dtype), *losses] if gradients else [*losses])
        if self._world_size > 1:  # each has a loss of its own, and none may skip a step alone
            values = trainer.strategy.reduce(values, reduce_op="mean")
        numbers = values.tolist()  # the only synchronization with the device
        return all(map(math.isfinite, numbers[len(gradients) :])), math.hypot(*numbers[: len(gradients)])

    def _compare(self, trainer: Trainer, norm: float) -> None:
        """Report and count a spike."""
        median = self._norms.median
        if median is not None and norm > self.spike * median:
            self.spikes += 1
            ratio = f"{norm / median:.0f} times" if median else "far from"
            text = f"gradient norm {norm:.3g}, {ratio} the median of the last {WINDOW} ({self.spikes} spikes so far)"
            self._report(trainer, "spike", text)
        self._norms.add(norm)

    def _report(self, trainer: Trainer, kind: str, text: str) -> None:
        step = trainer.global_step
        if trainer.is_global_zero and step - self._reported_at.get(kind, -WINDOW) >= WINDOW:
            self._reported_at[kind] = step
            tqdm.write(f"step {step}: {text}")

    def _stop(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batches: list[tuple[int, Any]],
        losses: list[Tensor],
        why: str,
    ) -> NoReturn:
        """End the run on all processes, with a dump.

        Raises:
            ValueError: always.
        """
        self._buffers.restore()
        if trainer.fast_dev_run:
            raise ValueError(why)
        path = write_dump(trainer, pl_module, batches, losses)
        raise ValueError(f"{why}: `python -m diffusion_pl replay {path}` shows where it begins")

    def state_dict(self) -> dict[str, Any]:
        return {**{name: getattr(self, name) for name in _COUNTS}, "norms": list(self._norms.queue)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._norms = RunningMedian(WINDOW)
        for norm in state_dict["norms"]:
            self._norms.add(norm)
        for name in _COUNTS:  # and no option
            setattr(self, name, state_dict[name])


class RunningMedian:
    """Median of the last `size` values: a sorted list next to the queue, so that a value costs two bisections."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.queue: deque[float] = deque()
        self._sorted: list[float] = []

    def add(self, value: float) -> None:
        if len(self.queue) == self.size:
            del self._sorted[bisect_left(self._sorted, self.queue.popleft())]
        self.queue.append(value)
        insort(self._sorted, value)

    @property
    def median(self) -> float | None:
        """None until there are `size` values."""
        if len(self.queue) < self.size:
            return None
        return (self._sorted[(self.size - 1) // 2] + self._sorted[self.size // 2]) / 2


class Buffers:
    """A module's buffers as they were before the current step; most never change, as torch's version counter shows."""

    def __init__(self, module: nn.Module) -> None:
        self.buffers = list(module.buffers())
        self.copies = [b.clone() for b in self.buffers]
        self.versions = [version(b) for b in self.buffers]

    def keep(self) -> None:
        """The step was good."""
        for i, buffer in enumerate(self.buffers):
            if version(buffer) != self.versions[i]:
                self.copies[i].copy_(buffer)
                self.versions[i] = version(buffer)

    @torch.no_grad()
    def restore(self) -> None:
        """The step was not."""
        for i, buffer in enumerate(self.buffers):
            if version(buffer) != self.versions[i]:
                buffer.copy_(self.copies[i])
                self.versions[i] = version(buffer)
