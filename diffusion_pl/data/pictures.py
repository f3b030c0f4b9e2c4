"""From a picture in a file to an array of integers: modes, orientation, cropping, resizing."""

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.Image import Image

Mode = Literal["L", "RGB", "RGBA"]
Size = int | tuple[int, int] | None

#: Modes that are taken as they are, with their channels; 16-bit grey has several names.
CHANNELS = {"L": 1, "RGB": 3, "RGBA": 4, "I;16": 1, "I;16B": 1, "I;16L": 1, "I": 1}
_NAMES = {
    "P": "has a palette",
    "PA": "has a palette and transparency",
    "1": "is black and white",
    "LA": "is grey with transparency",
    "CMYK": "is in print colours (CMYK)",
    "P with a transparent colour": "has a palette and transparency",
}


class Unreadable(OSError):
    """A picture that cannot be opened or decoded."""


class File(Protocol):
    """An encoded picture that is no file of its own; ``str`` says what to call it in messages."""

    def open(self) -> io.BytesIO:
        """Its content."""
        ...


class Layout(NamedTuple):
    """How pictures are made alike.

    mode: to convert to, None: as they are;  crop: side of the centre square cut out first, None: none;  size: height
    and width to crop to in shape and to resize to, None: as they are.
    """

    mode: Mode | None = None
    crop: int | None = None
    size: tuple[int, int] | None = None


class Look(NamedTuple):
    """What a picture is, from its header.

    mode: as PIL names it, with a note where PIL would drop something unasked;  height, width: as shown upright.
    """

    mode: str
    height: int
    width: int


def check_size(name: str, size: Size, crop: int | None = None) -> tuple[int, int] | None:
    """(height, width) of one number or two."""
    sides = (size, size) if isinstance(size, int) else size
    if sides is not None and (len(sides) != 2 or min(sides) < 1):
        raise ValueError(f"{name}: size must be one side or height and width, at least 1, got {size}")
    if crop is not None and crop < 1:
        raise ValueError(f"{name}: crop must be at least 1, got {crop}")
    return None if sides is None else (sides[0], sides[1])


def look(picture: "Image") -> Look:
    """Mode and sides from the header alone; EXIF may turn a picture on its side."""
    width, height = picture.size
    if _orientation(picture) in (5, 6, 7, 8):
        width, height = height, width
    return Look(_kind(picture), height, width)


def sides(seen: Look, layout: Layout) -> tuple[int, int]:
    """Height and width that `to_array` makes of such a picture."""
    if layout.size is not None:
        return layout.size
    if layout.crop is not None:
        return min(layout.crop, seen.height), min(layout.crop, seen.width)
    return seen.height, seen.width


def mode_of(seen: Look, layout: Layout, where: str) -> tuple[int, int]:
    """Channels and levels of such a picture once converted.

    Raises:
        ValueError: its mode is not one of those taken as they are, and none was chosen; or it has no known white.
    """
    if seen.mode == "F":
        raise ValueError(f"{where} has real numbers, whose white is unknown: convert the file to 8 or 16 bits")
    if layout.mode is not None:
        return CHANNELS[layout.mode], 256
    if seen.mode not in CHANNELS:
        what = _NAMES.get(seen.mode, f"has the mode {seen.mode}")
        raise ValueError(f"{where} {what}: give mode RGB (or L) to convert all pictures, or convert the file")
    return CHANNELS[seen.mode], 65_536 if seen.mode.startswith("I") else 256


def to_array(picture: "Image", layout: Layout, where: str) -> NDArray[Any]:
    """The picture upright, converted, cropped and resized: (C, H, W), uint8 or int32 for 16 bits.

    Transparency is laid on white when a mode without it is chosen.  Resizing crops the centre to the new sides' shape
    and then averages over each new pixel's neighbourhood (antialiased bicubic).
    """
    from PIL import Image, ImageOps

    mode_of(look(picture), layout, where)
    turned = _orientation(picture) != 1
    try:
        picture.load()
    except Exception as error:  # damage makes the decoders raise nearly anything
        raise Unreadable(str(error) or type(error).__name__) from None
    if turned:
        picture = ImageOps.exif_transpose(picture)
    if layout.mode is not None and (picture.mode != layout.mode or "transparency" in picture.info):
        picture = _converted(picture, layout.mode)
    if layout.crop is not None:
        picture = _centre(picture, min(layout.crop, picture.height), min(layout.crop, picture.width))
    if layout.size is not None and (picture.height, picture.width) != layout.size:
        height, width = layout.size
        scale = min(picture.height / height, picture.width / width)
        box = (round(scale * height), round(scale * width))
        picture = _centre(picture, max(1, box[0]), max(1, box[1]))
        if picture.mode.startswith("I"):  # PIL resizes 16 bits without antialiasing, but single precision with it
            grey = Image.fromarray(np.asarray(picture).astype(np.float32))
            resized = np.asarray(grey.resize((width, height), Image.Resampling.BICUBIC))
            return resized.round().clip(0, 65_535).astype(np.int32)[None]
        picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    array = np.asarray(picture)
    if picture.mode.startswith("I"):
        if array.min() < 0 or array.max() > 65_535:
            raise ValueError(f"{where} has values beyond 16 bits, {array.min()} to {array.max()}: convert the file")
        return array.astype(np.int32)[None]
    return np.ascontiguousarray(array.reshape(picture.height, picture.width, -1).transpose(2, 0, 1))


def resize_array(array: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """(C, H, W) of uint8 or int32, cropped at the centre and resized channel by channel as `to_array` does."""
    from PIL import Image

    if array.shape[1:] == size:
        return array
    planes = []
    for plane in array:
        grey = Image.fromarray(plane if array.dtype == np.uint8 else plane.astype(np.float32))
        height, width = size
        scale = min(grey.height / height, grey.width / width)
        cut = _centre(grey, max(1, round(scale * height)), max(1, round(scale * width)))
        planes.append(np.asarray(cut.resize((width, height), Image.Resampling.BICUBIC)))
    stacked = np.stack(planes)
    return stacked if array.dtype == np.uint8 else stacked.round().clip(0, 65_535).astype(np.int32)


def opened(file: Path | File) -> "Image":
    """The picture, of which only the header is read yet."""
    from PIL import Image

    try:
        return Image.open(file if isinstance(file, Path) else file.open())
    except Exception as error:
        raise Unreadable(str(error) or type(error).__name__) from None


def _kind(picture: "Image") -> str:
    """The mode, with a note on what would be lost: PIL reads colours of 16 bits as 8 and says so only here."""
    deep = any(";16" in str(tile[3]) for tile in getattr(picture, "tile", []))
    if deep and not picture.mode.startswith("I"):
        return f"{picture.mode} of 16 bits"
    return f"{picture.mode} with a transparent colour" if "transparency" in picture.info else picture.mode


def _orientation(picture: "Image") -> int:
    """How the camera was held, 1 for upright."""
    # Of a PNG without it in front, PIL would decode the whole picture to look for it behind. TIFF it turns by itself.
    if picture.format == "TIFF" or (picture.format == "PNG" and "exif" not in picture.info):
        return 1
    try:
        return int(picture.getexif().get(0x0112, 1))
    except Exception:  # damaged EXIF data are no reason to lose the picture
        return 1


def _converted(picture: "Image", mode: Mode) -> "Image":
    from PIL import Image

    if picture.mode.startswith("I"):  # the upper eight of sixteen bits; PIL would cut off at 255
        picture = Image.fromarray((np.asarray(picture).clip(0, 65_535) // 257).astype(np.uint8))
    if mode != "RGBA" and (picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info):
        white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
        picture = Image.alpha_composite(white, picture.convert("RGBA"))
    return picture.convert(mode)


def _centre(picture: "Image", height: int, width: int) -> "Image":
    top, left = (picture.height - height) // 2, (picture.width - width) // 2
    return picture.crop((left, top, left + width, top + height))
