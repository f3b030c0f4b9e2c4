"""Conditions of examples, which samples get in turn where no value is given."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..conditions import Conditions
from .loader import Batch, Source

MOST, MEMORY = 64, 2**22  # examples, and bytes, that a checkpoint keeps
_SEARCHED = 1024  # examples, for some of each class


def held_out(
    source: Source,
    encode: Callable[[Batch], Batch],
    conditions: Conditions,
    counts: Sequence[int] | None,
    most: int = MOST,
    memory: int = MEMORY,
) -> dict[str, Tensor]:
    """The conditions of up to `most` examples of a source, spread over it: (K, *shape) each, in model units.

    With a label the classes that have examples come in turn, where `most` are enough for one of each.

    Args:
        source: of the examples, at least one.
        encode: makes a batch of what the source gives, with the conditions in model units.
        conditions: of the data.
        counts: training examples of each class; None: all classes have some.
        most: examples, fewer if they take more than `memory` bytes.
        memory: see there.
    """
    size = 4 * sum(torch.Size(c.shape).numel() for c in conditions.values())
    k = max(1, min(most, memory // size, len(source)))
    places = torch.arange(len(source))
    if "label" in conditions:
        places = places[:: -(-len(source) // max(k, _SEARCHED))]
        labels = torch.cat([source.__getitems__(some)["label"] for some in torch.split(places, 64)])
        trained = [c for c in range(conditions["label"].classes or 0) if counts is None or counts[c]]
        places = places[_in_turn(labels, trained, k)]
    else:
        places = places[torch.arange(k) * len(source) // k]
    parts = [encode(source.__getitems__(some)) for some in torch.split(places, 64)]
    return {name: torch.cat([part[name] for part in parts]).cpu() for name in conditions}


def _in_turn(labels: Tensor, classes: Sequence[int], k: int) -> Tensor:
    """Places of k examples, or a few less, whose classes come in turn, or the first k if that is not possible."""
    of_class = [(labels == c).nonzero()[:, 0] for c in classes]
    if not 0 < len(of_class) <= k or not all(map(len, of_class)):
        return torch.arange(min(k, len(labels)))
    return torch.stack([rows[j % len(rows)] for j in range(k // len(of_class)) for rows in of_class])
