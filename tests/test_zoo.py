"""The shipped models: they load by name, draw samples at once, and measure as their cards say."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from shell import ROOT, cli, no_files_change

import diffusion_pl
from diffusion_pl.checkpoints.exported import CONFIG, WEIGHTS, zoo_names
from diffusion_pl.checkpoints.io import checkpoint_at, read, sha256_of
from diffusion_pl.checkpoints.tensor_file import read_header, read_tensors, write_tensors
from diffusion_pl.data import Datasaurus
from diffusion_pl.evaluation import Result, read_results
from diffusion_pl.metrics import DigitsClassifier
from diffusion_pl.runtime.run_card import read_card

ZOO = ROOT / "diffusion_pl" / "zoo"
MODELS = ["datasaurus", "digits"]
every_model = pytest.mark.parametrize("name", MODELS)


def test_zoo_is_small_and_complete() -> None:
    assert zoo_names() == MODELS
    files = {name: {path.name for path in (ZOO / name).iterdir()} for name in MODELS}
    assert files == {name: {WEIGHTS, CONFIG, "card.json", "evaluation.json"} for name in MODELS}
    assert sum(path.stat().st_size for path in ZOO.rglob("*") if path.is_file()) < 10_000_000


@every_model
def test_card_says_how_the_model_was_made(name: str) -> None:
    card = read_card(ZOO / name)
    assert card["status"] == "finished"
    assert card["command"].startswith("python -m diffusion_pl fit --config ")
    assert card["seeds"]["run"] is not None
    assert card["steps"] == card["config"]["trainer"]["max_steps"]
    for path in (ZOO / name).glob("*.json"):
        assert "/" + "home/" not in path.read_text() and "/" + "work/" not in path.read_text()
    header = read_header(ZOO / name / WEIGHTS)
    assert {entry.dtype for entry in header.values()} <= {torch.float16, torch.float32}
    assert sum(entry.dtype == torch.float16 for entry in header.values()) > len(header) / 2


@every_model
def test_evaluation_is_of_the_shipped_weights(name: str) -> None:
    for result in read_results(ZOO / name / "evaluation.json").values():
        assert result.model["sha256"] == sha256_of(ZOO / name)
        assert result.model["checkpoint"] == f"zoo:{name}"


@every_model
def test_shipped_model_draws_samples(name: str) -> None:
    pipe = diffusion_pl.load(f"zoo:{name}")
    assert pipe.weights.startswith("ema")
    assert pipe(4).isfinite().all()
    assert torch.equal(diffusion_pl.load(ZOO / name)(2), pipe(4)[:2])


def test_digits_have_the_classes_asked_for() -> None:
    pipe = diffusion_pl.load("zoo:digits")
    x = pipe.samples(range(50)).x_0
    _, logits = DigitsClassifier()(((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8))
    labels = torch.arange(50) % 10
    assert (logits.argmax(1) == labels).float().mean() > 0.9


def test_datasaurus_samples_are_near_its_points() -> None:
    pipe = diffusion_pl.load("zoo:datasaurus")
    x = pipe(400)
    data = Datasaurus()
    data.setup()
    points = data.decode(data.train_points.double())
    assert torch.cdist(x.double(), points).min(1).values.median() < 1.5


@every_model
def test_commands_take_a_name_of_the_zoo(name: str, tmp_path: Path) -> None:
    ckpt = ("--ckpt_path", f"zoo:{name}")
    with no_files_change(ZOO):
        drawn = cli(tmp_path, "sample", *ckpt, "--num_samples", 4, "--steps", 4, "--output", "s")
        assert drawn.code == 0, drawn.err
        assert json.loads((tmp_path / "s/samples.json").read_text())["checkpoint"] == f"zoo:{name}"
        out = cli(tmp_path, "export", *ckpt, "--to", "safetensors", "--output", "e")
        assert out.code == 0, out.err
    assert "## Evaluation" in (tmp_path / "e/README.md").read_text()
    ours, theirs = (read(path)["state_dict"] for path in (f"zoo:{name}", tmp_path / "e"))
    assert all(torch.equal(ours[key], theirs[key]) for key in ours) and ours.keys() == theirs.keys()


def test_trainer_commands_take_a_name_of_the_zoo(tmp_path: Path) -> None:
    done = cli(tmp_path, "validate", "--config", "datasaurus/vp", "--ckpt_path", "zoo:datasaurus")
    assert done.code == 0, done.err
    assert "val_loss/ema0.999" in done.out
    resumed = cli(tmp_path, "fit", "--config", "datasaurus/vp", "--ckpt_path", "zoo:datasaurus")
    assert resumed.code == 2
    assert "--init_from zoo:datasaurus" in resumed.error


def test_new_run_begins_with_shipped_weights(tmp_path: Path) -> None:
    quiet = ("--trainer.enable_progress_bar", "false", "--trainer.limit_val_batches", 0)
    done = cli(tmp_path, "fit", "--init_from", "zoo:datasaurus", "--trainer.max_steps", 1, *quiet)
    assert done.code == 0, done.err
    assert done.run == "runs/datasaurus-tuned"
    assert read_card(tmp_path / done.run)["init_from"]["sha256"] == sha256_of(ZOO / "datasaurus")


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("zoo:digit", "zoo:digits"),
        ("zoo:", "zoo:datasaurus, zoo:digits"),
        ("zoo:../zoo/digits", "no such"),
    ],
)
def test_unknown_name_says_which_exist(path: str, expected: str, tmp_path: Path) -> None:
    assert expected in cli(tmp_path, "sample", "--ckpt_path", path).error
    with pytest.raises(FileNotFoundError, match=expected):
        diffusion_pl.load(path)


def test_other_weights_than_the_stored_are_refused() -> None:
    assert diffusion_pl.load("zoo:datasaurus", "ema:0.999").weights == "ema0.999"
    for weights in ("raw", "ema:0.9"):
        with pytest.raises(ValueError, match=r"holds ema:0\.999"):
            diffusion_pl.load("zoo:datasaurus", weights)


def evaluated(folder: Path, name: str, *args: Any) -> dict[str, Result]:
    done = cli(folder, "evaluate", "--ckpt_path", f"zoo:{name}", "--output", name, *args)
    assert done.code == 0, done.err
    return read_results(folder / name / "evaluation.json")


@pytest.mark.slow
@every_model
def test_models_measure_as_their_cards_say(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same samples up to rounding: other ones (of seed 1) are not within the tolerance."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    stored = read_results(ZOO / name / "evaluation.json")
    first = next(iter(stored.values()))
    names = ["prc" if metric in ("precision", "recall") else metric for metric in stored]
    call = ["--metrics", *dict.fromkeys(names), "--num_samples", first.count]
    call += ["--extractor", first.measured_by] if first.measured_by else []
    (tmp_path / "other").mkdir()
    again, other = evaluated(tmp_path, name, *call), evaluated(tmp_path / "other", name, *call, "--seed", 1)
    for metric, result in stored.items():
        assert again[metric].protocol == result.protocol
        assert again[metric].value == pytest.approx(result.value, rel=0.01, abs=1e-4), metric
    assert any(other[metric].value != pytest.approx(stored[metric].value, rel=0.01, abs=1e-4) for metric in stored)


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    """A folder as of the zoo that a test may damage."""
    for path in (ZOO / "datasaurus").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def test_folder_and_file_of_an_export_are_checkpoints(exported: Path) -> None:
    assert checkpoint_at(exported) == exported / WEIGHTS
    assert sha256_of(exported) == sha256_of(exported / WEIGHTS) == sha256_of(ZOO / "datasaurus")


@pytest.mark.parametrize("file", [WEIGHTS, CONFIG])
@pytest.mark.parametrize("how", ["cut", "empty", "zeros", "gone"])
def test_damaged_export_is_refused(exported: Path, file: str, how: str) -> None:
    path = exported / file
    content = path.read_bytes()
    path.write_bytes({"cut": content[:-10], "empty": b"", "zeros": bytes(len(content)), "gone": b""}[how])
    if how == "gone":
        path.unlink()
    named = file if (exported / WEIGHTS).exists() else "no checkpoint"
    with pytest.raises((ValueError, FileNotFoundError), match=named):
        diffusion_pl.load(exported)


def test_tensor_of_another_shape_is_refused(exported: Path) -> None:
    tensors = read_tensors(exported / WEIGHTS)
    name = next(iter(tensors))
    write_tensors(exported / WEIGHTS, tensors | {name: torch.zeros(3)}, {})
    with pytest.raises(ValueError, match="of another network"):
        diffusion_pl.load(exported)


def test_config_names_no_class_that_is_not_trusted(exported: Path) -> None:
    config = json.loads((exported / CONFIG).read_text())
    config["model"]["network"]["class_path"] = "os.system"
    (exported / CONFIG).write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"os\.system"):
        diffusion_pl.load(exported)
