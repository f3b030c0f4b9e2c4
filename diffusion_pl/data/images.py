"""Pictures: the base of all such data sets."""

import math
from abc import abstractmethod
from pathlib import Path
from typing import Any, NamedTuple

import torch
from numpy.typing import NDArray
from torch import Tensor

from .augmentation import HorizontalFlip, NonLeaky, warped
from .base import SPLITS, DataModule
from .loader import Batch, Loader, Source, Subset


class Format(NamedTuple):
    """What pictures are like.

    shape: (C, H, W);  classes: number of classes, None without labels;  levels: how many values a channel can take, 256
    for 8 bits and 65,536 for 16.
    """

    shape: tuple[int, ...]
    classes: int | None = None
    levels: int = 256


class Examples(NamedTuple):
    """The pictures of a data set.

    train: sources of {"x": integers 0 … levels − 1, (B, C, H, W)} and, with classes, {"label": int64, (B,)}; what is
    held out for validation, and for testing unless ``test`` is there, is taken of it;  labels: (n,) of ``train``, for
    the stratified split, None without classes;  test: the set's own test split;  groups: (n,) of ``train``, int64:
    images with the same number (copies of one file) stay on one side of the split, None: each is a group of its own.
    """

    train: Source
    labels: Tensor | None = None
    test: Source | None = None
    groups: Tensor | None = None


class Images(DataModule):
    """Pictures as (C, H, W) arrays of integers 0 … L − 1, in model units  x = 2 v / (L − 1) − 1  in [−1, 1].

    Integers travel to the device and are scaled there. The held-out parts are drawn by a seeded split that gives every
    class its share. `decode` is the exact inverse of the scaling.

    A concrete class defines ``inspect`` (cheap, before ``setup``) and ``examples``.

    Args:
        source: What to call the data in messages.
        batch_size: Pictures per batch, over all processes.
        horizontal_flip: Mirror training pictures at random.
        augment: Probability of each change that `NonLeaky` makes of training pictures, mirror images among them, for
            networks that are told of it, such as NCSNpp with ``augment_dim: 9``.  0: none.
        val_fraction: Fraction of the pictures to hold out for validation, in [0, 1).
        test_fraction: Fraction to hold out for testing, where the set has no test split of its own; with 0 the
            validation pictures serve.
        repeats: Passes over the training pictures that make one epoch; None: as many as make about 100 batches.
        workers: Processes that read ahead where pictures do not lie in memory.
        seed: Chooses the split, the order and the augmentation.
    """

    value_range = (-1.0, 1.0)
    predict_samples = 64

    def __init__(
        self,
        source: str,
        *,
        batch_size: int,
        horizontal_flip: bool = False,
        augment: float = 0.0,
        val_fraction: float = 0.1,
        test_fraction: float = 0.0,
        repeats: int | None = None,
        workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        if batch_size < 1:
            raise ValueError(f"{name}: batch_size must be at least 1, got {batch_size}")
        if repeats is not None and repeats < 1:
            raise ValueError(f"{name}: repeats must be at least 1, got {repeats}")
        for what, fraction in (("val_fraction", val_fraction), ("test_fraction", test_fraction)):
            if not 0 <= fraction < 1:
                raise ValueError(f"{name}: {what} must lie in [0, 1), got {fraction}")
        if val_fraction + test_fraction >= 1:
            raise ValueError(
                f"{name}: val_fraction + test_fraction must be below 1, got {val_fraction + test_fraction}"
            )
        if workers < 0 or seed < 0:
            raise ValueError(f"{name}: workers and seed must not be negative, got {workers} and {seed}")
        self.source = source
        self.batch_size = batch_size
        if augment and horizontal_flip:
            raise ValueError(f"{name}: augment mirrors pictures itself: give horizontal_flip: false")
        self.augmentation = HorizontalFlip() if horizontal_flip else None
        if augment:
            self.augmentation = NonLeaky(augment)
        self.val_fraction, self.test_fraction = val_fraction, test_fraction
        self.repeats, self.workers, self.seed = repeats, workers, seed
        self._format: Format | None = None
        self._from_checkpoint = False
        self._splits: tuple[Source, Source, Source] | None = None  # training, validation, test

    @abstractmethod
    def inspect(self) -> Format:
        """Shape, classes and levels, read from a header or the first picture."""

    @abstractmethod
    def examples(self) -> Examples:
        """All pictures; called once, by ``setup``."""

    @property
    def format(self) -> Format:
        """Shape, classes and levels, from the checkpoint where one was loaded, else from the data."""
        if self._format is None:
            self._format = self.inspect()
        return self._format

    @property
    def shape(self) -> tuple[int, ...]:
        return self.format.shape

    @property
    def classes(self) -> int | None:
        return self.format.classes

    @property
    def levels(self) -> int:
        return self.format.levels

    def setup(self, stage: str | None = None) -> None:
        """Read or index the pictures and split them."""
        if self._splits is not None or stage == "predict":  # samples are drawn without data
            return
        if self._from_checkpoint:
            self._same(self.inspect())
        train, labels, test, groups = self.examples()
        fractions = self.val_fraction, 0.0 if test else self.test_fraction
        parts = _split(len(train), labels, fractions, self.seed, groups)
        if not len(parts[0]):
            raise ValueError(f"{self.source}: {len(train)} picture(s) leave none to train on: lower val_fraction")
        rest, val, held_out = (Subset(train, part) for part in parts)
        self._splits = rest, val, test or (held_out if len(held_out) else val)

    @property
    def splits(self) -> tuple[Source, Source, Source]:
        """Training, validation and test pictures, as integers."""
        if self._splits is None:
            raise RuntimeError(f"{self.source}: the pictures are not there yet: call setup() first")
        return self._splits

    def part(self, split: str) -> Source:
        return self.splits[SPLITS.index(split)]

    def stored(self, indices: Tensor) -> Batch:
        return self.splits[0].__getitems__(indices)

    def encode(self, v: Tensor) -> Tensor:
        """Integers 0 … L − 1 -> model units in [−1, 1], float32."""
        return v.float() * (2 / (self.levels - 1)) - 1

    def decode(self, x: Tensor) -> Tensor:
        """Model units -> the nearest integers 0 … L − 1: uint8 up to 256 levels, else int32. x: (*, C, H, W)."""
        top = self.levels - 1
        v = ((x + 1) * (top / 2)).round().clamp(0, top)
        return v.to(torch.uint8 if top < 256 else torch.int32)

    def to_uint8(self, x: Tensor) -> Tensor:
        """Model units -> 0 … 255, as pictures are shown and features extracted; `decode` itself for 256 levels."""
        return ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Scale, and change as `NonLeaky` drew, on the device."""
        if "x" not in batch:
            return batch
        x, rest = self.encode(batch["x"]), {name: value for name, value in batch.items() if name not in ("x", "warp")}
        return {"x": warped(x, batch["warp"]) if "warp" in batch else x, **rest}

    def second_moment(self) -> float:
        """Mean of x_0² per dimension over up to 10,000 training pictures."""
        train = self.splits[0]
        some = torch.arange(0, len(train), math.ceil(len(train) / 10_000))
        total = 0.0
        for first in range(0, len(some), 500):
            x = self.encode(train.__getitems__(some[first : first + 500])["x"])
            total += float(x.square().mean((1, 2, 3)).sum(dtype=torch.float64))
        return total / len(some)

    def frame(self, x: Tensor, x_0: Tensor, title: str) -> NDArray[Any]:
        from .. import plots

        both = torch.cat((x, x_0))
        columns = len(both) // (2 if len(both) <= 16 or len(both) % 4 else 4)
        title = f"{title}    above: x_t    below: estimate of x_0"
        return plots.image_grid(self.to_uint8(both).numpy(), columns, title=title)

    def training_examples(self, most: int) -> Tensor:
        train = self.splits[0]
        return self.encode(train.__getitems__(torch.arange(0, len(train), -(-len(train) // most)))["x"])

    def read(self, path: Path) -> Tensor:
        """An image, or all of a folder (but grid.png), cropped in the middle and resized to the model's shape.

        16-bit images keep their values where the model's data have as many levels, else they are scaled to 8 bits.
        """
        from .listing import list_flat
        from .opening import Unreadable, opened
        from .pictures import Layout, Mode, to_array

        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file or folder: check the path")
        files = list_flat(path, "grid.png") if path.is_dir() else [path]
        channels, height, width = self.shape
        modes: dict[int, Mode] = {1: "L", 3: "RGB", 4: "RGBA"}
        if channels not in modes:
            raise ValueError(f"{path}: image files have 1, 3 or 4 channels, the model's data {channels}")
        bits = (self.levels - 1).bit_length() if self.levels > 256 else None
        found = []
        for file in files:
            try:
                with opened(file) as image:
                    deep = bits is not None and channels == 1 and image.mode.startswith("I")
                    layout = Layout(
                        None if deep else modes[channels], size=(height, width), bits=bits if deep else None
                    )
                    array = torch.tensor(to_array(image, layout, str(file)))
            except Unreadable as error:
                raise ValueError(f"{file}: cannot be read as an image ({str(error)[:100]}): remove it") from None
            found.append(self.encode(array) if deep else array.float() / 127.5 - 1)
        return torch.stack(found)

    def array(self, x: Tensor) -> NDArray[Any]:
        exact: NDArray[Any] = (self.to_uint8(x) if self.levels <= 256 else self.decode(x)).numpy()
        return exact

    def write(self, x: Tensor, folder: Path) -> list[Path]:
        """A lossless PNG for each sample, or samples.npy where PNG has no such pictures, and grid.png of the first."""
        from .. import plots

        folder.mkdir(parents=True, exist_ok=True)
        columns = self.classes if self.classes and self.classes <= 20 else None  # sample i has the label i mod classes
        grid = plots.image_grid(self.to_uint8(x[:100]).numpy(), columns)
        files = [plots.save_image(grid, folder / "grid.png")]
        exact = self.array(x)
        if exact.shape[1] in (1, 3) and (self.levels <= 256 or exact.shape[1] == 1):
            digits = len(str(len(x) - 1))
            for i, picture in enumerate(exact):
                files.append(plots.save_image(picture.transpose(1, 2, 0), folder / f"{i:0{digits}d}.png"))
            return [files[0], folder / f"{0:0{digits}d}.png … {len(x) - 1}.png"]
        import numpy as np

        np.save(folder / "samples.npy", exact)
        return [files[0], folder / "samples.npy"]

    def train_dataloader(self) -> Loader:
        train = self.splits[0]
        passes = self.repeats or max(1, round(100 * self.batch_size / len(train)))
        return self.loader(
            train,
            self.batch_size,
            train=True,
            repeats=passes,
            seed=self.seed,
            augmentation=self.augmentation,
            workers=self.workers,
        )

    def val_dataloader(self) -> Loader | list[Any]:
        return self._evaluation(self.splits[1])

    def test_dataloader(self) -> Loader | list[Any]:
        return self._evaluation(self.splits[2])

    def _evaluation(self, source: Source) -> Loader | list[Any]:
        return self.loader(source, self.batch_size, train=False, workers=self.workers) if len(source) else []

    def state_dict(self) -> dict[str, Any]:
        shape, classes, levels = self.format
        return {"shape": list(shape), "classes": classes, "levels": levels}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if not state_dict:
            return
        ours = self._format
        self._format = Format(tuple(state_dict["shape"]), state_dict["classes"], state_dict["levels"])
        self._from_checkpoint = True
        if ours is not None:
            self._same(ours)

    def _same(self, ours: Format) -> None:
        """Raise ValueError if these pictures are not like the checkpoint's."""
        if ours != self.format:
            raise ValueError(
                f"{self.source}: the checkpoint's pictures are {_words(self.format)}, these are {_words(ours)}: "
                "use the data the checkpoint was trained on"
            )


def _split(
    n: int, labels: Tensor | None, fractions: tuple[float, float], seed: int, groups: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Indices of the training, validation and test pictures, each in ascending order; every class gives its share.

    A fraction above 0 is at least one picture of each class that has two or more to spare.  Of each group (see
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


def _first_of_group(n: int, groups: Tensor | None) -> Tensor:
    """Index of the first image of each image's group: (n,)."""
    if groups is None:
        return torch.arange(n)
    _, group = torch.unique(groups, return_inverse=True)
    return torch.full((n,), n).scatter_reduce(0, group, torch.arange(n), "amin")[group]


def _words(format: Format) -> str:
    (c, h, w), classes, levels = format
    return f"{c} x {h} x {w} with {levels} levels and {'no' if classes is None else classes} classes"
