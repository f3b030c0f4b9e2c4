"""Handwritten digits that come with scikit-learn: pictures without a download."""

import torch

from ..conditions import label
from .images import Examples, Format, Images
from .loader import Tensors


class Digits(Images):
    """scikit-learn's 1,797 digits of 8x8 with 17 levels of grey.

    Args:
        conditional: Give the digits as labels.
        batch_size: Pictures per batch, over all processes.
        val_fraction: Fraction of the pictures to hold out.
        repeats: Passes over the training pictures that make one epoch; None: as many as make about 100 batches.
        seed: Chooses the split and the order.
    """

    grows = False

    def __init__(
        self,
        conditional: bool = False,
        batch_size: int = 128,
        val_fraction: float = 0.1,
        repeats: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__("Digits", batch_size=batch_size, val_fraction=val_fraction, repeats=repeats, seed=seed)
        self.conditional = conditional

    def inspect(self) -> Format:
        return Format((1, 8, 8), {"label": label(10, "0123456789")} if self.conditional else {}, 17)

    def examples(self) -> Examples:
        from sklearn.datasets import load_digits

        digits = load_digits()
        x = torch.from_numpy(digits.images).to(torch.uint8)[:, None]
        labels = torch.from_numpy(digits.target)
        return Examples(Tensors({"x": x, "label": labels} if self.conditional else {"x": x}), labels)
