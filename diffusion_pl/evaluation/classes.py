"""Labels of samples, balanced or drawn, and metrics of each class."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..conditions import class_names
from ..data import DataModule
from ..metrics.generation import OF_SAMPLES
from ..pipeline import Pipeline
from .features import Features
from .samples import keeps_rows, scores

#: How samples get their labels.
LABELS = ("balanced", "drawn")
#: Samples of a class, or examples, of which nothing is measured: precision and recall need more than 3 neighbours.
FEWEST = 3


def with_labels(pipeline: Pipeline, labels: str, count: int, seed: int) -> tuple[Pipeline, dict[str, str]]:
    """The pipeline with labels for so many samples, and how they get them, for the record.

    Args:
        pipeline: of a checkpoint.
        labels: "balanced": all classes in turn, as many samples of each; "drawn": each label at random, all classes
            alike, as by training's sampling scripts.  FID is a little lower for balanced ones.
        count: number of samples.
        seed: of the draws.

    Raises:
        ValueError: labels are drawn for a model that has none, or has other conditions too, which come with labels of
            their own.
    """
    own = "label" in pipeline.conditions and "label" not in pipeline.cond
    others = [name for name in pipeline.conditions if name != "label" and name not in pipeline.cond]
    if labels == "balanced":
        return pipeline, {"labels": "balanced"} if own and not others else {}
    if not own or others:
        why = "the model has none to draw" if not own else f"the model has {', '.join(others)} too, of examples"
        raise ValueError(f"labels drawn: {why}. Fix: give --labels balanced")
    classes = torch.tensor(pipeline.classes())
    drawn = classes[torch.randint(len(classes), (count,), generator=torch.Generator().manual_seed(seed))]
    return pipeline.with_turns({**pipeline.turns, "label": drawn}), {"labels": "drawn"}


@dataclass(frozen=True)
class Classes:
    """Classes of samples and of the data that they are compared with.

    Attributes:
        samples: class of each sample, (repeats, N).
        data: class of each example, (M,).
        names: of the classes.
    """

    samples: NDArray[np.int64]
    data: NDArray[np.int64]
    names: Sequence[str]

    @classmethod
    def of(cls, pipeline: Pipeline, data: DataModule, split: str, shape: tuple[int, int]) -> "Classes":
        """Classes of samples in so many repeats, of so many samples that are drawn for each, and of a split.

        Raises:
            ValueError: the model or the data have no labels.
        """
        if "label" not in pipeline.conditions or "label" not in data.conditions:
            which = "data" if "label" in pipeline.conditions else "model"
            raise ValueError(f"per_class: the {which} has no labels. Fix: leave --per_class out")
        of_samples = pipeline.values(range(shape[0] * shape[1]))["label"].cpu().numpy().reshape(shape)
        of_data = np.concatenate([batch["label"].cpu().numpy() for batch in data.batches(split, 500)])
        count = pipeline.conditions["label"].classes or 0
        return cls(of_samples, of_data, class_names(pipeline.conditions) or [str(k) for k in range(count)])

    def scores(
        self, names: Sequence[str], rows: NDArray[Any], reference: NDArray[Any], features: Features
    ) -> dict[str, dict[str, float]]:
        """{metric: {class: mean over the repeats}} of all classes that have more than 3 samples and examples.

        Args:
            names: of the metrics; those that need no reference have no value by class.
            rows: of the samples, (repeats, N, F + K + S).
            reference: rows of the data, (M, F + K + S).
            features: of which the rows are.
        """
        compared = [name for name in names if name not in OF_SAMPLES]
        keep, values = keeps_rows(compared), dict[str, dict[str, list[float]]]()
        for k, name in enumerate(self.names if compared else ()):
            real = np.asarray(reference[self.data == k])
            made = [some[labels[: len(some)] == k] for some, labels in zip(rows, self.samples, strict=True)]
            if min(len(real), *map(len, made)) <= FEWEST:
                continue
            statistics = features.statistics(real, keep)
            for some in made:
                for metric, score in scores(compared, features.statistics(some, keep), statistics, features).items():
                    values.setdefault(metric, {}).setdefault(name, []).append(float(score["value"]))
        return {metric: {name: float(np.mean(v)) for name, v in each.items()} for metric, each in values.items()}
