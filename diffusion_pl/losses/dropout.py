"""Dropout of conditions in training, so that a model also learns the estimate without them.

Reference: Ho & Salimans, "Classifier-free diffusion guidance", arXiv 2207.12598.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from ..conditions import Conditions, null
from ..tensors import per_sample


def check_dropout(owner: str, dropout: Mapping[str, float]) -> None:
    """Raise ValueError unless all probabilities, by the name of a condition, are in [0, 1)."""
    for name, probability in dropout.items():
        if not 0 <= probability < 1:
            raise ValueError(f"{owner}: dropout of {name} must be in [0, 1), got {probability}")


def check_dropped(dropout: Mapping[str, float], conditions: Conditions) -> None:
    """Raise ValueError if a condition is to be dropped that the model does not have."""
    if not conditions:
        return  # an unconditional model has nothing to drop, and one configuration may serve both
    for name in dropout:
        if name not in conditions:
            raise ValueError(
                f"model.loss.dropout.{name}: the model has no such condition; it has {', '.join(conditions)}. Fix: "
                "remove it, or give data that have it"
            )


def dropped(
    dropout: Mapping[str, float], cond: Mapping[str, Tensor], generator: torch.Generator | None
) -> dict[str, Tensor]:
    """The conditions, (B, *) each, some values of which are null, each drawn by itself."""
    cond = dict(cond)
    for name, probability in dropout.items():
        if probability > 0 and name in cond:
            value = cond[name]
            drop = per_sample(coin(probability, len(value), value.device, generator), value)
            cond[name] = torch.where(drop, null(value), value)
    return cond


def coin(probability: float, n: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
    """True with this probability: (n,)."""
    return torch.rand(n, device=device, generator=generator) < probability
