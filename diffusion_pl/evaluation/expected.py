"""Expected results of a configuration, and whether a result can be compared with them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from .results import Result

#: Metrics of `evaluate`: of single examples; then of samples, of images, points and fields.
OF_DATA = ("nll", "elbo", "crps", "spread")
OF_FIELDS = ("mean_error", "std_error", "skewness_error", "kurtosis_error", "marginals", "spectrum")
OF_FLOOR = ("rfid", "psnr", "ssim")  # of an autoencoder
METRICS = (*OF_DATA, "fid", "is", "kid", "energy", "mmd", "sliced", "precision", "recall", *OF_FLOOR, *OF_FIELDS)
#: Those of which a higher value is better, and those of which neither is.
HIGHER = ("is", "precision", "recall", "psnr", "ssim")
NEITHER = ("spread",)


@dataclass
class Band:
    """The expected range of a metric of `evaluate`, and how the metric must have been measured.

    Args:
        band: Lowest and highest value.
        num_samples: Number of samples; for nll and elbo, of examples of the data.
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

    def contains(self, value: float) -> bool:
        """Whether a value is within the range."""
        return self.band[0] <= value <= self.band[1]


def check_names(expected: Mapping[str, Band]) -> None:
    """Raise ValueError for a name that is no metric of `evaluate`."""
    unknown = next((name for name in expected if name not in METRICS), None)
    if unknown is not None:
        raise ValueError(f"expected: there is no metric {unknown!r}, only {', '.join(METRICS)}")


def incomparable(name: str, band: Band, result: Result) -> list[str]:
    """Why a result cannot be compared with its band, in words; empty if it can."""
    default = {"nll": "FlowLikelihood", "elbo": "ContinuousBound"}.get(name, "InceptionV3")
    pairs = {
        "samples": (result.count, band.num_samples),
        "split": (result.data["split"], band.split or ("test" if name in OF_DATA else "train")),
    }
    if result.measured_by is not None:  # points are measured as they are
        pairs["measured by"] = (result.measured_by, band.by or default)
    return [
        f"{what} {measured}, not {expected}" for what, (measured, expected) in pairs.items() if measured != expected
    ]
