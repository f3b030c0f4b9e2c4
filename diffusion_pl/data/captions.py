"""Captions of images: from a template or a file, encoded once, kept on the disk, and given as the condition `text`."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..conditions import Condition
from .loader import Batch, Source
from .text import TextEncoder

#: Folder of the encoded captions, in the working directory, as `root` of the data sets that are downloaded.
CACHE = Path("data/text")
_CHUNK = 64  # texts that are encoded together


class Captions:
    """The condition `text` of images, (tokens, width): their captions as embeddings of a text encoder.

    The captions are encoded once, to a file named by the hash of the encoder, the number of tokens and the hash of the
    captions; equal ones are encoded and kept once.

    Args:
        given: Template of a caption, in which {} stands for the name of the class, or a text file with a caption on
            each line, in the order of the images: of the training images, then of the set's own test images.
        encoder: See `TextEncoder`.
        state: Of a checkpoint, see `state`; None: there is none.
    """

    def __init__(self, given: str, encoder: TextEncoder, state: dict[str, Any] | None = None) -> None:
        self.given, self.encoder, self.saved = given, encoder, state or {}

    @property
    def is_template(self) -> bool:
        """Whether the captions are made of the names of classes; they take the place of the label."""
        return "{}" in self.given

    def condition(self) -> Condition:
        """The condition, from the checkpoint where one was loaded, else from the encoder's configuration."""
        width = self.saved["width"] if self.saved else self.encoder.width
        return Condition((self.encoder.tokens, width))

    def texts(self, names: Sequence[str] | None) -> list[str]:
        """All captions: of a template one for each class, of a file one for each image.

        Args:
            names: of the classes; None: there are none.

        Raises:
            ValueError: a template and no names.
            FileNotFoundError: no such file.
        """
        if self.is_template:
            if not names:
                raise ValueError(
                    f"captions {self.given!r}: {{}} stands for the name of a class, and the data have none. Fix: "
                    "conditional: true, or a file of captions"
                )
            return [self.given.replace("{}", name) for name in names]
        path = Path(self.given).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"captions {self.given}: no such file, and no {{}} in it to make it a template")
        return path.read_text(encoding="utf-8").removesuffix("\n").split("\n")

    def prepare(self, names: Sequence[str] | None, download: bool = False) -> None:
        """Encode the captions where that was not done yet; with download the encoder may be fetched."""
        self.encoder.download = download
        self.table(self.texts(names))
        self.encoder.download = False

    def table(self, texts: Sequence[str]) -> tuple[Path, Tensor]:
        """The file of the embeddings of the different captions, (N, tokens, width), and the row of each caption."""
        different = list(dict.fromkeys(texts))
        digest = hashlib.sha256("\n".join(different).encode()).hexdigest()
        path = CACHE / f"{self.sha256[:16]}-{self.encoder.tokens}-{digest[:16]}.npy"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            aside = path.with_name(f".{path.name}.{os.getpid()}")
            shape = (len(different), *self.condition().shape)
            try:
                rows = np.lib.format.open_memmap(aside, "w+", np.float32, shape)
                starts = range(0, len(different), _CHUNK)
                for k in tqdm(starts, desc="captions", dynamic_ncols=True, disable=len(starts) < 2):
                    rows[k : k + _CHUNK] = self.read(different[k : k + _CHUNK]).numpy()
                rows.flush()
                os.replace(aside, path)
            finally:
                aside.unlink(missing_ok=True)
        place = {text: row for row, text in enumerate(different)}
        return path, torch.tensor([place[text] for text in texts])

    @property
    def sha256(self) -> str:
        """The hash of the encoder: the checkpoint's, else that of the encoder itself."""
        return str(self.saved.get("sha256") or self.encoder.sha256)

    def read(self, given: Any) -> Tensor:
        """The embeddings of a text, (1, tokens, width), or of a list of K texts, (K, tokens, width).

        Raises:
            ValueError: no encoder, or another one than the model was trained with.
        """
        if self.sha256 != self.encoder.sha256:
            raise ValueError(
                f"text_encoder {self.encoder.name}: not the one that the model was trained with, which was "
                f"{self.saved['encoder']} (SHA-256 {self.sha256[:12]}…, this one {self.encoder.sha256[:12]}…). Fix: "
                "give --data.text_encoder FOLDER"
            )
        return self.encoder([given] if isinstance(given, str) else list(given))

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps: the name and the hash of the encoder, and the length of its embeddings."""
        return self.saved or {"encoder": self.encoder.name, "sha256": self.sha256, "width": self.encoder.width}

    def sources(self, names: Sequence[str] | None, train: Source, test: Source | None) -> tuple[Source, Source | None]:
        """The images with their captions.

        Raises:
            ValueError: a file has another number of captions than there are images.
        """
        path, rows = self.table(self.texts(names))
        if self.is_template:
            return Captioned(train, path, rows, True), None if test is None else Captioned(test, path, rows, True)
        n, total = len(train), len(train) + (0 if test is None else len(test))
        if len(rows) != total:
            raise ValueError(f"captions {self.given}: expected {total:,} lines, one for each image, got {len(rows):,}")
        return Captioned(train, path, rows[:n]), None if test is None else Captioned(test, path, rows[n:])


def captions_of(name: str, captions: str | None, encoder: str | None, tokens: int) -> Captions | None:
    """The condition `text` of the options of a data set, None without one.

    Raises:
        ValueError: captions without an encoder or the reverse, or no tokens.
    """
    if captions is None and encoder is None:
        return None
    if captions is None or encoder is None:
        missing = "captions" if captions is None else "text_encoder"
        raise ValueError(f"{name}: captions and text_encoder need each other. Fix: give --data.{missing}")
    return Captions(captions, TextEncoder(encoder, tokens))


class Captioned:
    """Images with the embeddings of their captions, `text`, read from a file as needed.

    Args:
        source: The images.
        path: The file of the embeddings, (N, tokens, width).
        rows: Row of each image in it, (n,), or of each class.
        by_class: Whether the rows are of the classes; then `label` is taken out of the batches.
    """

    def __init__(self, source: Source, path: Path, rows: Tensor, by_class: bool = False) -> None:
        self.source, self.path, self.rows, self.by_class = source, path.absolute(), rows, by_class
        self._table: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_table": None}  # another process reads the file itself

    def __len__(self) -> int:
        return len(self.source)

    def __getitems__(self, indices: Tensor) -> Batch:
        if self._table is None:
            self._table = np.load(self.path, mmap_mode="r")
        batch = dict(self.source.__getitems__(indices))
        rows = self.rows[batch.pop("label") if self.by_class else indices]
        return {**batch, "text": torch.from_numpy(self._table[rows.numpy()])}
