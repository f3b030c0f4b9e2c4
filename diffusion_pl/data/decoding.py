"""Decode an image file to an array of integers: modes, orientation, cropping, resizing."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .listing import list_flat
from .opening import MAX_PIXELS, Unreadable, count_pages, opened

if TYPE_CHECKING:
    from PIL.Image import Image

Mode = Literal["L", "RGB", "RGBA"]
Size = int | tuple[int, int] | None
Frames = Literal["all", "first"]

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


_REFUSED = {"signed": "has signed values"}


class Layout(NamedTuple):
    """How images are converted to one format.

    mode: to convert to, None: as they are;  crop: length of the centre square cut out first, None: none;  size: height
    and width to crop to in shape and to resize to, None: as they are;  frames: of files with several pages, None: these
    are refused;  bits: that 16-bit images use, None: all 16;  max_pixels: of one image.
    """

    mode: Mode | None = None
    crop: int | None = None
    size: tuple[int, int] | None = None
    frames: Frames | None = None
    bits: int | None = None
    max_pixels: int = MAX_PIXELS

    @property
    def top(self) -> int:
        """White of 16-bit images."""
        return (1 << (self.bits or 16)) - 1


class Look(NamedTuple):
    """What an image is, from its header.

    mode: as PIL names it, with a note where PIL would drop something unasked;  height, width: as shown upright;  pages:
    how many the file has.
    """

    mode: str
    height: int
    width: int
    pages: int = 1


def check_size(name: str, size: Size, crop: int | None = None) -> tuple[int, int] | None:
    """(height, width) of one number or two."""
    pair = (size, size) if isinstance(size, int) else size
    if pair is not None and (len(pair) != 2 or min(pair) < 1):
        raise ValueError(f"{name}: size must be height and width, or one number for both, at least 1, got {size}")
    if crop is not None and crop < 1:
        raise ValueError(f"{name}: crop must be at least 1, got {crop}")
    return None if pair is None else (pair[0], pair[1])


def make_layout(
    name: str,
    mode: Mode | None,
    crop: int | None,
    size: Size,
    frames: Frames | None,
    bits: int | None,
    max_pixels: int,
) -> Layout:
    """The options of a data set, checked."""
    check_bits(name, bits)
    if max_pixels < 1:
        raise ValueError(f"{name}: max_pixels must be at least 1, got {max_pixels}")
    return Layout(mode, crop, check_size(name, size, crop), frames, bits, max_pixels)


def check_bits(name: str, bits: int | None) -> None:
    if bits is not None and not 9 <= bits <= 16:
        raise ValueError(f"{name}: bits must be from 9 to 16, how many of 16 bits the values use, got {bits}")


def look(image: "Image", *, pages: bool = True) -> Look:
    """Mode, height, width and the number of pages from the header alone; EXIF may rotate an image.

    Args:
        image: Opened.
        pages: Count the pages; else 1 is given.
    """
    width, height = image.size
    if _orientation(image) in (5, 6, 7, 8):
        width, height = height, width
    return Look(_kind(image), height, width, count_pages(image) if pages else 1)


def size_of(seen: Look, layout: Layout) -> tuple[int, int]:
    """Height and width that `to_array` makes of such an image."""
    if layout.size is not None:
        return layout.size
    if layout.crop is not None:
        return min(layout.crop, seen.height), min(layout.crop, seen.width)
    return seen.height, seen.width


def mode_of(seen: Look, layout: Layout, where: str) -> tuple[int, int]:
    """Channels and levels of such an image once converted.

    Raises:
        ValueError: its mode is not one of those taken as they are, and none was chosen; or it has no known white; or it
            has several pages, and it was not said which to take.
    """
    if layout.frames is None and seen.pages > 1:
        raise ValueError(
            f"{where} has {seen.pages} pages or frames, expected 1: set frames to all (each is an image) or first "
            "(an option of Folder and HuggingFace), or save each as a file of its own"
        )
    if seen.mode == "F":
        raise ValueError(f"{where} has real numbers, whose white is unknown: convert the file to 8 or 16 bits")
    if seen.mode in _REFUSED:
        raise ValueError(f"{where} {_REFUSED[seen.mode]}: convert the file to unsigned 8 or 16 bits")
    if seen.mode.startswith("I") and seen.mode not in CHANNELS:
        raise ValueError(f"{where} has 16 bits and a transparent colour: convert the file to grey or to RGBA of 8 bits")
    if layout.mode is not None:
        return CHANNELS[layout.mode], 256
    if seen.mode not in CHANNELS:
        what = _NAMES.get(seen.mode, f"has the mode {seen.mode}")
        raise ValueError(f"{where} {what}: give mode RGB (or L) to convert all images, or convert the file")
    return CHANNELS[seen.mode], layout.top + 1 if seen.mode.startswith("I") else 256


def to_array(image: "Image", layout: Layout, where: str) -> NDArray[Any]:
    """The image upright, converted, cropped and resized: (C, H, W), uint8 or int32 for 16 bits.

    Transparency is laid on white when a mode without it is chosen.  Resizing crops the centre to the new aspect ratio
    and then averages over each new pixel's neighbourhood (antialiased bicubic).
    """
    from PIL import Image, ImageOps

    mode_of(look(image, pages=layout.frames is None), layout, where)
    turned = _orientation(image) != 1
    try:
        image.load()
    except Exception as error:  # damage makes the decoders raise nearly anything
        raise Unreadable(str(error) or type(error).__name__) from None
    if turned:
        image = ImageOps.exif_transpose(image)
    deep = image.mode.startswith("I")
    if deep:
        values = np.asarray(image)
        if values.size and (values.min() < 0 or values.max() > layout.top):
            bits = layout.bits or 16
            fix = "remove the option bits or raise it" if layout.bits else "convert the file to unsigned 16 bits"
            raise ValueError(f"{where} has values beyond {bits} bits, {values.min()} to {values.max()}: {fix}")
        if layout.mode is not None:
            image = Image.fromarray((values.astype(np.int64) * 255 // layout.top).astype(np.uint8))
    if layout.mode is not None and (image.mode != layout.mode or "transparency" in image.info):
        try:
            image = _converted(image, layout.mode)
        except ValueError as error:
            raise ValueError(f"{where} cannot be converted to {layout.mode} ({error}): convert the file") from None
    if layout.crop is not None:
        image = _centre(image, min(layout.crop, image.height), min(layout.crop, image.width))
    if layout.size is not None and (image.height, image.width) != layout.size:
        height, width = layout.size
        scale = min(image.height / height, image.width / width)
        box = (round(scale * height), round(scale * width))
        image = _centre(image, max(1, box[0]), max(1, box[1]))
        if image.mode.startswith("I"):  # PIL resizes 16 bits without antialiasing, but single precision with it
            grey = Image.fromarray(np.asarray(image).astype(np.float32))
            resized = np.asarray(grey.resize((width, height), Image.Resampling.BICUBIC))
            return resized.round().clip(0, layout.top).astype(np.int32)[None]
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    array = np.asarray(image)
    if image.mode.startswith("I"):
        return array.astype(np.int32)[None]
    return np.ascontiguousarray(array.reshape(image.height, image.width, -1).transpose(2, 0, 1))


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


def read_images(path: Path, shape: tuple[int, ...], bits: int | None) -> Iterator[tuple[NDArray[Any], bool]]:
    """An image, or all of a folder (but grid.png), cropped in the middle and resized: (C, H, W), uint8 or int32.

    Args:
        path: The file or folder.
        shape: (C, H, W) to give each, or (C,) to leave their sizes; C is 1, 3 or 4.
        bits: Of grey images of 16 bits, whose values are kept; None: all images are converted to 8 bits.

    Yields:
        Each image, and whether it has the values of 16 bits.

    Raises:
        ValueError: no such file, or not an image.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder: check the path")
    channels, *sizes = shape
    size = (sizes[0], sizes[1]) if sizes else None
    modes: dict[int, Mode] = {1: "L", 3: "RGB", 4: "RGBA"}
    if channels not in modes:
        raise ValueError(f"{path}: image files have 1, 3 or 4 channels, the model's data {channels}")
    for file in list_flat(path, "grid.png") if path.is_dir() else [path]:
        try:
            with opened(file) as image:
                deep = bits is not None and channels == 1 and image.mode.startswith("I")
                layout = Layout(None if deep else modes[channels], size=size, bits=bits if deep else None)
                yield to_array(image, layout, str(file)), deep
        except Unreadable as error:
            raise ValueError(f"{file}: cannot be read as an image ({str(error)[:100]}): remove it") from None


def save_png(image: NDArray[Any], path: Path) -> None:
    """Write an image (C, H, W) losslessly: uint8 with one or three channels, or int32 with one, of 16 bits."""
    from PIL import Image

    plane = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
    Image.fromarray(plane if plane.dtype == np.uint8 else plane.astype(np.uint16)).save(path)


def _kind(image: "Image") -> str:
    """The mode, with a note on what would be lost: PIL reads colours of 16 bits as 8 and says so only here."""
    signed = image.format == "TIFF" and 2 in image.tag_v2.get(339, ())  # type: ignore[attr-defined]
    if signed and not image.mode.startswith("I"):  # PIL would take -1 for 255
        return "signed"
    if _deep(image) and not image.mode.startswith("I"):
        return f"{image.mode} of 16 bits"
    return f"{image.mode} with a transparent colour" if "transparency" in image.info else image.mode


def _deep(image: Any) -> bool:
    """Has the file more than 8 bits a channel?"""
    tiles = getattr(image, "tile", [])
    if image.format == "PPM" and tiles:
        maximum = tiles[0][3][-1] if isinstance(tiles[0][3], tuple) else 255
        return isinstance(maximum, int) and maximum > 255
    if any(";16" in str(tile[3]) for tile in tiles):
        return True
    if image.format not in ("JPEG2000", "AVIF"):
        return False
    file = image.fp  # neither says so after opening
    if file is None or file.closed:
        return False
    place = file.tell()
    file.seek(0)
    head = file.read(65_536)
    file.seek(place)
    if image.format == "AVIF":
        box = re.search(rb"av1C..(.)", head, re.DOTALL)  # high_bitdepth is the second bit of its third byte
        return box is not None and bool(box[1][0] & 0x40)
    depth = re.search(rb"\xff\x4f\xff\x51.{38}(.)", head, re.DOTALL)  # Ssiz, bits a channel less one
    return depth is not None and depth[1][0] & 0x7F > 7


def profile_name(image: "Image") -> str:
    """Name of the colour profile in the file, "" if there is none."""
    profile = image.info.get("icc_profile")
    if not profile:
        return ""
    import io

    from PIL import ImageCms

    try:
        return ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(io.BytesIO(profile))).strip() or "without a name"
    except Exception:  # damaged profiles are no reason to lose the image
        return "damaged"


def _orientation(image: "Image") -> int:
    """How the camera was held, 1 for upright."""
    # Of a PNG without it in front, PIL would decode the whole image to look for it behind. TIFF it turns by itself.
    if image.format == "TIFF" or (image.format == "PNG" and "exif" not in image.info):
        return 1
    try:
        return int(image.getexif().get(0x0112, 1))
    except Exception:  # damaged EXIF data are no reason to lose the image
        return 1


def _converted(image: "Image", mode: Mode) -> "Image":
    from PIL import Image

    if mode != "RGBA" and (image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info):
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert(mode)


def _centre(image: "Image", height: int, width: int) -> "Image":
    top, left = (image.height - height) // 2, (image.width - width) // 2
    return image.crop((left, top, left + width, top + height))
