"""The commands with conditions of every kind, from training to evaluation."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conditional_model import fit_conditional, tiny_encoder
from PIL import Image
from shell import Outcome, cli, tiny_config
from test_conditional_data import save

import diffusion_pl
from diffusion_pl.checkpoints.io import sha256_of
from diffusion_pl.checkpoints.loading import load_pipeline

LOW = Path("runs/low/checkpoints/last.ckpt")
TEXT = Path("runs/text/checkpoints/last.ckpt")
MASKED = Path("runs/masked/checkpoints/last.ckpt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a model of a low resolution and its noise, and one of the low resolution, captions and no label."""
    folder = tmp_path_factory.mktemp("conditional")
    (folder / "encoder").mkdir()
    tiny_encoder(folder / "encoder")
    images = {"callbacks": [{"class_path": "ImagePanels", "init_args": {"num_samples": 4, "film": False}}]}
    options: dict[str, Any] = {"low": 4, "low_noise": 0.5}
    assert (
        fit_conditional(
            folder, "low", options, model__loss__dropout={"low": 0.2}, trainer__callbacks=images["callbacks"]
        )
        == LOW
    )
    options = {"captions": "the digit {}", "text_encoder": "encoder", "tokens": 5, "low": 4, "conditional": True}
    assert fit_conditional(folder, "text", options, model__loss__dropout={"text": 0.2}) == TEXT
    assert fit_conditional(folder, "masked", {"masked": True}) == MASKED
    save(folder / "digit.png", np.random.default_rng(1).integers(0, 256, (8, 8)))
    save(folder / "mask.png", 255.0 * (np.arange(64).reshape(8, 8) < 24))
    save(folder / "low.png", np.random.default_rng(0).integers(0, 256, (4, 4)))
    save(folder / "wide.png", np.zeros((5, 7)))
    return folder


def sample(folder: Path, output: str, ckpt: Path, *args: Any) -> Outcome:
    return cli(folder, "sample", "--ckpt_path", ckpt, "--output", output, "--num_samples", 5, "--npz", "true", *args)


def drawn(folder: Path, output: str, ckpt: Path, *args: Any) -> np.ndarray[Any, Any]:
    done = sample(folder, output, ckpt, *args)
    assert done.code == 0, done.err
    with np.load(folder / output / "samples.npz") as file:
        return np.array(file["x"])


def note(folder: Path, output: str) -> Any:
    return json.loads((folder / output / "samples.json").read_text())


def test_an_image_and_a_number_are_given_by_name(folder: Path) -> None:
    x = drawn(folder, "given", LOW, "--cond.low", "low.png", "--cond.low_noise", "0.3")
    record = note(folder, "given")["cond"]
    assert record["low"] == {"file": "low.png", "sha256": sha256_of(folder / "low.png")}
    assert record["low_noise"] == [pytest.approx([0.3])]
    pipe, data = load_pipeline(folder / LOW)
    x_0 = pipe.with_cond(low=str(folder / "low.png"), low_noise=0.3).samples(range(pipe.block)).x_0
    np.testing.assert_array_equal(data.array(x_0[:5]), x)
    assert not np.array_equal(drawn(folder, "clean", LOW, "--cond.low", "low.png", "--cond.low_noise", "0"), x)


def test_numbers_are_given_to_a_model_of_points(folder: Path) -> None:
    """x is the first number of the vector, in units of its own."""
    config = tiny_config(
        folder,
        "shifted.yaml",
        data={"class_path": "test_conditions.Shifted"},
        model__network={"class_path": "test_conditions.Placed"},
        trainer__max_steps=20,
    )
    done = cli(folder, "fit", "--config", config, "--run", "shifted")
    assert done.code == 0, done.err
    x = drawn(folder, "at", Path("runs/shifted"), "--cond.place", "[0.5, 1, -1]")
    assert note(folder, "at")["cond"] == {"place": [[0.5, 1.0, -1.0]]}
    y = drawn(folder, "alike", Path("runs/shifted"), "--cond.place", "0.5 1 -1")
    np.testing.assert_array_equal(x, y)
    assert not np.array_equal(drawn(folder, "turns", Path("runs/shifted")), x)


def test_a_folder_of_images_is_taken_in_turn(folder: Path) -> None:
    (folder / "both").mkdir()
    image = np.asarray(Image.open(folder / "low.png"))
    save(folder / "both" / "a.png", image)
    save(folder / "both" / "b.png", 255 - image)
    x = drawn(folder, "turn", LOW, "--cond.low", "both", "--cond.low_noise", "0")
    alone = [drawn(folder, name, LOW, "--cond.low", f"both/{name}.png", "--cond.low_noise", "0") for name in "ab"]
    np.testing.assert_array_equal(x[0::2], alone[0][0::2])
    np.testing.assert_array_equal(x[1::2], alone[1][1::2])


def test_without_a_value_held_out_examples_serve(folder: Path) -> None:
    done = sample(folder, "held-out", LOW)
    lines = [line for line in done.out.splitlines() if "held-out" in line]
    assert lines[0] == "low: not given, those of 64 held-out examples in turn; --cond.low gives one"
    assert note(folder, "held-out")["cond"] == {}
    pipe = diffusion_pl.load(folder / LOW)
    values = pipe.values([1, 65])
    assert torch.equal(values["low"][0], values["low"][1]) and not values["low_noise"].any()


def test_a_text_is_encoded_where_samples_are_drawn(folder: Path) -> None:
    x = drawn(
        folder, "texts", TEXT, "--cond.text", "the digit 3", "--cond.low", "low.png", "--scale", 2, "--drop", "text"
    )
    record = note(folder, "texts")
    assert record["cond"]["text"] == "the digit 3" and record["drop"] == ["text"]
    other = drawn(folder, "other", TEXT, "--cond.text", "the digit 8", "--cond.low", "low.png", "--scale", 2)
    assert not np.array_equal(x, other)
    # What training dropped is the default.
    again = drawn(folder, "again", TEXT, "--cond.text", "the digit 3", "--cond.low", "low.png", "--scale", 2)
    np.testing.assert_array_equal(again, x)
    both = drawn(
        folder,
        "drop",
        TEXT,
        "--cond.text",
        "the digit 3",
        "--cond.low",
        "low.png",
        "--scale",
        2,
        "--drop",
        "text",
        "low",
    )
    assert not np.array_equal(both, x)


def test_all_commands_take_conditions(folder: Path) -> None:
    given = ["--cond.text", "the digit 3", "--cond.low", "low.png"]
    for command, *options in (
        ("encode", "--path", "low.png"),
        ("restore", "--path", "low.png", "--method", "gradient", "--num_samples", 1),
        ("sweep", "--samplers", "DDIM", "--nfe", 2, "--num_samples", 2),
    ):
        done = cli(folder, command, "--ckpt_path", TEXT, "--output", command, *options, *given)
        assert done.code == 0, done.err


def test_conditions_are_made_of_the_examples(folder: Path) -> None:
    outputs = []
    for output, given in (("own", []), ("same", ["--cond.low", "digit.png", "--cond.low_noise", "0"])):
        done = cli(folder, "encode", "--ckpt_path", LOW, "--path", "digit.png", "--output", output, *given)
        assert done.code == 0, done.err
        assert ("low, low_noise: made of the examples; --cond.low gives another" in done.out) == (not given)
        outputs.append(np.load(folder / output / "latents.npz")["eps"])
    np.testing.assert_array_equal(*outputs)
    again = "--cond.low digit.png --output again"
    assert again in cli(folder, "encode", "--ckpt_path", LOW, "--path", "digit.png", "--output", "own").out
    restore = ["restore", "--path", "digit.png", "--mask", "mask.png", "--num_samples", 2, "--method", "gradient"]
    done = cli(folder, *restore, "--ckpt_path", MASKED, "--output", "inpainted")
    assert done.code == 0 and "masked: made of the examples" in done.out, done.err
    x, known = (np.asarray(Image.open(folder / file)) for file in ("digit.png", "mask.png"))
    restored = np.asarray(Image.open(folder / "inpainted" / "1.png"))
    assert np.abs(restored.astype(int) - x)[known > 0].max() <= 8  # 17 levels of 255


def test_a_masked_image_is_given_with_a_mask(folder: Path) -> None:
    x = drawn(folder, "masked", MASKED, "--cond.masked", "[digit.png, mask.png]")
    record = note(folder, "masked")["cond"]["masked"]
    assert record == [{"file": name, "sha256": sha256_of(folder / name)} for name in ("digit.png", "mask.png")]
    pipe, data = load_pipeline(folder / MASKED)
    image = data.read(folder / "digit.png")[0]
    image[:, 3:] = float("nan")
    np.testing.assert_array_equal(data.array(pipe.with_cond(masked=image).samples(range(pipe.block)).x_0[:5]), x)


def test_a_conditional_model_is_evaluated_on_its_split(folder: Path) -> None:
    extractor = ["--extractor", "diffusion_pl.metrics.DigitsClassifier"]
    done = cli(
        folder, "evaluate", "--ckpt_path", LOW, "--metrics", "fid", "--num_samples", 100, "--output", "eval", *extractor
    )
    assert done.code == 0, done.err
    result = json.loads((folder / "eval" / "evaluation.json").read_text())["figures"]["fid"]
    assert result["model"]["conditions"] == "100 examples of the train split in turn"


def test_a_condition_of_all_samples_is_evaluated(folder: Path) -> None:
    call = ["evaluate", "--ckpt_path", LOW, "--num_samples", 50, "--cond.low", "low.png", "--output", "one"]
    done = cli(folder, *call, "--metrics", "fid", "--extractor", "diffusion_pl.metrics.DigitsClassifier")
    assert done.code == 0, done.err
    model = json.loads((folder / "one" / "evaluation.json").read_text())["figures"]["fid"]["model"]
    assert model["cond"] == {"low": {"file": "low.png", "sha256": sha256_of(folder / "low.png")}}
    error = cli(folder, *call, "--metrics", "nll").error
    assert "cond: nll take the conditions of their examples" in error


@pytest.mark.parametrize(
    ("ckpt", "args", "message"),
    [
        (MASKED, ["--cond.masked", "digit.png"], "cond.masked: expected an image and its mask"),
        (LOW, ["--cond.text", "a"], "cond.text: the model has no such condition; it has low, low_noise"),
        (LOW, ["--cond.low", "wide.png"], "cond.low: wide.png: expected an image of 4x4 or 8x8, got 5x7"),
        (LOW, ["--cond.low", "missing.png"], "missing.png: no such file or folder"),
        (LOW, ["--cond.low_noise", "much"], "cond.low_noise: expected numbers, got much"),
        (LOW, ["--cond.low_noise", "1, 2"], "cond.low_noise: expected a number, got one of shape (2,)"),
        (LOW, ["--scale", 2, "--drop", "label"], "drop: the model has no condition label; it has low, low_noise"),
        (LOW, ["--drop", "low"], "drop: needs --scale"),
        (TEXT, ["--cond.text", "a", "--data.text_encoder", "gone"], "text_encoder gone: no folder with a text model"),
    ],
)
def test_bad_conditions_are_one_line(folder: Path, ckpt: Path, args: list[str], message: str) -> None:
    assert message in sample(folder, "refused", ckpt, *args).error
    assert not (folder / "refused").exists()


@pytest.mark.parametrize("target", ["onnx", "torch_export"])
def test_graphs_refuse_conditions_other_than_a_label(folder: Path, target: str) -> None:
    done = cli(folder, "export", "--ckpt_path", LOW, "--to", target, "--output", "graph")
    assert "the model has low, low_noise. Fix: set --to safetensors" in done.error
    assert not (folder / "graph").exists()
