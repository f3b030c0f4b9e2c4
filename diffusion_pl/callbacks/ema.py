"""Exponential moving averages of the score network's parameters."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from ..lean import LeanCallback
from ..trainable import Trainable


class EMA(LeanCallback):
    """Averages θ̄ ← d θ̄ + (1 − d) θ after every optimizer step, one for each decay, used wherever the model is judged.

    Warm-up: at update n the decay is min(d, (1 + n)/(10 + n)), so that the random start is forgotten.  The first decay
    stands in for the weights in validation, test, prediction and panels; before its first update nothing is swapped.
    A checkpoint's state_dict always holds the raw weights, the averages lie in this callback's state.

    Reference: Ho et al., arXiv 2006.11239, App. B (0.9999); the warm-up as in TensorFlow's ExponentialMovingAverage.

    Args:
        decays: d of each average, the one to be used first; empty: no averaging.
    """

    state_key = "EMA"

    def __init__(self, decays: Sequence[float] = (0.999,)) -> None:
        for decay in decays:
            if not 0 <= decay < 1:
                raise ValueError(f"EMA decays must lie in [0, 1), got {decay}")
        self.decays = [float(decay) for decay in decays]
        self.updates = 0
        self._shadows: dict[float, dict[str, Tensor]] = {}
        self._last_step = 0
        self._raw: list[Tensor] | None = None  # the raw weights, while an average stands in for them

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._last_step = trainer.global_step

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._last_step = trainer.global_step
        parameters = dict(_named_parameters(pl_module))
        for decay in self.decays:
            old = self._shadows.get(decay, parameters)
            self._shadows[decay] = {name: old[name].detach().to(p.device, copy=True) for name, p in parameters.items()}
        # Lists, not dictionaries, for one fused update a step.
        self._parameters = list(parameters.values())
        self._lists = {decay: list(shadow.values()) for decay, shadow in self._shadows.items()}

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step == self._last_step:  # gradients are still being accumulated
            return
        self._last_step = step
        for decay, shadow in self._lists.items():
            weight = 1 - min(decay, (1 + self.updates) / (10 + self.updates))
            torch._foreach_lerp_(shadow, self._parameters, weight)
        self.updates += 1

    @property
    def young(self) -> bool:
        """Whether the first average has not yet seen one time constant 1/(1 − d) of steps."""
        return bool(self.decays) and self.updates * (1 - self.decays[0]) < 1

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
        decay = self.decays[0]
        shadow = self._shadows[decay]
        named = dict(_named_parameters(module))
        self._raw = [p.detach().clone() for p in named.values()]
        for name, p in named.items():
            p.copy_(shadow[name])
        module.weights_name = f"ema{decay}"  # type: ignore[assignment]

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
        return {"updates": self.updates, "shadows": {f"{decay}": shadow for decay, shadow in self._shadows.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.updates = state_dict["updates"]
        # An average that the checkpoint lacks starts anew from the raw weights; one no longer wanted is dropped.
        kept = {decay: state_dict["shadows"].get(f"{decay}") for decay in self.decays}
        self._shadows = {decay: shadow for decay, shadow in kept.items() if shadow is not None}


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
