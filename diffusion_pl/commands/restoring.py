"""Samples of which a part is known:  y = A(x_0), by a model that was never trained for it.

A method changes a pipeline, its sampler or its denoiser, so that it draws from an estimate of p(x_0 | y).
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from ..denoisers import MomentMatched, Operator, Reconstructing
from ..pipeline import Pipeline
from ..samplers import DPS, Replacement


class Known(NamedTuple):
    """What is known of samples, and the options of the methods.

    measure: A, an Operator, or any differentiable function, (B, *) -> (B, …) in model units;  y: A(x_0) of each sample;
    data_std: of the data, for gradient;  repeats: of replacement;  scale: of gradient and dps;  noise: standard
    deviation of that in y, for posterior.
    """

    measure: Callable[[Tensor], Tensor]
    y: Tensor
    data_std: float = 1.0
    repeats: int = 1
    scale: float = 1.0
    noise: float = 0.0


class Method(NamedTuple):
    """A way to restore.

    build: changes a pipeline;  linear: whether it needs an Operator;  own: whether it is a sampler of its own.
    """

    build: Callable[[Pipeline, Known], Pipeline]
    linear: bool = True
    own: bool = False

    def samples(self, pipeline: Pipeline, known: Known) -> Tensor:
        """A sample for each y: (N, *shape), in model units, block by block."""
        parts = []
        for rows in torch.arange(len(known.y)).split(pipeline.block):
            some = self.build(pipeline, known._replace(y=known.y[rows]))
            parts.append(some.samples(rows.tolist()).x_0)
        return torch.cat(parts)


def _replacing(pipeline: Pipeline, known: Known) -> Pipeline:
    """The pipeline whose sampler puts the known part y, noised, in its place at every time."""
    assert isinstance(known.measure, Operator)
    return pipeline.with_sampler(Replacement(pipeline.sampler, known.measure, known.y, known.repeats))


def _guided(pipeline: Pipeline, known: Known) -> Pipeline:
    """The pipeline whose denoiser is pulled towards what is known, by the scale of the data."""
    assert isinstance(known.measure, Operator)
    wrap = partial(Reconstructing, operator=known.measure, y=known.y, data_std=known.data_std, scale=known.scale)
    return pipeline.with_wrapper(wrap)


def _matched(pipeline: Pipeline, known: Known) -> Pipeline:
    """The pipeline whose denoiser estimates x_0 given what is known."""
    return pipeline.with_wrapper(partial(MomentMatched, operator=known.measure, y=known.y, noise=known.noise))


def _dps(pipeline: Pipeline, known: Known) -> Pipeline:
    """The pipeline whose sampler follows each ancestral step with one towards what is known."""
    return pipeline.with_sampler(DPS(pipeline.sampler.grid, known.measure, known.y, known.scale))


METHODS = {
    "replacement": Method(_replacing),
    "gradient": Method(_guided),
    "posterior": Method(_matched, linear=False),
    "dps": Method(_dps, linear=False, own=True),
}
