"""CIFAR-10, through torchvision."""

from typing import Any

import torch
from torch import Tensor

from .images import Format
from .mnist import Torchvision


class CIFAR10(Torchvision):
    """CIFAR-10, 32x32 in colour: 50,000 pictures for training, 10,000 for testing.

    Published figures are of training on all 50,000, so by default none of them is held out, and validation takes the
    test pictures.

    Args:
        root: Folder of the files, as torchvision lays them out.
        download: Fetch the files if they are not there.
        classes: Classes to keep, which become 0, 1, … in this order; None: all.
        conditional: Give the classes as labels.
        horizontal_flip: Mirror training pictures at random.
        augment: Probability of each change of training pictures that the network is told of, 0.12 in EDM: zoom,
            rotation, stretch, shift, upside down; mirror images with probability ½.  For NCSNpp with augment_dim 9.
        batch_size: Pictures per batch, over all processes.
        val_fraction: Fraction of the 50,000 to hold out for validation; 0: validate on the test pictures.
        repeats: Passes over the training pictures that make one epoch; None: as many as make about 100 batches.
        seed: Chooses the split, the order and the augmentation.
    """

    kinds = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

    def __init__(
        self,
        root: str = "data",
        download: bool = True,
        classes: list[int] | None = None,
        conditional: bool = False,
        horizontal_flip: bool = True,
        augment: float = 0.0,
        batch_size: int = 128,
        val_fraction: float = 0.0,
        repeats: int | None = None,
        seed: int = 0,
    ) -> None:
        options = {"batch_size": batch_size, "val_fraction": val_fraction, "repeats": repeats, "seed": seed}
        options |= {"horizontal_flip": horizontal_flip, "augment": augment}
        super().__init__("CIFAR10", root, download, classes, conditional, **options)

    def setup(self, stage: str | None = None) -> None:
        super().setup(stage)
        train, val, test = self.splits
        if not len(val):
            self._splits = train, test, test

    def inspect(self) -> Format:
        return self.labelled((3, 32, 32))

    def dataset(self, train: bool, download: bool) -> Any:
        from torchvision import datasets

        return datasets.CIFAR10(self.root, train=train, download=download)

    def pictures(self, data: Any, train: bool) -> Tensor:
        return torch.from_numpy(data).permute(0, 3, 1, 2).contiguous()
