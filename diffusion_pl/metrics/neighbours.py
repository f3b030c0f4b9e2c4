"""Memorisation: nearest training examples of generated ones."""

from typing import NamedTuple

import torch
from torch import Tensor

CHUNK = 4096  # seen examples at a time


class Nearest(NamedTuple):
    """distance: (N,), root of the mean square difference per dimension;  place: (N,), number of the nearest example."""

    distance: Tensor
    place: Tensor


class NearestNeighbours:
    """The nearest of all seen examples to each of N others; the seen ones are given in pieces.

    Args:
        x: (N, *).
    """

    def __init__(self, x: Tensor) -> None:
        self.x = x.flatten(1).float()
        self.best = Nearest(torch.full((len(x),), torch.inf), torch.zeros(len(x), dtype=torch.long))
        self.seen = 0

    def update(self, y: Tensor) -> None:
        """Go through further seen examples y: (M, *)."""
        y = y.flatten(1).float()
        for first in range(0, len(y), CHUNK):
            # The product finds the nearest; its distance is then taken from differences, or that of a copy were not 0.
            distances = torch.cdist(self.x, y[first : first + CHUNK])
            index = distances.nan_to_num(torch.inf).argmin(1)
            exact = (self.x - y[first : first + CHUNK][index]).square().mean(1).sqrt().nan_to_num(torch.inf)
            nearer = exact < self.best.distance
            self.best = Nearest(
                torch.where(nearer, exact, self.best.distance),
                torch.where(nearer, index + first + self.seen, self.best.place),
            )
        self.seen += len(y)


def memorisation(samples: Tensor, held_out: Tensor) -> float:
    """Median of the distances (N,) of samples to their nearest seen example ÷ that of held-out examples, (M,).

    Near 1: samples are as far from what was seen as new data are; near 0: they are copies.  The nearest-neighbour test
    of Meehan et al., arXiv 2004.05675, reduced to a ratio.
    """
    if not len(samples) or not len(held_out):
        raise ValueError("memorisation needs samples, and held-out examples to compare them with")
    return float(samples.median() / held_out.median())
