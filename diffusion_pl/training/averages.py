"""Exponential moving averages (EMA) of parameters: θ̄ ← (1 − r) θ̄ + r θ after every optimizer step.

The module owns them.  It updates them within its own optimizer step, so that whatever looks at them after a step, a
callback of any place in the list, sees them with that step.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..data.loader import Loader
from ..runtime.upstream.torch import lerp_

LONG = 10**18  # updates: after every warm-up


class Average(ABC):
    """How fast an average follows the weights."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Of its weights in checkpoints and on the command line, such as "0.999"."""

    @abstractmethod
    def rate(self, updates: int, examples: int | None) -> float:
        """r, the share of the new weights in an update.

        Args:
            updates: made before this one.
            examples: of an optimizer step, over all processes; None: not known.

        Raises:
            ValueError: it depends on the examples.
        """

    def limit(self, examples: int | None) -> float | None:
        """The rate after every warm-up; None: it falls as 1/n for ever, so the memory is a fraction of the training."""
        return self.rate(LONG, examples)


class ConstantDecay(Average):
    """r = 1 − min(d, (1 + n)/(10 + n)) at update n: the warm-up forgets the random start.

    Reference: Ho et al., arXiv 2006.11239, App. B (0.9999); the warm-up as in TensorFlow's ExponentialMovingAverage.

    Args:
        decay: d in [0, 1).
    """

    def __init__(self, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"EMA decays must be in [0, 1), got {decay}")
        self.decay = float(decay)

    @property
    def name(self) -> str:
        return f"{self.decay}"

    def rate(self, updates: int, examples: int | None) -> float:
        return 1 - min(self.decay, (1 + updates) / (10 + updates))


class HalfLife(Average):
    """r = 1 − min(½^(B / half_life), ½^(1/(ramp_up n))) at update n of steps of B examples.

    Half of the weight of the EMA is half_life examples old, whatever the batch.

    Reference: Karras et al., arXiv 2206.00364, App. F.1.

    Args:
        half_life: in examples, at least 1; 500,000 in EDM.
        ramp_up: the half-life is at most this fraction of the examples seen.
    """

    def __init__(self, half_life: int, ramp_up: float = 0.05) -> None:
        if half_life < 1:
            raise ValueError(f"EMA half_lives must be at least 1 example, got {half_life}")
        if not 0 < ramp_up < math.inf:
            raise ValueError(f"EMA ramp_up must be positive and finite, got {ramp_up}")
        self.half_life, self.ramp_up = half_life, ramp_up

    @property
    def name(self) -> str:
        return f"{self.half_life}examples"

    def rate(self, updates: int, examples: int | None) -> float:
        if examples is None:
            raise ValueError("EMA half_lives count examples, but how many a step has is not known: give decays")
        ramp = 0.5 ** (1 / (self.ramp_up * updates)) if updates else 0.0
        return 1 - float(min(0.5 ** (examples / self.half_life), ramp))


class Averages:
    """Averages of some parameters, several at once; the first replaces the weights in validation, testing and sampling.

    In a checkpoint they are the entry "averages": {"updates": n, "shadows": {name of the average: {name of the
    parameter in the state dict: tensor}}, "begun": {name of the average: n}}, the last of those that began in a later
    session than the first.
    """

    def __init__(self) -> None:
        self.updates = 0
        self.tracked: list[Average] = []
        self._shadows: dict[str, dict[str, Tensor]] = {}
        self._begun: dict[str, int] = {}  # updates before an average, where there were any
        self._dropped: list[str] = []  # of the checkpoint, not tracked
        self._examples: int | None = None
        self._parameters: list[Tensor] = []
        self._lists: list[tuple[Average, list[Tensor]]] = []
        self._raw: dict[str, Tensor] = {}  # the raw weights, while EMA weights are in their place

    def track(self, averages: Sequence[Average]) -> None:
        """Choose what `begin` starts and `load` takes from a checkpoint, the one that stands in first.

        Raises:
            ValueError: two of one name.
        """
        names = [average.name for average in averages]
        twice = [name for k, name in enumerate(names) if name in names[:k]]
        if twice:
            raise ValueError(f"averages must differ from each other, got {twice[0]} twice")
        self.tracked = list(averages)

    def begin(self, parameters: Mapping[str, Tensor], examples: int | None) -> list[str]:
        """Start a training: a parameter without an average starts at its present value.

        Args:
            parameters: what is averaged, by name.
            examples: of an optimizer step, over all processes; None: not known.

        Returns:
            What a resumed run has other averages than its checkpoint, in words.
        """
        for average in self.tracked:
            average.rate(0, examples)  # raises now, not in the first step
        before, self._shadows, self._examples = self._shadows, {}, examples
        for name in (average.name for average in self.tracked):
            old = before.get(name, {})
            self._shadows[name] = {
                key: old.get(key, p).detach().to(p.device, copy=True) for key, p in parameters.items()
            }
        if self.updates:
            self._begun |= {name: self.updates for name in self._shadows if name not in before}
        # Lists, not dictionaries, for one fused update a step.
        self._parameters = list(parameters.values())
        self._lists = [(average, list(self._shadows[average.name].values())) for average in self.tracked]
        return self._changes(before) if self.updates else []

    def _changes(self, before: Mapping[str, Any]) -> list[str]:
        lines, new = [], [name for name in self._shadows if name not in before]
        if new:
            lines.append(f"ema: the checkpoint has no average {', '.join(new)}: it starts at the present weights")
        gone, self._dropped = self._dropped, []
        if gone:
            lines.append(f"ema: the checkpoint's average {', '.join(gone)} is not in the configuration: it is dropped")
        return lines

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights after an optimizer step; `begin` comes before."""
        for average, shadow in self._lists:
            lerp_(shadow, self._parameters, average.rate(self.updates, self._examples))
        self.updates += 1

    @property
    def young(self) -> bool:
        """Whether the first average has not yet seen one time constant 1/r of steps, if it has one."""
        limits = (average.limit(self._examples) for average, _ in self._lists[:1])
        return any(limit is not None and self.updates * limit < 1 for limit in limits)

    @property
    def names(self) -> list[str]:
        """Of the averages that there are, the one that stands in first; none before the first update."""
        return list(self._shadows) if self.updates else []

    def of(self, name: str) -> dict[str, Tensor]:
        """The tensors of an average by the names of their parameters, not copies."""
        return self._shadows[name]

    def begun(self, name: str) -> int:
        """How many updates there were before an average began, at the weights of the time."""
        return self._begun.get(name, 0)

    @property
    def standing_in(self) -> str | None:
        """The EMA whose weights are in the network at the moment."""
        return self.names[0] if self._raw else None

    @torch.no_grad()
    def swap_in(self, parameters: Mapping[str, Tensor]) -> None:
        """Put the first average, if there is one, in place of the weights."""
        if self._raw or not self.names:
            return
        shadow = self._shadows[self.names[0]]
        for name, p in parameters.items():
            if name in shadow:  # a parameter that was not trained has no average
                self._raw[name] = p.detach().clone()
                p.copy_(shadow[name])

    @torch.no_grad()
    def swap_out(self, parameters: Mapping[str, Tensor]) -> None:
        """Give the raw weights back, if an average is in their place."""
        for name, raw in self._raw.items():
            parameters[name].copy_(raw)
        self._raw = {}

    @contextmanager
    def swapped(self, parameters: Mapping[str, Tensor], average: bool) -> Iterator[None]:
        """Within, the first average (True) or the raw weights (False) are in place; then what was before."""
        change, back = (self.swap_in, self.swap_out) if average else (self.swap_out, self.swap_in)
        if average == bool(self._raw):
            yield
            return
        change(parameters)
        try:
            yield
        finally:
            back(parameters)

    def with_raw(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A state dict with the raw weights, whatever stands in for them at the moment."""
        return {**state, **self._raw}

    def state(self) -> dict[str, Any]:
        """For a checkpoint: tensors and plain numbers."""
        shadows = {name: dict(shadow) for name, shadow in self._shadows.items()}
        begun = {name: n for name, n in self._begun.items() if name in shadows}
        return {"updates": self.updates, "shadows": shadows, **({"begun": begun} if begun else {})}

    def load(self, state: Mapping[str, Any]) -> None:
        """Take over the tracked averages of a checkpoint; `begin` says which are missing and which were left."""
        self.updates, saved = state["updates"], state["shadows"]
        names = [average.name for average in self.tracked]
        self._shadows = {name: dict(saved[name]) for name in names if name in saved}
        self._begun = {name: n for name, n in state.get("begun", {}).items() if name in self._shadows}
        self._dropped = [name for name in saved if name not in names]

    def clear(self) -> None:
        """Forget all averages, not what is tracked."""
        self.updates, self._shadows, self._begun = 0, {}, {}
        self._lists, self._parameters, self._raw = [], [], {}


def examples_per_step(trainer: Any) -> int | None:
    """What all processes see between two optimizer steps; None: the loader does not say."""
    batch = global_batch(trainer)
    return None if batch is None else batch * int(trainer.accumulate_grad_batches)


def global_batch(trainer: Any) -> int | None:
    """Examples that all processes see between two sums of gradients, before accumulation; None: not known."""
    loader = trainer.train_dataloader
    # A training set smaller than one batch is one batch.
    return min(loader.batch_size, loader.num_visits) if isinstance(loader, Loader) else None
