"""Pairs of images: conditions that are images of their own, by file name in a second folder or by index in an array."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from ..conditions import Condition, check_own_name
from .base import count, say
from .decoding import Layout
from .files import Loaded, first_look, load
from .images import Format
from .listing import describe_rest, list_images
from .loader import Batch, Source, Tensors

#: Names of conditions that image data make themselves, or use on the way.
MADE = ("label", "text", "low", "low_noise", "low_eps", "masked", "mask")


class Paired:
    """Images with their partners.

    Args:
        source: The images.
        partners: By the name of the condition, as many images: {"x": …} of each becomes the condition.
    """

    def __init__(self, source: Source, partners: Mapping[str, Source]) -> None:
        self.source, self.partners = source, dict(partners)

    def __len__(self) -> int:
        return len(self.source)

    def __getitems__(self, indices: Tensor) -> Batch:
        others = {name: partner.__getitems__(indices)["x"] for name, partner in self.partners.items()}
        return {**self.source.__getitems__(indices), **others}


def paired(source: Source, partners: Mapping[str, Source]) -> Source:
    """Images with their partners, in memory where all of them are."""
    in_memory = {name: partner.tensors["x"] for name, partner in partners.items() if isinstance(partner, Tensors)}
    if isinstance(source, Tensors) and len(in_memory) == len(partners):
        return Tensors({**source.tensors, **in_memory})
    return Paired(source, partners) if partners else source


def check_pairs(conditions: Mapping[str, str]) -> dict[str, str]:
    """The option `conditions` of image data, {name: where}.

    Raises:
        ValueError: a name that is not possible, or that image data use themselves.
    """
    for name in conditions:
        check_own_name(name, MADE)
    return dict(conditions)


def as_condition(name: str, where: str, shape: tuple[int, ...], levels: int, images: Format) -> Condition:
    """The condition of partners of a shape (C, H, W) and a number of levels.

    Raises:
        ValueError: they differ from the images in height, width or levels.
    """
    (_, *sizes), (_, *expected) = shape, images.shape
    place = f"data.conditions.{name}: {where}"
    if sizes != expected:
        own, other = ("x".join(map(str, size)) for size in (sizes, expected))
        raise ValueError(f"{place}: its images are {own} (height x width), those of the data {other}. Fix: give size")
    if levels != images.levels:
        raise ValueError(
            f"{place}: its images have {levels} levels, those of the data {images.levels}. Fix: save both alike"
        )
    return Condition(shape)


class Partners(NamedTuple):
    """The partners of some images in a folder: of each image one file, in the same order."""

    where: str
    files: Sequence[Path]

    def condition(self, name: str, layout: Layout, images: Format) -> Condition:
        """What they are, from the first of them; see `as_condition`."""
        shape, levels = first_look(f"data.conditions.{name}: {self.where}", self.files, layout, "fail")
        return as_condition(name, self.where, shape, levels, images)

    def load(self, layout: Layout, condition: Condition, levels: int, memory_gb: float) -> Loaded:
        """The images, in memory if they take no more than memory_gb."""
        return load(self.where, self.files, None, layout, Format(condition.shape, levels=levels), "fail", memory_gb)


def find_partners(
    name: str, folder: Path, files: Sequence[Path], conditions: Mapping[str, str]
) -> tuple[list[Path], dict[str, Partners]]:
    """The images that have a partner in each of the conditions' folders, and the partners.

    Partners have the same path within their folder, but for the ending: cats/1.jpg and cats/1.png.  Images without one
    are skipped, and counted in a line.

    Args:
        name: of the data, for messages.
        folder: of the images.
        files: in it.
        conditions: {name: folder, next to that of the images if the path is relative}.

    Raises:
        ValueError: no folder, no pairs, or two files that could be a partner.
    """
    others = {}
    for condition, where in conditions.items():
        other = folder.parent / Path(where).expanduser()
        if not other.is_dir():
            raise ValueError(
                f"data.conditions.{condition}: {other}: no such folder. Fix: give a path relative to {folder.parent}, "
                "where the folder of the images is, or an absolute one"
            )
        others[condition] = _by_key(f"data.conditions.{condition}", other)
    keys = [_key(file, folder) for file in files]
    kept = [k for k, key in enumerate(keys) if all(key in there for there in others.values())]
    for condition, there in others.items():
        without = [str(file) for file, key in zip(files, keys, strict=True) if key not in there]
        spare = len(there.keys() - set(keys))
        if len(without) == len(files):
            raise ValueError(
                f"data.conditions.{condition}: no image of {name} has a partner in {conditions[condition]}: expected "
                f"{keys[0]} with any ending of images. Fix: give partners the same names"
            )
        if without or spare:
            first = f" (the first: {without[0]})" if without else ""
            say(
                f"{name}: {count(len(without), 'image')} without a partner in {conditions[condition]} skipped{first}, "
                f"{count(spare, 'partner')} without an image"
            )
    if not kept:
        raise ValueError(f"{name}: no image has a partner in each of {', '.join(conditions.values())}")
    return [files[k] for k in kept], {
        condition: Partners(conditions[condition], [there[keys[k]] for k in kept])
        for condition, there in others.items()
    }


def _key(file: Path, folder: Path) -> str:
    return file.relative_to(folder).with_suffix("").as_posix()


def _by_key(place: str, folder: Path) -> dict[str, Path]:
    """The images of a folder by their paths within it, without endings."""
    listing = list_images(folder)
    files: dict[str, Path] = {}
    for file in listing.files:
        key = _key(file, folder)
        if key in files:
            raise ValueError(f"{place}: {files[key]} and {file.name} differ in the ending alone. Fix: remove one")
        files[key] = file
    if not files:
        raise ValueError(f"{place}: {folder}: no images in this folder; {describe_rest(listing) or 'it is empty'}")
    return files


def equal_length(name: str, length: int, expected: int) -> None:
    """Raise ValueError for a condition that has not one image for each example."""
    if length != expected:
        raise ValueError(f"data.conditions.{name}: expected {count(expected, 'image')}, one for each, got {length:,}")
