"""Conditions: what a model gets besides x_t and t.

A data module names its conditions, a batch holds a tensor of each name, and the network gets it by that name.  The
shape of one value says its kind:

    ()              label       int64, a class number in 0 … classes − 1; −1: none
    (D,)            vector      such as physical parameters
    (L, D)          sequence    such as the embeddings of a text's tokens
    (C, *sizes)     image       of the same sizes as x, along 2 or 3 spatial axes
    (C, L)          image       along 1 spatial axis, if `Condition.image` says so

Of the last three, NaN stands for "not given": the whole value, a token of a sequence, a pixel of an image.

One image condition may be a prediction of x, in the units of x: then the network learns the residual, x − prediction.
"""

import difflib
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

KINDS = ("label", "vector", "sequence", "image")
#: Entries of a batch that the network does not get: the examples, and which of their values are not missing.
EXAMPLES = ("x", "observed")
#: What else networks and samplers get.
TAKEN = (*EXAMPLES, "warp", "x_t", "t", "r", "c_noise", "path", "progress")


class Condition(NamedTuple):
    """One condition of a model.

    shape: of one example's value, without the batch;  classes: of a label, else None;  names: of the classes, in their
    order, or () if they have none;  image: a value of shape (C, L) is an image along one spatial axis and no sequence;
    prediction: the value is a prediction of x, whose residual the network learns.
    """

    shape: tuple[int, ...] = ()
    classes: int | None = None
    names: tuple[str, ...] = ()
    image: bool = False
    prediction: bool = False

    @property
    def kind(self) -> str:
        """label, vector, sequence or image."""
        return "image" if self.image else KINDS[min(len(self.shape), 3)]


Conditions = Mapping[str, Condition]


def label(classes: int, names: Sequence[str] | None = None) -> Condition:
    """The condition of a class label.

    Raises:
        ValueError: no classes, or not as many names.
    """
    if classes < 1:
        raise ValueError(f"a label needs at least one class, got {classes}")
    if names and len(names) != classes:
        raise ValueError(f"a label of {classes} classes has {classes} names, got {len(names)}")
    return Condition((), classes, tuple(names or ()))


def class_count(conditions: Conditions) -> int | None:
    """Number of classes of the label; None: there is no label."""
    return conditions["label"].classes if "label" in conditions else None


def class_names(conditions: Conditions) -> list[str] | None:
    """Names of the label's classes, in their order; None: there is no label, or its classes have no names."""
    return list(conditions["label"].names) or None if "label" in conditions else None


def to_plain(conditions: Conditions) -> dict[str, Any]:
    """Conditions as plain values, as a checkpoint keeps them: {"label": {"shape": [], "classes": 2, "names": […]}}."""
    return {
        name: {
            "shape": list(c.shape),
            "classes": c.classes,
            "names": list(c.names),
            **({"image": True} if c.image else {}),
            **({"prediction": True} if c.prediction else {}),
        }
        for name, c in conditions.items()
    }


def from_plain(plain: Mapping[str, Mapping[str, Any]]) -> dict[str, Condition]:
    """The inverse of `to_plain`."""
    return {
        name: Condition(
            tuple(c["shape"]), c["classes"], tuple(c["names"]), c.get("image", False), c.get("prediction", False)
        )
        for name, c in plain.items()
    }


def prediction_of(conditions: Conditions) -> str | None:
    """Name of the condition that is a prediction of x; None: there is none."""
    return next((name for name, condition in conditions.items() if condition.prediction), None)


def as_prediction(place: str, name: str, conditions: Conditions, shape: tuple[int, ...]) -> dict[str, Condition]:
    """The conditions, one of which is a prediction of x.

    Args:
        place: the option that names it, for messages.
        name: of the condition.
        conditions: of the data.
        shape: of x.

    Raises:
        ValueError: there is no such condition, or it is no image of the shape of x.
    """
    if name not in conditions:
        raise ValueError(f"{place}: {name} is not a condition of the data; they have {', '.join(conditions) or 'none'}")
    condition = conditions[name]
    if condition.kind != "image" or condition.shape != tuple(shape):
        raise ValueError(
            f"{place}: {name} is a {condition.kind} of shape {condition.shape}, and a prediction must be an image of "
            f"the shape of the data, {tuple(shape)}"
        )
    return {**conditions, name: condition._replace(prediction=True)}


def null(value: Tensor) -> Tensor:
    """The value that stands for no condition, shaped like value: −1 for labels, NaN for the other kinds."""
    return torch.full_like(value, float("nan") if value.is_floating_point() else -1)


def of_batch(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a network gets of a batch besides x: the conditions, and what an augmentation adds."""
    return {name: value for name, value in batch.items() if name not in EXAMPLES}


def check_own_name(name: str, others: Sequence[str] = ()) -> None:
    """Raise ValueError for a name of a person's own condition that is none, or that networks, samplers or others use.

    Args:
        name: of the condition.
        others: names that are used too.
    """
    taken = (*TAKEN, *others)
    if name in taken or not name.isidentifier():
        raise ValueError(
            f"data.conditions.{name}: a condition must have a name of letters other than {', '.join(taken)}"
        )


def check_names(names: Mapping[str, object], conditions: Conditions) -> None:
    """Raise ValueError for a condition that the model does not have; it lists those that it has."""
    for name in names:
        if name not in conditions:
            known = ", ".join(conditions) or "none: it is unconditional, trained without labels"
            raise ValueError(f"cond.{name}: the model has no such condition; it has {known}")


def check_batch(batch: Mapping[str, Tensor], conditions: Conditions, others: Collection[str] = ()) -> None:
    """Raise ValueError unless a batch holds x, a value of each condition in its shape, and nothing else.

    Args:
        batch: {"x": (B, *), …}.
        conditions: of the model.
        others: names that may also be there, such as what an augmentation gives the network.
    """
    known = ", ".join(conditions) or "none"
    unknown = [name for name in batch if name not in (*EXAMPLES, *conditions, *others)]
    missing = [name for name in conditions if name not in batch]
    remedy = "Fix: build the model with conditions=data.conditions"
    if unknown:
        raise ValueError(f"the batch holds {', '.join(unknown)}, the model's conditions are: {known}. {remedy}")
    if missing:
        raise ValueError(f"the batch lacks {', '.join(missing)}, the model's conditions are: {known}. {remedy}")
    for name, condition in conditions.items():
        shape, expected = tuple(batch[name].shape), (len(batch["x"]), *condition.shape)
        if shape != expected:
            raise ValueError(f"the batch's {name} is of shape {shape}, expected {expected}. {remedy}")


def class_number(name: str, condition: Condition, asked: int | str) -> int:
    """The number of a class that is given by its name or number; a name goes first.

    Args:
        name: of the condition, for messages.
        condition: a label.
        asked: "dress", "3" or 3.

    Raises:
        ValueError: there is no such class; the known ones are listed.
    """
    assert condition.classes is not None
    names, text = list(condition.names), str(asked)
    number = int(text) if re.fullmatch(r"[+-]?\d+", text) else None
    if text in names:
        return names.index(text)
    if number is not None and 0 <= number < condition.classes:
        return number
    expected = f"expected a number in 0 … {condition.classes - 1}"
    if names and names != [str(k) for k in range(condition.classes)]:
        listed = ", ".join(f"{k} {known}" for k, known in enumerate(names[:20])) + (", …" if len(names) > 20 else "")
        expected += f", or a name: {listed}"
    elif number is None:
        expected += "; the checkpoint has no names of classes"
    near = difflib.get_close_matches(text, names, n=1) if number is None else []
    hint = f"; did you mean {near[0]}?" if near else ""
    raise ValueError(f"cond.{name}: {expected}; got {text}{hint}")


def value_of(name: str, condition: Condition, given: Any) -> Tensor:
    """Values of a vector, sequence or image condition, float32: (K, *shape), of which samples take one each in turn.

    Args:
        name: of the condition, for messages.
        condition: no label.
        given: None: not given;  numbers of a vector: 0.3, [0.3, 1] or "0.3, 1";  an array or tensor of one value or of
            K, a sequence of fewer tokens too, the rest of which is padding.

    Raises:
        ValueError: of another shape, not numbers, or not finite; NaN may be a whole value, a token or a pixel.
    """
    shape = condition.shape
    if given is None:
        return torch.full((1, *shape), float("nan"))
    value = torch.as_tensor(_numbers(name, condition, given)).float()
    if condition.kind == "vector" and value.ndim == 0:
        value = value[None]
    if value.ndim == len(shape):
        value = value[None]
    if condition.kind == "sequence" and value.ndim == 3 and value.shape[1] < shape[0]:
        value = F.pad(value, (0, 0, 0, shape[0] - value.shape[1]), value=float("nan"))
    if tuple(value.shape[1:]) != shape or not len(value):
        numbers = "a number" if shape == (1,) else f"{shape[0]} numbers"
        expected = numbers if condition.kind == "vector" else f"{condition.kind} of shape {shape}"
        raise ValueError(f"cond.{name}: expected {expected}, got one of shape {tuple(value.shape[1:])}")
    missing = value.isnan() if condition.kind == "image" else value.isnan().all(-1, keepdim=True)
    if not (value.isfinite() | missing).all():
        raise ValueError(f"cond.{name}: expected finite numbers, got NaN or infinity. Fix: leave them out")
    return value


def _numbers(name: str, condition: Condition, given: Any) -> Any:
    """What is given, if it is an array of numbers; text is split at commas and spaces."""
    numbers = re.split(r"[,\s]+", given.strip(" []()")) if isinstance(given, str) else given
    try:
        if isinstance(numbers, list) and all(isinstance(number, (str, int, float)) for number in numbers):
            numbers = [float(number) for number in numbers]
        torch.as_tensor(numbers)
    except (TypeError, ValueError, RuntimeError):
        what = "numbers" if condition.kind == "vector" else f"a tensor of shape {condition.shape}"
        raise ValueError(f"cond.{name}: expected {what}, got {given}") from None
    return numbers
