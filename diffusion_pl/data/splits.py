"""Split examples into training, validation and test sets."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .identity import Keys, keys_of, mixed, signed, unsigned

State = dict[str, Any]
Parts = tuple[Tensor, Tensor, Tensor]

#: The ways to split, as a checkpoint names them.
SHUFFLED, HASHED = "shuffled", "hash"


def divide(
    n: int,
    names: Sequence[str] | None,
    labels: Tensor | None,
    groups: Tensor | None,
    fractions: tuple[float, float],
    seed: int,
    *,
    grows: bool,
    saved: Mapping[str, Any],
) -> tuple[Parts, State]:
    """Indices of the training, validation and test examples, each in ascending order.

    A run that is resumed keeps the way to split and the seed of its checkpoint, whatever its options say now.

    Args:
        n: number of examples.
        names, labels, groups: see `Examples`.
        fractions: for validation and for testing.
        seed: of the split.
        grows: whether examples may be added later.
        saved: the data's state in the checkpoint that is resumed or evaluated, {} if there is none.

    Returns:
        The parts, and how they were drawn, for the next checkpoint.

    Raises:
        ValueError: see `recorded_split`.
    """
    noted = recorded_split(saved)
    rule = noted.get("rule", HASHED if grows else SHUFFLED)
    seed, exceptions = noted.get("seed", seed), noted.get("exceptions")
    grouped = noted.get("grouped", True)
    if not grouped:
        groups = None
    if rule == HASHED:
        keys = keys_of(names, n)
        keys = keys[_first_of_group(n, groups, _known(keys, saved)).numpy()]
        parts, exceptions = hashed(keys, labels, fractions, seed, exceptions)
    else:
        parts = shuffled(n, labels, fractions, seed, groups)
    return parts, {"rule": rule, "seed": seed, "grouped": grouped, "exceptions": exceptions}


def recorded_split(saved: Mapping[str, Any]) -> State:
    """How the data of a checkpoint were split: its entry "split"; {} if there is no checkpoint, or it does not say.

    Raises:
        ValueError: the method is not known, or the entry is damaged.
    """
    if "split" not in saved:
        # The first version had one method, and no groups.
        is_old = bool(saved) and not {"class_names", "conditions"} & saved.keys()
        return {"rule": SHUFFLED, "grouped": False} if is_old else {}
    split = saved["split"] or {}
    try:
        exceptions = _exceptions(split.get("exceptions"))
        if type(split.get("seed", 0)) is not int:
            raise TypeError
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError):
        raise ValueError(
            "the checkpoint's record of the data's split is damaged. Fix: use another checkpoint of the run"
        ) from None
    if split.get("rule", HASHED) not in (HASHED, SHUFFLED):
        raise ValueError(
            f"the checkpoint's data were split by the method {split['rule']!r}, which this version does not know"
        )
    return {**split, "exceptions": exceptions}


def _exceptions(recorded: Any) -> State | None:
    """The exceptions of a split, which are lists where a checkpoint is JSON."""
    if recorded is None:
        return None
    lists = {
        name: recorded[name].tolist() if isinstance(recorded[name], Tensor) else recorded[name] for name in recorded
    }
    keys, parts = lists["keys"], lists["parts"]
    if not all(type(number) is int for number in (*keys, *parts)) or len(keys) != len(parts):
        raise TypeError
    return {"keys": torch.tensor(keys, dtype=torch.int64), "parts": torch.tensor(parts, dtype=torch.int64)}


def hashed(
    keys: Keys, labels: Tensor | None, fractions: tuple[float, float], seed: int, exceptions: State | None = None
) -> tuple[tuple[Tensor, Tensor, Tensor], State]:
    """Indices of the training, validation and test examples, each in ascending order, by thresholds on a hash.

    An example is held out if the hash of (seed, key), uniform in [0, 1), is below the fraction: no other example has a
    say in it.  Only where that leaves a class without training examples, or without a part that was asked for though
    the class has two examples, one example (per part) is an exception.

    Args:
        keys: (n,); of equal keys, such as those of copies of one example, all are in one part.
        labels: (n,), None without classes.
        fractions: for validation and for testing.
        seed: of the split.
        exceptions: of an earlier split; None: they are chosen again.

    Returns:
        The parts, and the exceptions, {"keys": (k,) int64, "parts": (k,) 0, 1 or 2}.
    """
    u = mixed(keys ^ mixed(np.uint64(seed % 2**64))).astype(np.float64) / 2.0**64
    part = np.digitize(u, np.cumsum(fractions))  # 0: validation, 1: test, 2: training
    part = np.where(part == 2, 0, part + 1)
    if exceptions is not None:
        for key, number in zip(unsigned(exceptions["keys"]), exceptions["parts"].tolist(), strict=True):
            part[keys == key] = number
    else:
        chosen: dict[int, int] = {}
        for label in [None] if labels is None else sorted(set(labels.tolist())):
            among = np.ones(len(keys), bool) if labels is None or label is None else labels.numpy() == label
            for key, number in _lacking(keys[among], u[among], part[among], fractions):
                chosen[key] = number
                part[keys == np.uint64(key)] = number
        chosen_parts = torch.tensor(list(chosen.values()), dtype=torch.int64)
        exceptions = {"keys": signed(np.array(list(chosen), np.uint64)), "parts": chosen_parts}
    parts = tuple(torch.from_numpy(np.flatnonzero(part == number)) for number in range(3))
    return parts, exceptions  # type: ignore[return-value]


def _lacking(
    keys: Keys, u: NDArray[np.float64], part: NDArray[np.int64], fractions: tuple[float, float]
) -> Iterator[tuple[int, int]]:
    """Keys of one class, and the parts to which they go, so that no part that was asked for is empty."""
    part, order = part.copy(), np.argsort(u, kind="stable")
    if len(keys) and not (part == 0).any():
        last = keys[order[-1]]  # the nearest to being trained on
        part[keys == last] = 0
        yield int(last), 0
    for number, fraction in enumerate(fractions, start=1):
        trained = order[part[order] == 0]
        if fraction and not (part == number).any() and len(np.unique(keys[trained])) > 1:
            first = keys[trained[0]]  # the nearest to being held out
            part[keys == first] = number
            yield int(first), number


def shuffled(
    n: int, labels: Tensor | None, fractions: tuple[float, float], seed: int, groups: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Indices of the training, validation and test images, each in ascending order; every class gives its share.

    A fraction above 0 is at least one image of each class that has two or more to spare.  Of each group (see
    `Examples`) only the first image is drawn, and the others follow it: fractions count groups, as distinct images.
    """
    generator = torch.Generator().manual_seed(seed)
    first = _first_of_group(n, groups)
    distinct = (first == torch.arange(n)).nonzero().flatten()
    classes = (
        [distinct]
        if labels is None
        else [distinct[labels[distinct] == k] for k in sorted(set(labels[distinct].tolist()))]
    )
    part = torch.zeros(n, dtype=torch.long)
    for members in classes:
        shuffled = members[torch.randperm(len(members), generator=generator)]
        for number, fraction in enumerate(fractions, start=1):
            count = min(max(1, round(fraction * len(members))) if fraction else 0, len(shuffled) - 1)
            part[shuffled[:count]] = number
            shuffled = shuffled[count:]
    part = part[first]
    return tuple((part == number).nonzero().flatten() for number in range(3))  # type: ignore[return-value]


def _known(keys: Keys, saved: Mapping[str, Any]) -> Tensor | None:
    """Which examples the checkpoint knows: (n,), bool; None if it does not say.  A new copy does not lead its group."""
    known = (saved.get("identity") or {}).get("keys")
    return None if known is None else torch.from_numpy(np.isin(keys, unsigned(known)))


def _first_of_group(n: int, groups: Tensor | None, known: Tensor | None = None) -> Tensor:
    """Index of the first image of each image's group, of those that are known if there are some: (n,)."""
    if groups is None:
        return torch.arange(n)
    _, group = torch.unique(groups, return_inverse=True)
    rank = torch.arange(n) if known is None else torch.arange(n) + n * ~known
    return torch.full((n,), 2 * n).scatter_reduce(0, group, rank, "amin")[group] % n
