"""Results: the value of a metric and everything it depends on, as stored in evaluation.json."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self

import numpy as np

from ..runtime.reading import Number, read_json, reading


@dataclass(frozen=True, kw_only=True)
class Result:
    """The value of a metric, and all that it depends on.

    Attributes:
        value: mean over the repeats.
        std: standard deviation over the repeats, n − 1; None of one.
        values: of each repeat.
        unit: "bits/dim", "nats/dim", or "" of a plain number.
        protocol: all that must be equal for two results to be comparable: how many samples, features, data, bound.
        model: what may differ between the models compared: checkpoint, weights, sampler, NFE; or the folder of images.
    """

    value: float
    std: float | None
    values: Sequence[float] = ()
    unit: str
    protocol: Mapping[str, Any]
    model: Mapping[str, Any]

    @classmethod
    def of(cls, values: Sequence[float], **rest: Any) -> Self:
        """The result of some repeats; `rest` are the other attributes."""
        std = float(np.std(values, ddof=1)) if len(values) > 1 else None
        return cls(value=float(np.mean(values)), std=std, values=[float(value) for value in values], **rest)

    @property
    def error(self) -> float | None:
        """What is known of the value's error: the standard deviation over repeats, if there are several."""
        return self.std

    @property
    def count(self) -> int:
        """How many samples or examples the value is of."""
        number: int = self.protocol["num_samples" if "num_samples" in self.protocol else "examples"]
        return number

    @property
    def counted(self) -> str:
        """What `count` counts: "samples" or "examples"."""
        return "samples" if "num_samples" in self.protocol else "examples"

    @property
    def data(self) -> Mapping[str, Any]:
        """The data that the model is measured on: {"data": class, "split", …}."""
        note: Mapping[str, Any] = self.protocol.get("reference") or self.protocol["data"]
        return note

    @property
    def measured_by(self) -> str | None:
        """Class of the extractor of features, of the likelihood or of the bound; None: points, taken as they are."""
        by = next((self.protocol[name] for name in ("estimator", "bound", "extractor") if name in self.protocol), None)
        return None if by is None else by["class"]

    @property
    def nfe(self) -> float | None:
        """Evaluations of the denoiser, of a sample or an example; None: of images that existed already."""
        number: float | None = self.model.get("nfe")
        return number

    def to_json(self) -> dict[str, Any]:
        """Plain values, as evaluation.json keeps them."""
        content = {part.name: getattr(self, part.name) for part in fields(self)}
        return {
            **{name: value for name, value in content.items() if name not in _LAST},
            **{n: content[n] for n in _LAST},
        }


@dataclass(frozen=True, kw_only=True)
class SampleResult(Result):
    """A metric of samples.

    Attributes:
        not_finite: how many samples were not finite, and were not counted.
        classes: mean over the repeats for each class, by its name; empty: not measured.
    """

    not_finite: int = 0
    classes: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain values, as evaluation.json keeps them."""
        content = super().to_json()
        if not self.classes:
            del content["classes"]
        return content


@dataclass(frozen=True, kw_only=True)
class FieldResult(SampleResult):
    """A metric of samples that are continuous fields.

    Attributes:
        channels: what the value is made of, by channel, such as the spectra {"k", "samples", "data"}.
    """

    channels: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ExampleResult(Result):
    """A mean over examples of data.

    Attributes:
        standard_error: over the examples; None of one.
    """

    standard_error: float | None = None

    @property
    def error(self) -> float | None:
        """What is known of the value's error: standard deviation over repeats, else standard error over examples."""
        return self.standard_error if self.std is None else self.std


@dataclass(frozen=True, kw_only=True)
class LikelihoodResult(ExampleResult):
    """The negative log-likelihood of data.

    Attributes:
        interval_95: lower and upper end; None of one example.
    """

    interval_95: Sequence[float] | None = None


@dataclass(frozen=True, kw_only=True)
class BoundResult(ExampleResult):
    """The variational bound of the negative log-likelihood of data.

    Attributes:
        parts: prior, diffusion and decoder, whose sum is the value.
        terms: those of the diffusion: {"t": times, "value": at each of them}.
    """

    parts: Mapping[str, float] = field(default_factory=dict)
    terms: Mapping[str, Sequence[float]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class EnsembleResult(ExampleResult):
    """A metric of ensembles of samples, each drawn under the conditions of an example.

    Attributes:
        channels: what the value is made of, by channel: {"crps"} or {"spread", "ranks"}.
        not_finite: how many examples had a sample that was not finite, and were not counted.
    """

    channels: Mapping[str, Any] = field(default_factory=dict)
    not_finite: int = 0


_LAST = ("protocol", "model")
_KIND = {
    "value": (float, int),  # also one that is not finite, of a model that diverges
    "unit": str,
    "std": (*Number, None),
    "protocol": {
        "num_samples?": int,
        "examples?": int,
        "data?": {"data": str, "split": str},
        "reference?": {"data": str, "split": str},
        "extractor?": (None, {"class": str}),
        "estimator?": {"class": str},
        "bound?": {"class": str},
        "ensemble?": int,
    },
    "model": {
        "checkpoint?": (str, None),
        "sha256": (str, None),
        "weights?": str,
        "nfe?": Number,
        "images?": str,
        "sampler?": (None, {"class": str}),
    },
    "standard_error?": (*Number, None),
    "not_finite?": int,
    "channels?": dict,
    "classes?": {"*": (float, int)},
}


def from_json(content: Mapping[str, Any]) -> Result:
    """The result that `Result.to_json` made these values of, of whatever version.

    Raises:
        ValueError: they do not say what the value is of.
    """
    protocol = content["protocol"]
    kind: type[Result]
    if {"num_samples", "reference"} <= protocol.keys():
        kind = FieldResult if "channels" in content else SampleResult
    elif {"examples", "data"} <= protocol.keys():
        kind = BoundResult if "bound" in protocol else EnsembleResult if "ensemble" in protocol else LikelihoodResult
    else:
        raise ValueError("neither samples and reference nor examples and data are given")
    return kind(**{part.name: content[part.name] for part in fields(kind) if part.name in content})


def read_results(path: Path) -> dict[str, Result]:
    """The results in an evaluation.json, by metric.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is another one, or damaged.
    """
    with reading(path, "evaluation.json of `evaluate`"):
        contents = read_json(path, {"figures": {"*": _KIND}})["figures"]
        results = {}
        for name, content in contents.items():
            try:
                results[name] = from_json(content)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
    return results
