"""Batches of tensors that lie in memory, in an order that is a function of (seed, epoch) and of nothing else.

One gather per batch replaces a dataset, a sampler, a collate function and worker processes. Because the order needs no
random state, one number, of the batches taken so far, is all a checkpoint must hold for a resumed run to go on exactly.
"""

import hashlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor


class TensorLoader:
    """Iterates over dictionaries of batches gathered from equally long tensors.

    An epoch walks over ``repeats`` copies of the n examples, permuted when ``shuffle``, in global batches of
    ``batch_size * world_size``; process r takes every world_size-th example of each, from the r-th on. One process with
    batch size 8 and four with batch size 2 therefore see the same global batches.

    Without ``shuffle`` (evaluation) no example is left out or padded: processes may differ by one batch. With it
    (training) all have equally many: a last, partial batch smaller than the number of processes is left out.

    Shuffled batches are one endless stream, epoch after epoch: iterating takes the next ``len(loader)`` of it, from
    where the last iteration, or the loaded state, left off. So the batches do not depend on where the trainer believes
    an epoch to end. (Lightning, resuming a run limited by ``max_steps``, may count an epoch of no batch, of one, or of
    the rest of the last.) Unshuffled batches begin anew each time.

    Args:
        tensors: Named tensors of shape (n, *), gathered along the first axis.
        batch_size: Examples per batch and process.
        seed: Chooses the sequence of permutations.
        shuffle: Permute anew in each epoch.
        repeats: How often each example occurs in an epoch.
        drop_last: Leave out the last batch if it is not full.
        rank: Which of the processes this is.
        world_size: Number of processes.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = False,
        repeats: int = 1,
        drop_last: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        lengths = {name: len(tensor) for name, tensor in tensors.items()}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"TensorLoader needs one or more tensors of equal length, got lengths {lengths}")
        for name, number in (("batch_size", batch_size), ("repeats", repeats), ("world_size", world_size)):
            if number < 1:
                raise ValueError(f"{name} must be at least 1, got {number}")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must lie in [0, world_size = {world_size}), got {rank}")
        self.tensors = dict(tensors)
        self.seed = seed
        self.shuffle = shuffle
        self.rank = rank
        self.world_size = world_size
        self.num_examples = next(iter(lengths.values()))
        self.num_visits = self.num_examples * repeats
        self.global_batch = batch_size * world_size

        full, rest = divmod(self.num_visits, self.global_batch)
        smallest = world_size if shuffle else rank + 1  # the smallest partial batch of which this process has a share
        self.num_batches = full + int(not drop_last and rest >= smallest)
        if shuffle and self.num_batches == 0:
            raise ValueError(
                f"{self.num_examples} examples times {repeats} repeats make no batch of {batch_size} for each of "
                f"{world_size} processes: lower batch_size or raise repeats"
            )
        self._taken = 0  # batches of the stream
        self._order: tuple[int, Tensor] | None = None  # the last epoch asked for, and its order

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        # A generator, so the position is read when a batch is asked for: Lightning makes iterators before it sets the
        # epoch, some of which it never uses.
        for index in range(self.num_batches):
            epoch = 0
            if self.shuffle:
                epoch, index = divmod(self._taken, self.num_batches)
                self._taken += 1
            begin = index * self.global_batch
            share = self.order(epoch)[begin + self.rank : begin + self.global_batch : self.world_size]
            yield {name: tensor.index_select(0, share) for name, tensor in self.tensors.items()}

    def order(self, epoch: int) -> Tensor:
        """Indices of the examples in the order of an epoch, over all processes: (n * repeats,)."""
        if self._order is None or (self.shuffle and self._order[0] != epoch):
            visits = torch.arange(self.num_visits)
            if self.shuffle:
                # A hash, so that (seed 0, epoch 1) and (seed 1, epoch 0) are unrelated; torch uses 4 bytes of seed.
                digest = hashlib.blake2b(f"{self.seed}/{epoch}".encode(), digest_size=4).digest()
                generator = torch.Generator().manual_seed(int.from_bytes(digest, "little"))
                visits = torch.randperm(self.num_visits, generator=generator)
            self._order = epoch, visits % self.num_examples
        return self._order[1]

    batch_sampler = None  # Lightning reads it of whatever has a ``sampler``

    @property
    def sampler(self) -> "TensorLoader":
        """Where Lightning looks for ``set_epoch``."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Make a loader that has not given a batch nor loaded a state begin at an epoch.

        Lightning calls this before every epoch, and it must not interrupt the stream. It matters when a run limited by
        ``max_epochs`` is resumed from the end of an epoch: then Lightning does not hand over the state.
        """
        if self._taken == 0:
            self._taken = epoch * self.num_batches

    def state_dict(self) -> dict[str, int]:
        """The position in the stream: batches taken so far."""
        return {"batches": self._taken}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on from a saved position."""
        self._taken = state["batches"]
