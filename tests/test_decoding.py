"""From an image file to integers: modes, orientation, cropping, antialiased resizing, 16 bits."""

from typing import Any

import numpy as np
import pytest
from PIL import Image

from diffusion_pl.data.decoding import Layout, check_size, look, resize_array, to_array

RNG = np.random.default_rng(0)


def image(mode: str, height: int = 6, width: int = 8) -> Image.Image:
    channels = {"L": (), "RGB": (3,), "RGBA": (4,), "LA": (2,), "CMYK": (4,)}[mode]
    return Image.fromarray(RNG.integers(0, 256, (height, width, *channels), dtype=np.uint8), mode)


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3), ("RGBA", 4)])
def test_images_are_unchanged_by_default(mode: str, channels: int) -> None:
    source = image(mode)
    array = to_array(source, Layout(), "x")
    assert (array.shape, array.dtype) == ((channels, 6, 8), np.dtype(np.uint8))
    assert np.array_equal(array.transpose(1, 2, 0).squeeze(), np.asarray(source))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: image("RGB").convert("P"), "has a palette"),
        (lambda: image("LA"), "is grey with transparency"),
        (lambda: image("CMYK"), "is in print colours"),
        (lambda: image("L").convert("1"), "is black and white"),
    ],
)
def test_other_modes_are_refused_unless_one_is_chosen(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=rf"a\.png {message}.*: give mode RGB \(or L\) to convert all images"):
        to_array(make(), Layout(), "a.png")
    assert to_array(make(), Layout("RGB"), "a.png").shape == (3, 6, 8)
    assert to_array(make(), Layout("L"), "a.png").shape == (1, 6, 8)


def test_a_chosen_mode_lays_transparency_on_white() -> None:
    clear = Image.new("RGBA", (4, 4), (10, 20, 30, 0))
    half = Image.new("RGBA", (4, 4), (0, 0, 0, 128))
    assert np.unique(to_array(clear, Layout("RGB"), "x")).tolist() == [255]
    assert np.unique(to_array(half, Layout("L"), "x")).tolist() == [127]
    assert to_array(clear, Layout(), "x")[:, 0, 0].tolist() == [10, 20, 30, 0]
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([200, 0, 0])
    palette.info["transparency"] = 0
    assert np.unique(to_array(palette, Layout("RGB"), "x")).tolist() == [255]


def test_sixteen_bits_stay_sixteen_bits_also_when_resized() -> None:
    values = RNG.integers(0, 65_536, (6, 8)).astype(np.uint16)
    array = to_array(Image.fromarray(values), Layout(), "x")
    assert (array.dtype, array.shape) == (np.dtype(np.int32), (1, 6, 8))
    assert np.array_equal(array[0], values)
    flat = Image.fromarray(np.full((40, 40), 40_000, np.uint16))
    assert np.unique(to_array(flat, Layout(size=(7, 7)), "x")).tolist() == [40_000]
    assert np.unique(to_array(flat, Layout("L"), "x")).tolist() == [40_000 // 257]


def test_values_beyond_sixteen_bits_are_refused() -> None:
    with pytest.raises(ValueError, match="x has values beyond 16 bits, 0 to 70000: convert the file"):
        to_array(Image.fromarray(np.array([[0, 70_000]], np.int32)), Layout(), "x")


def test_the_centre_is_cut_out_before_resizing() -> None:
    source = np.zeros((20, 31, 3), np.uint8)
    source[5:15, 10:20] = 200
    array = to_array(Image.fromarray(source), Layout(crop=10), "x")
    assert array.shape == (3, 10, 10)
    assert np.unique(array).tolist() == [200]
    assert to_array(Image.fromarray(source), Layout(crop=25), "x").shape == (3, 20, 25)


@pytest.mark.parametrize("size", [(10, 10), (20, 10), (10, 20)])
def test_resizing_crops_to_shape_and_keeps_proportions(size: tuple[int, int]) -> None:
    """A disc at the centre stays a disc: what is outside is cut off, nothing is stretched."""
    y, x = np.mgrid[:60, :60] - 29.5
    disc = Image.fromarray(((x**2 + y**2 < 14**2) * 255).astype(np.uint8))
    array = to_array(disc, Layout(size=size), "x")[0] / 255
    assert array.shape == size
    scale = 60 / max(size)  # the longer new side decides how much of a square is kept
    assert array.sum() == pytest.approx(np.pi * (14 / scale) ** 2, rel=0.04)
    heights, widths = array.sum(0).max(), array.sum(1).max()
    assert heights == pytest.approx(28 / scale, rel=0.08)
    assert widths == pytest.approx(28 / scale, rel=0.08)


def test_resizing_is_antialiased() -> None:
    fine = Image.fromarray(((np.indices((64, 64)).sum(0) % 2) * 255).astype(np.uint8))
    small = to_array(fine, Layout(size=(9, 9)), "x")
    assert small.min() > 110
    assert small.max() < 146
    assert np.array_equal(resize_array(np.asarray(fine)[None], (9, 9)), small)
    wide = resize_array(np.asarray(fine)[None].astype(np.int32) * 257, (9, 9))
    assert abs(wide - 257.0 * small).max() <= 257


def test_arrays_are_resized_per_channel_around_the_centre() -> None:
    array = RNG.integers(0, 256, (5, 20, 30), dtype=np.uint8)
    together = resize_array(array, (10, 10))
    assert together.shape == (5, 10, 10)
    for plane, small in zip(array, together, strict=True):
        expected = Image.fromarray(plane[:, 5:25]).resize((10, 10), Image.Resampling.BICUBIC)
        assert np.array_equal(small, np.asarray(expected))
    assert resize_array(array, (20, 30)) is array


def test_a_photograph_taken_upright_is_shown_upright() -> None:
    source = image("RGB", 6, 8)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    source.info["exif"] = exif.tobytes()
    turned = Image.open(_saved(source, exif))
    assert look(turned)[1:3] == (8, 6)
    assert to_array(turned, Layout(), "x").shape == (3, 8, 6)
    assert np.array_equal(to_array(turned, Layout(), "x"), np.rot90(np.asarray(source).transpose(2, 0, 1), -1, (1, 2)))


def test_a_tiff_is_not_turned_twice() -> None:
    source = image("RGB", 6, 8)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = Image.open(_saved(source, exif, "TIFF"))
    assert look(turned)[1:3] == (8, 6)
    assert np.array_equal(to_array(turned, Layout(), "x"), np.rot90(np.asarray(source).transpose(2, 0, 1), -1, (1, 2)))


def _saved(source: Image.Image, exif: Image.Exif, format: str = "PNG") -> Any:
    import io

    file = io.BytesIO()
    source.save(file, format, exif=exif)
    file.seek(0)
    return file


def test_colours_of_sixteen_bits_are_not_made_eight_unasked() -> None:
    import io
    import struct
    import zlib

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    rows = RNG.integers(0, 65_536, (6, 8, 3)).astype(">u2")
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 6, 16, 2, 0, 0, 0))
    png += chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))) + chunk(b"IEND", b"")
    with pytest.raises(ValueError, match=r"x has the mode RGB of 16 bits: give mode RGB"):
        to_array(Image.open(io.BytesIO(png)), Layout(), "x")
    eight = to_array(Image.open(io.BytesIO(png)), Layout("RGB"), "x")
    assert abs(eight - rows.transpose(2, 0, 1) / 257).max() <= 1


def test_a_transparent_colour_is_not_dropped_unasked() -> None:
    image = Image.new("RGB", (4, 4), (1, 2, 3))
    image.info["transparency"] = (1, 2, 3)
    with pytest.raises(ValueError, match="x has the mode RGB with a transparent colour"):
        to_array(image, Layout(), "x")
    assert np.unique(to_array(image, Layout("RGB"), "x")).tolist() == [255]


@pytest.mark.parametrize("layout", [Layout(), Layout("L")])
def test_real_numbers_are_refused(layout: Layout) -> None:
    with pytest.raises(ValueError, match=r"x has real numbers"):
        to_array(Image.fromarray(np.ones((4, 4), np.float32)), layout, "x")


@pytest.mark.parametrize("size", [0, (4, 0), (4, 4, 4)])
def test_sizes_that_are_none_are_refused(size: Any) -> None:
    with pytest.raises(ValueError, match="Folder: size "):
        check_size("Folder", size)


def test_one_number_means_a_square() -> None:
    assert check_size("x", 8) == (8, 8)
    assert check_size("x", (4, 6)) == (4, 6)
    assert check_size("x", None) is None
    with pytest.raises(ValueError, match="x: crop must be at least 1, got 0"):
        check_size("x", None, 0)
