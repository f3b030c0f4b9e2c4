"""fit --init_from: a new run with the weights of another one."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from shell import Outcome, checkpoint, cli, no_files_change, tiny_config

from diffusion_pl.runtime.run_card import read_card

ASSETS = Path(__file__).parent / "assets" / "v0_1"
NETWORK = "denoiser.network."


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with runs of version 0.1: points with two EMA weights, digits, a classifier."""
    path = tmp_path_factory.mktemp("warm")
    for name in ("mlp", "unet", "classifier"):
        shutil.copytree(ASSETS / name, path / "runs" / name)
    return path


def start(folder: Path, run: str, *args: Any) -> Outcome:
    """One step of no length, so that the weights stay as they began."""
    still = ("--trainer.max_steps", 1, "--model.optimizer.lr", 1e-30, "--model.optimizer.weight_decay", 0, "--run", run)
    return cli(folder, "fit", *args, *still, "--trainer.enable_progress_bar", "false")


def network(content: dict[str, Any], weights: str = "raw") -> dict[str, torch.Tensor]:
    state = dict(content["state_dict"])
    if weights != "raw":
        state |= content["averages"]["shadows"][weights]
    return {name: tensor for name, tensor in state.items() if name.startswith(NETWORK)}


def loaded(folder: Path, weights: str = "raw") -> dict[str, torch.Tensor]:
    """The weights of the run mlp, of 0.1: its EMA weights are where 0.1 put them."""
    content = checkpoint(folder / "runs/mlp")
    state = network(content)
    if weights != "raw":
        shadow = content["callbacks"]["EMA"]["shadows"][weights]
        state |= {f"{NETWORK}{name}": tensor for name, tensor in shadow.items()}
    return state


def test_without_a_config_the_checkpoint_gives_model_and_data(folder: Path) -> None:
    done = start(folder, "tuned", "--init_from", "runs/mlp")
    assert done.code == 0, done.err
    content, first = checkpoint(folder / "runs/tuned"), next(iter(loaded_decays(folder)))
    assert content["global_step"] == 1
    assert f"init_from: ema{first} weights of step 20 from runs/mlp" in done.out.splitlines()
    for name, tensor in loaded(folder, first).items():
        assert torch.equal(content["state_dict"][name], tensor), name
    ours, theirs = (yaml.safe_load((folder / f"runs/{run}/config.yaml").read_text()) for run in ("tuned", "mlp"))
    theirs["model"]["network"]["init_args"]["flow_map"] = False  # new since
    assert ours["model"]["network"]["init_args"] == theirs["model"]["network"]["init_args"]
    assert ours["init_from"]["path"] == "runs/mlp"
    card = read_card(folder / "runs/tuned")
    assert card["init_from"]["weights"] == f"ema{first}"
    assert len(card["init_from"]["sha256"]) == 64


def loaded_decays(folder: Path) -> list[str]:
    return list(checkpoint(folder / "runs/mlp")["callbacks"]["EMA"]["shadows"])


def test_the_raw_weights_and_others_can_be_chosen(folder: Path) -> None:
    decays = loaded_decays(folder)
    for k, (asked, name) in enumerate((("raw", "raw"), (f"ema:{decays[1]}", decays[1]))):
        done = start(folder, f"chosen{k}", "--init_from", "runs/mlp", "--init_from.weights", asked)
        assert done.code == 0, done.err
        state = checkpoint(folder / f"runs/chosen{k}")["state_dict"]
        assert all(torch.equal(state[key], tensor) for key, tensor in loaded(folder, name).items())


def test_the_new_run_is_named_after_the_old_one(folder: Path) -> None:
    still = ("--trainer.max_steps", 1, "--trainer.enable_progress_bar", "false")
    done = cli(folder, "fit", "--init_from", "runs/unet", *still)
    assert done.code == 0, done.err
    assert done.run == "runs/unet-tuned"


def test_what_may_differ_is_named(folder: Path) -> None:
    config = tiny_config(folder, "other.yaml", model__network__init_args={"width": 16, "depth": 2})
    args = ("--config", config, "--init_from", "runs/mlp", "--init_from.weights", "raw")
    with no_files_change(folder):
        error = start(folder, "no", *args).error
    assert "init_from: runs/mlp does not fit the new model" in error
    assert "is missing" in error
    assert "--init_from.skip" in error


def test_skipped_tensors_are_initialized(folder: Path) -> None:
    done = start(folder, "skipped", "--init_from", "runs/mlp", "--init_from.skip", '["output.*"]')
    assert done.code == 0, done.err
    state, theirs = checkpoint(folder / "runs/skipped")["state_dict"], loaded(folder, loaded_decays(folder)[0])
    skipped = {name for name in theirs if name.startswith(f"{NETWORK}output.")}
    assert skipped
    assert not any(torch.equal(state[name], theirs[name]) for name in skipped if theirs[name].abs().sum())
    assert all(torch.equal(state[name], theirs[name]) for name in theirs if name not in skipped)
    assert "output.weight" in read_card(folder / "runs/skipped")["init_from"]["skipped"]


def test_a_resumed_run_keeps_its_own_weights(folder: Path) -> None:
    assert start(folder, "goes-on", "--init_from", "runs/mlp").code == 0
    before = checkpoint(folder / "runs/goes-on")["state_dict"]
    args = ("--config", "runs/goes-on/config.yaml", "--ckpt_path", "last", "--run", "goes-on")
    done = cli(folder, "fit", *args, "--trainer.max_steps", 2)
    assert done.code == 0, done.err
    assert "init_from:" not in done.out
    assert checkpoint(folder / "runs/goes-on")["global_step"] == 2
    assert before.keys() == checkpoint(folder / "runs/goes-on")["state_dict"].keys()
    assert "init_from" in read_card(folder / "runs/goes-on")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--init_from", "nothing.ckpt"), "no checkpoint at nothing.ckpt"),
        (("--init_from", "runs/mlp", "--init_from.weights", "ema:0.5"), "has no weights 'ema:0.5'"),
        (("--init_from", "runs/mlp", "--init_from.skip", '["tail.*"]'), "no tensor is named 'tail.\\*'"),
    ],
)
def test_bad_input_is_one_line(folder: Path, args: tuple[str, ...], message: str) -> None:
    with no_files_change(folder):
        error = start(folder, "no", *args).error
    assert message.replace("\\", "") in error
