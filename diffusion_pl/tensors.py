"""Helpers for shapes and noise, shared by the whole package; and objects that record their arguments.

x: (B, *) has one leading batch axis and any data axes.  t broadcasts against x: () in samplers, (B, 1, …, 1) in
training.
"""

import inspect
import math
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor


class Recorded:
    """Keeps the arguments of its constructor, so that a checkpoint can say how to make it again."""

    _given: tuple[tuple[Any, ...], dict[str, Any]] = (), {}

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        made = super().__new__(cls)
        made.__dict__["_given"] = args, kwargs  # not registered as parts of an nn.Module
        return made

    # Of a class without a constructor of its own.
    __new__.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter("cls", inspect.Parameter.POSITIONAL_ONLY)]
    )

    @property
    def arguments(self) -> dict[str, Any]:
        """Those arguments by name, with the defaults of what was not given."""
        (args, kwargs), signature = self._given, inspect.signature(type(self))
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        arguments = dict(bound.arguments)
        for parameter in signature.parameters.values():
            if parameter.kind is parameter.VAR_KEYWORD:  # handed on to a base class
                arguments |= arguments.pop(parameter.name)
        return arguments


def per_sample(values: Tensor, x: Tensor) -> Tensor:
    """Give (B,) values the shape (B, 1, …, 1) that broadcasts against x: (B, *)."""
    return values.reshape(-1, *[1] * (x.ndim - 1))


def mean_data(x: Tensor, observed: Tensor | None = None) -> Tensor:
    """Mean over all data axes: (B, *) -> (B,); over the observed values only, 0 where there are none.

    Args:
        x: (B, *).
        observed: (B, *), bool; None: all values.
    """
    if observed is None:
        return x.flatten(1).mean(1)
    return torch.where(observed, x, 0).flatten(1).sum(1) / observed.flatten(1).sum(1).clamp(min=1)


def combine(*terms: tuple[Tensor, Tensor]) -> Tensor:
    """Σ c x over pairs of c: () on the CPU and x: (B, *), in one pass over memory for each pair.

    Written as arithmetic, c₁x₁ + c₂x₂ takes three.
    """
    (c, x), *rest = terms
    total = c.item() * x
    for c, x in rest:
        total.add_(x, alpha=c.item())
    return total


def check_finite(**numbers: float) -> None:
    """Raise ValueError unless all are finite numbers."""
    for name, number in numbers.items():
        if not math.isfinite(number):
            raise ValueError(f"{name} must be a finite number, got {number}")


def not_finite(x: Tensor) -> int:
    """How many of the examples x: (N, *) hold a number that is not finite."""
    return int((~x.isfinite()).flatten(1).any(1).sum()) if x.is_floating_point() and len(x) else 0


class SampleNoise:
    """Standard normal noise with one generator per sample.

    Row i depends on (seed, indices[i]) and on how often this object was called, and on nothing else: not on the
    batch size, not on the number of processes.  Calling it with x: (B, *) returns noise of x's shape, type and device.

    Args:
        seed: of the whole set of samples.
        indices: global index of each row of the batch.
    """

    def __init__(self, seed: int, indices: Sequence[int]) -> None:
        self.seed = seed
        self.indices = list(indices)
        self._generators: list[torch.Generator] | None = None
        self._block: Tensor | None = None
        self._used = 0

    def __call__(self, x: Tensor) -> Tensor:
        if len(x) != len(self.indices):
            raise ValueError(f"the noise was made for {len(self.indices)} samples, got a batch of {len(x)}")
        if self._generators is None:
            self._generators = [_generator(self.seed, i, x.device) for i in self.indices]
        if self._block is None or self._used == self._block.shape[1] or not self._fits(x):
            # Small samples draw many steps ahead: a generator's call costs more than the numbers it gives.
            ahead = max(1, 64 // max(1, x[0].numel()))
            size = (ahead, *x.shape[1:])
            rows = [torch.randn(size, generator=g, device=x.device, dtype=x.dtype) for g in self._generators]
            self._block, self._used = torch.stack(rows), 0
        self._used += 1
        return self._block[:, self._used - 1]

    def _fits(self, x: Tensor) -> bool:
        return self._block is not None and (self._block.shape[2:], self._block.dtype) == (x.shape[1:], x.dtype)


def mix(*numbers: int) -> int:
    """Hash integers to a 63-bit seed; neighbouring inputs give unrelated seeds.

    Reference: Steele, Lea, Flood, "Fast splittable pseudorandom number generators" (2014), the finaliser of splitmix64.
    """
    mask, state = (1 << 64) - 1, 0
    for number in numbers:
        state = (state + (number & mask) + 0x9E3779B97F4A7C15) & mask
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & mask
        state ^= state >> 31
    return state >> 1


def _generator(seed: int, index: int, device: torch.device) -> torch.Generator:
    return torch.Generator(device).manual_seed(mix(seed, index))
