"""What `latents` writes: the moments of all images of a data set, or the statistics of some, and what made them."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..autoencoders import Autoencoder, save_autoencoder
from ..conditions import to_plain
from ..data import DataModule
from ..data.base import SPLITS
from ..data.latent_files import Statistics, file_name
from ..runtime.reading import read_json
from ..runtime.storage import write_json

if TYPE_CHECKING:
    from ..data.loader import Batch

_SAVED_EVERY = 20  # batches between two notes of what is done


class Encoding(NamedTuple):
    """Images and the autoencoder that encodes them.

    images: set up;  codec: on its device;  shape: of a latent, (c, h, w);  views: 1, or 2 with mirror images;  dtype:
    of stored moments;  batch_size: images encoded at a time.
    """

    images: DataModule
    codec: Autoencoder
    shape: tuple[int, ...]
    views: int
    dtype: str
    batch_size: int

    def stored(self, work: Path) -> dict[str, Any]:
        """Encode all splits into files of the folder `work`; what latents.json says of them."""
        import hashlib

        moments, statistics = self.moments(), Statistics()
        for split in SPLITS:
            self._store(work, split, moments)
        names = ("x", *self.images.conditions)
        sha256 = {}
        for file in sorted(file_name(split, name) for split in SPLITS for name in names):
            with (work / file).open("rb") as opened:
                sha256[file] = hashlib.file_digest(opened, "sha256").hexdigest()
        array = np.load(work / file_name("train", "x"), mmap_mode="r", allow_pickle=False)
        for first in range(0, len(array), 256):
            statistics.update(array[first : first + 256])
        return self._record(statistics, moments, sha256)

    def measured(self, work: Path, n: int) -> dict[str, Any]:
        """What latents.json says of latents that are not stored, with the statistics of n training images."""
        moments, note = self.moments(), work / "statistics.done.json"
        done: dict[str, Any] = read_json(note, dict) if note.is_file() else {"done": 0, "sums": None}
        statistics, source = Statistics(done["sums"]), self.images.part("train")
        places = torch.arange(n) * len(source) // n
        for end, saving, _, encoded in self._batches(source, places, done["done"], "statistics"):
            statistics.update(encoded[:, :, :moments])
            if saving:
                write_json(note, {"done": end, "sums": statistics.state})
        return self._record(statistics, moments, {})

    def moments(self) -> int:
        """How many moments latents have: mean and std, or the mean alone where std is 0.

        Raises:
            ValueError: latents are of another shape.
        """
        first = self.codec.encode(next(self.images.batches("train", 1))["x"].to(self.codec.device))
        if (got := tuple(first.mean.shape[1:])) != self.shape:
            name = self.codec.name or type(self.codec).__name__
            raise ValueError(f"autoencoder {name}: gave latents of {got}, expected {self.shape}")
        return 2 if first.std.any() else 1

    def write(self, work: Path, stage: Path, record: Mapping[str, Any]) -> list[Path]:
        """Put the files of `work` into the folder `stage`, with what says what they are; the files in order."""
        import os
        import shutil

        for name in record["sha256"]:
            try:
                os.link(work / name, stage / name)  # they stay in `work`, should the call be interrupted now
            except OSError:
                shutil.copyfile(work / name, stage / name)
        torch.save(self.images.state_dict(), stage / "original.pt")
        (stage / "autoencoder").mkdir()
        save_autoencoder(self.codec.cpu(), stage / "autoencoder")
        write_json(stage / "latents.json", record)
        return [stage / "latents.json", *(stage / name for name in record["sha256"]), stage / "autoencoder"]

    def _store(self, work: Path, split: str, moments: int) -> None:
        """Encode a split into files, from where an interrupted call stopped."""
        note, source = work / f"{split}.done.json", self.images.part(split)
        n, conditions = len(source), self.images.conditions
        done = int(read_json(note, dict)["done"]) if note.is_file() else 0
        shapes = {"x": ((n, self.views, moments, *self.shape), np.dtype(self.dtype))}
        for name, condition in conditions.items():
            shapes[name] = ((n, *condition.shape), np.dtype("int64" if condition.kind == "label" else "float32"))
        files: dict[str, NDArray[Any]] = {
            name: np.lib.format.open_memmap(
                work / file_name(split, name), "r+" if done else "w+", *(() if done else (kind, size))
            )
            for name, (size, kind) in shapes.items()
        }
        begin = done
        for end, saving, batch, encoded in self._batches(source, torch.arange(n), done, f"encoding {split}"):
            kept = encoded[:, :, :moments].astype(self.dtype)
            if not np.isfinite(kept).all():
                raise ValueError(f"a latent of {split} is not finite as {self.dtype}. Fix: give --dtype float32")
            files["x"][begin:end] = kept
            for name in conditions:
                files[name][begin:end] = batch[name].numpy()
            if saving:
                for array in files.values():
                    array.flush()  # type: ignore[attr-defined]
                write_json(note, {"done": end})
            begin = end

    def _batches(
        self, source: Any, places: Tensor, done: int, what: str
    ) -> Iterator[tuple[int, bool, "Batch", NDArray[np.float32]]]:
        """Of the examples at these places from number `done` on: how many are encoded with this batch, whether to note
        it, the batch in model units and the moments, (B, views, 2, c, h, w)."""
        from tqdm.auto import tqdm

        begins = range(done, len(places), self.batch_size)
        for k, begin in enumerate(tqdm(begins, what, unit="batch", delay=1, dynamic_ncols=True)):
            some = places[begin : begin + self.batch_size]
            batch = self.images.on_after_batch_transfer(source.__getitems__(some), 0)
            x, end = batch["x"].to(self.codec.device), begin + len(some)
            views = [torch.stack(self.codec.encode(seen), 1) for seen in (x, x.flip(-1))[: self.views]]
            saving = k % _SAVED_EVERY == _SAVED_EVERY - 1 or end == len(places)
            yield end, saving, batch, torch.stack(views, 1).cpu().numpy()

    def _record(self, statistics: Statistics, moments: int, sha256: Mapping[str, str]) -> dict[str, Any]:
        from .. import __version__

        images, (mean, std) = self.images, statistics.compute()
        return {
            "version": __version__,
            "image_shape": list(images.shape),
            "levels": images.units.levels,
            "conditions": to_plain(images.conditions),
            "class_counts": images.class_counts,
            "mean": mean,
            "std": std,
            "views": self.views,
            "moments": moments,
            "sha256": dict(sha256),
        }
