"""Pictures of a Hugging Face data set."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .folder import read_ahead
from .images import Examples, Format, Images
from .loader import Batch, Source, Tensors
from .pictures import Layout, Mode, Size, check_size, look, mode_of, sides, to_array


class HuggingFace(Images):
    """A data set of the `datasets` library, from a folder or from the hub; needs the extra ``huggingface``.

    Args:
        path: A folder that `save_to_disk` wrote, or a name on the hub.
        split: Which split to train on.
        test_split: Which split is for testing; None: see test_fraction.
        image_column: Column of the pictures; None: the only one.
        label_column: Column of the labels, a ClassLabel; None: no labels.
        size: Side, or height and width, to which pictures are cropped in shape and resized; None: as they are.
        crop: Side of the centre square that is cut out before.
        mode: L (grey), RGB or RGBA to convert to, transparency onto white; None: as they are.
        horizontal_flip: Mirror training pictures at random.
        batch_size: Pictures per batch and process.
        val_fraction: Fraction of the pictures to hold out for validation.
        test_fraction: Fraction to hold out for testing; with 0 the validation pictures serve.
        repeats: Passes over the training pictures that make one epoch; None: as many as make about 100 batches.
        memory_gb: Keep the pictures in memory if they take no more; else decode them anew each time.
        workers: Processes that decode ahead where pictures are not in memory; None: up to four.
        seed: Chooses the split, the order and the augmentation.
    """

    def __init__(
        self,
        path: str,
        split: str = "train",
        test_split: str | None = None,
        image_column: str | None = None,
        label_column: str | None = None,
        size: Size = None,
        crop: int | None = None,
        mode: Mode | None = None,
        horizontal_flip: bool = False,
        batch_size: int = 32,
        val_fraction: float = 0.1,
        test_fraction: float = 0.0,
        repeats: int | None = None,
        memory_gb: float = 2.0,
        workers: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(
            str(path),
            batch_size=batch_size,
            horizontal_flip=horizontal_flip,
            val_fraction=val_fraction,
            test_fraction=test_fraction,
            repeats=repeats,
            workers=read_ahead(workers),
            seed=seed,
        )
        self.split, self.test_split = split, test_split
        self.image_column, self.label_column = image_column, label_column
        self.layout, self.memory_gb = Layout(mode, crop, check_size("HuggingFace", size, crop)), memory_gb
        self._loaded: dict[str, Any] = {}

    def _table(self, split: str) -> Any:
        if split not in self._loaded:
            datasets = _library()
            folder = Path(self.source).expanduser()
            try:
                if folder.is_dir():
                    found = datasets.load_from_disk(str(folder))
                    table = found[split] if isinstance(found, dict) else found
                else:
                    table = datasets.load_dataset(self.source, split=split)
            except Exception as error:  # the library raises its own, of many kinds
                reason = str(error).partition("\n")[0][:120]
                raise ValueError(
                    f"{self.source}: no such folder, or not to be had from the hub as split {split!r} ({reason})"
                ) from None
            self._loaded[split] = table
        return self._loaded[split]

    def _columns(self) -> tuple[str, str | None]:
        datasets = _library()
        features = self._table(self.split).features
        pictures = [name for name, kind in features.items() if isinstance(kind, datasets.Image)]
        column = self.image_column or (pictures[0] if len(pictures) == 1 else None)
        if column is None or column not in pictures:
            raise ValueError(
                f"{self.source}: which column holds the pictures? Give image_column, of {', '.join(pictures) or 'none'}"
            )
        label = self.label_column
        if label is not None and not isinstance(features.get(label), datasets.ClassLabel):
            labels = [name for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
            raise ValueError(f"{self.source}: {label!r} is no column of labels: there is {', '.join(labels) or 'none'}")
        return column, label

    def inspect(self) -> Format:
        column, label = self._columns()
        table = self._table(self.split)
        if not len(table):
            raise ValueError(f"{self.source}: split {self.split!r} is empty")
        seen = look(table[0][column])
        channels, levels = mode_of(seen, self.layout, f"{self.source}, picture 0,")
        classes = table.features[label].num_classes if label is not None else None
        return Format((channels, *sides(seen, self.layout)), classes, levels)

    def examples(self) -> Examples:
        train, labels = self._source(self.split)
        test = self._source(self.test_split)[0] if self.test_split is not None else None
        return Examples(train, labels, test)

    def _source(self, split: str) -> tuple[Source, Tensor | None]:
        column, label = self._columns()
        table = self._table(split)
        labels = torch.tensor(table[label][:]) if label is not None else None
        rows = Rows(table, column, labels, self.layout, self.format, self.source)
        channels, height, width = self.shape
        if len(rows) * channels * height * width * (1 if self.levels <= 256 else 4) > self.memory_gb * 1e9:
            return rows, labels
        self.workers = 0
        parts = [rows.__getitems__(torch.arange(i, min(i + 500, len(rows)))) for i in range(0, len(rows), 500)]
        return Tensors({name: torch.cat([part[name] for part in parts]) for name in parts[0]}), labels


def _library() -> Any:
    try:
        import datasets
    except ImportError:
        raise ValueError("HuggingFace: needs the datasets library: pip install 'diffusion_pl[huggingface]'") from None
    return datasets


class Rows:
    """Rows of a table, decoded when they are asked for.

    Args:
        table: The data set.
        column: Of the pictures.
        labels: (n,), or None.
        layout: How they are made alike.
        format: What they must then be.
        name: What to call them in messages.
    """

    def __init__(
        self, table: Any, column: str, labels: Tensor | None, layout: Layout, format: Format, name: str
    ) -> None:
        self.table, self.column, self.labels = table, column, labels
        self.layout, self.format, self.name = layout, format, name

    def __len__(self) -> int:
        return len(self.table)

    def __getitems__(self, indices: Tensor) -> Batch:
        pictures = self.table[indices.tolist()][self.column]
        x = []
        for i, picture in zip(indices.tolist(), pictures, strict=True):
            where = f"{self.name}, picture {i},"
            array = torch.from_numpy(to_array(picture, self.layout, where).copy())
            if tuple(array.shape) != self.format.shape:
                raise ValueError(
                    f"{where} is {tuple(array.shape)}, others are {self.format.shape} (channels, height, width): "
                    "give size, and mode if the channels differ, to make all pictures alike"
                )
            x.append(array)
        batch = {"x": torch.stack(x)}
        return batch if self.labels is None else {**batch, "label": self.labels[indices]}
