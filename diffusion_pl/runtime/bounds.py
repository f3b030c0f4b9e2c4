"""Upper bounds on options, checked before anything is built."""

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import nn

MOST_TENSORS = 20_000  # of a network
MOST_VALUES = 100_000  # of a configuration
DEEPEST = 50  # nesting of a configuration


class TooLarge(ValueError):
    """Something is larger than a bound."""


def check_counts(**counts: int | None) -> None:
    """Raise ValueError for a count below 1, by its name; None stands for a default."""
    for name, value in counts.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")


def check_plain(value: Any, name: str) -> None:
    """Check that plain values are of a configuration's size, counting what is shared as often as it occurs.

    A few lines of YAML with aliases, or a few lists in a checkpoint that hold each other, can stand for any number of
    values.

    Raises:
        TooLarge: there are too many of them, they are nested too deeply, or one contains itself.
    """
    sizes: dict[int, int] = {}

    def size(part: Any, depth: int) -> int:
        if depth > DEEPEST:
            raise TooLarge(f"{name} is nested more than {DEEPEST} levels deep")
        if not isinstance(part, (dict, list, tuple)):
            return 1
        if id(part) not in sizes:
            inner = [*part.keys(), *part.values()] if isinstance(part, dict) else part
            sizes[id(part)] = 1 + sum(size(value, depth + 1) for value in inner)
        if sizes[id(part)] > MOST_VALUES:
            raise TooLarge(f"{name} holds more than {MOST_VALUES:,} values")
        return sizes[id(part)]

    size(value, 0)


class _Limit(NamedTuple):
    tensors: int
    size: int  # bytes


_limit: ContextVar[_Limit | None] = ContextVar("limit", default=None)


@contextmanager
def limited(tensors: int, size: int) -> Iterator[None]:
    """Within, `build` refuses networks of more parameter tensors, or more bytes, than a checkpoint holds."""
    token = _limit.set(_Limit(tensors, size))
    try:
        yield
    finally:
        _limit.reset(token)


def build(make: "Callable[[], nn.Module]") -> "nn.Module":
    """The network that `make` returns, after it was made once on the meta device to get its size.

    Raises:
        TooLarge: it has more parameter tensors than any network, or needs more memory than this machine has; or more
            than it may within `limited`.
    """
    import torch
    from torch.nn.modules.module import register_module_parameter_registration_hook

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    most, space = _limit.get() or (MOST_TENSORS, memory)
    owner = "this machine has" if _limit.get() is None else "the checkpoint holds"
    count, size = 0, 0

    def look(module: "nn.Module", name: str, parameter: Any) -> None:
        nonlocal count, size
        if isinstance(parameter, torch.Tensor) and parameter.is_meta:
            count += 1
            size += parameter.numel() * parameter.element_size()
            if count > most:
                raise TooLarge(f"the network has more than {most:,} parameter tensors. Fix: choose a smaller depth")
            if size > space:
                gib = f"{space / 2**30:.3g} GiB that {owner}"
                raise TooLarge(f"the network's parameters need more than the {gib}. Fix: choose a smaller width")

    handle = register_module_parameter_registration_hook(look)
    try:
        with torch.device("meta"):
            make()
    except TooLarge:
        raise
    except (
        Exception
    ) as error:  # some networks cannot be made without values; the call below shows whether they can be made
        if isinstance(error, (OverflowError, MemoryError)) or "overflow" in str(error):
            raise TooLarge(f"the network is too large: {str(error).splitlines()[0]}") from error
    finally:
        handle.remove()
    return make()


def check_room(needed: float, free: int, what: str) -> None:
    """Raise TooLarge if so many bytes do not fit into the free ones."""
    if not math.isfinite(needed) or needed > free:
        room = f"{needed / 2**30:,.0f} GiB of disk, {free / 2**30:,.1f} GiB are free"
        raise TooLarge(f"{what} need {room}. Fix: ask for fewer, or write to another disk")
