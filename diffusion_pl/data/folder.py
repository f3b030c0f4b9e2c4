"""A folder of pictures."""

import math
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from .images import Examples, Format, Images
from .loader import Batch, Source, Subset, Tensors
from .pictures import File, Layout, Look, Mode, Size, Unreadable, check_size, look, mode_of, opened, sides, to_array
from .stand_ins import stand_in_hint, tell_if_stand_in

ENDINGS = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif"}


class Folder(Images):
    """Pictures in a folder, flat or in one folder for each class.

    Pictures are taken as they are: without ``size`` all must have the same sides, without ``mode`` the same channels.

    Args:
        path: The folder; folders within are searched too.
        conditional: The folders directly within are the classes, in the order of their names.
        size: Side, or height and width, to which pictures are cropped in shape and resized; None: as they are.
        crop: Side of the centre square that is cut out before.
        mode: L (grey), RGB or RGBA to convert to, transparency onto white; None: as they are.
        corrupt: What to do about pictures that cannot be read: fail, or skip and count them.
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
        conditional: bool = False,
        size: Size = None,
        crop: int | None = None,
        mode: Mode | None = None,
        corrupt: Literal["fail", "skip"] = "fail",
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
        self.conditional, self.corrupt, self.memory_gb = conditional, corrupt, memory_gb
        self.layout = Layout(mode, crop, check_size("Folder", size, crop))
        self._listing: tuple[list[Path], list[str]] | None = None

    def _list(self) -> tuple[list[Path], list[str]]:
        """The pictures in the order of their paths, and the names of the classes."""
        if self._listing is None:
            folder = Path(self.source).expanduser()
            if not folder.is_dir():
                what = "is a file" if folder.exists() else "does not exist"
                raise FileNotFoundError(f"{self.source}: this folder {what}: mend path{stand_in_hint(folder)}")
            files: list[Path] = []
            for root, folders, within in os.walk(folder, followlinks=True):
                # Editors and systems put copies of pictures into hidden folders.
                folders[:] = [name for name in folders if not name.startswith(".")]
                shown = (Path(root, name) for name in within if not name.startswith("."))
                files += (p for p in shown if p.suffix.lower() in ENDINGS)
            files.sort()
            if not files:
                raise ValueError(f"{self.source}: no pictures in this folder: it needs {', '.join(sorted(ENDINGS))}")
            names: list[str] = []
            if self.conditional:
                loose = next((p for p in files if p.parent == folder), None)
                if loose is not None:
                    raise ValueError(f"{loose}: lies in no class's folder: move it to one, or give conditional: false")
                names = sorted({p.relative_to(folder).parts[0] for p in files})
            self._listing = files, names
        return self._listing

    def inspect(self) -> Format:
        files, names = self._list()
        shape, levels = first_look(self.source, files, self.layout, self.corrupt)
        return Format(shape, len(names) or None, levels)

    def examples(self) -> Examples:
        files, names = self._list()
        root = Path(self.source).expanduser()
        tell_if_stand_in(root)
        labels = None
        if names:
            number = {name: k for k, name in enumerate(names)}
            labels = torch.tensor([number[p.relative_to(root).parts[0]] for p in files])
        train, labels, streams = load(
            self.source, files, labels, self.layout, self.format, self.corrupt, self.memory_gb
        )
        if not streams:
            self.workers = 0
        return Examples(train, labels)


def first_look(name: str, files: Sequence[Path | File], layout: Layout, corrupt: str) -> tuple[tuple[int, ...], int]:
    """Shape (C, H, W) and levels of the first picture that can be read."""
    for file in files:
        try:
            with opened(file) as picture:
                seen = look(picture)
        except Unreadable as error:
            if corrupt == "fail":
                raise ValueError(f"{file}: cannot be read ({_short(error)}): {_REMEDY}") from None
            continue
        channels, levels = mode_of(seen, layout, str(file))
        return (channels, *sides(seen, layout)), levels
    raise ValueError(f"{name}: none of its {len(files)} pictures can be read")


def load(
    name: str,
    files: Sequence[Path | File],
    labels: Tensor | None,
    layout: Layout,
    format: Format,
    corrupt: str,
    memory_gb: float,
) -> tuple[Source, Tensor | None, bool]:
    """The pictures, decoded if they fit in memory; what cannot be read is an error, or left out.

    Args:
        name: What to call the data in messages.
        files: The pictures.
        labels: (n,), or None.
        layout: How the pictures are made alike.
        format: What they must then be.
        corrupt: fail, or skip.
        memory_gb: How much memory they may take.

    Returns:
        The source, the labels of what is in it, and whether it decodes when asked.
    """
    bad = _check(name, files, layout, format, corrupt)
    good = [i for i in range(len(files)) if i not in bad]
    pictures = Files(files, labels, layout, corrupt)
    source: Source = pictures
    dtype = torch.uint8 if format.levels <= 256 else torch.int32
    streams = len(good) * math.prod(format.shape) * dtype.itemsize > memory_gb * 1e9
    if not streams:
        x = torch.zeros(len(files), *format.shape, dtype=dtype)

        def decode(i: int) -> str | None:
            try:
                x[i] = pictures.decode(i)
            except Unreadable as error:
                return _short(error)
            return None

        reasons = _parallel(decode, good, f"reading {name}")
        bad |= {i: reason for i, reason in zip(good, reasons, strict=True) if reason is not None}
        source = Tensors({"x": x} if labels is None else {"x": x, "label": labels})
    if not bad:
        return source, labels, streams
    if corrupt == "fail":
        raise ValueError(f"{files[min(bad)]}: cannot be decoded ({bad[min(bad)]}){_more(len(bad))}: {_REMEDY}")
    if len(bad) == len(files):
        raise ValueError(f"{name}: none of its {len(files)} pictures can be decoded")
    _tell_skipped(name, [str(files[i]) for i in sorted(bad)], len(files))
    kept = torch.tensor([i for i in range(len(files)) if i not in bad])
    return Subset(source, kept), None if labels is None else labels[kept], streams


def _check(name: str, files: Sequence[Path | File], layout: Layout, format: Format, corrupt: str) -> dict[int, str]:
    """Check by their headers that all pictures are alike; what cannot be read, with reasons."""

    def header(file: Path | File) -> Look | str:
        try:
            with opened(file) as picture:
                return look(picture)
        except Unreadable as error:
            return _short(error)

    looks = _parallel(header, files, f"looking at {name}")
    bad = {i: seen for i, seen in enumerate(looks) if isinstance(seen, str)}
    if bad and corrupt == "fail":
        raise ValueError(f"{files[min(bad)]}: cannot be read ({bad[min(bad)]}){_more(len(bad))}: {_REMEDY}")
    good = {i: seen for i, seen in enumerate(looks) if isinstance(seen, Look)}
    channels, height, width = format.shape
    kinds: dict[tuple[int, int], int] = {}
    for i, seen in good.items():
        kinds.setdefault(mode_of(seen, layout, str(files[i])), i)
        if sides(seen, layout) != (height, width):
            other = "x".join(map(str, sides(seen, layout)))
            first = next(iter(good))
            whose = "the checkpoint's are" if sides(good[first], layout) != (height, width) else f"{files[first]} is"
            raise ValueError(
                f"{files[i]}: is {other} (height x width), {whose} {height}x{width}: give size, for "
                f"instance size: {min(height, width)}, to make all pictures alike"
            )
    if good and kinds.keys() != {(channels, format.levels)}:
        counts = Counter(seen.mode for seen in good.values())
        told = ", ".join(f"{n} {mode}" for mode, n in counts.most_common())
        odd = next(files[i] for kind, i in kinds.items() if kind != (channels, format.levels))
        raise ValueError(f"{name}: channels differ ({told}; {odd} is another): give mode: RGB or L")
    return bad


class Files:
    """Pictures that are decoded when they are asked for.

    Args:
        files: The pictures.
        labels: (n,), or None.
        layout: How they are made alike.
        corrupt: fail, or skip: take the next picture of the same batch in place of one that cannot be decoded. (The
            next of all may be held out.)
    """

    def __init__(self, files: Sequence[Path | File], labels: Tensor | None, layout: Layout, corrupt: str) -> None:
        self.files, self.labels, self.layout, self.corrupt = files, labels, layout, corrupt

    def __len__(self) -> int:
        return len(self.files)

    def decode(self, index: int) -> Tensor:
        """(C, H, W)."""
        file = self.files[index]
        with opened(file) as picture:
            return torch.from_numpy(to_array(picture, self.layout, str(file)).copy())

    def __getitems__(self, indices: Tensor) -> Batch:
        good: dict[int, Tensor] = {}  # by place in the batch
        reason = ""
        for place, i in enumerate(indices.tolist()):
            try:
                good[place] = self.decode(i)
            except Unreadable as error:
                reason = reason or f"{self.files[i]}: cannot be decoded ({_short(error)})"
                if self.corrupt == "fail":
                    raise ValueError(f"{reason}: {_REMEDY}") from None
                warnings.warn(f"{self.files[i]} cannot be decoded; the next picture takes its place", stacklevel=2)
        if not good:
            raise ValueError(f"{reason}, nor can any other picture of its batch: remove such files")
        taken = [min(good, key=lambda other: (other - place) % len(indices)) for place in range(len(indices))]
        batch = {"x": torch.stack([good[place] for place in taken])}
        return batch if self.labels is None else {**batch, "label": self.labels[indices[taken]]}


_REMEDY = "repair or remove it, or give corrupt: skip"


def read_ahead(workers: int | None) -> int:
    """How many processes decode: as many as wanted, or all cores but one, at most four."""
    return min(4, max(0, (os.cpu_count() or 1) - 1)) if workers is None else workers


def _parallel(call: Callable[[Any], Any], items: Iterable[Any], what: str) -> list[Any]:
    """Results in order; a progress bar if it takes long.  Threads suffice: decoding leaves the interpreter free."""
    from tqdm import tqdm

    items = list(items)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return list(tqdm(pool.map(call, items), what, len(items), delay=2, leave=False, dynamic_ncols=True))


def _tell_skipped(name: str, bad: list[str], total: int) -> None:
    from lightning.fabric.utilities.rank_zero import rank_zero_only

    shown = ", ".join(bad[:3]) + (", …" if len(bad) > 3 else "")
    rank_zero_only(print)(f"{name}: {len(bad)} of {total} pictures cannot be read and are left out: {shown}")


def _more(count: int) -> str:
    return f", and {count - 1} more" if count > 1 else ""


def _short(error: Exception) -> str:
    return str(error).partition("\n")[0].partition(" <_io")[0].partition(" '/")[0][:100] or type(error).__name__
