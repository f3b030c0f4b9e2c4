"""Open untrusted image files: which formats are read, and what is refused before decoding."""

import io
import os
import re
import stat
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from PIL.Image import Image

#: Formats that hold pixels and nothing else.  Pillow's others start a program (EPS: Ghostscript), have no signature by
#: which a damaged file could be distinguished from an image (TGA), or hold images of several sizes (ICO).
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "DIB", "TIFF", "GIF", "AVIF", "JPEG2000", "PPM", "QOI")

#: Pixels of the largest image that is opened unasked, about what Pillow refuses by itself.
MAX_PIXELS = 175_000_000

_MAX_PAGES = 100_000


class Unreadable(OSError):
    """An image that cannot be opened or decoded."""


class File(Protocol):
    """An encoded image that is no file of its own; ``str`` says what to call it in messages."""

    def open(self) -> io.BytesIO:
        """Its content."""
        ...


class Page(NamedTuple):
    """One page of a file with several, or one frame of an animation."""

    file: Path | File
    number: int  # from 0

    def __str__(self) -> str:
        return f"{self.file}, page {self.number + 1}"


AnyFile = Path | File | Page


@cache
def formats() -> tuple[str, ...]:
    """Those of `FORMATS` that Pillow was built with."""
    from PIL import Image

    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


@cache
def endings() -> frozenset[str]:
    """Endings of the files that are read, in lower case, with their dots."""
    from PIL import Image

    return frozenset(ending for ending, name in Image.registered_extensions().items() if name in (*formats(), "MPO"))


def opened(file: AnyFile, max_pixels: int = MAX_PIXELS) -> "Image":
    """The image, of which only the header is read yet.

    Raises:
        Unreadable: it is damaged, of another format, or no regular file (reading a pipe would wait for ever).
        ValueError: it has more than `max_pixels`.
    """
    from PIL import Image, UnidentifiedImageError

    # Pillow warns above its own limit and refuses above twice that.
    Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS or 0, max_pixels)
    file, page = file if isinstance(file, Page) else (file, 0)
    try:
        if isinstance(file, Path):
            content: Any = regular(file)
        else:
            content = file.open()
        image = Image.open(content, formats=formats())
        if page:
            image.seek(page)
    except UnidentifiedImageError:
        raise Unreadable(f"not one of the formats that are read, {', '.join(formats())}") from None
    except Image.DecompressionBombError as error:
        pixels = re.search(r"\d+", str(error))
        raise _too_large(file, int(pixels[0]) if pixels else 0, max_pixels) from None
    except Exception as error:  # damage makes the decoders raise nearly anything
        raise Unreadable(_reason(error)) from None
    if image.width * image.height > max_pixels:
        image.close()
        raise _too_large(file, image.width * image.height, max_pixels)
    return image


def regular(path: Path) -> Path:
    """The same path, of a regular file.

    Raises:
        Unreadable: it is missing, empty, a folder, a pipe, a device or a socket.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise Unreadable(error.strerror or type(error).__name__) from None
    if not stat.S_ISREG(status.st_mode):
        kinds = {"a folder": stat.S_ISDIR, "a pipe": stat.S_ISFIFO, "a socket": stat.S_ISSOCK}
        kind = next((name for name, test in kinds.items() if test(status.st_mode)), "a device")
        raise Unreadable(f"{kind}, not a regular file")
    if not status.st_size:
        raise Unreadable("the file is empty")
    return path


def count_pages(image: "Image") -> int:
    """Pages of a TIFF or frames of an animation; thumbnails, masks and previews of the first do not count.

    Raises:
        Unreadable: they cannot be counted, or are more than anyone has.
    """
    try:
        number = int(getattr(image, "n_frames", 1))
        if number > _MAX_PAGES:
            raise Unreadable(f"its header says that it has {number} pages")
        if number > 1 and image.format == "MPO":
            kinds = [str(entry["Attribute"]["MPType"]) for entry in image.mpinfo[0xB002]]  # type: ignore[attr-defined]
            return 1 + sum("Thumbnail" not in kind for kind in kinds[1:])
        if number > 1 and image.format == "TIFF":
            number = 1 + sum(not _reduced(image, i) for i in range(1, number))
            image.seek(0)
    except Unreadable:
        raise
    except Exception as error:
        raise Unreadable(_reason(error)) from None
    return number


def _reduced(image: Any, index: int) -> bool:
    """Is a page of a TIFF a smaller version or a mask of another?"""
    image.seek(index)
    return bool(image.tag_v2.get(254, 0) & 0b101)  # NewSubfileType


def _too_large(file: Path | File, pixels: int, max_pixels: int) -> ValueError:
    return ValueError(
        f"{file}: has {pixels / 1e6:,.0f} million pixels, more than the limit of {max_pixels / 1e6:,.3g} million: make "
        f"it smaller, or if you trust it set max_pixels to {pixels} (an option of Folder and HuggingFace)"
    )


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__


def in_parallel(call: Callable[[Any], Any], items: Iterable[Any], what: str) -> list[Any]:
    """Results in order; a progress bar if it takes long.  Threads suffice: decoding leaves the interpreter free."""
    from tqdm.auto import tqdm

    items = list(items)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return list(tqdm(pool.map(call, items), what, len(items), delay=2, leave=False, dynamic_ncols=True))
