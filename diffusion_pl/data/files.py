"""Image files: inspected, checked for equal size and channels, and decoded, all at once or on access."""

import math
import os
import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from .base import say
from .decoding import Frames, Layout, Look, Mode, Size, look, make_layout, mode_of, profile_name, size_of, to_array
from .images import Format, Images
from .loader import Batch, Source, Subset, Tensors
from .opening import MAX_PIXELS, AnyFile, Page, Unreadable, count_pages, in_parallel, opened


class ImageFiles(Images):
    """Base of images that are decoded one by one: what is done to make them alike, and where they are kept.

    Images are taken as they are: without ``size`` all must have the same height and width, without ``mode`` the
    same channels.

    Args:
        path: What to call the data in messages, and where they are.
        size: Height and width, or one number for both, to which images are cropped in shape and resized; None:
            as they are.
        crop: Height and width of the centre square that is cut out before.
        mode: L (grey), RGB or RGBA to convert to, transparency onto white; None: as they are.
        corrupt: What to do about images that cannot be read: fail, or skip and count them.
        memory_gb: Keep the images in memory if they take no more; else decode them each time.
        workers: Processes that decode ahead where images are not in memory; None: up to four.
        frames: Which pages of a multi-page TIFF or frames of an animation to take: all (each is an image) or first;
            None: such files are refused.
        bits: How many bits the values of 16-bit images use, 9 to 16, such as 12 for many cameras and scanners: white is
            2^bits - 1. None: 16.
        max_pixels: Number of pixels above which an image is refused.
        batch_size: Images per batch, over all processes.
        kwargs: Of `Images`: horizontal_flip, val_fraction, test_fraction, repeats, seed.
    """

    def __init__(
        self,
        path: str,
        *,
        size: Size = None,
        crop: int | None = None,
        mode: Mode | None = None,
        corrupt: Literal["fail", "skip"] = "fail",
        memory_gb: float = 2.0,
        workers: int | None = None,
        frames: Frames | None = None,
        bits: int | None = None,
        max_pixels: int = MAX_PIXELS,
        batch_size: int = 32,
        **kwargs: Any,
    ) -> None:
        super().__init__(str(path), workers=read_ahead(workers), batch_size=batch_size, augment=0.0, **kwargs)
        self.corrupt, self.memory_gb = corrupt, memory_gb
        self.layout = make_layout(type(self).__name__, mode, crop, size, frames, bits, max_pixels)


def first_look(name: str, files: Sequence[AnyFile], layout: Layout, corrupt: str) -> tuple[tuple[int, ...], int]:
    """Shape (C, H, W) and levels of the first image that can be read."""
    for file in files:
        try:
            with opened(file, layout.max_pixels) as image:
                seen = look(image, pages=layout.frames is None)
        except Unreadable as error:
            if corrupt == "fail":
                raise ValueError(f"{file}: cannot be read ({_short(error)}): {_REMEDY}") from None
            continue
        channels, levels = mode_of(seen, layout, str(file))
        return (channels, *size_of(seen, layout)), levels
    raise ValueError(f"{name}: none of its {len(files)} images can be read")


class Loaded(NamedTuple):
    """What `load` gives: the source, labels, groups and files of what is in it, and whether it decodes when asked."""

    source: Source
    labels: Tensor | None
    groups: Tensor | None
    streams: bool
    files: Sequence[AnyFile]


def load(
    name: str,
    files: Sequence[AnyFile],
    labels: Tensor | None,
    layout: Layout,
    format: Format,
    corrupt: str,
    memory_gb: float,
    groups: Tensor | None = None,
) -> Loaded:
    """The images, decoded if they fit in memory; what cannot be read is an error, or skipped.

    Args:
        name: What to call the data in messages.
        files: The images.
        labels: (n,), or None.
        layout: How the images are made alike.
        format: What they must then be.
        corrupt: fail, or skip.
        memory_gb: How much memory they may take.
        groups: (n,), see `Examples`.
    """
    if layout.frames == "all":
        files, place = _pages(name, files, layout)
        labels = None if labels is None else labels[place]
        # Page i of each copy is a copy of page i.
        number = torch.tensor([file.number if isinstance(file, Page) else 0 for file in files])
        groups = None if groups is None else groups[place] * (int(number.max()) + 1) + number
    bad = _check(name, files, layout, format, corrupt)
    good = [i for i in range(len(files)) if i not in bad]
    images = Files(files, labels, layout, corrupt)
    source: Source = images
    dtype = torch.uint8 if format.levels <= 256 else torch.int32
    streams = len(good) * math.prod(format.shape) * dtype.itemsize > memory_gb * 1e9
    if not streams:
        x = torch.zeros(len(files), *format.shape, dtype=dtype)

        def decode(i: int) -> str | None:
            try:
                x[i] = images.decode(i)
            except Unreadable as error:
                return _short(error)
            return None

        reasons = in_parallel(decode, good, f"reading {name}")
        bad |= {i: reason for i, reason in zip(good, reasons, strict=True) if reason is not None}
        source = Tensors({"x": x} if labels is None else {"x": x, "label": labels})
    if not bad:
        return Loaded(source, labels, groups, streams, files)
    if corrupt == "fail":
        raise ValueError(f"{files[min(bad)]}: cannot be decoded ({bad[min(bad)]}){_more(len(bad))}: {_REMEDY}")
    if len(bad) == len(files):
        raise ValueError(f"{name}: none of its {len(files)} images can be decoded")
    _tell_skipped(name, [str(files[i]) for i in sorted(bad)], len(files))
    kept = torch.tensor([i for i in range(len(files)) if i not in bad])
    labels, groups = (None if values is None else values[kept] for values in (labels, groups))
    return Loaded(Subset(source, kept), labels, groups, streams, [files[i] for i in kept.tolist()])


def _pages(name: str, files: Sequence[AnyFile], layout: Layout) -> tuple[list[AnyFile], Tensor]:
    """Every page of every file, and of which file it is: (n,)."""

    def count(file: AnyFile) -> int:
        try:
            with opened(file, layout.max_pixels) as image:
                return count_pages(image)
        except Unreadable:
            return 1  # reading it will say why

    pages: list[AnyFile] = []
    place: list[int] = []
    for i, (file, number) in enumerate(zip(files, in_parallel(count, files, f"counting pages of {name}"), strict=True)):
        if isinstance(file, Page) or number == 1:
            pages.append(file)
            place.append(i)
        else:
            pages += [Page(file, k) for k in range(number)]
            place += [i] * number
    if len(pages) > len(files):
        say(f"{name}: {len(files)} files have {len(pages)} pages, each of which is an image")
    return pages, torch.tensor(place)


def _check(name: str, files: Sequence[AnyFile], layout: Layout, format: Format, corrupt: str) -> dict[int, str]:
    """Check by their headers that all images are alike; what cannot be read, with reasons."""

    profiles: list[str] = []  # appended to by several threads

    def header(file: AnyFile) -> Look | str:
        try:
            with opened(file, layout.max_pixels) as image:
                profiles.append(profile_name(image))
                return look(image, pages=layout.frames is None)
        except Unreadable as error:
            return _short(error)

    looks = in_parallel(header, files, f"looking at {name}")
    bad = {i: seen for i, seen in enumerate(looks) if isinstance(seen, str)}
    if bad and corrupt == "fail":
        raise ValueError(f"{files[min(bad)]}: cannot be read ({bad[min(bad)]}){_more(len(bad))}: {_REMEDY}")
    good = {i: seen for i, seen in enumerate(looks) if isinstance(seen, Look)}
    channels, height, width = format.shape
    kinds: dict[tuple[int, int], int] = {}
    for i, seen in good.items():
        kinds.setdefault(mode_of(seen, layout, str(files[i])), i)
        if size_of(seen, layout) != (height, width):
            other = "x".join(map(str, size_of(seen, layout)))
            first = next(iter(good))
            raise ValueError(
                f"{files[i]}: is {other} (height x width), {files[first]} is {height}x{width}: give size, for "
                f"instance size: {min(height, width)}, to make all images alike"
            )
    if good and kinds.keys() != {(channels, format.levels)}:
        counts = Counter(seen.mode for seen in good.values())
        summary = ", ".join(f"{n} {mode}" for mode, n in counts.most_common())
        odd = next(files[i] for kind, i in kinds.items() if kind != (channels, format.levels))
        raise ValueError(f"{name}: channels differ ({summary}; {odd} is another): give mode: RGB or L")
    foreign = {
        profile: number for profile, number in Counter(profiles).items() if profile and "srgb" not in profile.lower()
    }
    if foreign:
        listed = ", ".join(f"{number} {profile}" for profile, number in foreign.items())
        say(f"{name}: colour profiles are ignored, values are taken as they are ({listed})")
    return bad


class Files:
    """Images that are decoded when they are asked for.

    Args:
        files: The images.
        labels: (n,), or None.
        layout: How they are made alike.
        corrupt: fail, or skip: take the next image of the same batch in place of one that cannot be decoded. (The
            next of all may be held out.)
    """

    def __init__(self, files: Sequence[AnyFile], labels: Tensor | None, layout: Layout, corrupt: str) -> None:
        self.files, self.labels, self.layout, self.corrupt = files, labels, layout, corrupt

    def __len__(self) -> int:
        return len(self.files)

    def decode(self, index: int) -> Tensor:
        """(C, H, W)."""
        file = self.files[index]
        with opened(file, self.layout.max_pixels) as image:
            return torch.from_numpy(to_array(image, self.layout, str(file)).copy())

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
                warnings.warn(f"{self.files[i]} cannot be decoded; it is replaced by the next image", stacklevel=2)
        if not good:
            raise ValueError(f"{reason}, nor can any other image of its batch: remove such files")
        taken = [min(good, key=lambda other: (other - place) % len(indices)) for place in range(len(indices))]
        batch = {"x": torch.stack([good[place] for place in taken])}
        return batch if self.labels is None else {**batch, "label": self.labels[indices[taken]]}


_REMEDY = "repair or remove it, or give corrupt: skip"


def read_ahead(workers: int | None) -> int:
    """How many processes decode: as many as asked for, or all cores but one, at most four."""
    return min(4, max(0, (os.cpu_count() or 1) - 1)) if workers is None else workers


def _tell_skipped(name: str, bad: list[str], total: int) -> None:
    shown = ", ".join(bad[:3]) + (", …" if len(bad) > 3 else "")
    say(f"{name}: {len(bad)} of {total} images cannot be read and are skipped: {shown}")


def _more(count: int) -> str:
    return f", and {count - 1} more" if count > 1 else ""


def _short(error: Exception) -> str:
    return str(error).partition("\n")[0].partition(" <_io")[0].partition(" '/")[0][:100] or type(error).__name__
