"""Handwritten digits that come with scikit-learn: images without a download."""

from typing import Any

import torch

from ..conditions import label
from .images import Examples, Format, Images
from .loader import Tensors


class Digits(Images):
    """scikit-learn's 1,797 digits of 8x8 with 17 quantization levels.

    Args:
        conditional: Give the digits as labels.
        kwargs: Of `Images`: low, low_noise, captions, text_encoder, tokens, batch_size, val_fraction, repeats, seed.
    """

    grows = False

    def __init__(self, conditional: bool = False, **kwargs: Any) -> None:
        super().__init__("Digits", horizontal_flip=False, augment=0.0, test_fraction=0.0, workers=0, **kwargs)
        self.conditional = conditional

    def inspect(self) -> Format:
        return Format((1, 8, 8), {"label": label(10, "0123456789")} if self.conditional else {}, 17)

    def examples(self) -> Examples:
        from sklearn.datasets import load_digits

        digits = load_digits()
        x = torch.from_numpy(digits.images).to(torch.uint8)[:, None]
        labels = torch.from_numpy(digits.target)
        return Examples(Tensors({"x": x, "label": labels} if self.conditional else {"x": x}), labels)
