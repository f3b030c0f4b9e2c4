"""Conditions that image data sets make: a low resolution, captions; and the values that samples get in turn."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conditional_model import WORDS, tiny_clip, tiny_encoder, tiny_t5
from PIL import Image
from scipy import stats

from diffusion_pl.conditions import Condition
from diffusion_pl.data import Arrays, Digits
from diffusion_pl.data.degraded import LowNoise, RandomMasks
from diffusion_pl.data.text import TextEncoder

SIZE = (1, 8, 8)


def digits(**options: Any) -> Digits:
    data = Digits(batch_size=64, **options)
    data.setup("fit")
    return data


# Super-resolution.


def test_the_low_resolution_is_the_mean_of_blocks() -> None:
    data = digits(low=4)
    assert data.conditions == {"low": Condition(SIZE)}
    batch = next(data.batches("val", 10))
    x, low = batch["x"].numpy(), batch["low"].numpy()
    for i, j in np.ndindex(4, 4):
        block = (slice(None), 0, slice(2 * i, 2 * i + 2), slice(2 * j, 2 * j + 2))
        np.testing.assert_allclose(
            low[block], x[block].mean((1, 2))[:, None, None].repeat(2, 1).repeat(2, 2), atol=1e-6
        )
    assert data.class_counts is None and "label" not in batch


def test_the_low_resolution_goes_with_the_mirrored_image(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.random.default_rng(0).integers(0, 256, (64, 8, 8), dtype=np.uint8))
    data = Arrays(str(tmp_path / "x.npy"), low=(2, 4), horizontal_flip=True, low_noise=0.5, batch_size=32)
    data.setup("fit")
    raw = next(iter(data.train_dataloader()))
    plain = {name: value for name, value in raw.items() if name == "x"}
    clean, noisy = data.on_after_batch_transfer(plain, 0), data.on_after_batch_transfer(raw, 0)
    assert sorted(noisy) == ["low", "low_noise", "x"] and not clean["low_noise"].any()
    eps = (noisy["low"] - clean["low"]) / noisy["low_noise"][:, :, None, None]
    block = raw["low_eps"].repeat_interleave(4, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(eps, block, rtol=1e-3, atol=1e-3)


def test_the_noise_of_the_condition_has_its_distribution() -> None:
    u = torch.rand(4000, 3, generator=torch.Generator().manual_seed(0))
    batch = {"x": torch.zeros(4000, 2, 8, 8, dtype=torch.uint8)}
    noise = LowNoise((2, 3), 0.4)
    drawn = noise(batch, u)
    assert drawn["low_eps"].shape == (4000, 2, 2, 3)
    assert stats.kstest(drawn["low_noise"].numpy()[:, 0] / 0.4, "uniform").pvalue > 0.01
    assert stats.kstest(drawn["low_eps"].numpy().flatten(), "norm").pvalue > 0.01
    flat = drawn["low_eps"].flatten(1)
    assert float((torch.corrcoef(flat.T) - torch.eye(12)).abs().max()) < 5 / 4000**0.5  # independent pixels
    assert abs(float(torch.corrcoef(torch.stack((flat[:-1, 0], flat[1:, 0])))[0, 1])) < 5 / 4000**0.5  # and images
    torch.testing.assert_close(noise({"x": batch["x"][7:9]}, u[7:9])["low_eps"], drawn["low_eps"][7:9])


def test_processes_share_the_noise_of_a_batch() -> None:
    data = digits(low=4, low_noise=0.5)
    options: dict[str, Any] = {"seed": 3, "shuffle": True, "augmentation": data.augmentation}
    from diffusion_pl.data import Loader

    whole = next(iter(Loader(data.part("train"), 8, **options)))
    shares = [next(iter(Loader(data.part("train"), 8, rank=r, world_size=2, **options))) for r in range(2)]
    for name, value in whole.items():
        assert torch.equal(value[0::2], shares[0][name]) and torch.equal(value[1::2], shares[1][name])


# Inpainting.


def test_masks_are_boxes_with_their_distribution() -> None:
    """The height is uniform in 1 … H, and its place uniform, as of the width; half are inverted."""
    n, (height, width) = 8000, (4, 6)
    u = torch.rand(n, 5, generator=torch.Generator().manual_seed(0))
    mask = RandomMasks()({"x": torch.zeros(n, 3, height, width)}, u)["mask"]
    assert mask.shape == (n, 1, height, width) and mask.dtype == torch.bool
    inverted = u[:, 4] < 0.5
    box = mask[:, 0] ^ inverted[:, None, None]
    rows, columns = box.any(2), box.any(1)
    assert torch.equal(box, rows[:, :, None] & columns[:, None, :])  # a box, and no more
    assert stats.chisquare(rows.sum(1).bincount(minlength=5)[1:].numpy()).pvalue > 0.01
    assert stats.chisquare(columns.sum(1).bincount(minlength=7)[1:].numpy()).pvalue > 0.01
    first = rows[rows.sum(1) == 2].int().argmax(1)
    assert stats.chisquare(first.bincount(minlength=3).numpy()).pvalue > 0.01
    assert float(inverted.float().mean()) == pytest.approx(0.5, abs=0.03)


def test_the_masked_image_is_the_image_or_missing() -> None:
    data = digits(masked=True)
    assert data.conditions == {"masked": Condition(SIZE)}
    first, again = (torch.cat([b["masked"] for b in data.batches("val", size)]) for size in (30, 7))
    x = torch.cat([batch["x"] for batch in data.batches("val", 30)])
    torch.testing.assert_close(first, again, equal_nan=True)  # the mask of an example does not depend on its batch
    known = ~first.isnan()
    assert torch.equal(first[known], x[known]) and 0.3 < float(known.float().mean()) < 0.7
    assert len({tuple(mask.flatten().tolist()) for mask in known}) > len(x) / 3
    loader = iter(data.train_dataloader())
    batches = [data.on_after_batch_transfer(next(loader), 0) for _ in range(2)]
    assert all(sorted(batch) == ["masked", "x"] for batch in batches)
    seen = [torch.cat([b["x"].nan_to_num(), b["masked"].isnan()], 1) for b in batches]
    assert not torch.equal(seen[0][:, 1], seen[1][:, 1])


def test_conditions_follow_from_what_is_known_of_an_image() -> None:
    data = digits(low=4, low_noise=0.3, masked=True)
    x = next(data.batches("val", 3))["x"]
    whole = data.conditions_from(x)
    assert sorted(whole) == ["low", "low_noise"] and not whole["low_noise"].any()
    assert float((whole["low"][:, :, :2, :2] - x[:, :, :2, :2].mean((2, 3), keepdim=True)).abs().max()) < 1e-6
    known = torch.zeros(1, 1, 8, 8)
    known[..., :5] = 1
    part = data.conditions_from(x, known)
    assert torch.equal(part["masked"][..., :5], x[..., :5]) and part["masked"][..., 5:].isnan().all()
    assert torch.equal(part["low"][..., :4], whole["low"][..., :4])
    assert part["low"][..., 4:].isnan().all()  # a block of which a part is missing


def test_a_masked_image_is_read_with_its_mask(tmp_path: Path) -> None:
    read = digits(masked=True).readers["masked"]
    image, mask = np.random.default_rng(2).integers(0, 256, (8, 8)), np.zeros((8, 8))
    mask[:3] = 255
    paths = [save(tmp_path / "image.png", image), save(tmp_path / "mask.png", mask)]
    value = read(paths)
    assert value.shape == (1, *SIZE) and value[0, 0, 3:].isnan().all()
    np.testing.assert_allclose(value[0, 0, :3], image[:3] / 127.5 - 1, atol=1e-6)
    for given, message in (
        (paths[0], r"cond.masked: expected an image and its mask, .* Fix: --cond.masked '\[IMAGE, MASK\]'"),
        ([paths[0], save(tmp_path / "small.png", mask[:4])], "cond.masked: .*small.png: expected an image of 8x8, got"),
        ([paths[0], str(tmp_path)], "cond.masked: .*: expected an image of 8x8, got 4x8"),
    ):
        with pytest.raises(ValueError, match=message):
            read(given)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"residual": "low"}, "data.residual: low is not a condition of the data; they have none"),
        ({"low": 3}, "Digits: low must divide the height and width, 8x8, got 3x3"),
        ({"low": 0}, "Digits: low must be height and width"),
        ({"low": 4, "low_noise": -1.0}, "Digits: low_noise must be at least 0"),
        ({"low_noise": 0.5}, "Digits: low_noise must be at least 0, and needs low"),
        ({"captions": "a {}"}, "captions and text_encoder need each other. Fix: give --data.text_encoder"),
        ({"text_encoder": "x"}, "captions and text_encoder need each other. Fix: give --data.captions"),
        ({"captions": "a {}", "text_encoder": "x", "tokens": 0}, "tokens must be at least 1, got 0"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Digits(**options).conditions  # noqa: B018


# Reading conditions.


def save(path: Path, x: np.ndarray[Any, Any]) -> str:
    Image.fromarray(x.astype(np.uint8)).save(path)
    return str(path)


def test_a_low_image_is_read_at_either_size(tmp_path: Path) -> None:
    data = digits(low=4)
    full = np.random.default_rng(1).integers(0, 256, (8, 8))
    means = full.reshape(4, 2, 4, 2).mean((1, 3))
    read = data.readers["low"]
    value = read(save(tmp_path / "full.png", full))
    assert value.shape == (1, *SIZE)
    np.testing.assert_allclose(value[0, 0, ::2, ::2], means / 127.5 - 1, atol=1e-6)
    low = read(save(tmp_path / "low.png", means.round()))
    np.testing.assert_allclose(low, value, atol=0.5 / 127.5 + 1e-6)
    assert len(read(tmp_path)) == 2
    with pytest.raises(ValueError, match="expected an image of 4x4 or 8x8, got 6x5"):
        read(save(tmp_path / "other.png", np.zeros((6, 5))))
    with pytest.raises(FileNotFoundError, match="no such file"):
        read(tmp_path / "missing.png")


# Values in turn.


def test_held_out_examples_give_conditions_that_belong_together() -> None:
    data = digits(low=4, conditional=True)
    turns = data.turns
    assert turns["label"].tolist() == [*range(10)] * 6
    batch = next(data.batches("val", 10_000))
    rows = {(int(k), *low.flatten().tolist()) for k, low in zip(batch["label"], batch["low"], strict=True)}
    assert {(int(k), *low.flatten().tolist()) for k, low in zip(turns["label"], turns["low"], strict=True)} <= rows
    assert len({tuple(low.flatten().tolist()) for low in turns["low"]}) == 60


def test_values_in_turn_survive_in_the_state() -> None:
    data = digits(low=4, low_noise=0.5)
    state = data.state_dict()
    for saved in (state, {**state, "turns": {name: value.tolist() for name, value in state["turns"].items()}}):
        other = Digits(low=4, low_noise=0.5)
        other.load_state_dict(saved)
        assert {name: value.shape for name, value in other.turns.items()} == {
            "low": (64, *SIZE),
            "low_noise": (64, 1),
        }
        assert torch.equal(other.turns["low"], data.turns["low"]) and not other.turns["low_noise"].any()
        assert torch.equal(other.state_dict()["turns"]["low"], data.turns["low"])  # without the data too
    assert Digits(conditional=True).turns == {} and digits(conditional=True).turns == {}


def test_a_checkpoint_keeps_few_of_large_conditions() -> None:
    data = digits(low=4)
    assert len(data.conditions_of("val", memory=10 * 64 * 4)["low"]) == 10
    assert len(data.conditions_of("train", most=1000)["low"]) == 1000


# Captions.


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_encoder(tmp_path_factory.mktemp("encoder"))


def test_a_text_is_encoded_as_the_library_does(encoder: str) -> None:
    from transformers import AutoModel, AutoTokenizer

    made = TextEncoder(encoder, 6)
    values = made(["the digit", "a red coat six seven"])
    assert values.shape == (2, 6, made.width) == (2, 6, 16)
    inputs = AutoTokenizer.from_pretrained(encoder)(["the digit"], return_tensors="pt")
    alone = AutoModel.from_pretrained(encoder).eval()(**inputs).last_hidden_state[0]
    torch.testing.assert_close(values[0, :4], alone, rtol=1e-4, atol=1e-5)  # [CLS] the digit [SEP]
    assert values[0, 4:].isnan().all() and not values[1].isnan().any()  # the second is cut off


@pytest.mark.parametrize(("make", "part"), [(tiny_t5, "encoder"), (tiny_clip, "text_model")])
def test_of_two_parts_the_text_encoder_is_taken(
    make: Any, part: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = make(tmp_path)
    capfd.readouterr()
    made = TextEncoder(str(tmp_path), 6)
    values = made(["a red coat", "the coat the coat the coat the"])
    ids = torch.tensor([[WORDS.split().index(word) for word in ["a", "red", "coat", "</s>"]]])
    with torch.no_grad():
        alone = getattr(model, part)(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[0]
    assert values.shape == (2, 6, made.width) == (2, 6, 16)
    torch.testing.assert_close(values[0, :4], alone, rtol=1e-4, atol=1e-5)
    assert values[0, 4:].isnan().all() and not values[1].isnan().any()
    whole, own = model.num_parameters(), sum(p.numel() for p in made.model.parameters())
    assert own < 0.7 * whole and made.sha256 == TextEncoder(str(tmp_path), 9).sha256
    assert capfd.readouterr() == ("", "")  # the library lists the weights of the other part


def test_an_encoder_without_weights_is_refused(tmp_path: Path) -> None:
    import transformers

    model = tiny_clip(tmp_path)
    state = {name: value for name, value in model.state_dict().items() if "text_model.encoder" not in name}
    model.save_pretrained(tmp_path, state_dict=state)
    assert transformers.__version__
    with pytest.raises(ValueError, match=r"its weights lack .*layers\.0.* and 31 others"):
        TextEncoder(str(tmp_path), 6)(["a"])


def test_equal_encoders_have_equal_hashes(encoder: str, tmp_path: Path) -> None:
    first = TextEncoder(encoder, 6)
    first(["a"])
    assert first.sha256 == TextEncoder(tiny_encoder(tmp_path), 12).sha256
    assert first.sha256 != TextEncoder(tiny_encoder(tmp_path, seed=1), 6).sha256


def test_captions_of_classes_replace_the_label(encoder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    options: dict[str, Any] = {"captions": "the digit {}", "text_encoder": encoder, "tokens": 6, "conditional": True}
    data = Digits(**options)
    data.prepare_data()
    files = sorted(Path("data/text").iterdir())
    assert len(files) == 1 and np.load(files[0]).shape == (10, 6, 16)
    data.setup("fit")
    assert data.conditions == {"text": Condition((6, 16))}
    labels = digits(conditional=True).part("train").__getitems__(torch.arange(50))["label"]
    batch = data.part("train").__getitems__(torch.arange(50))
    assert sorted(batch) == ["text", "x"]
    expected = TextEncoder(encoder, 6)([f"the digit {k}" for k in labels.tolist()])
    torch.testing.assert_close(batch["text"], expected, equal_nan=True, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        data.readers["text"]("the digit 3"), TextEncoder(encoder, 6)(["the digit 3"]), equal_nan=True
    )
    before = files[0].stat().st_mtime_ns
    again = Digits(**options)
    again.prepare_data()
    again.setup("fit")
    assert files[0].stat().st_mtime_ns == before and sorted(Path("data/text").iterdir()) == files


def test_captions_of_a_file_keep_the_label(encoder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lines = [["a red coat", "the digit"][k % 2] for k in range(1797)]
    Path("captions.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    data = digits(captions="captions.txt", text_encoder=encoder, tokens=5, conditional=True)
    assert sorted(data.conditions) == ["label", "text"]
    first = TextEncoder(encoder, 5)([lines[k] for k in (0, 1)])
    train: Any = data.part("train")
    places = train.indices[:40]
    torch.testing.assert_close(
        data.part("train").__getitems__(torch.arange(40))["text"],
        first[places % 2],
        equal_nan=True,
        rtol=1e-4,
        atol=1e-5,
    )
    Path("captions.txt").write_text("\n".join(lines[:-1]), encoding="utf-8")
    with pytest.raises(ValueError, match=r"captions\.txt: expected 1,797 lines, one for each image, got 1,796"):
        digits(captions="captions.txt", text_encoder=encoder, tokens=5)


def test_a_checkpoint_knows_its_encoder(encoder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    options: dict[str, Any] = {"captions": "a {}", "tokens": 4, "conditional": True}
    state = digits(text_encoder=encoder, **options).state_dict()
    json.dumps(state["text"])
    other = Digits(text_encoder=str(tmp_path / "gone"), **options)
    other.load_state_dict(state)
    assert other.conditions == {"text": Condition((4, 16))} and len(other.turns["text"]) == 64
    with pytest.raises(ValueError, match=r"text_encoder .*gone: no folder with a text model .*Fix: give --data.text"):
        other.readers["text"]("a 3")
    (tmp_path / "second").mkdir()
    second = Digits(text_encoder=tiny_encoder(tmp_path / "second", seed=1), **options)
    second.load_state_dict(state)
    with pytest.raises(ValueError, match="not the one that the model was trained with, which was"):
        second.readers["text"]("a 3")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"captions": "the digit {}"}, "conditional: true, or a file of captions"),
        ({"captions": "missing.txt"}, "captions missing.txt: no such file"),
    ],
)
def test_captions_without_a_source_are_refused(encoder: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        digits(text_encoder=encoder, **options)
