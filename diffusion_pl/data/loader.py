"""Batches in an order that is a function of (seed, epoch) and of nothing else.

For tensors in memory, one gather per batch replaces a dataset, a sampler, a collate function and worker processes.
Other sources, such as files to be decoded, are asked for a whole batch at a time, in worker processes if asked for.
Because the order needs no random state, one number, of the batches taken so far, is all a checkpoint must hold for a
run to be resumed exactly; the randomness of augmentations is a function of (seed, number of the batch) likewise.
"""

import copy
import hashlib
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

Batch = dict[str, Tensor]

MOST_VISITS = 10**9  # of an epoch


@runtime_checkable
class Source(Protocol):
    """Examples that can be asked for by their indices."""

    def __len__(self) -> int: ...

    def __getitems__(self, indices: Tensor) -> Batch:
        """The examples at these indices, in their order: named tensors of shape (len(indices), *)."""
        ...


class Tensors:
    """Examples in memory: named tensors of equal length n, (n, *) each."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        lengths = {name: len(tensor) for name, tensor in tensors.items()}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"Tensors needs one or more tensors of equal length, got lengths {lengths}")
        self.tensors = dict(tensors)

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def __getitems__(self, indices: Tensor) -> Batch:
        return {name: tensor.index_select(0, indices) for name, tensor in self.tensors.items()}


class Subset:
    """Some examples of a source.

    Args:
        source: All of them.
        indices: Those of the subset, (n,).
    """

    def __init__(self, source: Source, indices: Tensor) -> None:
        self.source, self.indices = source, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitems__(self, indices: Tensor) -> Batch:
        return self.source.__getitems__(self.indices[indices])


class Augmentation(Protocol):
    """A random change of a batch, as a function of uniform numbers: the same on any number of processes."""

    draws: int  # numbers that it needs for each example
    tells: tuple[str, ...]  # names of what it adds to the batch for the network

    def __call__(self, batch: Batch, u: Tensor) -> Batch:
        """batch of B examples, u ~ U[0, 1): (B, draws)."""
        ...


class Loader:
    """Iterates over the batches of a source.

    An epoch walks over ``repeats`` copies of the n examples, permuted when ``shuffle``, in batches that do not depend
    on the number of processes.

    With ``shuffle`` (training) every batch is shared out: process r takes every world_size-th example of it, from the
    r-th on. All have equally many: a last, partial batch smaller than the number of processes is dropped.  Without it
    (evaluation) batches are not divided: process r takes every world_size-th one, so that a metric is made of the
    same batches on any number of processes; no example is dropped or padded, and processes may differ by one batch.  A
    process that would have none has one of no examples: Lightning would skip its hooks, where the others wait.

    Shuffled batches are one endless stream, epoch after epoch: iterating takes the next ``len(loader)`` of it, from
    where the last iteration, or the loaded state, left off. So the batches do not depend on where the trainer believes
    an epoch to end, and the trainer's epoch is a multiple of ``accumulate`` batches: an optimizer step that began with
    the last batches of an epoch continues with the first of the next. Unshuffled batches start over each time.

    Args:
        source: The n examples; a dictionary of tensors is one.
        batch_size: Examples per batch, over all processes.
        seed: Chooses the sequence of permutations.
        shuffle: Draw a new permutation in each epoch.
        repeats: How often each example occurs in an epoch.
        drop_last: Leave out the last batch if it is not full.
        rank: Which of the processes this is.
        world_size: Number of processes.
        augmentation: Applied to each batch; None: nothing.
        workers: Processes that read batches ahead; 0: batches are read where they are used.
        accumulate: Batches of one optimizer step.
    """

    def __init__(
        self,
        source: Source | Mapping[str, Tensor],
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = False,
        repeats: int = 1,
        drop_last: bool = False,
        rank: int = 0,
        world_size: int = 1,
        augmentation: Augmentation | None = None,
        workers: int = 0,
        accumulate: int = 1,
    ) -> None:
        numbers = {"batch_size": batch_size, "repeats": repeats, "world_size": world_size, "accumulate": accumulate}
        for name, number in numbers.items():
            if number < 1:
                raise ValueError(f"{name} must be at least 1, got {number}")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be in [0, world_size = {world_size}), got {rank}")
        if workers < 0:
            raise ValueError(f"workers must not be negative, got {workers}")
        self.source = Tensors(source) if isinstance(source, Mapping) else source
        self.seed = seed
        self.augmentation = augmentation
        self.shuffle = shuffle
        self.rank = rank
        self.world_size = world_size
        self.num_examples = len(self.source)
        self.num_visits = self.num_examples * repeats
        if self.num_visits > MOST_VISITS:  # whose order is kept in memory
            raise ValueError(f"repeats: an epoch can have at most {MOST_VISITS:,} examples, got {self.num_visits:,}")
        self.batch_size = batch_size
        if shuffle and batch_size % world_size:
            near = max(1, batch_size // world_size) * world_size
            raise ValueError(
                f"batch_size {batch_size} cannot be shared equally by {world_size} processes: take a multiple of "
                f"{world_size}, such as {near} or {near + world_size}"
            )
        full, rest = divmod(self.num_visits, batch_size)
        smallest = world_size if shuffle else 1  # partial batch that is one at all
        every = full + int(not drop_last and rest >= smallest)
        self._idle = not shuffle and rank >= every > 0
        self.num_batches = every if shuffle else len(range(rank, every, world_size)) + self._idle
        if shuffle and self.num_batches == 0:
            raise ValueError(
                f"{self.num_examples} examples times {repeats} repeats make no batch of {batch_size} for "
                f"{world_size} processes: lower batch_size or raise repeats"
            )
        self._length = -(-self.num_batches // accumulate) * accumulate if shuffle else self.num_batches
        self._taken = 0  # batches of the stream
        self._order: tuple[int, Tensor] | None = None  # the last epoch asked for, and its order
        self._ahead: Any = None
        if workers:
            self._ahead = _workers(self, workers)

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Batch]:
        # A generator, so the position is read when a batch is asked for: Lightning makes iterators before it sets the
        # epoch, some of which it never uses.
        batches = (self.read(*place) for place in self.places()) if self._ahead is None else self._ahead
        for batch in batches:
            if isinstance(batch, Exception):
                raise batch
            self._taken += int(self.shuffle)
            yield batch

    def places(self) -> Iterator[tuple[int, int]]:
        """(epoch, number within it) of the batches of one iteration, from the present position on."""
        if not self.shuffle:
            return ((0, self.rank + k * self.world_size) for k in range(self.num_batches))
        return (divmod(k, self.num_batches) for k in range(self._taken, self._taken + len(self)))

    def read(self, epoch: int, index: int) -> Batch:
        """A batch of an epoch: in training this process's share of it, else all of it."""
        if self._idle:
            return {name: value[:0] for name, value in self.source.__getitems__(torch.tensor([0])).items()}
        own = slice(self.rank, None, self.world_size) if self.shuffle else slice(None)
        begin = index * self.batch_size
        share = self.order(epoch)[begin : begin + self.batch_size][own]
        batch = self.source.__getitems__(share)
        if self.augmentation is not None:
            generator = _generator(f"{self.seed}/{epoch}/{index}")
            u = torch.rand(self.batch_size, self.augmentation.draws, generator=generator)
            batch = self.augmentation(batch, u[own][: len(share)])
        return batch

    def order(self, epoch: int) -> Tensor:
        """Indices of the examples in the order of an epoch, over all processes: (n * repeats,)."""
        if self._order is None or (self.shuffle and self._order[0] != epoch):
            visits = torch.arange(self.num_visits)
            if self.shuffle:
                visits = torch.randperm(self.num_visits, generator=_generator(f"{self.seed}/{epoch}"))
            self._order = epoch, visits % self.num_examples
        return self._order[1]

    batch_sampler = None  # Lightning reads it of whatever has a ``sampler``

    @property
    def sampler(self) -> "Loader":
        """Where Lightning looks for ``set_epoch``."""
        return self

    def __getstate__(self) -> dict[str, Any]:
        # What a worker process is given: all but the handle of the workers.
        return {**self.__dict__, "_ahead": None}

    def set_epoch(self, epoch: int) -> None:
        """Make a loader that has not given a batch nor loaded a state begin at an epoch of the trainer.

        Lightning calls this before every epoch, and it must not interrupt the stream. It matters when a run limited by
        ``max_epochs`` is resumed from the end of an epoch: then Lightning's own loop does not hand over the state.
        """
        if self._taken == 0:
            self._taken = epoch * len(self)

    def state_dict(self) -> dict[str, int]:
        """The position in the stream: batches taken so far."""
        return {"batches": self._taken}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Resume from a saved position."""
        self._taken = state["batches"]


def _generator(key: str) -> torch.Generator:
    # A hash, so that (seed 0, epoch 1) and (seed 1, epoch 0) are unrelated; torch uses 4 bytes of seed.
    digest = hashlib.blake2b(key.encode(), digest_size=4).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))


class _Read:
    """What a worker process holds: the loader's way to make a batch, for torch's DataLoader to call by place."""

    def __init__(self, read: Callable[[int, int], Batch]) -> None:
        self.read = read

    def __getitem__(self, place: tuple[int, int]) -> Batch | Exception:
        # Given, not raised: torch would raise it again with the worker's traceback in its message.
        try:
            return self.read(*place)
        except (ValueError, OSError) as error:
            return error


class _Places:
    """The places of the batches to come, computed at each iteration."""

    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(list(self.loader.places()))  # a generator would hold the loader

    def __len__(self) -> int:
        return len(self.loader)


def _workers(loader: Loader, workers: int) -> "torch.utils.data.DataLoader[Batch]":
    # Neither part refers back to the loader: the workers of a DataLoader that only the garbage collector can remove
    # are waited for five seconds each.
    return torch.utils.data.DataLoader(
        _Read(copy.copy(loader).read),  # type: ignore[arg-type]
        batch_size=None,
        sampler=_Places(weakref.proxy(loader)),
        num_workers=workers,
        persistent_workers=True,
        generator=torch.Generator(),  # the base seed of the workers would be drawn from training's generator
    )
