"""What every loss returns."""

from typing import NamedTuple

from torch import Tensor


class Losses(NamedTuple):
    """Loss of each (example, time), mean over the data axes: (K B,); and its time: (K B,)."""

    loss: Tensor
    t: Tensor
