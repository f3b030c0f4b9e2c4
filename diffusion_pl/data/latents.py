"""Latents of images, as the command `latents` stores them in a folder.

latents.json               what was encoded by what: data, autoencoder and its hash, statistics, conditions
autoencoder/               the autoencoder itself
train.npy val.npy test.npy moments, (n, views, 1 or 2, c, h, w): of the image, and of its mirror image if it was
                           asked for; mean and std, or the mean alone where std is 0
train.label.npy …          values of the conditions
original.pt                state of the data that were encoded
"""

from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..autoencoders import Autoencoder, open_autoencoder, weights_hash
from ..autoencoders.opening import trusted_class
from ..conditions import Condition, class_count, from_plain, to_plain
from .base import SPLITS, DataModule
from .latent_files import Drawn, Fixed, Rows, opened, read_record
from .loader import Batch, Loader
from .pixels import read_pixels, write_pixels
from .units import Latent, Levels

#: What a checkpoint keeps of latents.json.
KEPT = ("shape", "image_shape", "levels", "conditions", "class_counts", "mean", "std", "autoencoder", "data", "sha256")


class Latents(DataModule):
    """Latents that `python -m diffusion_pl latents` has stored; samples are decoded to images.

    Each visit of a training example draws z = mean + std · ε, of the image or its mirror image where both were
    encoded, from (seed, epoch, place in the epoch).  Validation draws the same ε every time.  Model units have zero
    mean and unit variance in every channel, over the training split.

    Reference: Rombach et al., arXiv 2112.10752, Sec. 3 and App. G.

    Args:
        path: Folder that `latents` wrote.
        autoencoder: Folder or hub name of the autoencoder, if it is not in that folder.
        batch_size: Latents per batch, over all processes.
        repeats: Passes over the training latents that make one epoch; None: as many as make about 100 batches.
        seed: Of the order, the noise and the mirror images.
        workers: Processes that read ahead, at least 0.
    """

    def __init__(
        self,
        path: str,
        *,
        autoencoder: str | None = None,
        batch_size: int = 128,
        repeats: int | None = None,
        seed: int = 0,
        workers: int = 0,
    ) -> None:
        super().__init__(str(path), batch_size=batch_size, repeats=repeats, seed=seed)
        if workers < 0:
            raise ValueError(f"Latents: workers must be at least 0, got {workers}")
        self.path, self.autoencoder, self.workers = Path(path).expanduser(), autoencoder, workers
        self._record: dict[str, Any] | None = None

    @property
    def record(self) -> dict[str, Any]:
        """What is known of the latents: of the checkpoint, or of latents.json."""
        if self._record is None:
            super().setup()  # refuses what nobody asked for
            self._record = read_record(self.path)
        return self._record

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.record["shape"])

    @property
    def image_shape(self) -> tuple[int, ...]:
        return tuple(self.record["image_shape"])

    @property
    def conditions(self) -> dict[str, Condition]:
        return from_plain(self.record["conditions"])

    @property
    def readers(self) -> dict[str, Callable[[Any], Tensor]]:
        texts = [name for name, condition in self.conditions.items() if condition.kind == "sequence"]
        return {name: partial(self._read_text, name) for name in texts}

    def _read_text(self, name: str, given: Any) -> Tensor:
        """The embeddings of a text, by the encoder of the images' captions."""
        return self.originals.readers[name](given)

    @property
    def class_counts(self) -> list[int] | None:
        counts: list[int] | None = self.record["class_counts"]
        return counts

    @property
    def units(self) -> Latent:
        mean, std = (torch.tensor(self.record[name], dtype=torch.float64)[:, None, None] for name in ("mean", "std"))
        return Latent(lambda: self.codec, mean, std, Levels(self.record["levels"]))

    @cached_property
    def codec(self) -> Autoencoder:
        """The autoencoder, whose weights are those that the latents were made with.

        Raises:
            ValueError: it is missing, or has other weights.
        """
        note = self.record["autoencoder"]
        places = [self.path / "autoencoder", Path(note["name"])]
        there = next((str(place) for place in places if place.is_dir()), None)
        name = self.autoencoder or there
        if name is None:
            raise ValueError(
                f"{self.source}: the autoencoder is missing ({places[0]}). Fix: give --data.autoencoder FOLDER, "
                f"the one that was {note['name']}"
            )
        codec = open_autoencoder(name)
        if (sha256 := weights_hash(codec)) != note["sha256"]:
            raise ValueError(
                f"{self.source}: the autoencoder {name} has other weights ({sha256[:12]}) than the one that made the "
                f"latents ({note['sha256'][:12]}, {note['name']}). Fix: give that one as --data.autoencoder"
            )
        return codec

    @cached_property
    def originals(self) -> DataModule:
        """The data that were encoded, split as they were then; not read yet."""
        spec = self.record["data"]
        options = {name: value for name, value in spec["init_args"].items() if name != "download"}  # nothing is fetched
        data: DataModule = trusted_class(spec["class_path"])(**options)
        if (self.path / "original.pt").is_file():
            data.load_state_dict(torch.load(self.path / "original.pt", weights_only=True))
        return data

    def setup(self, stage: str | None = None) -> None:
        """Open the files.

        Raises:
            FileNotFoundError: they are missing.
            ValueError: they are damaged, or not the ones that the checkpoint was trained on.
        """
        if self._splits is not None or stage == "predict":
            return
        super().setup(stage)
        current = read_record(self.path)
        self._same(current, self.record)
        self._splits = tuple(opened(self.path, split, current) for split in SPLITS)

    def rows(self, split: str) -> Rows:
        """The moments of a split as they are stored."""
        if self._splits is None:
            raise RuntimeError(f"{self.source}: the data are not set up: call setup() first")
        rows: Rows = self._splits[SPLITS.index(split)]
        return rows

    def part(self, split: str) -> Fixed:
        return Fixed(self.rows(split), self.seed)

    def stored(self, indices: Tensor) -> Batch:
        return self.rows("train").__getitems__(indices)

    def passes(self) -> int:
        return self.repeats or max(1, round(100 * self.batch_size / len(self.rows("train"))))

    def train_dataloader(self) -> Loader:
        return self.loader(
            self.rows("train"),
            self.batch_size,
            train=True,
            repeats=self.passes(),
            seed=self.seed,
            augmentation=Drawn([name for name, c in self.conditions.items() if c.kind == "image"]),
            workers=self.workers,
        )

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Scale to model units, on the device."""
        return {**batch, "x": self.units.scale(batch["x"])} if "x" in batch else batch

    def second_moment(self) -> float:
        """Mean of x_0² per dimension over up to 10,000 training examples."""
        return float(self.training_examples(10_000).square().mean(dtype=torch.float64))

    def training_examples(self, most: int) -> Tensor:
        train = self.part("train")
        some = torch.arange(0, len(train), -(-len(train) // most))
        return self.units.scale(train.__getitems__(some)["x"])

    def read(self, path: Path) -> Tensor:
        """Images of a file or folder, encoded: the mean of their latents, (N, c, h, w)."""
        units = self.units
        return units.encode_scaled(torch.stack(read_pixels(path, self.image_shape, units.pixels)))

    def array(self, x: Tensor) -> NDArray[Any]:
        units = self.units
        exact: NDArray[Any] = (units.to_uint8(x) if units.pixels.levels <= 256 else units.decode(x)).numpy()
        return exact

    def write(self, x: Tensor, folder: Path) -> list[Path]:
        """A lossless PNG of each decoded sample, or samples.npy where PNG has no such images."""
        return write_pixels(self.array(x), self.units.pixels, folder)

    def state_dict(self) -> dict[str, Any]:
        state = {name: self.record[name] for name in KEPT}
        return {**state, "turns": self.turns} if self.turns else state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what a checkpoint knows of its latents; files that are open must be the same."""
        if not state_dict:
            return
        if self._splits is not None:
            self._same(self.record, state_dict)
        self._record = {name: state_dict[name] for name in KEPT}
        self._turns = {name: torch.as_tensor(value) for name, value in state_dict.get("turns", {}).items()}

    def check_state(self, state_dict: dict[str, Any]) -> None:
        if state_dict:
            self._same(self.record, state_dict)

    def _same(self, current: dict[str, Any], saved: dict[str, Any]) -> None:
        """Raise ValueError if the latents of a folder are not a checkpoint's."""
        pairs = {
            "autoencoder": (saved["autoencoder"]["sha256"][:12], current["autoencoder"]["sha256"][:12]),
            "shape": (saved["shape"], current["shape"]),
            "images": (saved["image_shape"], current["image_shape"]),
            "classes": tuple(class_count(from_plain(record["conditions"])) for record in (saved, current)),
            "mean": (_rounded(saved["mean"]), _rounded(current["mean"])),
            "std": (_rounded(saved["std"]), _rounded(current["std"])),
        }
        for name, (before, now) in pairs.items():
            if before != now:
                raise ValueError(
                    f"{self.source}: {name} of the latents differ: {now}, in the checkpoint {before}. Fix: give the "
                    "latents it was trained on as --data.path, or start a new run"
                )
        names = [to_plain(from_plain(record["conditions"])) for record in (saved, current)]
        if names[0] != names[1]:
            raise ValueError(f"{self.source}: the conditions differ from the checkpoint's. Fix: start a new run")


def _rounded(values: list[float]) -> list[float]:
    return [float(np.float32(value)) for value in values]
