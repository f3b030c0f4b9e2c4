"""Conditions of networks: which ones a network embeds, and the embedding of class labels."""

import torch
from torch import Tensor, nn

from ..conditions import Condition, Conditions


def label_classes(network: str, conditions: Conditions | None) -> int | None:
    """Number of classes of a network that embeds a label and nothing else; None: it is unconditional.

    Args:
        network: Name for messages.
        conditions: Of the data; None: none.

    Raises:
        ValueError: a condition of another kind or name, or a label without classes.
    """
    for name, condition in (conditions or {}).items():
        if name != "label" or condition.kind != "label":
            raise ValueError(
                f"{network}: cannot embed the condition {name} (a {condition.kind} of shape {condition.shape}), only "
                "one that is named label and is a class number. Fix: take another network, or data without it"
            )
    label = (conditions or {}).get("label")
    return None if label is None else _classes(network, label)


def predicted_classes(network: str, conditions: Conditions) -> int:
    """Number of classes that a classifier distinguishes: those of the label.  It ignores other conditions.

    Args:
        network: Name for messages.
        conditions: Of the data.

    Raises:
        ValueError: there is no label, or one without classes.
    """
    if "label" not in conditions or conditions["label"].kind != "label":
        raise ValueError(f"{network}: predicts the condition label, the data have {', '.join(conditions) or 'none'}")
    return _classes(network, conditions["label"])


def _classes(network: str, label: Condition) -> int:
    if label.classes is None or label.classes < 1:
        raise ValueError(f"{network}: label: classes must be at least 1, got {label.classes}")
    return label.classes


class LabelEmbedding(nn.Module):
    """A learned vector for each class, and one more, the last, for "any class".

    Args:
        network: Name for messages.
        conditions: Of the data; without a label the network takes none, and nothing is added.
        width: Length of the vectors.

    Raises:
        ValueError: a condition that is no label; see `label_classes`.
    """

    def __init__(self, network: str, conditions: Conditions | None, width: int) -> None:
        super().__init__()
        self.network, self.classes, self.width = network, label_classes(network, conditions), width
        self.table = nn.Embedding(self.classes + 1, width) if self.classes is not None else None

    def forward(self, features: Tensor, label: Tensor | None) -> Tensor:
        """features + the embedding of the labels.

        Args:
            features: (B, width).
            label: Classes, int64 in [0, classes), (B,), or −1 for any class; None: any class for all.
        """
        if self.table is None:
            if label is not None:
                raise ValueError(f"{self.network}: got labels but was built without conditions: give it the data's")
            return features
        if label is None:
            label = torch.full((features.shape[0],), -1, device=features.device)
        embedded: Tensor = self.table(torch.where(label < 0, self.table.num_embeddings - 1, label))
        return features + embedded
