"""Expected results of a configuration, and whether a result can be compared with them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..runtime.run_card import CARD, read_card
from .results import Result

#: Metrics of `evaluate`: of single examples; then of samples, of images, points and fields.
OF_DATA = ("nll", "elbo", "crps", "spread")
OF_FIELDS = ("mean_error", "std_error", "skewness_error", "kurtosis_error", "marginals", "spectrum")
OF_FLOOR = ("rfid", "psnr", "ssim")  # of an autoencoder
OF_IMAGES = ("fid", "sfid", "is", "kid", "cmmd", "precision", "recall")
METRICS = (*OF_DATA, *OF_IMAGES, "energy", "mmd", "sliced", *OF_FLOOR, *OF_FIELDS)
#: Those of which a higher value is better, and those of which neither is.
HIGHER = ("is", "precision", "recall", "psnr", "ssim")
NEITHER = ("spread",)


@dataclass
class Band:
    """The expected range of a metric of `evaluate`, and how the metric must have been measured.

    Args:
        band: Lowest and highest value; null: not known, for the reason that `source` gives.
        num_samples: Number of samples; for nll and elbo, of examples of the data.
        source: Who measured it, in words.
        split: Of the data; None: train, or test for nll and elbo; foreign: a reference of another package.
        by: Class of what measures it: the extractor of features, for nll the likelihood, for elbo the bound; None:
            `evaluate`'s own, InceptionV3, FlowLikelihood, ContinuousBound.
        paper: Value that the paper or its code gives; None: none.
    """

    band: tuple[float, float] | None
    num_samples: int
    source: str
    split: str | None = None
    by: str | None = None
    paper: float | None = None

    def __post_init__(self) -> None:
        lower, upper = self.band or (0, 1)
        if not -math.inf < lower < upper < math.inf:
            raise ValueError(f"expected: band must be two finite numbers, the lower first, got [{lower}, {upper}]")
        if self.num_samples < 1:
            raise ValueError(f"expected: num_samples must be at least 1, got {self.num_samples}")

    def contains(self, value: float) -> bool:
        """Whether a value is within the range."""
        return self.band is not None and self.band[0] <= value <= self.band[1]


def expected_of(checkpoint: Path) -> dict[str, Band]:
    """What the configuration of the run expects that a checkpoint, or the folder of a run, is of; {} if not known."""
    folders = (checkpoint, *checkpoint.absolute().parents[:2]) if checkpoint.exists() else ()
    run = next((folder for folder in folders if (folder / CARD).is_file()), None)
    if run is None:
        return {}
    try:
        section = read_card(run).get("config", {}).get("expected") or {}
        return {name: Band(**band) for name, band in section.items()}
    except (OSError, ValueError, TypeError):  # damaged, or of a later version
        return {}


def paper_columns(name: str, result: Result | None, bands: Mapping[str, Band]) -> dict[str, Any]:
    """Columns of a table: the paper's value, and whether the result was measured as it was; {} without bands."""
    if not any(band.paper is not None for band in bands.values()):
        return {}
    band = bands.get(name)
    if band is None or band.paper is None or result is None:
        return {"paper": None, "as in the paper": None}
    return {"paper": band.paper, "as in the paper": "; ".join(incomparable(name, band, result)) or "yes"}


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
