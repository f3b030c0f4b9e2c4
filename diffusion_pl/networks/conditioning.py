"""Conditions of networks, embedded by their kind.

    label      a learned vector for each class           added to the features of the noise level
    vector     linear, SiLU, linear of the values        added to the features of the noise level
    image      as it is, and a mask of what is given     concatenated to x
    sequence   linear, SiLU, linear of each token        attended to (`cross_attention`)

What is not given (−1 or NaN, see `conditions.null`) has a learned embedding: a class, a vector, a token.  In an image
it is 0, and so is the mask.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..conditions import KINDS, Conditions, class_count
from .cross_attention import Context
from .layers import by


def check_kinds(network: str, conditions: Conditions, kinds: tuple[str, ...], label_only: bool = False) -> None:
    """Raise ValueError for a condition that a network does not embed.

    Args:
        network: Name for messages.
        conditions: Of the data.
        kinds: Which kinds it embeds.  A condition that is named label is one.
        label_only: Whether it embeds the condition named label and no other.
    """
    only = "one that is named label and is a class number" if label_only else f"those of kind {', '.join(kinds)}"
    for name, condition in conditions.items():
        misnamed = name == "label" and condition.kind != "label"
        if condition.kind not in kinds or misnamed or (label_only and name != "label"):
            only = "a class number under the name label" if misnamed else only
            raise ValueError(
                f"{network}: cannot embed the condition {name} (a {condition.kind} of shape {condition.shape}), only "
                f"{only}. Fix: take another network, or data without it"
            )
        if condition.kind == "label" and (condition.classes is None or condition.classes < 1):
            raise ValueError(f"{network}: {name}: classes must be at least 1, got {condition.classes}")


def label_classes(network: str, conditions: Conditions | None) -> int | None:
    """Number of classes of a network that embeds a label and nothing else; None: it is unconditional.

    Args:
        network: Name for messages.
        conditions: Of the data; None: none.

    Raises:
        ValueError: a condition of another kind or name, or a label without classes.
    """
    check_kinds(network, conditions or {}, ("label",), label_only=True)
    return class_count(conditions or {})


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
    classes = label_classes(network, {"label": conditions["label"]})
    assert classes is not None
    return classes


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


class ValueEmbedding(nn.Module):
    """A small MLP of a vector or of the tokens of a sequence, and a learned embedding in place of what is not given.

    Args:
        size: D, values of a vector or token, of order one.
        width: Length of the embedding.
    """

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(size, width), nn.SiLU(), nn.Linear(width, width))
        self.null = nn.Parameter(torch.zeros(width))

    def forward(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """The embedding, and what is given.

        Args:
            value: (*, D); one that holds NaN is not given.

        Returns:
            (*, width), the null embedding where the value is not given; and (*), bool.
        """
        given = ~value.isnan().any(-1)
        # No branch: every parameter has a gradient in every step, on every process.
        embedded: Tensor = self.mlp(value.where(given[..., None], 0))
        return embedded.where(given[..., None], self.null.to(embedded.dtype)), given


class Conditioning(nn.Module):
    """All conditions of a network except the one named label, which `LabelEmbedding` embeds.

    A condition that a call does not give is not given for any example.

    Args:
        network: Name for messages.
        shape: Shape of one example; images have its sizes.
        conditions: Of the data; None: none.
        width: Length of the features to which labels and vectors are added, and of tokens.
        kinds: Which kinds the network embeds.

    Attributes:
        label: The condition named label, {} if there is none.
        channels: How many channels images add to x.
        added: Whether there is a label or vector.
        attended: Whether there is a sequence.

    Raises:
        ValueError: a condition of another kind, or an image of other sizes than x.
    """

    def __init__(
        self,
        network: str,
        shape: tuple[int, ...],
        conditions: Conditions | None,
        width: int,
        kinds: tuple[str, ...] = KINDS,
    ) -> None:
        super().__init__()
        check_kinds(network, conditions or {}, kinds)
        self.network = network
        self.label = {name: c for name, c in (conditions or {}).items() if name == "label"}
        self.conditions = {name: c for name, c in (conditions or {}).items() if name != "label"}
        self.embeddings = nn.ModuleDict()  # by kind and name: some names, such as keys, are not possible there
        self.channels = 0
        for name, condition in self.conditions.items():
            if not name.isidentifier():
                raise ValueError(f"{network}: the name of a condition must be letters, digits and _, got {name!r}")
            if condition.kind == "label":
                self.embeddings[f"label_{name}"] = LabelEmbedding(network, {"label": condition}, width)
            elif condition.kind == "image":
                self.channels += condition.shape[0] + 1
                if condition.shape[1:] != tuple(shape[1:]):
                    raise ValueError(
                        f"{network}: the condition {name} is an image of size {by(condition.shape[1:])}, expected "
                        f"that of the data, {by(shape[1:])}. Fix: resize it"
                    )
            else:
                self.embeddings[f"{condition.kind}_{name}"] = ValueEmbedding(condition.shape[-1], width)
        kinds_here = {condition.kind for condition in self.conditions.values()}
        self.added, self.attended = bool(kinds_here & {"label", "vector"}), "sequence" in kinds_here

    def check(self, cond: Mapping[str, Tensor], x: Tensor) -> dict[str, Tensor]:
        """The values of all conditions, with NaN or −1 for those that cond lacks.

        Args:
            cond: Values by name, (B, *shape) each; a sequence may have any length.
            x: (B, C, *sizes).

        Raises:
            ValueError: a condition that the network was not built for, or a value of another shape.
        """
        for name in cond:
            if name not in self.conditions:
                known = ", ".join(self.conditions) or "none but label"
                raise ValueError(
                    f"{self.network} takes no {name}, its conditions are: {known}. Fix: take another network, or data "
                    "without it"
                )
        values = {}
        for name, condition in self.conditions.items():
            shape: tuple[Any, ...] = (x.shape[0], *condition.shape)
            if condition.kind == "image":
                shape = (*shape[:2], *x.shape[2:])
            if name not in cond:
                null = x.new_full(shape, float("nan"))
                values[name] = null.new_full(shape, -1, dtype=torch.int64) if condition.kind == "label" else null
                continue
            value = values[name] = cond[name]
            if condition.kind == "sequence" and value.ndim == 3:
                shape = (shape[0], value.shape[1], shape[2])
            if value.ndim != len(shape) or value.shape[1:] != shape[1:]:
                raise ValueError(
                    f"{self.network}: the condition {name} must be of shape {tuple(shape)}, got {tuple(value.shape)}"
                )
        return values

    def _of(self, kind: str, values: Mapping[str, Tensor]) -> list[tuple[nn.Module, Tensor]]:
        names = [name for name, condition in self.conditions.items() if condition.kind == kind]
        return [(self.embeddings[f"{kind}_{name}"], values[name]) for name in names]

    def add(self, features: Tensor, values: Mapping[str, Tensor]) -> Tensor:
        """features + the embeddings of labels and vectors. features: (B, width)."""
        for table, label in self._of("label", values):
            features = table(features, label)
        for embedding, vector in self._of("vector", values):
            features = features + embedding(vector)[0]
        return features

    def concatenate(self, x: Tensor, values: Mapping[str, Tensor]) -> Tensor:
        """x, the images and masks of where they are given: (B, C, *sizes) -> (B, C + channels, *sizes)."""
        parts = [x]
        for name, condition in self.conditions.items():
            if condition.kind == "image":
                given = ~values[name].isnan().any(1, keepdim=True)
                parts += [values[name].where(given, 0).to(x.dtype), given.to(x.dtype)]
        return torch.cat(parts, 1) if len(parts) > 1 else x

    def context(self, values: Mapping[str, Tensor]) -> Context | None:
        """The tokens of all sequences, each followed by its null token, for a sequence of which no token is given."""
        tokens, given = [], []
        for embedding, sequence in self._of("sequence", values):
            assert isinstance(embedding, ValueEmbedding)
            embedded, here = embedding(sequence)
            null = embedding.null.to(embedded.dtype).expand(embedded.shape[0], 1, -1)
            tokens += [embedded, null]
            given += [here, ~here.any(1, keepdim=True)]
        return Context(torch.cat(tokens, 1), torch.cat(given, 1)) if tokens else None
