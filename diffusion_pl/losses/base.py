"""Base class of losses, and what they return."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..conditions import Conditions
from ..denoisers import NetworkDenoiser
from ..tensors import Recorded
from .timesteps import TimeSampler


class Losses(NamedTuple):
    """Loss of each (example, time), mean over the data axes: (K B,); and its time: (K B,)."""

    loss: Tensor
    t: Tensor


class Loss(Recorded, nn.Module, ABC):
    """What a denoiser learns by.  It may hold parameters and a teacher of its own.

    Attributes:
        times: timestep distribution.
    """

    times: TimeSampler

    @abstractmethod
    def forward(
        self,
        denoiser: NetworkDenoiser,
        x_0: Tensor,
        cond: Mapping[str, Tensor] | None = None,
        generator: torch.Generator | None = None,
        observed: Tensor | None = None,
    ) -> Losses:
        """Losses of a batch.

        Args:
            denoiser: in training.
            x_0: (B, *).
            cond: conditions of the network by name, (B, *) each; None: none.
            generator: of t, ε and whatever else is random; None: torch's global one.
            observed: (B, *), bool: values of x_0 that count; None: all.
        """

    def check_conditions(self, conditions: Conditions) -> None:
        """Raise ValueError if the loss names a condition that the model does not have."""
