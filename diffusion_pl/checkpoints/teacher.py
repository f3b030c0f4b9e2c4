"""A trained model as the teacher of another: `fit --model.loss.teacher runs/digits-vp`."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..conditions import Conditions, null
from ..denoisers import Denoiser, Prediction
from ..pipeline import Pipeline
from ..schedules import Schedule
from .loading import load_pipeline

OPTION = "--model.loss.teacher"


class Teacher(Denoiser):
    """The denoiser of a checkpoint, which is read when it is first needed: a model that had a teacher can be loaded
    without it.

    Args:
        path: Checkpoint of fit or import, or folder of a run.
        weights: Weights: "ema" (the first EMA weights; the raw ones where there are none), "raw", "ema:0.999" or
            "std:0.15".
        scale: Guidance scale w by the teacher's own conditions; 1 is the plain conditional model.
        drop: Names of the conditions that guidance strengthens; None: those that its training dropped at random.
    """

    def __init__(self, path: str, weights: str = "ema", scale: float = 1.0, drop: Sequence[str] | None = None) -> None:
        super().__init__()
        if not scale >= 0:
            raise ValueError(f"teacher: scale must be at least 0, got {scale}")
        self.path, self.weights, self.scale, self.drop = path, weights, scale, drop

    @cached_property
    def _loaded(self) -> tuple[Pipeline, Denoiser]:
        # In a tuple: its weights are no part of the model that learns from it.
        pipeline, _ = load_pipeline(self.path, self.weights)
        if self.scale != 1:
            pipeline = pipeline.with_scale(self.scale, self.drop)
        return pipeline, pipeline.guided.eval().requires_grad_(False)

    @property
    def schedule(self) -> Schedule:  # type: ignore[override]
        """Its noise schedule."""
        return self._loaded[0].schedule

    @property
    def flow_map(self) -> bool:  # type: ignore[override]
        """Whether it is a flow map; a guided one is not."""
        return self._loaded[1].flow_map

    def note(self) -> dict[str, Any]:
        """What a run's card says of it: path, sha256, weights, scale."""
        pipeline = self._loaded[0]
        return {"path": self.path, "sha256": pipeline.sha256, "weights": pipeline.weights, "scale": self.scale}

    def check_data(self, shape: Sequence[int], conditions: Conditions) -> None:
        pipeline = self._loaded[0]
        if pipeline.consistency:
            raise ValueError(
                f"teacher: {self.path} is a consistency model, which has learned jumps to the data only and no "
                "velocity. Fix: give the diffusion model that it began from, or a flow map"
            )
        if tuple(pipeline.shape) != tuple(shape):
            raise ValueError(f"teacher: {self.path} is a model of shape {pipeline.shape}, the data have {tuple(shape)}")
        for name, condition in pipeline.conditions.items():
            given = conditions.get(name)
            if given is not None and (given.shape, given.classes) != (condition.shape, condition.classes):
                raise ValueError(
                    f"teacher: the condition {name} of {self.path} is of shape {condition.shape} with classes "
                    f"{condition.classes}, that of the data of shape {given.shape} with classes {given.classes}"
                )
            if given is None and name not in pipeline.dropped:
                raise ValueError(
                    f"teacher: {self.path} needs the condition {name}, which the data do not have. Fix: give data that "
                    "have it, such as --data.conditional true"
                )
        if missing := [name for name in conditions if name not in pipeline.conditions]:
            raise ValueError(
                f"teacher: {self.path} does not have the condition {missing[0]}, so its samples do not depend on it. "
                "Fix: give data without it, or a teacher with it"
            )

    def forward(self, x_t: Tensor, t: Tensor, **cond: Tensor) -> Prediction:
        pipeline, denoiser = self._loaded
        if pipeline.device != x_t.device:
            pipeline.to(x_t.device)
        values = {name: value for name, value in cond.items() if name == "r"}
        for name, condition in pipeline.conditions.items():
            values[name] = cond[name] if name in cond else _not_given(condition, x_t)
        prediction: Prediction = denoiser(x_t, t, **values)
        return prediction


def _not_given(condition: Any, x: Tensor) -> Tensor:
    dtype = torch.int64 if condition.kind == "label" else x.dtype
    return null(x.new_zeros(len(x), *condition.shape, dtype=dtype))


def with_teacher(args: Sequence[str]) -> list[str]:
    """A command line in which --model.loss.teacher PATH is the class Teacher with this path."""
    spelled = list[str]()
    values = iter(args)
    for arg in values:
        name, equals, value = arg.partition("=")
        if name != OPTION:
            spelled.append(arg)
            continue
        value = value if equals else next(values, "")
        last = value.rpartition(".")[2]  # a.ckpt is a path: names of classes begin with a capital
        names_class = last.isidentifier() and last[0].isupper() and "/" not in value and ":" not in value
        is_null = value.lower() in ("null", "none", "~", "")
        if names_class or is_null or value.startswith("{"):
            spelled += [OPTION, value]
        else:
            spelled += [OPTION, f"{Teacher.__module__}.{Teacher.__qualname__}", f"{OPTION}.path", value]
    return spelled
