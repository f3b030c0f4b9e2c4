"""Latents of images, as the command `latents` stores them in a folder.

latents.json               what is encoded by what: data, autoencoder and its hash, statistics, conditions
autoencoder/               the autoencoder itself
original.pt                state of the data that are encoded
train.npy val.npy test.npy moments, (n, views, 1 or 2, c, h, w): of the image, and of its mirror image if it was
                           asked for; mean and std, or the mean alone where std is 0
train.label.npy …          values of the conditions

With `--online` there are no arrays: training encodes the images.
"""

from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from ..autoencoders import Autoencoder, open_autoencoder, weights_hash
from ..autoencoders.opening import trusted_class
from ..conditions import Condition, from_plain
from .base import SPLITS, DataModule
from .images import Format, ImageFormat
from .latent_draws import Drawn, Fixed, LatentSource
from .latent_files import opened
from .latent_online import Online
from .latent_record import KEPT, OPTIONAL, check_same, read_record
from .loader import Batch, Loader
from .pixels import write_pixels
from .units import Latent, Levels

_TOGETHER = 256  # examples that are read, or encoded, at a time


class Latents(DataModule):
    """Latents of a folder that `python -m diffusion_pl latents` wrote; samples are decoded to images.

    Each visit of a training example draws z = mean + std · ε, of the image or its mirror image where both were
    asked for, from (seed, epoch, place in the epoch).  Validation draws the same ε every time.  Model units have zero
    mean and unit variance in every channel, over the training split, or are multiples of the latents, as `latents
    --scale` was given.  Of a folder of `latents --online` the images are
    read, and encoded on the device of the run, without gradients.

    Reference: Rombach et al., arXiv 2112.10752, Sec. 3 and App. G.

    Args:
        path: Folder that `latents` wrote.
        autoencoder: Folder or hub name of the autoencoder, if it is not in that folder.
        images: Where the images are, a folder or file, if they were moved since; None: where `latents` read them.
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
        images: str | None = None,
        batch_size: int = 128,
        repeats: int | None = None,
        seed: int = 0,
        workers: int = 0,
    ) -> None:
        super().__init__(str(path), batch_size=batch_size, repeats=repeats, seed=seed)
        if workers < 0:
            raise ValueError(f"Latents: workers must be at least 0, got {workers}")
        self.path, self.autoencoder, self.workers = Path(path).expanduser(), autoencoder, workers
        self.images = images
        self._device: torch.device | None = None
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
        return codec.to(self.device)

    @property
    def device(self) -> torch.device:
        """Where the autoencoder begins: given by `to`, else that of the trainer, else the CPU."""
        if self._device is None and self.trainer is not None:
            return self.trainer.strategy.root_device
        return self._device or torch.device("cpu")

    def to(self, device: torch.device) -> None:
        self._device = device
        if "codec" in self.__dict__:  # it was opened
            self.codec.to(device)

    @cached_property
    def originals(self) -> DataModule:
        """The data that were encoded, split as they were then; not read yet.

        Raises:
            ValueError: they are in no folder, and `images` gives one.
        """
        spec = self.record["data"]
        options = {name: value for name, value in spec["init_args"].items() if name != "download"}  # nothing is fetched
        if self.images is not None:
            place = next((name for name in DataModule.paths if name in options), None)
            if place is None:
                name = spec["class_path"].rpartition(".")[2]
                raise ValueError(f"--data.images: {name} are in no folder. Fix: remove the option")
            options[place] = self.images
        data: DataModule = trusted_class(spec["class_path"])(**options)
        if (self.path / "original.pt").is_file():
            data.load_state_dict(torch.load(self.path / "original.pt", weights_only=True))
        return data

    def prepare_data(self) -> None:
        """Prepare images that are encoded in training, such as their captions."""
        super().setup()  # refuses what nobody asked for
        if read_record(self.path).get("online"):
            self.originals.prepare_data()

    @property
    def pixels(self) -> DataModule:
        return ImageFormat(self.source, Format(self.image_shape, levels=self.record["levels"]))

    def to_pixels(self, x: Tensor) -> Tensor:
        return self.units.differentiable(x)

    def from_pixels(self, x: Tensor) -> Tensor:
        return self.units.encode_scaled(x)

    @property
    def patch(self) -> int | None:
        return self.codec.factor if self.codec.patchwise else None

    def setup(self, stage: str | None = None) -> None:
        """Open the files, or the images and the autoencoder.

        Raises:
            FileNotFoundError: they are missing.
            ValueError: they are damaged, or not the ones that the checkpoint was trained on.
        """
        if self._splits is not None or stage == "predict":
            return
        super().setup(stage)
        current = read_record(self.path)
        check_same(self.source, current, self.record)
        make = self._online if current.get("online") else partial(opened, self.path)
        self._splits = tuple(make(split, current) for split in SPLITS)

    def _online(self, split: str, record: dict[str, Any]) -> Online:
        """The images of a split, with the autoencoder that is to encode them."""
        images = self.originals
        self.units.codec()  # a wrong one is an error now
        try:
            images.setup("fit")
        except FileNotFoundError as error:
            reason = str(error).partition(" Fix:")[0].rstrip(".")  # its own names the option of the images' class
            raise FileNotFoundError(
                f"{self.source}: the images to encode are missing: {reason}. Fix: give --data.images, where they are"
            ) from error
        return Online(
            images.part(split),
            record["views"],
            record["shape"] if record["moments"] == 2 else None,
            [name for name, condition in self.conditions.items() if condition.kind == "image"],
            lambda batch: images.on_after_batch_transfer(batch, 0),
            self.units.moments,
        )

    def rows(self, split: str) -> LatentSource:
        """The examples of a split as they are stored: moments, or images that are encoded in training."""
        if self._splits is None:
            raise RuntimeError(f"{self.source}: the data are not set up: call setup() first")
        rows: LatentSource = self._splits[SPLITS.index(split)]
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
            augmentation=Drawn(self.rows("train")),
            workers=self.workers,
        )

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Encode images, on the device, and scale latents to model units."""
        if "x" not in batch:
            return batch
        batch = self.rows("train").latents(batch)
        return {**batch, "x": self.units.scale(batch["x"])}

    def with_conditions(self, batch: Batch) -> Batch:
        return self.rows("train").conditioned(batch)  # without the autoencoder

    def second_moment(self) -> float:
        """1, where the statistics are those of the training examples; else the one that `latents --scale` noted."""
        return float(self.record.get("second_moment", 1.0))

    def training_examples(self, most: int) -> Tensor:
        train = self.part("train")
        some = torch.arange(0, len(train), -(-len(train) // most))
        batches = (self.on_after_batch_transfer(train.__getitems__(part), 0) for part in some.split(_TOGETHER))
        return torch.cat([batch["x"] for batch in batches])

    def read(self, path: Path) -> Tensor:
        """Images of a file or folder, encoded: the mean of their latents, (N, c, h, w)."""
        return self.from_pixels(self.pixels.read(path))

    def array(self, x: Tensor) -> NDArray[Any]:
        units = self.units
        exact: NDArray[Any] = (units.to_uint8(x) if units.pixels.levels <= 256 else units.decode(x)).numpy()
        return exact

    def write(self, x: Tensor, folder: Path) -> list[Path]:
        """A lossless PNG of each decoded sample, or samples.npy where PNG has no such images."""
        return write_pixels(self.array(x), self.units.pixels, folder)

    def state_dict(self) -> dict[str, Any]:
        state = {name: self.record[name] for name in (*KEPT, *OPTIONAL) if name in (*KEPT, *self.record)}
        return {**state, "turns": self.turns} if self.turns else state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what a checkpoint knows of its latents; files that are open must be the same."""
        if not state_dict:
            return
        if self._splits is not None:
            check_same(self.source, self.record, state_dict)
        self._record = {name: state_dict[name] for name in (*KEPT, *OPTIONAL) if name in (*KEPT, *state_dict)}
        self._turns = {name: torch.as_tensor(value) for name, value in state_dict.get("turns", {}).items()}

    def check_state(self, state_dict: dict[str, Any]) -> None:
        if state_dict:
            check_same(self.source, self.record, state_dict)
