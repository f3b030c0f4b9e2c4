"""Image files from anyone: formats, pages, bits, links, copies, pipes and endings are right or said."""

import io
import os
import struct
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion_pl.data import Folder, Picture
from diffusion_pl.data.decoding import Layout, look, mode_of, to_array
from diffusion_pl.data.listing import copies, list_images
from diffusion_pl.data.opening import Unreadable, count_pages, endings, opened

RNG = np.random.default_rng(0)


def noise(*shape: int) -> Image.Image:
    return Image.fromarray(RNG.integers(0, 256, shape or (8, 6, 3), dtype=np.uint8))


def ready(path: Path, **options: Any) -> Folder:
    data = Folder(str(path), **({"batch_size": 4, "workers": 0} | options))
    data.setup()
    return data


def x_of(source: Any) -> torch.Tensor:
    x: torch.Tensor = source.__getitems__(torch.arange(len(source)))["x"]
    return x


def several(path: Path, number: int = 3) -> list[np.ndarray]:
    frames = [np.full((8, 6, 3), 40 * (i + 1), np.uint8) for i in range(number)]
    images = [Image.fromarray(frame) for frame in frames]
    lossless: dict[str, Any] = {"lossless": True} if path.suffix == ".webp" else {}
    images[0].save(path, save_all=True, append_images=images[1:], **lossless)
    return frames


def tiff(values: np.ndarray, bits: int, sample_format: int, order: str = "<") -> bytes:
    """A TIFF of one strip, as the specification lays it out."""
    pixels = values.tobytes()
    height, width = values.shape
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, 1), (273, 8), (277, 1), (278, height)]
    tags += [(279, len(pixels)), (339, sample_format)]
    entries = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in tags)
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8 + len(pixels))
    return head + pixels + struct.pack(f"{order}H", len(tags)) + entries + bytes(4)


def read(content: bytes, layout: Layout | None = None) -> np.ndarray:
    return to_array(Image.open(io.BytesIO(content)), layout or Layout(), "x")


@pytest.mark.parametrize("ending", [".tif", ".webp", ".png", ".gif"])
def test_several_pages_are_refused_or_chosen(ending: str, tmp_path: Path) -> None:
    frames = several(tmp_path / f"a{ending}")
    mode: Any = "RGB" if ending == ".gif" else None
    with pytest.raises(ValueError, match=rf"a\{ending} has 3 pages or frames, expected 1: set frames"):
        ready(tmp_path, corrupt="skip", mode=mode)
    first = x_of(ready(tmp_path, frames="first", val_fraction=0.0, mode=mode).splits[0])
    assert np.array_equal(first[0].permute(1, 2, 0), frames[0])
    noise().save(tmp_path / "b.png")
    for memory_gb in (2.0, 0.0):
        x = x_of(ready(tmp_path, frames="all", val_fraction=0.0, mode=mode, memory_gb=memory_gb).splits[0])
        assert len(x) == 4
        for i, frame in enumerate(frames):
            assert np.array_equal(x[i].permute(1, 2, 0), frame)


def test_labels_of_pages_are_their_files(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        noise().save(tmp_path / name / "one.png")
    several(tmp_path / "dog" / "more.tif")
    batch = ready(tmp_path, conditional=True, frames="all", val_fraction=0.0).splits[0].__getitems__(torch.arange(5))
    assert batch["label"].tolist() == [0, 1, 1, 1, 1]


def test_reduced_pages_of_a_tiff_do_not_count(tmp_path: Path) -> None:
    small = noise(4, 3, 3)
    small.encoderinfo = {"tiffinfo": {254: 1}}
    noise().save(tmp_path / "a.tif", save_all=True, append_images=[small])
    with opened(tmp_path / "a.tif") as image:
        assert (image.n_frames, count_pages(image), image.size) == (2, 1, (6, 8))  # type: ignore[attr-defined]


def test_multi_page_files_are_refused_for_single_images(tmp_path: Path) -> None:
    several(tmp_path / "a.tif")
    noise().save(tmp_path / "b.png")
    with pytest.raises(ValueError, match="has 3 pages"):
        Picture(str(tmp_path / "a.tif")).inspect()
    (tmp_path / "data").mkdir()
    noise().save(tmp_path / "data" / "one.png")
    data = Folder(str(tmp_path / "data"))
    assert data.read(tmp_path / "b.png").shape == (1, 3, 8, 6)
    with pytest.raises(ValueError, match=r"a\.tif has 3 pages"):
        data.read(tmp_path)


def test_postscript_starts_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def started(*_: Any, **__: Any) -> None:
        raise AssertionError("a program was started")

    monkeypatch.setattr(subprocess, "check_call", started)
    monkeypatch.setattr(subprocess, "Popen", started)
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n")
    with pytest.raises(ValueError, match=r"a\.png: cannot be read \(not one of the formats that are read, PNG, JPEG"):
        ready(tmp_path)
    with pytest.raises(ValueError, match="not one of the formats"):
        Picture(str(tmp_path / "a.png")).inspect()
    noise().save(tmp_path / "b.png")
    with pytest.raises(ValueError, match="not one of the formats"):
        Folder(str(tmp_path)).read(tmp_path / "a.png")


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    noise().save(tmp_path / "b.png")
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a\.png: cannot be read \(a pipe, not a regular file\)"):
        ready(tmp_path)
    assert len(ready(tmp_path, corrupt="skip", val_fraction=0.0).splits[0]) == 1
    with pytest.raises(ValueError, match=r"a\.png: cannot be read .*pipe"):
        Folder(str(tmp_path), corrupt="skip").read(tmp_path / "a.png")
    (tmp_path / "empty.png").touch()
    with pytest.raises(Unreadable, match="the file is empty"):
        opened(tmp_path / "empty.png")


def test_every_ending_is_read_and_the_rest_is_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written = [
        e for e in (".png", ".JPG", ".jfif", ".avif", ".ppm", ".Tif", ".bmp", ".qoi", ".jp2") if e.lower() in endings()
    ]
    assert len(written) >= 7
    for ending in written:
        noise().save(tmp_path / f"ä {ending[1:]}{ending}")
    for name in ("a.txt", "b.TXT", "c.heic", "README", ".hidden"):
        (tmp_path / name).write_text("no image")
    data = ready(tmp_path, val_fraction=0.0)
    assert len(data.splits[0]) == len(written)
    assert "4 files skipped for their endings (2 .txt, 1 .heic, 1 without an ending)" in capsys.readouterr().out
    assert len(data.read(tmp_path)) == len(written)
    assert "4 files skipped" in capsys.readouterr().out


def test_each_file_is_taken_once_whatever_links_there_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "p"
    (root / "real" / "deep").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    for path in (
        root / "1.png",
        root / "real" / "2.png",
        root / "real" / "deep" / "3.png",
        tmp_path / "outside" / "4.png",
    ):
        noise().save(path)
    (root / "a back").symlink_to(root)
    (root / "real" / "up").symlink_to(tmp_path)  # a folder around this one
    (root / "a link").symlink_to(root / "real" / "deep")
    (root / "b link").symlink_to(tmp_path / "outside")
    (root / "c link").symlink_to(tmp_path / "outside")
    (root / "0.png").symlink_to(root / "real" / "2.png")
    os.link(root / "1.png", root / "9.png")
    listing = list_images(root)
    names = [str(path.relative_to(root)) for path in listing.files]
    assert names == ["1.png", "b link/4.png", "real/2.png", "real/deep/3.png"]
    assert listing.links == 6
    assert len(ready(root, val_fraction=0.0).splits[0]) == 4
    assert "6 links to what is in the folder already skipped" in capsys.readouterr().out


def test_copies_stay_in_one_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(12):
        Image.fromarray(np.full((8, 6), i, np.uint8)).save(tmp_path / f"{i:02d}.bmp")  # all of one size
    for i in range(12):
        (tmp_path / f"x{i:02d}.bmp").write_bytes((tmp_path / f"{i:02d}.bmp").read_bytes())
    files = sorted(tmp_path.iterdir())
    groups = copies(files)
    assert groups is not None
    assert groups.tolist() == list(range(12)) * 2
    assert copies(files[:12]) is None
    for seed in range(3):
        train, val, _ = (
            set(x_of(split).flatten().tolist()) for split in ready(tmp_path, val_fraction=0.4, seed=seed).splits
        )
        assert len(train) + len(val) == 12
        assert not train & val
    assert "12 of 24 files are copies of others" in capsys.readouterr().out


def test_copies_in_other_classes_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for i in range(3):
            noise().save(tmp_path / name / f"{i}.png")
    (tmp_path / "dog" / "9.png").write_bytes((tmp_path / "cat" / "1.png").read_bytes())
    ready(tmp_path, conditional=True)
    out = capsys.readouterr().out
    assert "1 of 7 files are copies" in out
    assert "1 of them is in another class" in out


@pytest.mark.parametrize(
    ("dtype", "bits", "sample_format", "order"),
    [("<i2", 16, 2, "<"), ("<i4", 32, 2, "<"), ("i1", 8, 2, "<"), (">i2", 16, 2, ">")],
)
@pytest.mark.parametrize("layout", [Layout(), Layout("L"), Layout(size=(2, 2)), Layout("L", size=(2, 2))])
def test_negative_values_are_refused(dtype: str, bits: int, sample_format: int, order: str, layout: Layout) -> None:
    content = tiff(np.array([[-5, 100, 7], [9, 10, 11]], dtype), bits, sample_format, order)
    with pytest.raises((ValueError, OSError), match=r"beyond 16 bits, -5 to 100|signed|cannot identify"):
        read(content, layout)


def test_values_beyond_16_bits_are_refused() -> None:
    content = tiff(np.array([[0, 70_000], [1, 2]], "<u4"), 32, 1)
    for layout in (Layout("L"), Layout(size=(1, 1)), Layout("RGB")):
        with pytest.raises(ValueError, match="beyond 16 bits, 0 to 70000"):
            read(content, layout)


def test_big_endian_sixteen_bits_are_read() -> None:
    values = np.array([[0, 65_535, 300], [1, 2, 256]])
    for order in "<>":
        content = tiff(values.astype(f"{order}u2"), 16, 1, order)
        assert np.array_equal(read(content)[0], values)
        assert np.array_equal(read(content, Layout("L"))[0], values // 257)


def test_twelve_bits_in_sixteen_become_4096_levels(tmp_path: Path) -> None:
    values = RNG.integers(0, 4096, (6, 5, 4)).astype(np.uint16)
    values[0, 0, :2] = 0, 4095
    for i, value in enumerate(values):
        Image.fromarray(value).save(tmp_path / f"{i}.png")
    data = ready(tmp_path, bits=12, val_fraction=0.0)
    assert data.units.levels == 4096
    x = x_of(data.splits[0])
    assert np.array_equal(x[:, 0].numpy(), values)
    assert (data.units.encode(x).min().item(), data.units.encode(x).max().item()) == (-1, 1)
    assert torch.equal(data.decode(data.read(tmp_path)), x)  # `encode` and `restore` keep the values
    grey = x_of(ready(tmp_path, bits=12, mode="L", val_fraction=0.0).splits[0])[:, 0].numpy()
    assert np.array_equal(grey, values.astype(int) * 255 // 4095)
    with pytest.raises(ValueError, match=r"beyond 11 bits, 0 to 4095: remove the option bits or raise it"):
        ready(tmp_path, bits=11)
    with pytest.raises(ValueError, match="bits must be from 9 to 16"):
        Folder(str(tmp_path), bits=8)


def test_deep_colours_are_not_made_eight_bits_unasked() -> None:
    values = RNG.integers(0, 4096, (4, 5, 3)).astype(">u2")
    ppm = Image.open(io.BytesIO(b"P6 5 4 4095\n" + values.tobytes()))
    with pytest.raises(ValueError, match="RGB of 16 bits"):
        mode_of(look(ppm), Layout(), "x")
    eight = to_array(ppm, Layout("RGB"), "x")
    assert abs(eight - values.transpose(2, 0, 1) * (255 / 4095)).max() <= 1


def test_sixteen_bits_with_a_transparent_colour_are_refused() -> None:
    image = Image.fromarray(np.full((3, 3), 7, np.uint16))
    image.info["transparency"] = 7
    for layout in (Layout(), Layout("L"), Layout("RGBA")):
        with pytest.raises(ValueError, match="16 bits and a transparent colour"):
            to_array(image, layout, "x")


def test_a_mode_that_cannot_be_converted_is_one_line() -> None:
    with pytest.raises(ValueError, match="x cannot be converted to L"):
        to_array(Image.new("LAB", (4, 4)), Layout("L"), "x")


def test_colour_profiles_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import ImageCms

    for i, name in enumerate(("sRGB", "LAB")):
        profile = ImageCms.ImageCmsProfile(ImageCms.createProfile(name)).tobytes()  # type: ignore[arg-type]
        noise().save(tmp_path / f"{i}.png", icc_profile=profile)
    ready(tmp_path)
    out = capsys.readouterr().out
    assert "colour profiles are ignored" in out
    assert "(1 " in out
