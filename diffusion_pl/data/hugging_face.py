"""Images of a Hugging Face data set."""

import io
from pathlib import Path
from typing import Any

import numpy as np

from ..conditions import label
from .arrays import check_labels, same_values
from .files import ImageFiles, Loaded, first_look, load
from .images import Examples, Format
from .opening import AnyFile, Unreadable, regular


class HuggingFace(ImageFiles):
    """A data set of the `datasets` library, from a folder or from the hub; needs the extra ``huggingface``.

    Args:
        path: A folder that `save_to_disk` wrote, or a name on the hub.
        split: Which split to train on.
        test_split: Which split is for testing; None: see test_fraction.
        image_column: Column of the images; None: the only one.
        label_column: Column of the labels, a ClassLabel; None: no labels.
        download: Fetch the data set from the hub if it is neither a folder nor in the library's cache.
        kwargs: Of `ImageFiles` and `Images`.
    """

    def __init__(
        self,
        path: str,
        split: str = "train",
        test_split: str | None = None,
        image_column: str | None = None,
        label_column: str | None = None,
        download: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(path, **kwargs)
        self.split, self.test_split = split, test_split
        self.image_column, self.label_column = image_column, label_column
        self.download = download
        self._loaded: dict[str, Any] = {}

    def _table(self, split: str) -> Any:
        if split not in self._loaded:
            datasets = _library()
            folder = Path(self.source).expanduser()
            try:
                if folder.is_dir():
                    loaded = datasets.load_from_disk(str(folder))
                    if not isinstance(loaded, dict) and split != self.split:
                        raise ValueError("the folder holds one data set without splits")
                    table = loaded[split] if isinstance(loaded, dict) else loaded
                else:
                    local = datasets.DownloadConfig(local_files_only=not self.download)
                    table = datasets.load_dataset(self.source, split=split, download_config=local)
            except Exception as error:  # the library raises its own, of many kinds
                reason = str(error).partition("\n")[0][:120]
                allow = "" if self.download else ", or fetch it with --data.download true"
                raise ValueError(
                    f"{self.source}: no such folder, or not available from the hub as split {split!r} ({reason}). "
                    f"Fix: give --data.path FOLDER{allow}"
                ) from None
            self._loaded[split] = table
        return self._loaded[split]

    def _columns(self) -> tuple[str, str | None]:
        datasets = _library()
        features = self._table(self.split).features
        images = [name for name, kind in features.items() if isinstance(kind, datasets.Image)]
        column = self.image_column or (images[0] if len(images) == 1 else None)
        if column is None or column not in images:
            raise ValueError(
                f"{self.source}: which column holds the images? Give image_column, of {', '.join(images) or 'none'}"
            )
        label = self.label_column
        if label is not None and not isinstance(features.get(label), datasets.ClassLabel):
            labels = [name for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
            raise ValueError(f"{self.source}: {label!r} is no column of labels: there is {', '.join(labels) or 'none'}")
        return column, label

    def _cells(self, split: str) -> list[AnyFile]:
        column, _ = self._columns()
        table = self._table(split)
        if not len(table):
            raise ValueError(f"{self.source}: split {split!r} is empty")
        # Only this column, and encoded: reading a row would else decode all of its images.
        encoded = table.select_columns([column]).cast_column(column, _library().Image(decode=False))
        return [Cell(encoded, column, i, self.source) for i in range(len(encoded))]

    def inspect(self) -> Format:
        _, column = self._columns()
        shape, levels = first_look(self.source, self._cells(self.split), self.layout, self.corrupt)
        if column is None:
            return Format(shape, levels=levels)
        names = self._table(self.split).features[column].names
        return Format(shape, {"label": label(len(names), names)}, levels)

    def examples(self) -> Examples:
        train = self._source(self.split)
        test = self._source(self.test_split) if self.test_split is not None else None
        if not (train.streams or (test is not None and test.streams)):
            self.workers = 0
        groups = same_values(self.source, train.source)
        return Examples(train.source, train.labels, test.source if test else None, groups)

    def _source(self, split: str) -> Loaded:
        _, column = self._columns()
        table, cells = self._table(split), self._cells(split)
        labels = None
        if column is not None:
            values = np.asarray(table[column][:])
            labels = check_labels(f"{self.source}, {split}", values, len(table), self.conditions["label"].classes)
        return load(self.source, cells, labels, self.layout, self.format, self.corrupt, self.memory_gb)


class Cell:
    """One encoded image of a table.

    Args:
        table: With the column of the images, not decoded.
        column: Its name.
        row: Number of the image.
        source: What to call the table in messages.
    """

    def __init__(self, table: Any, column: str, row: int, source: str) -> None:
        self.table, self.column, self.row, self.source = table, column, row, source

    def __str__(self) -> str:
        return f"{self.source}, image {self.row}"

    def open(self) -> io.BytesIO:
        entry = self.table[self.row][self.column]
        if entry is None:
            raise Unreadable("there is none")
        content = entry["bytes"]
        return io.BytesIO(content if content is not None else regular(Path(entry["path"])).read_bytes())


def _library() -> Any:
    try:
        import datasets
    except ImportError:
        raise ValueError("HuggingFace: needs the datasets library: pip install 'diffusion_pl[huggingface]'") from None
    return datasets
