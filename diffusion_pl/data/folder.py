"""A folder of pictures."""

import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from .images import Examples, Format, Images
from .loader import Batch, Tensors
from .pictures import Layout, Look, Mode, Size, check_size, look, mode_of, opened, sides, to_array
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
            found = (Path(root, name) for root, _, names in os.walk(folder, followlinks=True) for name in names)
            files = sorted(p for p in found if p.suffix.lower() in ENDINGS and not p.name.startswith("."))
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
        for path in files:
            try:
                with opened(path) as picture:
                    seen = look(picture)
            except (OSError, ValueError, SyntaxError) as error:
                if self.corrupt == "fail":
                    raise ValueError(f"{path}: cannot be read ({_short(error)}): {_REMEDY}") from None
                continue
            channels, levels = mode_of(seen, self.layout, str(path))
            return Format((channels, *sides(seen, self.layout)), len(names) or None, levels)
        raise ValueError(f"{self.source}: none of its {len(files)} pictures can be read")

    def examples(self) -> Examples:
        files, names = self._list()
        tell_if_stand_in(Path(self.source).expanduser())
        files = self._readable(files)
        labels = None
        if names:
            root = Path(self.source).expanduser()
            number = {name: k for k, name in enumerate(names)}
            labels = torch.tensor([number[p.relative_to(root).parts[0]] for p in files])
        source = Files(files, labels, self.layout, self.corrupt)
        channels, height, width = self.shape
        nbytes = len(files) * channels * height * width * (1 if self.levels <= 256 else 4)
        if nbytes > self.memory_gb * 1e9:
            return Examples(source, labels)
        self.workers = 0
        x, bad = source.everything(self.source)
        if bad and self.corrupt == "fail":
            raise ValueError(f"{bad[0][0]}: cannot be decoded ({bad[0][1]}){_more(len(bad))}: {_REMEDY}")
        if bad:
            _tell_skipped(self.source, [str(path) for path, _ in bad], len(files))
            gone = {path for path, _ in bad}
            kept = torch.tensor([path not in gone for path in files])
            x, labels = x[kept], labels[kept] if labels is not None else None
        if not len(x):
            raise ValueError(f"{self.source}: none of its {len(files)} pictures can be decoded")
        tensors = {"x": x} if labels is None else {"x": x, "label": labels}
        return Examples(Tensors(tensors), labels)

    def _readable(self, files: list[Path]) -> list[Path]:
        """The files whose headers can be read, after a check that all pictures are alike."""

        def header(path: Path) -> Look | str:
            try:
                with opened(path) as picture:
                    return look(picture)
            except (OSError, ValueError, SyntaxError) as error:
                return _short(error)

        looks = dict(zip(files, _parallel(header, files, f"looking at {self.source}"), strict=True))
        bad = [path for path, seen in looks.items() if isinstance(seen, str)]
        if bad and self.corrupt == "fail":
            raise ValueError(f"{bad[0]}: cannot be read ({looks[bad[0]]}){_more(len(bad))}: {_REMEDY}")
        if bad:
            _tell_skipped(self.source, [str(path) for path in bad], len(files))
        good = {path: seen for path, seen in looks.items() if isinstance(seen, Look)}
        (_, height, width), levels = self.shape, self.levels
        kinds: dict[tuple[int, int], Path] = {}
        for path, seen in good.items():
            kinds.setdefault(mode_of(seen, self.layout, str(path)), path)
            if sides(seen, self.layout) != (height, width):
                other = "x".join(map(str, sides(seen, self.layout)))
                raise ValueError(
                    f"{path}: is {other} (height x width), {next(iter(good))} is {height}x{width}: give size, for "
                    f"instance size: {min(height, width)}, to make all pictures alike"
                )
        if len(kinds) > 1 or (self.shape[0], levels) not in kinds:
            counts = Counter(seen.mode for seen in good.values())
            told = ", ".join(f"{n} {mode}" for mode, n in counts.most_common())
            odd = next(path for kind, path in kinds.items() if kind != (self.shape[0], levels))
            raise ValueError(f"{self.source}: channels differ ({told}; {odd} is another): give mode: RGB or L")
        return list(good)


class Files:
    """Pictures that are decoded when they are asked for.

    Args:
        files: Their paths.
        labels: (n,), or None.
        layout: How they are made alike.
        corrupt: fail, or take the next picture in place of one that cannot be decoded.
    """

    def __init__(self, files: list[Path], labels: Tensor | None, layout: Layout, corrupt: str) -> None:
        self.files, self.labels, self.layout, self.corrupt = files, labels, layout, corrupt

    def __len__(self) -> int:
        return len(self.files)

    def decode(self, index: int) -> Tensor:
        """(C, H, W)."""
        path = self.files[index]
        with opened(path) as picture:
            return torch.from_numpy(to_array(picture, self.layout, str(path)).copy())

    def __getitems__(self, indices: Tensor) -> Batch:
        pairs = [self._next_good(int(i)) for i in indices]
        batch = {"x": torch.stack([x for _, x in pairs])}
        if self.labels is not None:
            batch["label"] = self.labels[torch.tensor([i for i, _ in pairs])]
        return batch

    def _next_good(self, index: int) -> tuple[int, Tensor]:
        for step in range(len(self.files)):
            i = (index + step) % len(self.files)
            try:
                return i, self.decode(i)
            except (OSError, SyntaxError) as error:
                if self.corrupt == "fail":
                    raise ValueError(f"{self.files[i]}: cannot be decoded ({_short(error)}): {_REMEDY}") from None
                warnings.warn(f"{self.files[i]} cannot be decoded; the next picture takes its place", stacklevel=2)
        raise ValueError(f"{self.files[index]}: neither this picture nor any other can be decoded")

    def everything(self, name: str) -> tuple[Tensor, list[tuple[Path, str]]]:
        """All pictures, (n, C, H, W), and the paths of those that cannot be decoded with the reasons; these are 0."""

        def attempt(index: int) -> Tensor | str:
            try:
                return self.decode(index)
            except (OSError, SyntaxError) as error:
                return _short(error)

        decoded = _parallel(attempt, range(len(self.files)), f"reading {name}")
        bad = [(self.files[i], x) for i, x in enumerate(decoded) if isinstance(x, str)]
        good = next((x for x in decoded if isinstance(x, Tensor)), torch.zeros(1, 1, 1))
        return torch.stack([x if isinstance(x, Tensor) else torch.zeros_like(good) for x in decoded]), bad


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
