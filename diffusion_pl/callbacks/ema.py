"""Exponential moving averages of the score network's parameters."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from ..runtime.provenance import parallel
from ..runtime.upstream.torch import lerp_
from ..training import LeanCallback, Trainable


class EMA(LeanCallback):
    """Averages θ̄ ← d θ̄ + (1 − d) θ after every optimizer step, several at once, used wherever the model is judged.

    An average is given by its decay d in a step, or by its half-life in examples, which means the same for any batch:
    d = ½^(batch / half-life).

    Warm-up, so that the random start is forgotten: at update n the decay is at most (1 + n)/(10 + n), that of a
    half-life at most ½^(1/(ramp_up n)).  The first average, decays before half-lives, stands in for the weights in
    validation, test, prediction and panels; before its first update nothing is swapped.  A checkpoint's state_dict
    always holds the raw weights, the averages lie in this callback's state.

    Reference: Ho et al., arXiv 2006.11239, App. B (0.9999); the warm-up as in TensorFlow's ExponentialMovingAverage;
    Karras et al., arXiv 2206.00364, App. F.1 (half-life and its ramp).

    Args:
        decays: d of each average; empty: none.
        half_lives: of further averages, in examples; 500,000 in EDM.
        ramp_up: no half-life is longer than this fraction of what the run has seen.
    """

    state_key = "EMA"

    def __init__(
        self, decays: Sequence[float] = (0.999,), half_lives: Sequence[int] = (), ramp_up: float = 0.05
    ) -> None:
        for decay in decays:
            if not 0 <= decay < 1:
                raise ValueError(f"EMA decays must be in [0, 1), got {decay}")
        for half_life in half_lives:
            if half_life < 1:
                raise ValueError(f"EMA half_lives must be at least 1 example, got {half_life}")
        for name, values in (("decays", decays), ("half_lives", half_lives)):
            twice = [value for k, value in enumerate(values) if value in list(values)[:k]]
            if twice:
                raise ValueError(f"EMA {name} must differ from each other, got {twice[0]} twice")
        if not 0 < ramp_up < math.inf:
            raise ValueError(f"EMA ramp_up must be positive and finite, got {ramp_up}")
        self.decays, self.half_lives = [float(decay) for decay in decays], list(half_lives)
        self.ramp_up = ramp_up
        self.updates = 0
        self._rates = {f"{decay}": decay for decay in self.decays}  # d of each average, by its name
        self._decay_names = set(self._rates)
        self._dropped: list[str] = []  # averages of the checkpoint that are not in the configuration
        self._shadows: dict[str, dict[str, Tensor]] = {}
        self._last_step = 0
        self._raw: list[Tensor] | None = None  # the raw weights, while an average stands in for them

    def rates(self, batch: int | None) -> dict[str, float]:
        """d of each average under its name, for steps of `batch` examples (None: unknown)."""
        if batch is None and self.half_lives:
            raise ValueError("EMA half_lives count examples, but how many a step has is not known: give decays")
        found = {f"{half_life}examples": 0.5 ** (batch / half_life) for half_life in self.half_lives if batch}
        return {f"{decay}": decay for decay in self.decays} | found

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._last_step = trainer.global_step

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._last_step = trainer.global_step
        batch = parallel(trainer)["global_batch"]
        self._rates = self.rates(None if batch is None else batch * trainer.accumulate_grad_batches)
        parameters = dict(_named_parameters(pl_module))
        before, self._shadows = self._shadows, {}
        if self.updates and trainer.is_global_zero:
            for line in self._changes(before):
                print(f"diffusion_pl: warning: {line}", flush=True)
        for average in self._rates:
            # A parameter that was not trained until now has no average: it starts at the weights.
            old = before.get(average, {})
            shadow = {name: old.get(name, p).detach().to(p.device, copy=True) for name, p in parameters.items()}
            self._shadows[average] = shadow
        # Lists, not dictionaries, for one fused update a step.
        self._parameters = list(parameters.values())
        self._lists = {average: list(shadow.values()) for average, shadow in self._shadows.items()}

    def _changes(self, before: dict[str, dict[str, Tensor]]) -> Iterator[str]:
        """What a resumed run has other averages than its checkpoint, in words."""
        new = [average for average in self._rates if average not in before]
        if new:
            yield f"ema: the checkpoint has no average {', '.join(new)}: it starts at the present weights"
        if self._dropped:
            yield f"ema: the checkpoint's average {', '.join(self._dropped)} is not in the configuration: it is dropped"
        self._dropped = []

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step == self._last_step:  # gradients are still being accumulated
            return
        self._last_step = step
        n = self.updates
        ramp = 0.5 ** (1 / (self.ramp_up * n)) if n else 0.0
        for average, shadow in self._lists.items():
            most = (1 + n) / (10 + n) if average in self._decay_names else ramp
            lerp_(shadow, self._parameters, 1 - min(self._rates[average], most))
        self.updates += 1

    @property
    def young(self) -> bool:
        """Whether the first average has not yet seen one time constant 1/(1 − d) of steps."""
        return any(self.updates * (1 - rate) < 1 for rate in list(self._rates.values())[:1])

    @contextmanager
    def swapped_in(self, module: LightningModule) -> Iterator[None]:
        """The first average in place of the weights, if there is one and it is not there already."""
        if self._raw is not None:
            yield
            return
        self._swap_in(module)
        try:
            yield
        finally:
            self._swap_out(module)

    @torch.no_grad()
    def _swap_in(self, module: LightningModule) -> None:
        if not self._shadows or not self.updates:
            return
        average = next(iter(self._shadows))
        shadow = self._shadows[average]
        named = dict(_named_parameters(module))
        self._raw = [p.detach().clone() for p in named.values()]
        for name, p in named.items():
            p.copy_(shadow.get(name, p))  # a parameter that was not trained has no average
        module.weights_name = f"ema{average}"  # type: ignore[assignment]

    @torch.no_grad()
    def _swap_out(self, module: LightningModule) -> None:
        if self._raw is None:
            return
        for (_, p), raw in zip(_named_parameters(module), self._raw, strict=True):
            p.copy_(raw)
        self._raw = None
        module.weights_name = "raw"  # type: ignore[assignment]

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._swap_in(pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._swap_out(pl_module)

    on_test_start = on_predict_start = on_validation_start
    on_test_end = on_predict_end = on_validation_end

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._swap_out(pl_module)

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates, "shadows": dict(self._shadows)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.updates = state_dict["updates"]
        # An average that the checkpoint lacks starts anew from the raw weights; one no longer wanted is dropped.
        kept = {average: state_dict["shadows"].get(average) for average in self.rates(batch=1)}
        self._shadows = {average: shadow for average, shadow in kept.items() if shadow is not None}
        self._dropped = [average for average in state_dict["shadows"] if average not in kept]


def ema_of(trainer: Trainer) -> EMA | None:
    """The run's EMA callback, if it has one."""
    return next((c for c in trainer.callbacks if isinstance(c, EMA)), None)


@contextmanager
def judged_weights(trainer: Trainer, module: LightningModule, *, raw: bool = False) -> Iterator[None]:
    """The model as it is judged, without dropout: with the run's average where there is one, unless `raw` weights."""
    ema = None if raw else ema_of(trainer)
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        with nullcontext() if ema is None else ema.swapped_in(module):
            yield
    finally:
        for part, training in modes.items():
            part.training = training


def _named_parameters(module: LightningModule) -> Iterator[tuple[str, Tensor]]:
    assert isinstance(module, Trainable)
    return ((name, p) for name, p in module.network.named_parameters() if p.requires_grad)
