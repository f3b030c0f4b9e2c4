"""What the image networks share: the check of the picture's shape, and the embedding of class labels."""

import torch
from torch import Tensor, nn


def image_shape(
    network: str, shape: tuple[int, ...], factor: int, remedy: str = "use fewer levels"
) -> tuple[int, int, int]:
    """(C, H, W), checked.

    Args:
        network: Name for messages.
        shape: Shape of one example.
        factor: The sides must be multiples of it.
        remedy: What else than resizing mends other sides, for the message.

    Raises:
        ValueError: not the shape of a picture, or a side that cannot be halved as often as the network halves it; the
            message names the nearest valid size.
    """
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"{network}: needs pictures of shape (C, H, W), got data of shape {tuple(shape)}")
    channels, *sides = shape
    if any(side % factor for side in sides):
        nearest = [max(factor, round(side / factor) * factor) for side in sides]
        raise ValueError(
            f"{network}: sides must be multiples of {factor}, got {sides[0]}x{sides[1]} (height x width): "
            f"the nearest valid size is {nearest[0]}x{nearest[1]}; resize the data to it or {remedy}"
        )
    return channels, sides[0], sides[1]


class LabelEmbedding(nn.Module):
    """A learned vector for each class, and one more, the last, for "any class".

    Args:
        network: Name for messages.
        classes: Number of classes; None: the network takes no labels, and none is added.
        width: Length of the vectors.
    """

    def __init__(self, network: str, classes: int | None, width: int) -> None:
        super().__init__()
        if classes is not None and classes < 1:
            raise ValueError(f"{network}: classes must be at least 1, or None for no condition, got {classes}")
        self.network, self.classes, self.width = network, classes, width
        self.table = nn.Embedding(classes + 1, width) if classes is not None else None

    def forward(self, features: Tensor, label: Tensor | None) -> Tensor:
        """features + the embedding of the labels.

        Args:
            features: (B, width).
            label: Classes, int64 in [0, classes), (B,), or −1 for any class; None: any class for all.
        """
        if self.table is None:
            if label is not None:
                raise ValueError(
                    f"{self.network}: got labels but was built without classes: give the number of classes"
                )
            return features
        if label is None:
            label = torch.full((features.shape[0],), -1, device=features.device)
        embedded: Tensor = self.table(torch.where(label < 0, self.table.num_embeddings - 1, label))
        return features + embedded
