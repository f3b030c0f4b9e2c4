"""Map tensor names of another package to ours: every tensor must be used and have the right shape.

A map of names is a dictionary from a parameter of ours to the `Source` in the file that it comes from.
"""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..denoisers import NetworkDenoiser
from ..pipeline import Pipeline

_SHOWN = 10  # names in a message


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


class Source(NamedTuple):
    """A tensor of the file, and what makes ours of it (up to axes of length 1)."""

    name: str
    convert: Callable[[Tensor], Tensor] = _as_it_is


def sources(modules: Mapping[str, str], network: nn.Module) -> dict[str, Source]:
    """Where each tensor of a network of ours comes from.

    Args:
        modules: names of ours -> names in the file, of modules whose tensors are called alike in both.
        network: whose tensors are mapped; modules that it does not have are skipped.

    Raises:
        KeyError: a tensor of ours has no source.
    """
    table = {}
    for name in network.state_dict():
        module, _, leaf = name.rpartition(".")
        theirs = modules[module]
        table[name] = Source(f"{theirs}.{leaf}" if theirs else leaf)
    return table


def take(
    state: Mapping[str, Tensor], name_map: Mapping[str, Source], network: nn.Module, where: str, without: str = ""
) -> dict[str, Tensor]:
    """The state dict of the network, float32, from the tensors of a file.

    Args:
        state: all tensors that the file has for it.
        name_map: the map of names.
        network: ours.
        where: the file, for messages.
        without: what the names in the file begin with besides those of the map, for messages.

    Raises:
        ValueError: names are missing or left over, or shapes differ; the first ten are listed.
    """
    like = network.state_dict()
    expected = {source.name for source in name_map.values()}
    problems = [f"{without}{name} is missing" for name in sorted(expected - state.keys())]
    problems += [f"{without}{name} is unexpected" for name in sorted(state.keys() - expected)]
    taken = {}
    for name, (theirs, convert) in name_map.items():
        if theirs not in state:
            continue
        try:
            tensor = convert(state[theirs])
        except (RuntimeError, IndexError):  # too many axes, or too few
            tensor = None
        if tensor is not None and _squeezed(tensor) == _squeezed(like[name]):
            taken[name] = tensor.reshape(like[name].shape).float().contiguous()
        else:
            problems.append(f"{without}{theirs} is {_size(state[theirs])}, expected {_size(like[name])}")
    if problems:
        more = f" … and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise ValueError(
            f"{where}: {len(problems)} of {len(state)} tensors do not match the inferred network: "
            f"{'; '.join(problems[:_SHOWN])}{more}"
        )
    return taken


def needs(module: str, extra: str) -> Any:
    """A module of a package that an extra of ours installs.

    Raises:
        ValueError: it is not installed.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise ValueError(f"this needs the package {error.name}: pip install 'diffusion_pl[{extra}]'") from error


def swap_halves(weight: Tensor) -> Tensor:
    """For a dense layer of (cos, sin), the one of (sin, cos)."""
    cosines, sines = weight.chunk(2, 1)
    return torch.cat((sines, cosines), 1)


def with_a_row_of_zeros(table: Tensor) -> Tensor:
    """Vectors of classes, and one of "any class", which a model that was trained without it knows nothing of."""
    return torch.cat((table, torch.zeros_like(table[:1])))


def _squeezed(tensor: Tensor) -> list[int]:
    return [side for side in tensor.shape if side != 1]


def _size(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a number"


def network_of(pipeline: Pipeline) -> NetworkDenoiser:
    """The denoiser of a pipeline as what a network makes; ValueError for any other, which no format holds."""
    if not isinstance(pipeline.denoiser, NetworkDenoiser):
        raise ValueError(f"only a network can be exported, not a {type(pipeline.denoiser).__name__}")
    return pipeline.denoiser
