"""Images: base class of image data sets."""

import math
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..conditions import Condition, Conditions, class_count, class_names, from_plain, label, to_plain
from .augmentation import HorizontalFlip, NonLeaky, warped
from .base import SPLITS, DataModule, check_fraction, tell_differences
from .decoding import read_images, save_png
from .identity import differences, identity, keys_of
from .loader import Batch, Source, Subset
from .splits import divide
from .units import Levels


class Format(NamedTuple):
    """Format of images.

    shape: (C, H, W);  conditions: what else batches hold;  levels: how many values a channel can take, 256
    for 8 bits and 65,536 for 16.
    """

    shape: tuple[int, ...]
    conditions: Conditions = MappingProxyType({})
    levels: int = 256

    @property
    def names(self) -> list[str] | None:
        """Of the classes, None if they have none."""
        return class_names(self.conditions)

    @property
    def kinds(self) -> dict[str, Condition]:
        """The conditions without the names of their classes."""
        return {name: condition._replace(names=()) for name, condition in self.conditions.items()}


class Examples(NamedTuple):
    """The images of a data set.

    train: sources of {"x": integers 0 … levels − 1, (B, C, H, W)} and the conditions, such as {"label": int64, (B,)};
    what is held out for validation, and for testing unless ``test`` is there, is taken of it;  labels: (n,) of
    ``train``, for the stratified split, None without classes;  test: the set's own test split;  groups: (n,) int64 of
    ``train``, images with the same number (copies of one file) stay in one split, None: each is a group of
    its own;  names: of the n images of ``train``, such as paths within a folder, None: their numbers.
    """

    train: Source
    labels: Tensor | None = None
    test: Source | None = None
    groups: Tensor | None = None
    names: Sequence[str] | None = None


class Images(DataModule):
    """Images as (C, H, W) arrays of integers 0 … L − 1, in model units  x = 2 v / (L − 1) − 1  in [−1, 1] (`Levels`).

    Integers travel to the device and are scaled there. The held-out parts are drawn by a seeded split of every class;
    that of a published set, which does not grow, is a permutation, of which every class gets its exact share.

    A concrete class defines ``inspect`` (cheap, before ``setup``) and ``examples``.

    Args:
        source: What to call the data in messages.
        horizontal_flip: Mirror training images at random.
        augment: Probability of each change of training images, which the network gets as a condition, 0.12 in EDM:
            zoom, rotation, stretch, shift, upside down; mirror images with probability ½.  For NCSNpp with augment_dim
            9.  0: none.
        test_fraction: Fraction to hold out for testing, in [0, 1); with 0 the validation images serve.
        workers: Processes that read ahead where images are not in memory.
        kwargs: Of `DataModule`: batch_size, val_fraction, repeats, seed.
    """

    grows = True

    def __init__(
        self,
        source: str,
        *,
        horizontal_flip: bool = False,
        augment: float = 0.0,
        test_fraction: float = 0.0,
        workers: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(source, **kwargs)
        name = type(self).__name__
        check_fraction(name, "test_fraction", test_fraction)
        if self.val_fraction + test_fraction >= 1:
            raise ValueError(
                f"{name}: val_fraction + test_fraction must be below 1, got {self.val_fraction + test_fraction}"
            )
        if workers < 0:
            raise ValueError(f"{name}: workers must be at least 0, got {workers}")
        if augment and horizontal_flip:
            raise ValueError(f"{name}: augment mirrors images itself: give horizontal_flip: false")
        self.augmentation = HorizontalFlip() if horizontal_flip else None
        if augment:
            self.augmentation = NonLeaky(augment)
        self.test_fraction, self.workers = test_fraction, workers
        self._format: Format | None = None
        self._class_counts: list[int] | None = None

    @abstractmethod
    def inspect(self) -> Format:
        """Shape, conditions and levels, read from a header or the first image."""

    @abstractmethod
    def examples(self) -> Examples:
        """All images; called once, by ``setup``."""

    @property
    def format(self) -> Format:
        """Shape, conditions and levels, from the checkpoint where one was loaded, else from the data."""
        if self._format is None:
            super().setup()  # refuses what nobody asked for
            self._format = self.inspect()
        return self._format

    @property
    def shape(self) -> tuple[int, ...]:
        return self.format.shape

    @property
    def conditions(self) -> dict[str, Condition]:
        return dict(self.format.conditions)

    @property
    def units(self) -> Levels:
        return Levels(self.format.levels)

    @property
    def class_counts(self) -> list[int] | None:
        return self._class_counts

    def setup(self, stage: str | None = None) -> None:
        """Read or index the images and split them; say where they are others than the checkpoint's."""
        if self._splits is not None or stage == "predict":  # samples are drawn without data
            return
        super().setup(stage)
        if self._saved:
            current = self.inspect()
            self._same(current)
            if self.format.names is None:
                self._format = current
        if self._examples is None:
            self._examples = self.examples()
        train, labels, test, groups, names = self._examples
        fractions = self.val_fraction, 0.0 if test else self.test_fraction
        parts, self._drawn = divide(
            len(train), names, labels, groups, fractions, self.seed, grows=self.grows, saved=self._saved
        )
        if not len(parts[0]):
            raise ValueError(f"{self.source}: {len(train)} image(s) leave none to train on. Fix: lower val_fraction")
        rest, val, held_out = (Subset(train, part) for part in parts)
        self._splits = rest, val, test or (held_out if len(held_out) else val)
        classes = class_count(self.conditions)
        if classes is not None and labels is not None:
            self._class_counts = labels[parts[0]].bincount(minlength=classes).tolist()
        if "identity" in self._saved:
            changes = differences(self._saved["identity"], keys_of(names, len(train)), names is not None, train)
            tell_differences(self.source, changes)

    @property
    def splits(self) -> tuple[Source, Source, Source]:
        """Training, validation and test images, as integers."""
        if self._splits is None:
            raise RuntimeError(f"{self.source}: the data are not set up: call setup() first")
        splits: tuple[Source, Source, Source] = self._splits
        return splits

    def part(self, split: str) -> Source:
        return self.splits[SPLITS.index(split)]

    def stored(self, indices: Tensor) -> Batch:
        return self.splits[0].__getitems__(indices)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Scale, and change as `NonLeaky` drew, on the device."""
        if "x" not in batch:
            return batch
        x, rest = (
            self.units.encode(batch["x"]),
            {name: value for name, value in batch.items() if name not in ("x", "warp")},
        )
        return {"x": warped(x, batch["warp"]) if "warp" in batch else x, **rest}

    def second_moment(self) -> float:
        """Mean of x_0² per dimension over up to 10,000 training images."""
        train = self.splits[0]
        some = torch.arange(0, len(train), math.ceil(len(train) / 10_000))
        total = 0.0
        for first in range(0, len(some), 500):
            x = self.units.encode(train.__getitems__(some[first : first + 500])["x"])
            total += float(x.square().mean((1, 2, 3)).sum(dtype=torch.float64))
        return total / len(some)

    def training_examples(self, most: int) -> Tensor:
        train = self.splits[0]
        return self.units.encode(self.stored(torch.arange(0, len(train), -(-len(train) // most)))["x"])

    def read(self, path: Path) -> Tensor:
        """An image, or all of a folder (but grid.png), cropped in the middle and resized to the model's shape.

        16-bit images keep their values where the model's data have as many levels, else they are scaled to 8 bits.
        """
        return read_pixels(path, self.shape, self.units)

    def array(self, x: Tensor) -> NDArray[Any]:
        exact: NDArray[Any] = (self.units.to_uint8(x) if self.units.levels <= 256 else self.decode(x)).numpy()
        return exact

    def write(self, x: Tensor, folder: Path) -> list[Path]:
        """A lossless PNG for each sample, or samples.npy where PNG has no such images."""
        return write_pixels(self.array(x), self.units, folder)

    def state_dict(self) -> dict[str, Any]:
        shape, conditions, levels = self.format
        state = {"shape": list(shape), "conditions": to_plain(conditions), "levels": levels}
        state["class_counts"] = self._class_counts
        if self._examples is None:  # the data were not read
            return {**state, **self.saved_split}
        if self._identity is None:
            train, names = self._examples.train, self._examples.names
            self._identity = identity(keys_of(names, len(train)), names is not None, train)
        return {**state, "split": self._drawn, "identity": self._identity}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the format, the names of the classes and the split of a checkpoint, before or after ``setup``."""
        if not state_dict:
            return
        current, there = self._format, self._splits is not None
        self._format = format_of(state_dict)
        self._saved, self._class_counts = state_dict, state_dict.get("class_counts")
        if there:  # split them again, as the checkpoint's were
            self._splits = None
            self.setup()
        elif current is not None:
            self._same(current)

    def check_state(self, state_dict: dict[str, Any]) -> None:
        saved = format_of(state_dict) if state_dict else self.format
        if not _alike(saved, self.format):
            self._same(self.format, saved)

    def _same(self, current: Format, saved: Format | None = None) -> None:
        """Raise ValueError if these images are not like the checkpoint's."""
        saved = saved or self.format
        if not _alike(current, saved):
            lost, new = (
                sorted(set(a.names or ()) - set(b.names or ())) for a, b in ((saved, current), (current, saved))
            )
            named = "".join(
                f", {what}: {', '.join(names)}" for what, names in (("missing", lost), ("new", new)) if names
            )
            raise ValueError(
                f"{self.source}: the checkpoint's images are {_words(saved)}, these are {_words(current)}"
                f"{named if saved.names and current.names else ''}. Fix: use the data the checkpoint was trained on"
            )
        if saved.names is not None and current.names is not None and current.names != saved.names:
            k = next(k for k, names in enumerate(zip(saved.names, current.names, strict=True)) if len(set(names)) > 1)
            raise ValueError(
                f"{self.source}: class {k} is {saved.names[k]!r} in the checkpoint, {current.names[k]!r} here. Fix: "
                "give the classes the names they had, or start a new run"
            )


def read_pixels(path: Path, shape: tuple[int, ...], units: Levels) -> Tensor:
    """An image, or all of a folder (but grid.png), in [−1, 1], cropped and resized to a shape: (N, *shape)."""
    bits = (units.levels - 1).bit_length() if units.levels > 256 else None
    images = read_images(path, shape, bits)
    arrays = ((torch.tensor(array), deep) for array, deep in images)
    return torch.stack([units.encode(v) if deep else v.float() / 127.5 - 1 for v, deep in arrays])


def write_pixels(exact: NDArray[Any], units: Levels, folder: Path) -> list[Path]:
    """A lossless PNG for each image (N, C, H, W), or samples.npy where PNG has no such images."""
    if exact.shape[1] not in (1, 3) or (units.levels > 256 and exact.shape[1] == 3):
        np.save(folder / "samples.npy", exact)
        return [folder / "samples.npy"]
    names = [f"{i:0{len(str(len(exact) - 1))}d}.png" for i in range(len(exact))]
    for name, image in zip(names, exact, strict=True):
        save_png(image, folder / name)
    return [folder / (names[0] if len(names) == 1 else f"{names[0]} … {names[-1]}")]


def format_of(state: dict[str, Any]) -> Format:
    """The format in a state dict of `Images`."""
    if "conditions" in state:
        conditions = from_plain(state["conditions"])
    else:  # of version 0.1
        classes = state["classes"]
        conditions = {} if classes is None else {"label": label(classes, state.get("class_names"))}
    return Format(tuple(state["shape"]), conditions, state["levels"])


def _alike(current: Format, saved: Format) -> bool:
    """Whether all but the names of classes is the same."""
    return (current.shape, current.kinds, current.levels) == (saved.shape, saved.kinds, saved.levels)


def _words(format: Format) -> str:
    (c, h, w), conditions, levels = format
    classes = class_count(conditions) or "no"
    others = "".join(f", {name} {list(c.shape)}" for name, c in conditions.items() if name != "label")
    return f"{c} x {h} x {w} with {levels} levels and {classes} classes{others}"
