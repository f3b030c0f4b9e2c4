"""CIFAR-10, through torchvision."""

from typing import Any

import torch
from torch import Tensor

from .images import Format
from .mnist import Torchvision


class CIFAR10(Torchvision):
    """CIFAR-10, 32x32 in colour: 50,000 images for training, 10,000 for testing.

    Published results are of training on all 50,000, so by default none of them is held out, and validation takes the
    test images.

    Args:
        horizontal_flip: Mirror training images at random.
        val_fraction: Fraction of the 50,000 to hold out for validation; 0: validate on the test images.
        kwargs: Of `Torchvision`: download, classes, conditional, augment, batch_size, repeats, seed.
    """

    title = "CIFAR10"
    kinds = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

    def __init__(
        self, root: str = "data", *, horizontal_flip: bool = True, val_fraction: float = 0.0, **kwargs: Any
    ) -> None:
        super().__init__(root, horizontal_flip=horizontal_flip, val_fraction=val_fraction, **kwargs)

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

    def images(self, data: Any, train: bool) -> Tensor:
        return torch.from_numpy(data).permute(0, 3, 1, 2).contiguous()
