"""Base class of all data sets."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from numpy.typing import NDArray
from torch import Tensor

from ..conditions import Condition
from ..tensors import Recorded
from .held_out import MEMORY, MOST, held_out
from .loader import Augmentation, Loader, Source, Tensors
from .splits import recorded_split
from .units import Units

SPLITS = ("train", "val", "test")


class DataModule(Recorded, LightningDataModule, ABC):
    """A data set in model units, and the way back to the units of the user's files.

    Batches are dictionaries: ``x`` of shape (B, *shape), float32, in model units (of order one), and one entry for each
    condition, such as ``label`` of shape (B,), int64.  Data with missing values have also ``observed``, bool, of the
    shape of ``x``: where it is false, x is 0 and does not count in the loss.

    Whatever ``shape``, ``conditions`` and ``units`` need is in ``state_dict`` as plain values or tensors: a module
    rebuilt from its hyper-parameters and that state must decode samples on a machine where the data are not.

    Args:
        source: What to call the data in messages; "": the name of the class.
        batch_size: Examples per batch, over all processes; at least 1.
        val_fraction: Fraction of the examples to hold out for validation, in [0, 1).
        repeats: Passes over the training examples that make one epoch, at least 1; None: as many as make about 100
            batches.
        seed: Of the split, the order, the augmentation and whatever else is drawn; not negative.

    Attributes:
        augmentation: Of training examples; None: there is none.
        workers: Processes that read batches ahead; 0: batches are read where they are used.
        grows: Whether examples may be added between two sessions.  Then the split goes by a hash of their names or
            values (`splits.hashed`), and does not move when some are added; else it is a permutation.
        paths: Names of the options that say where on this machine the data are.
        unasked: Why these data are not read, as a message: a checkpoint names them and nobody asked for them; "": they
            are.
    """

    augmentation: Augmentation | None = None
    workers: int = 0
    grows: bool = False
    paths: tuple[str, ...] = ("path", "root")
    unasked: str = ""

    def __init__(
        self,
        source: str = "",
        *,
        batch_size: int = 128,
        val_fraction: float = 0.1,
        repeats: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        for option, number, least in (("batch_size", batch_size, 1), ("repeats", repeats, 1), ("seed", seed, 0)):
            if number is not None and number < least:
                raise ValueError(f"{name}: {option} must be at least {least}, got {number}")
        check_fraction(name, "val_fraction", val_fraction)
        self.source = source or name
        self.batch_size, self.val_fraction, self.repeats, self.seed = batch_size, val_fraction, repeats, seed
        self._splits: Any = None  # what `setup` makes: training, validation, test
        self._examples: Any = None  # all of them, before they are split
        self._saved: dict[str, Any] = {}  # the state of the checkpoint that was loaded
        self._drawn: dict[str, Any] = {}  # how the split was drawn, as a checkpoint keeps it
        self._identity: dict[str, Any] | None = None
        self._turns: dict[str, Tensor] = {}
        # Shards of a small held-out set are not padded, so a process may have no batch of it.
        self.allow_zero_length_dataloader_with_multiple_devices = True

    @property
    @abstractmethod
    def units(self) -> Units:
        """The user's units and model units; known before ``setup`` where the data or a checkpoint give them."""

    @property
    def image_shape(self) -> tuple[int, ...] | None:
        """Shape (C, height, width) of the images that examples are, or are decoded to by `units`; None: no images."""
        return self.shape if len(self.shape) == 3 and self.units.levels is not None else None

    @property
    def is_image(self) -> bool:
        """Whether examples are shown and measured as images: images with quantization levels, or latents of such."""
        return self.image_shape is not None

    @property
    def originals(self) -> "DataModule":
        """The data that samples are measured against, example by example these: themselves, of latents the images."""
        return self

    @property
    def pixels(self) -> "DataModule":
        """The format of what files hold, in model units: these data themselves, of latents that of the images."""
        return self

    def to_pixels(self, x: Tensor) -> Tensor:
        """Model units -> those of `pixels`, with gradients: unchanged, of latents decoded. x: (N, *shape)."""
        return x

    def from_pixels(self, x: Tensor) -> Tensor:
        """The inverse: unchanged, of latents encoded (their mean). x: (N, *pixels.shape)."""
        return x

    @property
    def patch(self) -> int | None:
        """Height and width of the pixels that each place of an example stands for, exactly and alone: 1; of latents
        that of a patch, or None: a latent depends on other pixels too, or loses some."""
        return 1

    @property
    def is_field(self) -> bool:
        """Whether examples are continuous fields: (C, *sizes), 1 to 3 spatial axes, without quantization levels."""
        return 2 <= len(self.shape) <= 4 and not self.is_image and self.units.levels is None

    #: Names of the dimensions of points; empty: they have none.
    axes: tuple[str, ...] = ()

    @property
    def is_point(self) -> bool:
        """Whether examples are points: (D,)."""
        return len(self.shape) == 1

    @property
    def loaded(self) -> bool:
        """Whether `setup` has read the data."""
        return self._splits is not None

    @property
    def saved(self) -> dict[str, Any]:
        """State of the checkpoint that was loaded; {} if there is none."""
        return self._saved

    @property
    def saved_split(self) -> dict[str, Any]:
        """The entry "split" of a state dict, as in the checkpoint that was loaded; {} if there is none."""
        split = recorded_split(self._saved)
        return {"split": split} if split else {}

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Shape of one example, without the batch; known before ``setup``."""

    @property
    def conditions(self) -> dict[str, Condition]:
        """What batches hold besides ``x``, by name; {} for unconditional data.  Known before ``setup``."""
        return {}

    @property
    def readers(self) -> dict[str, Callable[[Any], Tensor]]:
        """By the name of a condition, what makes its value in model units, (K, *shape), of what a person gives: the
        path of an image, a text, numbers in the user's units."""
        return {}

    def conditions_from(self, x: Tensor, known: Tensor | None = None) -> dict[str, Tensor]:
        """The conditions that follow from examples themselves, such as a low resolution; {} if none do.

        Args:
            x: examples in model units, (N, *shape).
            known: 1 where their values are known, else 0, (1, 1, *sizes); None: no value is missing.
        """
        return {}

    @property
    def turns(self) -> dict[str, Tensor]:
        """Values of the conditions of some held-out examples, (K, *shape) each, which samples get in turn where none
        is given; {} if there are only labels, or no data were read and the checkpoint has none."""
        if not self._turns and self.loaded and any(c.kind != "label" for c in self.conditions.values()):
            self._turns = self.conditions_of("val")
        return self._turns

    def conditions_of(self, split: str, most: int = MOST, memory: int = MEMORY) -> dict[str, Tensor]:
        """The conditions of up to `most` examples of a split, of training if it is empty, see `held_out`."""
        source = self.part(split) if len(self.part(split)) else self.part("train")
        return held_out(source, self.with_conditions, self.conditions, self.class_counts, most, memory)

    def with_conditions(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """A batch of `part` with its conditions in model units; x may stay as it is."""
        return self.on_after_batch_transfer(batch, 0)  # type: ignore[no-any-return]

    def to(self, device: torch.device) -> None:
        """Have examples encoded and decoded on a device, where a network does it; of most data nothing."""

    @property
    def class_counts(self) -> list[int] | None:
        """Training examples of each class; None without labels, or if they are not known without the data."""
        return None

    def setup(self, stage: str | None = None) -> None:
        """Read the data, which a subclass does after this.

        Raises:
            ValueError: a checkpoint names them, and nobody asked for them.
        """
        if self.unasked:
            raise ValueError(self.unasked)

    def check_state(self, state_dict: dict[str, Any]) -> None:
        """Raise ValueError if these data are of another shape or other conditions than a checkpoint's."""

    def decode(self, x: Tensor) -> Tensor:
        """Model units -> units of the user's files (`units`). x: (*, *shape) -> the same shape."""
        return self.units.decode(x)

    def decode_condition(self, name: str, value: Tensor) -> Tensor:
        """Values of a condition as batches hold them -> the user's units. value: (N, *) -> the same shape."""
        return value

    @abstractmethod
    def second_moment(self) -> float:
        """Mean of x_0² per dimension over the training split, in model units: the data's own scale. Needs ``setup``."""

    @abstractmethod
    def training_examples(self, most: int) -> Tensor:
        """Up to `most` examples spread over the training split, in model units: (N, *shape). Needs ``setup``."""

    @abstractmethod
    def part(self, split: str) -> Source:
        """The examples of "train", "val" or "test", without augmentation, as `on_after_batch_transfer` takes them."""

    @abstractmethod
    def stored(self, indices: Tensor) -> dict[str, Tensor]:
        """Training examples at these places as they are stored: no augmentation, no scaling. Needs ``setup``."""

    def batches(self, split: str, size: int, most: int | None = None) -> Iterator[dict[str, Tensor]]:
        """Examples of a split in order, model units, `size` at a time: all, or `most`, see `spread`. Needs ``setup``.

        Raises:
            ValueError: there is no such split, or it is empty.
        """
        if split not in SPLITS:
            raise ValueError(f"there is no split {split!r}, only {', '.join(SPLITS)}")
        source = self.part(split)
        if not len(source):
            raise ValueError(f"the {split} split holds no examples: raise data.init_args.val_fraction, or take another")
        for some in spread(len(source), most).split(size):
            yield self.on_after_batch_transfer(source.__getitems__(some), 0)

    @abstractmethod
    def read(self, path: Path) -> Tensor:
        """Examples of a file (or folder) as `write` makes it, in model units: (N, *shape), float32.

        Raises:
            ValueError: no such file, or other data than the model's.
        """

    def read_mask(self, path: Path) -> Tensor:
        """A mask for one example, true where its values are known: (1, 1, *sizes), bool.

        Raises:
            ValueError: no such file, several masks, or one of another size.
        """
        masks = self.read(path)
        if len(masks) != 1:
            raise ValueError(f"{path}: give one mask, not a folder of {len(masks)}")
        return masks.mean(1, keepdim=True) > 0

    def array(self, x: Tensor) -> NDArray[Any]:
        """Samples (N, *) in model units as the values that their files hold."""
        return self.decode(x.double()).numpy()

    def write(self, x: Tensor, folder: Path) -> list[Path]:
        """Write samples (N, *shape) in model units to files in the user's units, in a folder that is there.

        Returns:
            The files written, or the first and the last of many as one entry.
        """
        return self.write_npz(x, folder)

    def write_npz(self, x: Tensor, folder: Path) -> list[Path]:
        """Write samples (N, *) in model units to samples.npz, as one array, x, of the values that files hold."""
        np.savez_compressed(folder / "samples.npz", x=self.array(x))
        return [folder / "samples.npz"]

    def train_dataloader(self) -> Loader:
        return self.loader(
            self.part("train"),
            self.batch_size,
            train=True,
            repeats=self.passes(),
            seed=self.seed,
            augmentation=self.augmentation,
            workers=self.workers,
        )

    def val_dataloader(self) -> Loader | list[Any]:
        return self.evaluation_loader("val")

    def test_dataloader(self) -> Loader | list[Any]:
        return self.evaluation_loader("test")

    def evaluation_loader(self, split: str, repeats: int = 1) -> Loader | list[Any]:
        """All of a split in order, so many times; [] if it is empty."""
        part = self.part(split)
        if not len(part):
            return []
        return self.loader(part, self.batch_size, train=False, repeats=repeats, workers=self.workers)

    def passes(self) -> int:
        """Passes over the training examples that make one epoch."""
        return self.repeats or max(1, round(100 * self.batch_size / len(self.part("train"))))

    def loader(
        self,
        source: Source | Mapping[str, Tensor],
        batch_size: int,
        *,
        train: bool,
        repeats: int = 1,
        seed: int = 0,
        augmentation: Augmentation | None = None,
        workers: int = 0,
    ) -> Loader:
        """This process's loader.

        Training shuffles and leaves out a last partial batch, so that every step weighs every example alike on any
        number of processes; a training set smaller than one batch is one batch. Evaluation skips nothing.
        """
        trainer = self.trainer
        rank, world_size = (trainer.global_rank, trainer.world_size) if trainer is not None else (0, 1)
        visits = repeats * len(source if isinstance(source, Source) else Tensors(source))
        return Loader(
            source,
            batch_size,
            seed=seed,
            # To overfit some batches they must be the same ones in each epoch.
            shuffle=train and not getattr(trainer, "overfit_batches", 0),
            repeats=repeats,
            drop_last=train and visits >= batch_size,
            rank=rank,
            world_size=world_size,
            augmentation=augmentation,
            workers=workers,
            accumulate=getattr(trainer, "accumulate_grad_batches", 1) if train else 1,
        )


def spread(number: int, most: int | None = None) -> Tensor:
    """Indices in order, (n,), int64: all of a number of examples, or `most` that are spread evenly over them."""
    chosen = number if most is None else min(number, most)
    return torch.arange(chosen) * number // max(1, chosen)


def check_fraction(name: str, option: str, fraction: float) -> None:
    """Raise ValueError for a fraction that is not in [0, 1)."""
    if not 0 <= fraction < 1:
        raise ValueError(f"{name}: {option} must be in [0, 1), got {fraction}")


def say(line: str) -> None:
    """Print a line, on the first process only."""
    from lightning.fabric.utilities.rank_zero import rank_zero_only

    rank_zero_only(print)(line, flush=True)


def count(number: int, what: str) -> str:
    """A number of things in words: "1 example", "2,000 examples"."""
    return f"{number:,} {what}{'s' * (number != 1)}"


def classes_named(labels: Iterable[int], names: Sequence[str] | None, most: int = 20) -> str:
    """Classes in words: "class 0 cat", "classes 0 cat, 1 dog", without names the numbers alone."""
    listed = [f"{k} {names[k]}" if names else str(k) for k in labels]
    more = f", … ({len(listed)})" if len(listed) > most else ""
    return f"class{'es' * (len(listed) != 1)} {', '.join(listed[:most])}{more}"


def tell_differences(source: str, differences: Sequence[str]) -> None:
    """Say where the data are others than those that a checkpoint was trained on."""
    if differences:
        say(f"{source}: not the data that the checkpoint was trained on: {', '.join(differences)}")
