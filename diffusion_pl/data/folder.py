"""A folder of pictures."""

import os
from pathlib import Path
from typing import Literal

import torch

from .files import first_look, load, read_ahead
from .images import Examples, Format, Images
from .pictures import Layout, Mode, Size, check_size
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
        batch_size: Pictures per batch, over all processes.
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
