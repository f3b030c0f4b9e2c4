"""A folder of images: listing, labels, splits, what is refused and how, cached and streamed."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion_pl.conditions import label
from diffusion_pl.data import Folder

RNG = np.random.default_rng(0)


def save(path: Path, shape: tuple[int, ...] = (8, 6, 3), value: int | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    array = RNG.integers(0, 256, shape, dtype=np.uint8) if value is None else np.full(shape, value, np.uint8)
    Image.fromarray(array).save(path)
    return path


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    for i in range(20):
        save(tmp_path / "p" / f"{i:02d}.png", value=10 * i)
    return tmp_path / "p"


@pytest.fixture
def sorted_by_class(tmp_path: Path) -> Path:
    """30 cats of value 0 …, 10 dogs of value 100 …"""
    for i in range(30):
        save(tmp_path / "c" / "cat" / f"{i:02d}.png", value=i)
    for i in range(10):
        save(tmp_path / "c" / "dog" / "deep" / f"{i:02d}.PNG", value=100 + i)
    return tmp_path / "c"


def ready(path: Path, **options: Any) -> Folder:
    data = Folder(str(path), **({"batch_size": 4} | options))
    data.setup()
    return data


def everything(source: Any) -> dict[str, torch.Tensor]:
    batch: dict[str, torch.Tensor] = source.__getitems__(torch.arange(len(source)))
    return batch


def broken(path: Path, *, header: bool) -> Path:
    """An image file cut off in its header, or in its body."""
    save(path, (64, 64, 3))
    content = path.read_bytes()
    path.write_bytes(content[:20] if header else content[: len(content) // 2])
    return path


def test_size_and_channels_are_those_of_the_images(flat: Path) -> None:
    data = ready(flat)
    assert (data.shape, data.conditions, data.units.levels) == ((3, 8, 6), {}, 256)
    train, val = (everything(split)["x"][:, 0, 0, 0].tolist() for split in data.splits[:2])
    assert sorted(train + val) == list(range(0, 200, 10))
    batch = next(iter(data.train_dataloader()))
    assert (set(batch), batch["x"].dtype) == ({"x"}, torch.uint8)


def test_other_files_and_hidden_ones_are_left_alone(flat: Path) -> None:
    (flat / "notes.txt").write_text("not an image")
    (flat / ".hidden.png").write_text("not an image")
    save(flat / ".thumbnails" / "small.png")
    assert sum(map(len, ready(flat).splits[:2])) == 20


def test_a_hidden_folder_is_no_class(sorted_by_class: Path) -> None:
    save(sorted_by_class / ".thumbnails" / "small.png")
    assert ready(sorted_by_class, conditional=True).conditions["label"].classes == 2


def test_class_folders_are_labels_in_every_split(sorted_by_class: Path) -> None:
    data = ready(sorted_by_class, conditional=True, test_fraction=0.2)
    assert data.conditions == {"label": label(2, ["cat", "dog"])}
    counts = torch.zeros(2, dtype=torch.int64)
    for split in data.splits:
        batch = everything(split)
        assert batch["label"].bincount(minlength=2).min() >= 1
        counts += batch["label"].bincount(minlength=2)
        assert ((batch["x"][:, 0, 0, 0] >= 100).long() == batch["label"]).all()
    assert counts.tolist() == [30, 10]


def test_without_conditional_the_folders_are_only_searched(sorted_by_class: Path) -> None:
    data = ready(sorted_by_class)
    assert data.conditions == {}
    assert sum(map(len, data.splits[:2])) == 40


def test_an_image_outside_the_class_folders_is_refused(sorted_by_class: Path) -> None:
    save(sorted_by_class / "stray.png")
    with pytest.raises(ValueError, match=r"stray\.png: is in no class's folder: move it to one, or give conditional"):
        ready(sorted_by_class, conditional=True)


def test_mixed_image_sizes_need_the_size_option(flat: Path) -> None:
    save(flat / "x.png", (9, 6, 3))
    with pytest.raises(ValueError, match=r"x\.png: is 9x6 \(height x width\), .*00\.png is 8x6: give size, .* size: 6"):
        ready(flat)
    assert ready(flat, size=4).shape == (3, 4, 4)
    assert everything(ready(flat, size=(4, 2)).splits[0])["x"].shape[1:] == (3, 4, 2)


def test_mixed_channels_are_refused_without_mode(flat: Path) -> None:
    save(flat / "grey.png", (8, 6))
    with pytest.raises(
        ValueError, match=r"channels differ \(20 RGB, 1 L; .*grey\.png is another\): give mode: RGB or L"
    ):
        ready(flat)
    assert ready(flat, mode="RGB").shape == (3, 8, 6)
    assert ready(flat, mode="L").shape == (1, 8, 6)


def test_a_palette_is_refused_without_mode(flat: Path) -> None:
    Image.open(save(flat / "00.png")).convert("P").save(flat / "00.png")
    with pytest.raises(ValueError, match=r"00\.png has a palette: give mode RGB \(or L\) to convert all images"):
        ready(flat)


def test_sixteen_bit_grey(tmp_path: Path) -> None:
    values = RNG.integers(0, 65_536, (12, 5, 7)).astype(np.uint16)
    for i, value in enumerate(values):
        Image.fromarray(value).save(tmp_path / f"{i:02d}.png")
    data = ready(tmp_path, val_fraction=0.0)
    assert (data.shape, data.units.levels) == ((1, 5, 7), 65_536)
    x = everything(data.splits[0])["x"]
    assert np.array_equal(x[:, 0].numpy(), values)
    assert torch.equal(data.decode(data.units.encode(x)), x)


@pytest.mark.parametrize("header", [True, False])
@pytest.mark.parametrize("memory_gb", [2.0, 0.0])
def test_a_corrupt_image_is_a_named_error(flat: Path, header: bool, memory_gb: float) -> None:
    broken(flat / "07.png", header=header)
    with pytest.raises(ValueError, match=r"07\.png: cannot be (read|decoded) \(.+\): .*corrupt"):
        list(ready(flat, size=8, memory_gb=memory_gb, workers=0).train_dataloader())


@pytest.mark.parametrize("header", [True, False])
def test_corrupt_images_are_skipped_with_a_warning_on_request(
    flat: Path, header: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in (0, 7, 9, 12):
        broken(flat / f"{i:02d}.png", header=header)
    data = ready(flat, size=8, corrupt="skip", val_fraction=0.0)
    output = capsys.readouterr().out
    assert "4 of 20 images cannot be read and are skipped" in output
    assert all(f"{i:02d}.png" in output for i in (0, 7, 9))
    kept = [10 * i for i in range(20) if i not in (0, 7, 9, 12)]
    assert sorted(everything(data.splits[0])["x"][:, 0, 0, 0].tolist()) == kept


def test_labels_stay_with_their_images_when_some_are_skipped(sorted_by_class: Path) -> None:
    broken(sorted_by_class / "cat" / "03.png", header=False)
    broken(sorted_by_class / "dog" / "deep" / "04.PNG", header=True)
    batch = everything(ready(sorted_by_class, size=4, conditional=True, corrupt="skip", val_fraction=0.0).splits[0])
    assert len(batch["x"]) == 38
    assert ((batch["x"][:, 0, 0, 0] >= 100).long() == batch["label"]).all()
    data = ready(sorted_by_class, size=4, conditional=True, corrupt="skip", val_fraction=0.2)
    counts = [everything(split)["label"].bincount(minlength=2) for split in data.splits[:2]]
    assert (counts[0] + counts[1]).tolist() == [29, 9]
    for split in data.splits[:2]:
        batch = everything(split)
        assert ((batch["x"][:, 0, 0, 0] >= 100).long() == batch["label"]).all()


def test_streaming_replaces_a_corrupt_image_by_the_next_good_one(flat: Path) -> None:
    broken(flat / "07.png", header=False)
    data = ready(flat, size=8, corrupt="skip", val_fraction=0.0, memory_gb=0.0, workers=0)
    with pytest.warns(UserWarning, match=r"07\.png cannot be decoded"):
        x = everything(data.splits[0])["x"][:, 0, 0, 0].tolist()
    assert x == [80 if i == 7 else 10 * i for i in range(20)]


def test_no_held_out_image_replaces_a_corrupt_one(tmp_path: Path) -> None:
    for i in range(12):
        save(tmp_path / f"{i:02d}.png", (64, 64, 3), value=i)
    data = ready(tmp_path, corrupt="skip", val_fraction=0.4, memory_gb=0.0, workers=0)
    train, val, _ = data.splits
    held_out = everything(val)["x"][:, 0, 0, 0].tolist()
    before = next(i for i in range(11) if i not in held_out and i + 1 in held_out)
    place = everything(train)["x"][:, 0, 0, 0].tolist().index(before)
    broken(tmp_path / f"{before:02d}.png", header=False)
    with pytest.warns(UserWarning, match="cannot be decoded"):
        x = everything(train)["x"][:, 0, 0, 0].tolist()
    assert not set(x) & set(held_out)
    assert x[place] == x[(place + 1) % len(x)]
    with (
        pytest.warns(UserWarning),
        pytest.raises(ValueError, match=r"png: cannot be decoded \(.+\), nor can any other image of its batch"),
    ):
        train.__getitems__(torch.tensor([place]))


def test_too_many_pixels_are_refused_with_max_pixels(flat: Path) -> None:
    import struct
    import zlib

    def bomb(side: int) -> None:
        chunks = (b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0), b"IDAT", b"IEND")
        whole = (struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks)
        (flat / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(whole))

    for side in (13_500, 50_000):  # below and above Pillow's own limit
        bomb(side)
        with pytest.raises(ValueError, match=rf"bomb\.png: has .* million pixels.*set max_pixels to {side**2}"):
            ready(flat, corrupt="skip")
    with pytest.raises(ValueError, match=r"00\.png: has .*max_pixels to 48"):
        ready(flat, max_pixels=47)
    (flat / "bomb.png").unlink()
    assert ready(flat, max_pixels=48).shape == (3, 8, 6)


def test_images_other_than_the_checkpoints_are_named(flat: Path, tmp_path: Path) -> None:
    state = ready(flat, size=4).state_dict()
    data = Folder(str(flat))
    data.load_state_dict(state)
    with pytest.raises(ValueError, match=r"the checkpoint's images are 3 x 4 x 4 .*, these are 3 x 8 x 6"):
        data.setup()


@pytest.mark.parametrize("workers", [0, 2])
def test_streaming_equals_cached_batches_and_resumes_mid_epoch(sorted_by_class: Path, workers: int) -> None:
    options: dict[str, Any] = {"conditional": True, "size": 4, "horizontal_flip": True, "repeats": 2}
    memory = ready(sorted_by_class, **options).train_dataloader()
    streaming = ready(sorted_by_class, **options, memory_gb=0.0, workers=workers)
    assert (streaming.workers, ready(sorted_by_class, **options, workers=workers).workers) == (workers, 0)
    stream = streaming.train_dataloader()
    kept = []
    for mine, theirs in zip(stream, memory, strict=True):
        assert torch.equal(mine["x"], theirs["x"])
        assert torch.equal(mine["label"], theirs["label"])
        kept.append(mine["x"])
    again = streaming.train_dataloader()
    again.load_state_dict({"batches": 3})
    assert torch.equal(next(iter(again))["x"], kept[3])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p / "none", r"none: this folder does not exist\. Fix: give --data\.path FOLDER$"),
        (
            lambda p: p / "anime",
            r"anime: this folder does not exist\. .* python -m diffusion_pl\.data\.synthetic anime$",
        ),
        (lambda p: save(p / "f.png"), r"f\.png: this folder is a file\. Fix: give --data\.path"),
        (lambda p: p, r"no images in this folder: .*\.apng, "),
    ],
)
def test_a_folder_without_images(make: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        ready(make(tmp_path))


def test_only_corrupt_images(tmp_path: Path) -> None:
    broken(tmp_path / "a.png", header=True)
    with pytest.raises(ValueError, match="none of its 1 images can be read"):
        ready(tmp_path, corrupt="skip")


def test_a_checkpoints_state_serves_where_the_folder_is_not(flat: Path) -> None:
    state = ready(flat).state_dict()
    data = Folder("/nowhere/at/all")
    data.load_state_dict(state)
    assert data.shape == (3, 8, 6)
    data.setup("predict")
