"""Images: base class of image data sets."""

import math
from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from numpy.typing import NDArray
from torch import Tensor

from ..conditions import Condition, Conditions, as_prediction, class_count, class_names, from_plain, label, to_plain
from .augmentation import HorizontalFlip, NonLeaky, warped
from .captions import captions_of
from .decoding import Size
from .degraded import Each, degradations
from .indexed import Examples as Examples
from .indexed import Indexed
from .loader import Augmentation, Batch, Source
from .pixels import read_pixels, read_sized, write_pixels
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


class Images(Indexed):
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
        low: Height and width, or one number for both, of a low resolution: the condition `low` is the image at it,
            brought back to full size, for super-resolution; None: no such condition.
        low_noise: Largest standard deviation of noise that training adds to `low`, in model units, such as 0.5; its
            level is the condition `low_noise`, 0 in sampling unless given.  0: no noise.
        masked: Give a part of the image, behind a random mask, as the condition `masked`, for inpainting.
        residual: Name of the image condition that is a prediction of the image, such as low: the network learns the
            difference, and samples are prediction + difference.  None: none.
        captions: Captions, the condition `text`: a template such as "a photo of a {}", in which {} stands for the name
            of the class, whose label it replaces; or a text file with one on each line, in the order of the images.
            None: no captions.
        text_encoder: Folder or name on the hub of the text encoder of `captions`, a model of transformers, such as
            google/t5-v1_1-small.
        tokens: Number of tokens of a caption; longer ones are cut off.
        kwargs: Of `Indexed` and `DataModule`: test_fraction, workers, batch_size, val_fraction, repeats, seed.
    """

    paths = ("path", "root", "text_encoder")

    def __init__(
        self,
        source: str,
        *,
        horizontal_flip: bool = False,
        augment: float = 0.0,
        low: Size = None,
        low_noise: float = 0.0,
        masked: bool = False,
        residual: str | None = None,
        captions: str | None = None,
        text_encoder: str | None = None,
        tokens: int = 32,
        **kwargs: Any,
    ) -> None:
        super().__init__(source, **kwargs)
        name = type(self).__name__
        if augment and horizontal_flip:
            raise ValueError(f"{name}: augment mirrors images itself: give horizontal_flip: false")
        self.degradations = degradations(name, low, low_noise, masked)
        self.captions = captions_of(name, captions, text_encoder, tokens)
        self.residual = residual
        own: list[Augmentation | None] = [HorizontalFlip() if horizontal_flip else None]
        own += [NonLeaky(augment) if augment else None]
        parts = [part for part in (*own, *(d.augmentation for d in self.degradations)) if part is not None]
        self.augmentation = Each(*parts) if len(parts) > 1 else next(iter(parts), None)
        self._format: Format | None = None

    @abstractmethod
    def inspect(self) -> Format:
        """Shape, conditions and levels, read from a header or the first image."""

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
        conditions = dict(self.format.conditions)
        if self.captions is not None:
            conditions["text"] = self.captions.condition()
            if self.captions.is_template:
                conditions.pop("label", None)
        for degradation in self.degradations:
            conditions |= degradation.conditions(self.source, self.shape)
        if self.residual is not None:
            conditions = as_prediction("data.residual", self.residual, conditions, self.shape)
        return conditions

    @property
    def _pairs(self) -> dict[str, Condition]:
        """Conditions that are images of their own, which the source gives as it gives x."""
        return {name: c for name, c in self.format.conditions.items() if c.kind == "image"}

    @property
    def readers(self) -> dict[str, Callable[[Any], Tensor]]:
        readers: dict[str, Callable[[Any], Tensor]] = {}
        if self.captions is not None:
            readers["text"] = self.captions.read
        readers |= {name: partial(self._read_pair, name, condition) for name, condition in self._pairs.items()}
        made = {d.name: partial(d.read, shape=self.shape, units=self.units) for d in self.degradations}
        return {**readers, **made}

    def _read_pair(self, name: str, condition: Condition, given: Any) -> Tensor:
        """A condition of an image file, or of all of a folder: (K, C, H, W)."""
        channels, height, width = condition.shape
        return torch.stack(read_sized(name, given, channels, [(height, width)], self.units))

    def conditions_from(self, x: Tensor, known: Tensor | None = None) -> dict[str, Tensor]:
        made: dict[str, Tensor] = {}
        for degradation in self.degradations:
            made |= degradation.of(x, known)
        return made

    def prepare_data(self) -> None:
        """Encode the captions, for which the encoder may be fetched, once for each machine."""
        if self.captions is not None:
            self.captions.prepare(self.format.names, download=bool(getattr(self, "download", True)))

    @property
    def units(self) -> Levels:
        return Levels(self.format.levels)

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
        self.divide()

    def prepared(self, train: Source, test: Source | None) -> tuple[Source, Source | None]:
        if self.captions is not None:
            train, test = self.captions.sources(self.format.names, train, test)
        for degradation in self.degradations:
            train, test = degradation.held_out(train), None if test is None else degradation.held_out(test)
        return train, test

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Scale, and change as `NonLeaky` drew, on the device."""
        if "x" not in batch:
            return batch
        images = {name: self.units.encode(batch[name]) for name in ("x", *self._pairs)}
        changed = {**batch, **images}
        if "warp" in changed:
            changed["x"] = warped(changed["x"], changed.pop("warp"))
        for degradation in self.degradations:
            changed = degradation.added(changed)
        return changed

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
        return torch.stack(read_pixels(path, self.shape, self.units))

    def array(self, x: Tensor) -> NDArray[Any]:
        exact: NDArray[Any] = (self.units.to_uint8(x) if self.units.levels <= 256 else self.decode(x)).numpy()
        return exact

    def write(self, x: Tensor, folder: Path) -> list[Path]:
        """A lossless PNG for each sample, or samples.npy where PNG has no such images."""
        return write_pixels(self.array(x), self.units, folder)

    def state_dict(self) -> dict[str, Any]:
        shape, conditions, levels = self.format
        state = {"shape": list(shape), "conditions": to_plain(conditions), "levels": levels}
        text = {} if self.captions is None else {"text": self.captions.state()}
        return {**state, **text, **self.record()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the format, the names of the classes and the split of a checkpoint, before or after ``setup``."""
        if not state_dict:
            return
        current, there = self._format, self._splits is not None
        self._format = format_of(state_dict)
        self._saved, self._class_counts = state_dict, state_dict.get("class_counts")
        self._turns = {name: torch.as_tensor(value) for name, value in state_dict.get("turns", {}).items()}
        if self.captions is not None:
            self.captions.saved = dict(state_dict.get("text", {}))
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


class ImageFormat(Images):
    """A format of images without any examples, to read and write files of it.

    Args:
        source: What to call the data in messages.
        format: Of the images.
    """

    def __init__(self, source: str, format: Format) -> None:
        super().__init__(source)
        self._format = format

    def inspect(self) -> Format:
        return self.format

    def examples(self) -> Examples:
        raise ValueError(f"{self.source}: there are no examples, only the format of images is known")


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
