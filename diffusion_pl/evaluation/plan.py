"""Plan of an evaluation: metrics and protocol."""

from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from ..likelihood import ChainBound, ContinuousBound, FlowLikelihood
from .classes import LABELS
from .expected import OF_DATA
from .samples import DEFAULTS, NAMES


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is measured, and how.

    Args:
        metrics: of images fid, is, kid, prc (precision and recall), sfid, cmmd; of points energy, mmd, sliced, prc; of
            continuous fields moments, marginals, spectrum, energy; of all nll and elbo, and crps and spread of a
            conditional model; None: all but the last four, sfid and cmmd.
        num_samples: in each repeat, at least 2.
        repeats: sets of other samples (and of other noise of the likelihood), for a mean and a standard deviation.
        seed: of samples and noise.
        extractor: of features of images, see diffusion_pl.metrics; None: InceptionV3.
        reference: reference.npz of another evaluation, or statistics of another package (`foreign`), in place of the
            data; for fid, is and, where the file has what they need, the others.
        trust_pickle: also read a reference that is a pickle, which runs whatever code the file holds.
        split: of the data that samples are measured against.
        likelihood: how nll is integrated.
        likelihood_split: of the data, for nll, elbo, crps and spread.
        likelihood_examples: the first so many of that split; None: all.
        dequantizations: noises for each example of quantized data.
        ensemble: samples of each example's conditions, for crps and spread; at least 2.
        bound: of elbo; a ChainBound has the steps of the schedule, of one without steps 1,000.
        labels: how samples of a model with classes get theirs: "balanced", all classes in turn, or "drawn" at random.
        per_class: also the metrics of samples of each class against its examples.
        batch_size: samples between two savings.
    """

    metrics: tuple[str, ...] | None = None
    num_samples: int = 1000
    repeats: int = 1
    seed: int = 0
    extractor: nn.Module | None = None
    reference: Path | None = None
    trust_pickle: bool = False
    split: str = "train"
    likelihood: FlowLikelihood = field(default_factory=FlowLikelihood)
    likelihood_split: str = "test"
    likelihood_examples: int | None = None
    dequantizations: int = 1
    ensemble: int = 16
    bound: ChainBound | ContinuousBound = field(default_factory=ContinuousBound)
    labels: str = "balanced"
    per_class: bool = False
    batch_size: int = 250

    def __post_init__(self) -> None:
        least = {"num_samples": 2, "repeats": 1, "dequantizations": 1, "batch_size": 1}
        least |= {"likelihood_examples": 1, "ensemble": 2}
        for name, smallest in least.items():
            value = getattr(self, name)
            if value is not None and value < smallest:
                raise ValueError(f"{name} must be at least {smallest}, got {value}")
        if self.labels not in LABELS:
            raise ValueError(f"labels must be {' or '.join(LABELS)}, got {self.labels}")
        if self.per_class and self.reference is not None:
            raise ValueError(
                "per_class compares with the examples of each class, and a reference has none. Fix: remove it"
            )
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}")

    def names(self, kind: str) -> tuple[list[str], list[str]]:
        """The metrics of samples and those of data, for a kind of `samples.NAMES`.

        Raises:
            ValueError: there is no such metric.
        """
        known = [*NAMES[kind], *OF_DATA]
        names = list(DEFAULTS[kind]) if self.metrics is None else list(dict.fromkeys(self.metrics))
        unknown = next((name for name in names if name not in known), None)
        if unknown is not None or not names:
            raise ValueError(f"there is no metric {unknown!r} of {kind}, only {', '.join(known)}")
        of_samples = [name for name in names if name not in OF_DATA]
        return of_samples, [name for name in names if name in OF_DATA]
