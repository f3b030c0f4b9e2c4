"""A folder of pictures."""

import os
import re
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ..conditions import label
from .base import say
from .files import first_look, load, read_ahead
from .images import Examples, Format, Images, format_of
from .listing import Listing, copies, describe_rest, list_images
from .opening import MAX_PIXELS, endings
from .pictures import Frames, Mode, Size, make_layout
from .stand_ins import stand_in_hint, tell_if_stand_in


class Folder(Images):
    """Pictures in a folder, flat or in one folder for each class.

    Pictures are taken as they are: without ``size`` all must have the same sides, without ``mode`` the same channels.
    A file is taken once, however many links lead to it, and files with the same bytes stay on one side of the split.

    Args:
        path: The folder; folders within are searched too.
        conditional: The folders directly within are the classes, in the natural order of their names (2 before 10).
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
        frames: Which pages of a multi-page TIFF or frames of an animation to take: all (each is an image) or first;
            None: such files are refused.
        bits: How many bits the values of 16-bit images use, 9 to 16, such as 12 for many cameras and scanners: white is
            2^bits - 1. None: 16.
        max_pixels: Number of pixels above which an image is refused.
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
        frames: Frames | None = None,
        bits: int | None = None,
        max_pixels: int = MAX_PIXELS,
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
        self.layout = make_layout("Folder", mode, crop, size, frames, bits, max_pixels)
        self._found: Listing | None = None
        self._listing: tuple[list[Path], list[str]] | None = None
        self._order: list[str] | None = []  # names of the classes in a checkpoint's order; None: that of version 0.1

    def _list(self) -> tuple[list[Path], list[str]]:
        """The pictures in the order of their paths, and the names of the classes."""
        if self._listing is None:
            folder = Path(self.source).expanduser()
            if not folder.is_dir():
                what = "is a file" if folder.exists() else "does not exist"
                raise FileNotFoundError(
                    f"{self.source}: this folder {what}. Fix: give --data.path FOLDER{stand_in_hint(folder)}"
                )
            self._found = list_images(folder)
            files = self._found.files
            if not files:
                rest = describe_rest(self._found)
                raise ValueError(
                    f"{self.source}: no images in this folder{f', {rest}' if rest else ''}: expected files with the "
                    f"endings {', '.join(sorted(endings()))}"
                )
            names: list[str] = []
            if self.conditional:
                loose = next((p for p in files if p.parent == folder), None)
                if loose is not None:
                    raise ValueError(f"{loose}: is in no class's folder: move it to one, or give conditional: false")
                names = self._ordered({p.relative_to(folder).parts[0] for p in files})
            self._listing = files, names
        return self._listing

    def _ordered(self, names: set[str]) -> list[str]:
        natural = sorted(names, key=natural_order)
        if self._order is None:
            if natural != sorted(names):
                say(
                    f"{self.source}: classes are numbered as in the checkpoint, in the order {', '.join(sorted(names))}"
                )
            return sorted(names)
        return list(self._order) if set(self._order) == names else natural

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict and self.conditional:
            self._order = format_of(state_dict).names
            if self._listing is not None and self._listing[1] != self._order:
                self._listing = self._examples = None
        super().load_state_dict(state_dict)

    def inspect(self) -> Format:
        files, names = self._list()
        shape, levels = first_look(self.source, files, self.layout, self.corrupt)
        return Format(shape, {"label": label(len(names), names)} if names else {}, levels)

    def examples(self) -> Examples:
        files, names = self._list()
        root = Path(self.source).expanduser()
        tell_if_stand_in(root)
        labels = None
        if names:
            number = {name: k for k, name in enumerate(names)}
            labels = torch.tensor([number[p.relative_to(root).parts[0]] for p in files])
        rest = describe_rest(self._found) if self._found else None
        if rest:
            say(f"{self.source}: {rest}")
        groups = copies(files)
        if groups is not None:
            self._say_copies(groups, labels)
        train, labels, groups, streams, kept = load(
            self.source, files, labels, self.layout, self.format, self.corrupt, self.memory_gb, groups
        )
        if not streams:
            self.workers = 0
        names = [str(file)[len(str(root)) + 1 :].replace(os.sep, "/") for file in kept]
        return Examples(train, labels, groups=groups, names=names)

    def _say_copies(self, groups: Tensor, labels: Tensor | None) -> None:
        copied = int((groups != torch.arange(len(groups))).sum())
        line = (
            f"{self.source}: {copied} of {len(groups)} files are copies of others and stay on their side of the split"
        )
        other = 0 if labels is None else int((labels != labels[groups]).sum())
        say(
            line
            + (f"; {other} of them {'is' if other == 1 else 'are'} in another class than the first" if other else "")
        )


def natural_order(name: str) -> tuple[list[str | int], str]:
    """Key by which names are sorted as people count: digits within them compare as numbers, "2" before "10"."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)], name
