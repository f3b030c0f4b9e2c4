"""What a task of `restore` leaves of examples: masks and boxes, means of the channels, means of blocks."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import max_pool2d

from ..data import DataModule
from ..denoisers import Coarse, Gray, Masked, Operator
from .restoring import Known


def operator_of(
    task: str, data: DataModule, mask: Path | None, factor: int | Sequence[int], device: torch.device
) -> Operator:
    """What a task does to examples in units of `data.pixels`.

    Args:
        task: inpaint, colorize or upscale.
        data: of the model.
        mask: file or box, see `restore`.
        factor: of upscale.
        device: of the examples.

    Raises:
        ValueError: the task does not suit the data, or the mask is of another size.
    """
    pixels = data.pixels
    channels, *sizes = pixels.shape
    if task == "inpaint":
        return Masked(_known(pixels, mask).to(device))
    if task == "colorize":
        if channels != 3 or pixels.is_field:
            what = "is of fields" if pixels.is_field else f"has {channels} channel(s)"
            raise ValueError(f"colorize needs a model of colour images, this one {what}")
        return Gray(channels)
    given = [factor] if isinstance(factor, int) else list(factor)  # the command line makes a list of one number too
    factors = given * len(sizes) if len(given) == 1 else given
    if len(factors) != len(sizes):
        raise ValueError(f"factor {given}: expected one number, or {len(sizes)}, one for each axis of {_text(sizes)}")
    operator = Coarse(factors)
    if any(size % each for size, each in zip(sizes, factors, strict=True)):
        raise ValueError(f"factor {_text(given)} does not divide the size {_text(sizes)}")
    return operator


def _known(data: DataModule, mask: Path | None) -> Tensor:
    """1 where values are known, else 0: (1, 1, *sizes); without a mask the first half of the last axis is known."""
    if mask is not None and not re.fullmatch(r"[\d\s,:-]*:[\d\s,:-]*", str(mask)):
        return data.read_mask(mask).float()
    known = torch.zeros(1, 1, *data.shape[1:])
    if mask is None:
        known[..., : data.shape[-1] // 2] = 1
    else:
        known[0, 0][read_box(str(mask), data.shape[1:])] = 1
    return known


def read_box(text: str, sizes: Sequence[int]) -> tuple[slice, ...]:
    """The box that text such as ":,8:16" names, a slice for each axis; a negative number counts from the end.

    Raises:
        ValueError: there are more or fewer slices than axes, or the box is empty.
    """
    parts = [re.fullmatch(r"\s*(-?\d*)\s*:\s*(-?\d*)\s*", part) for part in text.split(",")]
    example = ",".join([*[":"] * (len(sizes) - 1), f":{max(1, sizes[-1] // 2)}"])
    if len(parts) != len(sizes) or not all(parts):
        raise ValueError(f"mask {text!r}: expected start:stop for each axis of {_text(sizes)}, such as {example}")
    try:
        box = tuple(slice(*(int(number) if number else None for number in part.groups())) for part in parts if part)
    except ValueError:  # a minus alone
        raise ValueError(f"mask {text!r}: expected whole numbers, such as {example}") from None
    if not all(len(range(*each.indices(size))) for each, size in zip(box, sizes, strict=True)):
        raise ValueError(f"mask {text!r}: the box is empty in fields or images of size {_text(sizes)}")
    return box


def known_of(data: DataModule, operator: Any, x_0: Tensor, method: str, linear: bool, **options: Any) -> Known:
    """What a method is given: A and y for each of x_0 in model units, which of latents are those of latents.

    Args:
        data: of the model.
        operator: A, on values in units of `data.pixels`.
        x_0: examples in units of `data.pixels`, (N, *shape), on the device of the model.
        method: its name, for messages.
        linear: whether it needs a linear operator.
        options: of `Known`.

    Raises:
        ValueError: the method needs a linear operator, and on latents it is none.
    """

    def measure(x: Tensor) -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernels cannot be differentiated twice, as posterior does
            y: Tensor = operator(data.to_pixels(x))
        return y

    if not linear:
        return Known(measure, operator(x_0), **options)
    known, x = (operator, x_0) if data.pixels is data else _of_latents(data, operator, x_0, method)
    return Known(known, known(x), max(0.05, x.square().mean().sqrt().item()), **options)


def _of_latents(
    data: DataModule, operator: Operator, x_0: Tensor, method: str
) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """A mask of pixels as one of the latents, and the latents of x_0; only where both are exact."""
    patch, fix = data.patch, "Fix: --method posterior or dps"
    if not isinstance(operator, Masked):
        raise ValueError(f"--method {method} needs --task inpaint in a model of latents. {fix}")
    if patch is None:
        raise ValueError(
            f"--method {method} needs latents that stand for their own pixels alone, as those of Orthogonal. {fix}"
        )
    known, some = 1 - max_pool2d(1 - operator.mask, patch), max_pool2d(operator.mask, patch)
    if not bool((known == some).all()):
        raise ValueError(f"--method {method}: the mask cuts through latents of {patch}x{patch} pixels. {fix}")
    return Masked(known), data.from_pixels(x_0)


def _text(sizes: Sequence[int]) -> str:
    return "x".join(map(str, sizes))
