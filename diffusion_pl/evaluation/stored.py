"""Evaluation of images that exist already: a plan, carried out on a folder, gives results by the protocol of `run`."""

from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ..data import DataModule
from ..data.stored import StoredImages, read_stored
from ..metrics.extractors import identity
from ..runtime.devices import device_of
from .features import Features, hash_of, note_of
from .outcome import Results, extractor_on, measure
from .plan import Plan
from .reference import Reference, read_reference
from .samples import check_features


class StoredEvaluation:
    """A plan for the images of a folder, checked before anything is measured.

    Args:
        images: the folder; its images are the samples.
        data: what they are compared with, read (`setup`) here; None: the plan has a reference.
        plan: what is measured, of samples only.
        num_samples: the first so many in the order of their paths; None: all.
        accelerator: see `Evaluation`.

    Raises:
        ValueError: the plan does not suit a folder, the images are of another shape than the data or the reference, or
            they are too few.
        FileNotFoundError: the folder, the data or the reference are missing.
    """

    def __init__(
        self, images: Path, data: DataModule | None, plan: Plan, num_samples: int | None, accelerator: str = "auto"
    ) -> None:
        if data is None and plan.reference is None:
            raise ValueError("--images needs a reference. Fix: add --data CLASS and its options, or --reference FILE")
        if data is not None and not data.is_image:
            raise ValueError(f"--data {type(data).__name__} has no images to compare those of --images with")
        data = None if data is None else data.originals  # of latents the images
        self.names, of_data = plan.names("images")
        if of_data:
            raise ValueError(f"{of_data[0]} is of a model; images have {', '.join(plan.names('images')[0])}")
        if plan.per_class:
            raise ValueError("per_class is for samples of a model, whose classes are known. Fix: leave it out")
        if plan.repeats != 1:
            raise ValueError(f"repeats must be 1 with --images, got {plan.repeats}")
        self.plan, self.data, self.folder = plan, data, images
        self.stored: StoredImages = read_stored(images)
        self.count = len(self.stored) if num_samples is None else num_samples
        if not 2 <= self.count <= len(self.stored):
            raise ValueError(f"{images} has {len(self.stored)} images, expected at least {max(2, self.count)}")
        if data is not None and data.shape != self.stored.shape:
            here, there = _size(self.stored.shape), _size(data.shape)
            raise ValueError(f"{images} has images of {here}, --data {type(data).__name__} of {there}: expected equal")
        extractor = extractor_on(plan, device_of(accelerator))
        self.features, self.extractor = Features(self.stored.shape, self.stored.units, extractor), identity(extractor)
        check_features(self.names, self.features)
        self.against, self.made_with = self._against({"extractor": self.extractor, "shape": list(self.stored.shape)})
        batches = self.stored.batches(self.count, 500)
        self.model = {"images": str(images), "sha256": hash_of(map(self.stored.units.to_uint8, batches))[1]}

    def _against(self, made_with: dict[str, Any]) -> tuple[DataModule | Reference, dict[str, Any]]:
        """What the images are compared with, and what it is made with."""
        data, plan = self.data, self.plan
        if data is not None:
            made_with = {**made_with, "levels": data.units.levels}
        if plan.reference is not None:
            reference = read_reference(plan.reference, made_with, self.features, self.names, plan.trust_pickle)
            return reference, {"levels": reference.note.pop("levels", None), **made_with}
        assert data is not None
        data.prepare_data()
        data.setup("fit")
        next(data.batches(plan.split, 1))  # an empty split is an error now
        return data, made_with

    @property
    def call(self) -> dict[str, Any]:
        """Everything that the results depend on, as plain values."""
        return {
            **self.model,
            "metrics": self.names,
            "num_samples": self.count,
            "extractor": self.extractor,
            "reference": self._note(),
        }

    def _note(self) -> dict[str, Any]:
        """What identifies the reference."""
        return self.against.note if isinstance(self.against, Reference) else note_of(self.against, self.plan.split)

    def run(self) -> Results:
        """Take the features of all images, and measure them."""
        size = 64
        batches = self.stored.batches(self.count, size)
        steps = tqdm(batches, f"features of {self.folder}", -(-self.count // size), delay=2, dynamic_ncols=True)
        rows = np.concatenate([self.features(x).numpy() for x in steps])[None]
        split = self.plan.split
        metrics, made = measure(self.names, rows, self.features, self.against, split, self.made_with, self.model)
        return Results(metrics, made, self.made_with)


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
