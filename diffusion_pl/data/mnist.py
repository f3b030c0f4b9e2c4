"""MNIST, plain and coloured, and Fashion-MNIST, through torchvision."""

import gzip
import re
from abc import abstractmethod
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..conditions import label
from .decoding import Size, check_size, resize_array
from .images import Examples, Format, Images
from .loader import Tensors
from .stand_ins import tell_if_stand_in

#: Where Debian's package dataset-fashion-mnist has the files of Fashion-MNIST.
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
_NAME = re.compile(r"MNIST(-colored)?((?:_\d)*)")


class Torchvision(Images):
    """What torchvision's data sets in memory have in common; a concrete class defines ``dataset`` and ``inspect``.

    Args:
        root: Folder of the files, as torchvision lays them out.
        download: Fetch the files if they are not there.
        classes: Classes to keep, which become 0, 1, … in this order; None: all.
        conditional: Give the classes as labels.
        kwargs: Of `Images`: horizontal_flip, augment, batch_size, val_fraction, repeats, seed.

    Attributes:
        title: What to call the data in messages, and the folder of their files within the root.
        kinds: Names of all ten classes.
    """

    grows = False
    title: str
    kinds: tuple[str, ...] = tuple("0123456789")

    def __init__(
        self,
        root: str = "data",
        download: bool = True,
        classes: list[int] | None = None,
        conditional: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(self.title, test_fraction=0.0, workers=0, **kwargs)
        given = set(range(10)) if classes is None else set(classes)
        if classes is not None and (not classes or len(given) < len(classes) or not given <= set(range(10))):
            raise ValueError(f"{self.title}: classes must be different numbers from 0 to 9, got {classes}")
        self.root, self.download, self.conditional = str(root), download, conditional
        self.chosen = list(range(10)) if classes is None else list(classes)

    def labelled(self, shape: tuple[int, ...]) -> Format:
        """The format of images of this shape, with the classes that are kept if there are any."""
        if not self.conditional:
            return Format(shape)
        return Format(shape, {"label": label(len(self.chosen), [self.kinds[k] for k in self.chosen])})

    @abstractmethod
    def dataset(self, train: bool, download: bool) -> Any:
        """torchvision's data set, with ``data`` and ``targets``."""

    @abstractmethod
    def images(self, data: Any, train: bool) -> Tensor:
        """torchvision's array as (N, C, H, W), uint8."""

    def _open(self, train: bool, download: bool) -> Any:
        try:
            return self.dataset(train, download)
        except Exception as error:  # urllib and torchvision have many kinds
            refusal = "have not been fetched yet, as fit does" if self.download else "download is false"
            how = "and cannot be fetched" if download else f"and {refusal}"
            reason = str(error).partition("\n")[0][:100]
            raise ValueError(
                f"{self.source}: its files are not in {self.root!r} {how} ({reason}). Fix: give --data.root "
                "FOLDER, or --data.download true"
            ) from None

    def prepare_data(self) -> None:
        """Fetch the files, once for each machine."""
        for train in (True, False):
            self._open(train, self.download)
        super().prepare_data()

    def _split(self, train: bool) -> tuple[Tensors, Tensor]:
        dataset = self._open(train, False)
        # Everything is drawn for the whole set first, so a choice of classes changes no image.
        x = self.images(dataset.data, train)
        targets = torch.as_tensor(dataset.targets).long()
        digits = torch.isin(targets, torch.arange(10)).all()
        if len(targets) != len(x) or not len(x) or x.shape[1:] != self.shape or not digits:
            raise ValueError(
                f"{self.source}: its files in {self.root!r} have {len(x)} images of {tuple(x.shape[1:])} and "
                f"{len(targets)} labels, expected {self.shape} and a label from 0 to 9 for each: download them again"
            )
        label = torch.full((10,), -1)
        label[torch.tensor(self.chosen)] = torch.arange(len(self.chosen))
        label = label[targets]
        kept = label >= 0
        tensors = {"x": x[kept], "label": label[kept]} if self.conditional else {"x": x[kept]}
        return Tensors(tensors), label[kept]

    def examples(self) -> Examples:
        tell_if_stand_in(Path(self.root) / self.source / "raw")
        train, labels = self._split(True)
        return Examples(train, labels, self._split(False)[0])


class MNIST(Torchvision):
    """MNIST, 28x28: 60,000 handwritten digits for training and validation, 10,000 for testing.

    Coloured, each digit has a hue of its own, H ~ U(0°, 360°), on black: a function of the seed, the split and the
    digit's number in it.  (As in the VP-SDE seminar, with its sectors corrected: ⌊H/60°⌋, not rounded.)

    Args:
        classes: Digits to keep, which become classes 0, 1, … in this order; None: all.
        colored: Give each digit a hue.
        name: All this as the VP-SDE seminar writes it: MNIST-colored_2_3 is ``classes: [2, 3], colored: true``.
        size: Height and width, or one number for both, to which images are resized; None: 28.
        kwargs: Of `Torchvision`: download, conditional, batch_size, val_fraction, repeats, seed.
    """

    title = "MNIST"

    def __init__(
        self,
        root: str = "data",
        *,
        classes: list[int] | None = None,
        colored: bool = False,
        name: str | None = None,
        size: Size = None,
        **kwargs: Any,
    ) -> None:
        if name is not None:
            match = _NAME.fullmatch(name)
            if not match:
                raise ValueError(f"MNIST: name must be MNIST, -colored if so, and _digit for each class, got {name!r}")
            digits = [int(d) for d in match[2].split("_")[1:]] or None
            if (classes is not None and classes != digits) or (colored and not match[1]):
                raise ValueError(f"MNIST: name {name!r} contradicts classes or colored: give one or the other")
            classes, colored = digits, bool(match[1])
        super().__init__(root, classes=classes, horizontal_flip=False, augment=0.0, **kwargs)
        self.colored, self.size = colored, check_size("MNIST", size)

    def inspect(self) -> Format:
        size = self.size or (28, 28)
        return self.labelled((3 if self.colored else 1, *size))

    def dataset(self, train: bool, download: bool) -> Any:
        from torchvision import datasets

        return datasets.MNIST(self.root, train=train, download=download)

    def images(self, data: Any, train: bool) -> Tensor:
        grey = resized(data[:, None], self.size)
        if not self.colored:
            return grey
        generator = torch.Generator().manual_seed(2 * self.seed + (0 if train else 1))
        return colored(grey, 360 * torch.rand(len(grey), generator=generator))


class FashionMNIST(Torchvision):
    """Fashion-MNIST, 28x28: 60,000 pieces of clothing for training and validation, 10,000 for testing.

    Where they are not in ``root``, the files of Debian's package dataset-fashion-mnist are read if it is installed, and
    only then they are downloaded.

    Reference: Xiao et al., "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms", arXiv
    1708.07747.

    Args:
        size: Height and width, or one number for both, to which images are resized; None: 28.
        kwargs: Of `Torchvision`: root, download, classes, conditional, horizontal_flip, batch_size, val_fraction,
            repeats, seed.
    """

    title = "FashionMNIST"
    kinds = (
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    )

    def __init__(self, root: str = "data", *, size: Size = None, **kwargs: Any) -> None:
        super().__init__(root, augment=0.0, **kwargs)
        self.size = check_size("FashionMNIST", size)

    def inspect(self) -> Format:
        return self.labelled((1, *(self.size or (28, 28))))

    def dataset(self, train: bool, download: bool) -> Any:
        from torchvision import datasets

        part = "train" if train else "t10k"
        packed = [DEBIAN / f"{part}-{name}-ubyte.gz" for name in ("images-idx3", "labels-idx1")]
        own = Path(self.root, self.title, "raw", f"{part}-images-idx3-ubyte")
        if not own.exists() and all(path.is_file() for path in packed):
            data, targets = (idx(gzip.decompress(path.read_bytes())) for path in packed)
            return SimpleNamespace(data=data, targets=targets)
        return datasets.FashionMNIST(self.root, train=train, download=download)

    def images(self, data: Any, train: bool) -> Tensor:
        return resized(data[:, None], self.size)


def idx(file: bytes) -> Tensor:
    """The array of an IDX file of bytes: two zeros, the type 8, the number of axes, their lengths (>i4), the values.

    Raises:
        ValueError: another type, or not as many values as the lengths say.
    """
    if file[:3] != b"\0\0\x08":
        raise ValueError("not an IDX file of bytes")
    axes = file[3]
    shape = np.frombuffer(file, ">i4", axes, 4)
    return torch.from_numpy(np.frombuffer(file, np.uint8, -1, 4 + 4 * axes).reshape(shape).copy())


def resized(x: Tensor, size: tuple[int, int] | None) -> Tensor:
    """(N, C, H, W), uint8, at another height and width, antialiased."""
    if size is None or tuple(x.shape[2:]) == size:
        return x
    return torch.from_numpy(np.stack([resize_array(image, size) for image in x.numpy()]))


def colored(grey: Tensor, hue: Tensor) -> Tensor:
    """Grey images in one hue each, full saturation: (N, 1, H, W), uint8, and degrees (N,) -> (N, 3, H, W), uint8.

    Of HSV with S = 1: in the sector ⌊H/60⌋ one channel has the value, one is black, and one rises or falls with H.
    """
    sector = torch.floor(hue / 60).long() % 6
    part = (hue % 60 / 60).view(-1, 1, 1, 1)
    value = grey.float()
    choices = torch.cat((value, value * part, value * (1 - part), torch.zeros_like(value)), 1)  # V, rising, falling, 0
    order = torch.tensor([[0, 1, 3], [2, 0, 3], [3, 0, 1], [3, 2, 0], [1, 3, 0], [0, 3, 2]])[sector]
    rows = torch.arange(len(grey))[:, None]
    return choices[rows, order].round().to(torch.uint8)
