"""Which examples there are, and what has changed since a checkpoint.

An example's key is a hash of its name, or of its number in a file that has no names.  Keys are (n,), uint64.
"""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .loader import Source, Subset, Tensors

Keys = NDArray[np.uint64]
State = dict[str, Any]

KEPT = 100_000  # keys in a checkpoint, at most: of more examples the smallest, which are a fair sample
CONTENTS = 256  # examples whose content is compared, at least
CONTENT_BYTES = 50_000_000  # of examples in memory, which cost nothing to read, as many as have so many bytes


def keys_of(names: Sequence[str] | None, n: int) -> Keys:
    """Of n examples, from their names, or from their numbers."""
    if names is None:
        numbered: Keys = mixed(np.arange(n, dtype=np.uint64))
        return numbered
    digests = (hashlib.blake2b(name.encode(errors="surrogateescape"), digest_size=8).digest() for name in names)
    return _numbers(digests)


def identity(keys: Keys, named: bool, source: Source) -> State:
    """What a checkpoint keeps of its examples, to compare them with those of a later session.

    Args:
        keys: (n,).
        named: whether they are of names, which may come and go, or of the numbers of rows.
        source: the n examples.
    """
    order = np.argsort(keys, kind="stable")[:KEPT]
    looked_at = order[: _how_many(source)]
    state: State = {"examples": len(keys), "contents": _contents(source, looked_at)}
    return {**state, "keys": signed(keys[order])} if named else state


def differences(state: State, keys: Keys, named: bool, source: Source) -> list[str]:
    """In words, where the examples are others than those of an `identity`; [] if nowhere."""
    before, now, changes = state["examples"], len(keys), []
    order = np.argsort(keys, kind="stable")
    if ("keys" in state) != named:
        return [f"{before:,} examples, now {now:,}, of another kind of data"]
    if named:
        saved_keys, current_keys = unsigned(state["keys"]), keys[order]
        # Beyond the largest key that was kept nothing is known.
        sampled = before > len(saved_keys)
        if sampled:
            current_keys = current_keys[current_keys <= saved_keys[-1]]
        share = len(saved_keys) / before if before else 1.0
        for what, count in (
            ("added", len(np.setdiff1d(current_keys, saved_keys))),
            ("removed", len(np.setdiff1d(saved_keys, current_keys))),
        ):
            if count:
                changes.append(f"{'about ' * sampled}{round(count / share):,} {what}")
    else:
        saved_keys = np.sort(keys_of(None, before))[:KEPT]
        if before != now:
            changes.append(f"{abs(now - before):,} {'added' if now > before else 'removed'}")
    looked_at = saved_keys[: len(state["contents"])]
    place = np.searchsorted(keys[order], looked_at).clip(max=max(0, now - 1))
    there = keys[order][place] == looked_at if now else np.zeros(len(looked_at), bool)
    changed = _contents(source, order[place[there]]) != state["contents"][torch.from_numpy(there)]
    if changed.any():
        some = f" of {len(changed):,} compared" if len(looked_at) < before else ""
        changes.append(f"{int(changed.sum()):,} changed{some}")
    return changes


def mixed(x: Any) -> Any:
    """A bijection of 64 bits whose values look random (Steele, Lea & Flood, OOPSLA 2014: SplitMix64)."""
    with np.errstate(over="ignore"):
        z = np.asarray(x, np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def _how_many(source: Source) -> int:
    while isinstance(source, Subset):
        source = source.source
    if not isinstance(source, Tensors):
        return CONTENTS
    bytes_each = sum(t[:1].numel() * t.element_size() for t in source.tensors.values())
    return max(CONTENTS, CONTENT_BYTES // max(1, bytes_each))


def _contents(source: Source, indices: NDArray[np.int64]) -> Tensor:
    """A hash of each of these examples: (k,), int64."""
    hashes: list[bytes] = []
    for first in range(0, len(indices), 100):  # large images need not be in memory all at once
        batch = source.__getitems__(torch.from_numpy(indices[first : first + 100]))
        columns = [batch[name].contiguous().numpy() for name in sorted(batch)]
        rows = (b"".join(column.tobytes() for column in row) for row in zip(*columns, strict=True))
        hashes += [hashlib.blake2b(row, digest_size=8).digest() for row in rows]
    return signed(_numbers(hashes))


def _numbers(digests: Iterable[bytes]) -> Keys:
    return np.array([int.from_bytes(digest, "little") for digest in digests], np.uint64)


def signed(keys: Keys) -> Tensor:
    return torch.from_numpy(keys.view(np.int64).copy())  # torch computes with no unsigned numbers of 64 bits


def unsigned(keys: Tensor) -> Keys:
    return keys.numpy().view(np.uint64)
