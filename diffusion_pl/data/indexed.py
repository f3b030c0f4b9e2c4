"""Base class of data whose examples are asked for by their numbers: how they are split, and what a checkpoint keeps."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from ..conditions import class_count
from .base import SPLITS, DataModule, check_fraction, tell_differences
from .identity import differences, identity, keys_of
from .loader import Batch, Source, Subset
from .splits import divide


class Examples(NamedTuple):
    """The examples of a data set.

    train: sources of {"x": (B, *shape) as stored, such as integers 0 … levels − 1} and the conditions, such as
    {"label": int64, (B,)}; what is held out for validation, and for testing unless ``test`` is there, is taken of it;
    labels: (n,) of ``train``, for the stratified split, None without classes;  test: the set's own test split;
    groups: (n,) int64 of ``train``, examples with the same number (copies of one file) stay in one split, None: each
    is a group of its own;  names: of the n examples of ``train``, such as paths within a folder, None: their numbers.
    """

    train: Source
    labels: Tensor | None = None
    test: Source | None = None
    groups: Tensor | None = None
    names: Sequence[str] | None = None


class Indexed(DataModule):
    """Examples that a `Source` gives by their numbers, split at random with the seed.

    The held-out parts are drawn by a seeded split of every class; that of a published set, which does not grow, is a
    permutation, of which every class gets its exact share.

    Args:
        source: What to call the data in messages.
        test_fraction: Fraction to hold out for testing, in [0, 1); with 0 the validation examples serve.
        workers: Processes that read ahead where examples are not in memory.
        kwargs: Of `DataModule`: batch_size, val_fraction, repeats, seed.
    """

    grows = True

    def __init__(self, source: str, *, test_fraction: float = 0.0, workers: int = 0, **kwargs: Any) -> None:
        super().__init__(source, **kwargs)
        name = type(self).__name__
        check_fraction(name, "test_fraction", test_fraction)
        if self.val_fraction + test_fraction >= 1:
            raise ValueError(
                f"{name}: val_fraction + test_fraction must be below 1, got {self.val_fraction + test_fraction}"
            )
        if workers < 0:
            raise ValueError(f"{name}: workers must be at least 0, got {workers}")
        self.test_fraction, self.workers = test_fraction, workers
        self._class_counts: list[int] | None = None

    @abstractmethod
    def examples(self) -> Examples:
        """All examples; called once, by ``setup``."""

    def prepared(self, train: Source, test: Source | None) -> tuple[Source, Source | None]:
        """The sources of `examples` as batches have them; a subclass may add conditions."""
        return train, test

    @property
    def class_counts(self) -> list[int] | None:
        return self._class_counts

    def divide(self) -> tuple[Source, Tensor]:
        """Read or index the examples and split them; say where they are others than the checkpoint's.

        Returns:
            All examples of which the parts are taken, and the numbers of the training examples among them.
        """
        if self._examples is None:
            self._examples = self.examples()
        train, labels, test, groups, names = self._examples
        fractions = self.val_fraction, 0.0 if test else self.test_fraction
        parts, self._drawn = divide(
            len(train), names, labels, groups, fractions, self.seed, grows=self.grows, saved=self.saved
        )
        if not len(parts[0]):
            what = f"{len(train)} {'image' if self.is_image else 'example'}(s)"
            raise ValueError(f"{self.source}: {what} leave none to train on. Fix: lower val_fraction")
        shown, test = self.prepared(train, test)
        rest, val, held_out = (Subset(shown, part) for part in parts)
        self._splits = rest, val, test or (held_out if len(held_out) else val)
        classes = class_count(self.conditions)
        if classes is not None and labels is not None:
            self._class_counts = labels[parts[0]].bincount(minlength=classes).tolist()
        if "identity" in self.saved:
            changes = differences(self.saved["identity"], keys_of(names, len(train)), names is not None, train)
            tell_differences(self.source, changes)
        return train, parts[0]

    @property
    def splits(self) -> tuple[Source, Source, Source]:
        """Training, validation and test examples, as they are stored."""
        if self._splits is None:
            raise RuntimeError(f"{self.source}: the data are not set up: call setup() first")
        splits: tuple[Source, Source, Source] = self._splits
        return splits

    def part(self, split: str) -> Source:
        return self.splits[SPLITS.index(split)]

    def stored(self, indices: Tensor) -> Batch:
        return self.splits[0].__getitems__(indices)

    def record(self) -> dict[str, Any]:
        """What a checkpoint keeps of conditions, split and identity; of data that were not read, its checkpoint's."""
        counts: dict[str, Any] = {"class_counts": self._class_counts}
        if self.turns:
            counts["turns"] = self.turns
        if self._examples is None:
            return {**counts, **self.saved_split}
        if self._identity is None:
            train, names = self._examples.train, self._examples.names
            self._identity = identity(keys_of(names, len(train)), names is not None, train)
        return {**counts, "split": self._drawn, "identity": self._identity}
