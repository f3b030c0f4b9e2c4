"""What a configuration expects of its run, and whether an evaluation bears it out."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from .report import Figure

#: Figures of `evaluate`: of data and of samples, of pictures and of points.
OF_DATA = ("nll", "elbo")
FIGURES = (*OF_DATA, "fid", "is", "kid", "energy", "mmd", "sliced", "precision", "recall")


@dataclass
class Band:
    """Where a figure of `evaluate` is expected to lie, and how it must have been measured.

    Args:
        band: Lowest and highest value.
        num_samples: That the figure is of; for nll and elbo, examples of the data.
        source: Who measured it, in words.
        split: Of the data; None: train, or test for nll and elbo.
        by: Class of what measures it: the extractor of features, for nll the likelihood, for elbo the bound; None:
            `evaluate`'s own, InceptionV3, FlowLikelihood, ContinuousBound.
    """

    band: tuple[float, float]
    num_samples: int
    source: str
    split: str | None = None
    by: str | None = None

    def __post_init__(self) -> None:
        lower, upper = self.band
        if not -math.inf < lower < upper < math.inf:
            raise ValueError(f"expected: band must be two finite numbers, the lower first, got {list(self.band)}")
        if self.num_samples < 1:
            raise ValueError(f"expected: num_samples must be at least 1, got {self.num_samples}")


def check_names(expected: Mapping[str, Band]) -> None:
    """Raise ValueError for a name that is no figure of `evaluate`."""
    wrong = next((name for name in expected if name not in FIGURES), None)
    if wrong is not None:
        raise ValueError(f"expected: there is no figure {wrong!r}, only {', '.join(FIGURES)}")


def incomparable(name: str, band: Band, figure: Figure) -> list[str]:
    """Why a figure cannot be held against its band, in words; empty if it can."""
    protocol, of_data = figure["protocol"], name in OF_DATA
    data = protocol["data"] if of_data else protocol["reference"]
    judge = protocol.get({"nll": "estimator", "elbo": "bound"}.get(name, "extractor"))
    default = {"nll": "FlowLikelihood", "elbo": "ContinuousBound"}.get(name, "InceptionV3")
    pairs = {
        "samples": (protocol["examples" if of_data else "num_samples"], band.num_samples),
        "split": (data["split"], band.split or ("test" if of_data else "train")),
    }
    if judge is not None:  # points are measured as they are
        pairs["measured by"] = (judge["class"], band.by or default)
    return [f"{what} {ours}, not {wanted}" for what, (ours, wanted) in pairs.items() if ours != wanted]
