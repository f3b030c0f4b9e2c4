"""Images: the scale and its exact inverse, splits, batches, files, and what a checkpoint keeps of them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import by_class
from PIL import Image
from torch import Tensor

from diffusion_pl.data.augmentation import HorizontalFlip
from diffusion_pl.data.images import Examples, Format, Images
from diffusion_pl.data.loader import Tensors

RGB = Format((3, 4, 6))


class RandomImages(Images):
    """Random integers; the number of an image is its first pixel where there are enough levels.

    The split is that of a set that does not grow, with exact shares.
    """

    grows = False

    def __init__(
        self,
        n: int = 40,
        format: Format = RGB,
        labels: Tensor | None = None,
        test: int = 0,
        **options: Any,
    ) -> None:
        super().__init__("these", **({"batch_size": 8} | options))
        self.n, self.given, self.labels, self.test = n, format, labels, test

    def inspect(self) -> Format:
        return self.given

    def examples(self) -> Examples:
        generator = torch.Generator().manual_seed(0)
        dtype = torch.uint8 if self.given.levels <= 256 else torch.int32
        x = torch.randint(0, self.given.levels, (self.n, *self.given.shape), dtype=dtype, generator=generator)
        x[:, 0, 0, 0] = torch.arange(self.n)
        tensors = {"x": x} if self.labels is None else {"x": x, "label": self.labels}
        test = Tensors({"x": x[: self.test]}) if self.test else None
        return Examples(Tensors(tensors), self.labels, test)


def ready(**options: Any) -> RandomImages:
    data = RandomImages(**options)
    data.setup()
    return data


def numbers(source: Any) -> list[int]:
    result: list[int] = source.__getitems__(torch.arange(len(source)))["x"][:, 0, 0, 0].tolist()
    return result


@pytest.mark.parametrize("levels", [2, 17, 256, 1024, 65_536])
def test_decode_is_the_exact_inverse_of_encode_at_every_level(levels: int) -> None:
    data = RandomImages(format=Format((1, 1, levels), levels=levels))
    v = torch.arange(levels).reshape(1, 1, 1, -1)
    x = data.units.encode(v)
    assert (x.dtype, x.min().item(), x.max().item()) == (torch.float32, -1.0, 1.0)
    assert torch.equal(data.decode(x).long(), v)
    assert data.decode(x).dtype == (torch.uint8 if levels <= 256 else torch.int32)
    # Half a step either way is the same level; further it is the next.
    step = 2 / (levels - 1)
    assert torch.equal(data.decode(x.double() + 0.49 * step).long(), v)
    assert torch.equal(data.decode(x.double() - 0.51 * step).long(), (v - 1).clamp(min=0))
    assert data.decode(torch.tensor([-7.0, 7.0])).tolist() == [0, levels - 1]


def test_to_uint8_equals_decode_and_separates_fewer_levels() -> None:
    x = torch.linspace(-1.2, 1.2, 999)
    assert torch.equal(RandomImages().units.to_uint8(x), RandomImages().decode(x))
    data = RandomImages(format=Format((1, 1, 17), levels=17))
    shown = data.units.to_uint8(data.units.encode(torch.arange(17)))
    assert len(shown.unique()) == 17
    assert (shown.min().item(), shown.max().item()) == (0, 255)


def test_splits_are_disjoint_complete_and_seeded() -> None:
    parts = [numbers(split) for split in ready(val_fraction=0.2, test_fraction=0.1).splits]
    assert [len(part) for part in parts] == [28, 8, 4]
    assert sorted(parts[0] + parts[1] + parts[2]) == list(range(40))
    again = [numbers(split) for split in ready(val_fraction=0.2, test_fraction=0.1).splits]
    assert again == parts
    assert [numbers(split) for split in ready(val_fraction=0.2, test_fraction=0.1, seed=1).splits] != parts


def test_every_class_gives_its_share() -> None:
    labels = torch.tensor([0] * 30 + [1] * 9 + [2])
    data = ready(labels=labels, format=Format((3, 4, 6), by_class(3)), val_fraction=0.1)
    train, val, test = ([int(labels[i]) for i in numbers(split)] for split in data.splits)
    assert [val.count(k) for k in range(3)] == [3, 1, 0]  # a class of one image keeps it for training
    assert [train.count(k) for k in range(3)] == [27, 8, 1]
    assert test == val


def test_images_of_one_group_stay_in_one_split() -> None:
    groups = torch.arange(40) // 4
    for labels in (None, torch.arange(40) % 2):
        data = RandomImages(val_fraction=0.2, test_fraction=0.2, labels=labels)
        together = Examples(*data.examples()[:3], groups)
        data.examples = lambda kept=together: kept  # type: ignore[method-assign, misc]
        data.setup()
        parts = [numbers(split) for split in data.splits]
        assert sorted(parts[0] + parts[1] + parts[2]) == list(range(40))
        assert [len(part) for part in parts] == [24, 8, 8]  # fractions count groups
        assert not {i // 4 for i in parts[0]} & {i // 4 for i in parts[1] + parts[2]}


def test_a_separate_test_split_is_kept_complete() -> None:
    data = ready(test=7, val_fraction=0.1, test_fraction=0.5)
    assert [len(split) for split in data.splits] == [36, 4, 7]


def test_without_validation_there_are_no_batches_of_it() -> None:
    data = ready(val_fraction=0.0)
    assert (data.val_dataloader(), data.test_dataloader()) == ([], [])
    assert len(data.splits[0]) == 40


def test_batches_are_integers_until_they_are_on_the_device() -> None:
    labels = torch.arange(40) % 4
    data = ready(labels=labels, format=Format((3, 4, 6), by_class(4)))
    batch = next(iter(data.train_dataloader()))
    assert (batch["x"].dtype, batch["x"].shape) == (torch.uint8, (8, 3, 4, 6))
    scaled = data.on_after_batch_transfer(batch, 0)
    torch.testing.assert_close(scaled["x"], batch["x"].float() / 127.5 - 1, rtol=0, atol=1e-6)
    assert torch.equal(scaled["label"], labels[batch["x"][:, 0, 0, 0].long()])
    index = {"index": torch.arange(3)}
    assert data.on_after_batch_transfer(index, 0) == index


def test_an_epoch_is_about_100_batches_unless_repeats_is_set() -> None:
    assert len(ready(val_fraction=0.1).train_dataloader()) == pytest.approx(100, abs=2)
    assert len(ready(val_fraction=0.1, repeats=1).train_dataloader()) == 4


def test_only_training_images_are_flipped_each_on_its_own() -> None:
    data = ready(n=40, horizontal_flip=True, batch_size=36, val_fraction=0.1, repeats=30)
    originals = {tuple(x.flatten().tolist()) for x in data.splits[0].__getitems__(torch.arange(36))["x"]}
    mirrored = {tuple(x.flip(-1).flatten().tolist()) for x in data.splits[0].__getitems__(torch.arange(36))["x"]}
    seen = [tuple(x.flatten().tolist()) for batch in data.train_dataloader() for x in batch["x"]]
    share = sum(x in mirrored for x in seen) / len(seen)
    assert set(seen) == originals | mirrored
    assert share == pytest.approx(0.5, abs=4 * 0.5 / len(seen) ** 0.5)
    val = data.val_dataloader()
    assert not isinstance(val, list)
    assert [x[0, 0, 0].item() for batch in val for x in batch["x"]] == numbers(data.splits[1])


def test_a_flip_mirrors_the_width() -> None:
    x = torch.arange(12).reshape(2, 1, 2, 3)
    flipped = HorizontalFlip()({"x": x, "label": torch.tensor([0, 1])}, torch.tensor([[0.49], [0.5]]))
    assert flipped["x"].tolist() == [[[[2, 1, 0], [5, 4, 3]]], x[1].tolist()]
    assert flipped["label"].tolist() == [0, 1]


def test_second_moment_is_of_training_images_in_model_units() -> None:
    data = ready(n=1300)
    x = data.units.encode(data.splits[0].__getitems__(torch.arange(len(data.splits[0])))["x"]).double()
    assert data.second_moment() == pytest.approx(x.square().mean().item(), rel=1e-6)


@pytest.mark.parametrize(
    ("shape", "levels", "mode"), [((3, 4, 6), 256, "RGB"), ((1, 4, 6), 17, "L"), ((1, 4, 6), 65_536, "I;16")]
)
def test_samples_are_written_losslessly(shape: Any, levels: int, mode: str, tmp_path: Path) -> None:
    data = ready(format=Format(shape, levels=levels))
    v = data.splits[0].__getitems__(torch.arange(12))["x"]
    assert data.write(data.units.encode(v), tmp_path) == [tmp_path / "00.png … 11.png"]
    for i in range(12):
        with Image.open(tmp_path / f"{i:02d}.png") as file:
            assert (file.mode, file.size) == (mode, (6, 4))
            written = torch.from_numpy(np.array(file, dtype=np.int64)).reshape(4, 6, -1).permute(2, 0, 1)
        if levels == 17:  # shown over the whole range of grey, from which the levels come back
            written = (written * 16 / 255).round()
        assert torch.equal(written.long(), v[i].long())


def test_samples_that_png_cannot_hold_are_written_as_an_array(tmp_path: Path) -> None:
    data = ready(format=Format((5, 4, 6), levels=65_536))
    v = data.splits[0].__getitems__(torch.arange(3))["x"]
    assert data.write(data.units.encode(v), tmp_path) == [tmp_path / "samples.npy"]
    assert np.array_equal(np.load(tmp_path / "samples.npy"), v.numpy())


def test_a_checkpoint_has_the_format_without_the_data() -> None:
    labels = torch.arange(40) % 4
    state = ready(labels=labels, format=Format((3, 4, 6), by_class(4), 17)).state_dict()

    class Gone(RandomImages):
        def inspect(self) -> Format:
            raise FileNotFoundError("the data are elsewhere")

    data = Gone()
    data.load_state_dict(state)
    assert (data.shape, data.conditions, data.units.levels) == ((3, 4, 6), by_class(4), 17)
    assert data.decode(torch.ones(3, 4, 6)).unique().tolist() == [16]


def test_a_checkpoint_of_other_images_is_refused() -> None:
    state = ready().state_dict()
    other = ready(format=Format((1, 4, 6), levels=17))
    assert other.shape == (1, 4, 6)
    with pytest.raises(ValueError, match="images are 3 x 4 x 6 with 256 levels and no classes, these are 1 x 4"):
        other.load_state_dict(state)
    later = RandomImages(format=Format((1, 4, 6), levels=17))
    later.load_state_dict(state)
    with pytest.raises(ValueError, match="use the data the checkpoint was trained on"):
        later.setup()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"repeats": 0}, "repeats must be at least 1, got 0"),
        ({"val_fraction": 1.0}, r"val_fraction must be in \[0, 1\), got 1.0"),
        ({"test_fraction": -0.1}, r"test_fraction must be in \[0, 1\), got -0.1"),
        ({"val_fraction": 0.5, "test_fraction": 0.5}, "val_fraction [+] test_fraction must be below 1, got 1.0"),
        ({"workers": -1}, "workers must be at least 0, got -1"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
    ],
)
def test_bad_numbers_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RandomImages(**options)


def test_a_split_without_training_data_is_refused() -> None:
    with pytest.raises(ValueError, match=r"these: 0 image\(s\) leave none to train on"):
        ready(n=0)
