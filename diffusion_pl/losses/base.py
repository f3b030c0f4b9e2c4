"""Base class of losses, and what they return."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
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
        averaged_target: whether its targets are computed with the first EMA weights, which it then gets as the argument
            target: parameters of the network by name, None while there are none.
        sees_images: whether it needs, in training, the examples as images in [−1, 1], which it then gets as the
            argument images: (B, C, H, W).
        consistency: whether the model learns jumps to the data alone (r = 0), and is then no ordinary denoiser.
    """

    times: TimeSampler
    averaged_target: bool = False
    sees_images: bool = False
    consistency: bool = False

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

    def check(self, denoiser: NetworkDenoiser, shape: Sequence[int], conditions: Conditions) -> None:
        """Raise ValueError if the loss does not suit the model: the start of a training calls it.

        Args:
            denoiser: of the model.
            shape: of one example.
            conditions: of the model.
        """
