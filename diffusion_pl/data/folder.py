"""A folder of images."""

import os
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..conditions import label
from .base import say
from .files import ImageFiles, first_look, load
from .images import Examples, Format, format_of
from .listing import Listing, copies, describe_rest, list_images
from .opening import endings
from .pairs import Partners, check_pairs, find_partners, paired
from .stand_ins import stand_in_hint, tell_if_stand_in


class Folder(ImageFiles):
    """Images in a folder, flat or in one folder for each class.

    A file is taken once, however many links lead to it, and files with the same bytes stay in one split.

    Args:
        path: The folder; folders within are searched too.
        conditional: The folders directly within are the classes, in the natural order of their names (2 before 10).
        conditions: Folders of images that are conditions, {name: folder, next to that of the images if its path is
            relative}, for image-to-image.  Partners have the same path within their folder, but for the ending, and are
            converted as the images are.  None: none.
        kwargs: Of `ImageFiles` and `Images`.
    """

    def __init__(
        self, path: str, conditional: bool = False, conditions: dict[str, str] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(path, **kwargs)
        self.conditional, self.pairs = conditional, check_pairs(conditions or {})
        if self.pairs and (self.layout.frames == "all" or self.corrupt == "skip"):
            raise ValueError(
                "Folder: conditions need one image in each file: frames all and corrupt skip are not possible"
            )
        self._partners: dict[str, Partners] = {}
        self._found: Listing | None = None
        self._listing: tuple[list[Path], list[str]] | None = None
        self._order: list[str] | None = []  # names of the classes in a checkpoint's order; None: that of version 0.1

    def _list(self) -> tuple[list[Path], list[str]]:
        """The images in the order of their paths, and the names of the classes."""
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
            if self.pairs:
                files, self._partners = find_partners(self.source, folder, files, self.pairs)
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
        format = Format(shape, {"label": label(len(names), names)} if names else {}, levels)
        others = {name: partners.condition(name, self.layout, format) for name, partners in self._partners.items()}
        return format._replace(conditions={**format.conditions, **others})

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
        format = self.format
        others = {
            name: partners.load(self.layout, format.conditions[name], format.levels, self.memory_gb)
            for name, partners in self._partners.items()
        }
        if not streams and not any(other.streams for other in others.values()):
            self.workers = 0
        train = paired(train, {name: other.source for name, other in others.items()})
        names = [str(file)[len(str(root)) + 1 :].replace(os.sep, "/") for file in kept]
        return Examples(train, labels, groups=groups, names=names)

    def _say_copies(self, groups: Tensor, labels: Tensor | None) -> None:
        copied = int((groups != torch.arange(len(groups))).sum())
        line = f"{self.source}: {copied} of {len(groups)} files are copies of others and stay in their split"
        other = 0 if labels is None else int((labels != labels[groups]).sum())
        say(
            line
            + (f"; {other} of them {'is' if other == 1 else 'are'} in another class than the first" if other else "")
        )


def natural_order(name: str) -> tuple[list[str | int], str]:
    """Key by which names are sorted as people count: digits within them compare as numbers, "2" before "10"."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)], name
