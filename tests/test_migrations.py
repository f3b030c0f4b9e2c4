"""What version 0.1 wrote is still read: loaded, sampled, evaluated, resumed, replayed.  See assets/v0_1/README.md."""

import json
import platform
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from shell import LAST, checkpoint, cli
from torch import Tensor

import diffusion_pl
from diffusion_pl.checkpoints.loading import load_classifier, load_model
from diffusion_pl.checkpoints.migrations import averages_of_0_1

ASSETS = Path(__file__).parent / "assets/v0_1"


def here() -> str:
    """What decides how sums are rounded on this machine: kind of processor, torch and its threads."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        result = re.search(r"^model name\s*: (.+)$", info.read_text(errors="replace"), re.MULTILINE)
        cpu = result[1].strip() if result else cpu
    kind = torch.backends.cpu.get_cpu_capability()
    return f"{cpu}, {kind}, torch {torch.__version__}, {torch.get_num_threads()} threads"


SAME_PLATFORM = (ASSETS / "platform.txt").exists() and (ASSETS / "platform.txt").read_text().strip() == here()


def assert_same(ours: Any, theirs: Any) -> None:
    """To the last bit on the platform where the assets were made, else within rounding."""
    a, b = np.asarray(ours), np.asarray(theirs)
    assert a.dtype == b.dtype
    if SAME_PLATFORM:
        np.testing.assert_array_equal(a, b)
    np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


def guided(path: Path | str) -> np.ndarray:
    """Samples of the U-Net with label 3, in model units."""
    pipeline = diffusion_pl.load(path).with_sampler(steps=5).with_scale(2).with_cond(label=3)
    return pipeline.samples(range(8)).x_0.numpy()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working directory with copies of the runs."""
    for name in ("mlp", "unet", "classifier"):
        shutil.copytree(ASSETS / name, tmp_path / "runs" / name)
    return tmp_path


def averages(content: dict[str, Any]) -> dict[str, dict[str, Tensor]]:
    """Of a checkpoint of either version, by their decays; names are those within the network."""
    shadows = averages_of_0_1(content)["averages"]["shadows"]
    return {
        decay: {name.removeprefix("denoiser.network."): value for name, value in shadow.items()}
        for decay, shadow in shadows.items()
    }


def test_the_assets_are_of_that_version() -> None:
    paths = [file for name in ("mlp", "unet", "classifier", "dump") for file in (ASSETS / name).rglob("*.ckpt")]
    assert len(paths) == 6
    for path in paths:
        assert torch.load(path, weights_only=True)["diffusion_pl"]["version"] == "0.1.0"


def test_a_run_is_resumed_to_the_same_weights(folder: Path) -> None:
    """Network, averages, optimizer, learning rate and batches continue as they would have in 0.1."""
    assert checkpoint(folder / "runs/mlp")["global_step"] == 20
    args = ("--config", "runs/mlp/config.yaml", "--run", "mlp", "--ckpt_path", "last", "--trainer.max_steps", 40)
    done = cli(folder, "fit", *args)
    assert done.code == 0, done.err
    actual, expected = checkpoint(folder / "runs/mlp"), torch.load(ASSETS / "mlp/step40.pt", weights_only=True)
    assert actual["global_step"] == 40
    assert actual["state_dict"].keys() == expected["state_dict"].keys()
    for name, value in expected["state_dict"].items():
        assert_same(actual["state_dict"][name], value)
    assert averages(actual).keys() == expected["shadows"].keys() == {"0.9", "0.99"}
    for decay, shadow in expected["shadows"].items():
        assert averages(actual)[decay].keys() == shadow.keys()
        for name, value in shadow.items():
            assert_same(averages(actual)[decay][name], value)
    card = json.loads((folder / "runs/mlp/card.json").read_text())
    assert [session["to_step"] for session in card["sessions"]] == [20, 40]


def test_training_changed_the_weights() -> None:
    """Else the test above would pass whatever a resumed run does."""
    before, after = checkpoint(ASSETS / "mlp"), torch.load(ASSETS / "mlp/step40.pt", weights_only=True)
    moved = [(before["state_dict"][name] - p).abs().max() for name, p in after["state_dict"].items() if p.ndim == 2]
    assert len(moved) >= 3
    assert min(moved) > 1e-3


@pytest.mark.parametrize("command", ["validate", "test"])
def test_the_loss_of_a_run_is_measured(folder: Path, command: str) -> None:
    done = cli(folder, command, "--config", "runs/mlp/config.yaml", "--run", "mlp", "--ckpt_path", "last")
    assert done.code == 0, done.err


def test_points_are_sampled_as_before(folder: Path) -> None:
    args = ("--num_samples", 16, "--npz", "true", "--accelerator", "cpu", "--output", "out")
    done = cli(folder, "sample", "--ckpt_path", Path("runs/mlp") / LAST, *args)
    assert done.code == 0, done.err
    with np.load(folder / "out/samples.npz") as actual, np.load(ASSETS / "mlp/samples.npz") as expected:
        assert_same(actual["x"], expected["x"])


@pytest.mark.parametrize("weights", ["raw", "ema:0.9", "ema:0.99"])
def test_each_of_its_weights_is_loaded(weights: str) -> None:
    content = checkpoint(ASSETS / "mlp")
    model, data = load_model(ASSETS / "mlp" / LAST, weights)
    kind, _, decay = weights.partition(":")
    parameters = dict(model.network.named_parameters())
    if kind == "raw":
        expected = {name: content["state_dict"][f"denoiser.network.{name}"] for name in parameters}
    else:
        expected = averages(content)[decay]
    assert expected.keys() == parameters.keys()
    for name, value in expected.items():
        assert torch.equal(parameters[name], value)
    assert type(data).__name__ == "Datasaurus"


def test_points_are_evaluated(folder: Path) -> None:
    args = ("--num_samples", 64, "--repeats", 1, "--accelerator", "cpu", "--output", "out")
    done = cli(folder, "evaluate", "--ckpt_path", Path("runs/mlp") / LAST, *args)
    assert done.code == 0, done.err
    results = json.loads((folder / "out/evaluation.json").read_text())["figures"]
    assert results
    assert all(np.isfinite(result["value"]) for result in results.values())


def test_images_are_sampled_as_before(folder: Path) -> None:
    """With guidance, as floats and as the files hold them."""
    path = Path("runs/unet") / LAST
    args = ("--num_samples", 8, "--npz", "true", "--steps", 5, "--scale", 2, "--cond.label", 3, "--accelerator", "cpu")
    done = cli(folder, "sample", "--ckpt_path", path, *args, "--output", "out")
    assert done.code == 0, done.err
    with np.load(folder / "out/samples.npz") as actual, np.load(ASSETS / "unet/samples.npz") as expected:
        assert_same(guided(folder / path), expected["x"])
        difference = np.abs(actual["x"].astype(int) - expected["pixels"].astype(int))
        assert difference.max() <= (0 if SAME_PLATFORM else 1)  # a level of 256, where rounding turns


def test_an_image_run_resumes(folder: Path) -> None:
    args = ("--config", "runs/unet/config.yaml", "--run", "unet", "--ckpt_path", "last", "--trainer.max_steps", 62)
    done = cli(folder, "fit", *args)
    assert done.code == 0, done.err
    assert checkpoint(folder / "runs/unet")["global_step"] == 62


def test_the_classifier_says_the_same() -> None:
    classifier = load_classifier(ASSETS / "classifier" / LAST)
    with np.load(ASSETS / "classifier/logits.npz") as expected, torch.no_grad():
        logits = classifier(torch.from_numpy(expected["x"]), torch.from_numpy(expected["t"]))
        assert_same(logits, expected["logits"])


def test_the_classifier_guides(folder: Path) -> None:
    given = ("--ckpt_path", Path("runs/unet") / LAST, "--classifier", Path("runs/classifier") / LAST, "--steps", 2)
    done = cli(folder, "sample", *given, "--num_samples", 2, "--accelerator", "cpu", "--output", "out")
    assert done.code == 0, done.err


@pytest.mark.parametrize("name", ["lr3", "lr30"])
def test_a_dump_is_replayed_with_the_same_verdict(tmp_path: Path, name: str) -> None:
    shutil.copytree(ASSETS / "dump", tmp_path / "dump")
    done = cli(tmp_path, "replay", f"dump/{name}.ckpt", "--json")
    expected = (ASSETS / f"dump/{name}.txt").read_text().splitlines()[1:-1]
    content = json.loads(done.out)
    facts = content["facts"]
    names = ("loss", "activations", "gradients", "examples")
    lines = [f"{key:<12} {facts[key]}{':' if key == 'examples' else ''}" for key in names]
    lines += [f"  {e['row']:>6}   t {e['t']:.6f}   loss {float(e['loss']):.6g}" for e in content["rows"]]
    if SAME_PLATFORM:
        assert done.code == 0, done
        assert lines == expected
    else:  # a finite loss rounds otherwise; what is not finite, and where, stays
        assert lines[1:3] == expected[1:3]


def test_an_exported_model_is_imported(tmp_path: Path) -> None:
    shutil.copytree(ASSETS / "exported", tmp_path / "exported")
    args = ("--from", "diffusers", "exported", "--output", "back.ckpt", "--data", "Digits")
    done = cli(tmp_path, "import", *args)
    assert done.code == 0, done.err
    model, _ = load_model(tmp_path / "back.ckpt", "raw")
    actual, expected = model.network.state_dict(), torch.load(ASSETS / "exported_weights.pt", weights_only=True)
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(actual[name], value), name


@pytest.mark.parametrize("name", ["config_full_paths", "config_deep_paths"])
def test_paths_of_that_version_name_the_same_classes(tmp_path: Path, name: str) -> None:
    done = cli(tmp_path, "fit", "--config", ASSETS / f"{name}.yaml", "--run", "run")
    assert done.code == 0, done.err
    assert checkpoint(tmp_path / "runs/run")["global_step"] == 2
    saved = yaml.safe_load((tmp_path / "runs/run/config.yaml").read_text())
    asked = yaml.safe_load((ASSETS / f"{name}.yaml").read_text())
    assert names(saved) >= names(asked)


def names(config: Any) -> set[str]:
    """Of all classes in a configuration, without their modules."""
    if isinstance(config, list):
        return {name for part in config for name in names(part)}
    if not isinstance(config, dict):
        return set()
    own = {config["class_path"].rpartition(".")[2]} if "class_path" in config else set()
    return own | names(list(config.values()))
