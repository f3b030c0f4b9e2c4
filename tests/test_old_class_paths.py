"""Old class paths in configurations, options, descriptions and run cards are those of this version; pure functions."""

import copy
import importlib
import importlib.util
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from shell import LAST, checkpoint, cli, fit, tiny_config

from diffusion_pl import __version__, load
from diffusion_pl.checkpoints import migrations
from diffusion_pl.checkpoints.io import read
from diffusion_pl.checkpoints.loading import rebuild
from diffusion_pl.checkpoints.migrations import MOVED, STEPS, Step, migrate_checkpoint, migrate_config, migrate_text
from diffusion_pl.runtime.run_card import read_card

ASSETS = Path(__file__).parent / "assets/v0_1"

#: The public classes of version 0.1's flat modules.
CLASSES = """
transitions: Transition Posterior
denoiser: Denoiser NoiseInput ScaledTime LogSNR NetworkDenoiser
parameterizations: Prediction Parameterization Epsilon Data V Velocity Score EDM
guidance: Thresholded ClassifierFree AutoGuided ClassifierGuided
inverse: Operator Masked Gray Coarse Reconstructing
oracles: Gaussian GaussianMixture
grids: Grid UniformGrid LogSNRGrid KarrasGrid RespacedGrid TrailingGrid LeadingGrid ExplicitGrid
loss: Losses DenoisingLoss
times: Times TimeSampler UniformTimes StratifiedTimes GridTimes LogNormalTimes LogitNormalTimes LikelihoodTimes
 LossSecondMoment
weightings: Weighting SNR MinSNR SoftMinSNR P2 FlowMatching Likelihood ChainELBO
couplings: Coupling MinibatchOT
variance: VarianceBound
elbo: Bound ChainBound ContinuousBound
likelihood: LogDensity FlowLikelihood
module: DiffusionModule
classifier: NoisyClassifier
trainable: Trainable
lr_schedulers: SchedulerFactory Warmup WarmupCosine
lean: LeanHooks LeanCallback LeanProfiler
"""
OLD = [
    f"diffusion_pl.{module}.{name}"
    for module, names in re.findall(r"^(\w+): (.*(?:\n .*)*)$", CLASSES, re.MULTILINE)
    for name in names.split()
]


@pytest.fixture(autouse=True)
def nothing_said_yet() -> None:
    """Each test is a process of its own, as far as announcements go."""
    migrations._say.cache_clear()


@pytest.mark.parametrize("path", OLD)
def test_every_old_class_is_where_its_new_path_says(path: str) -> None:
    now = migrate_config({"class_path": path})["class_path"]
    module, _, name = now.rpartition(".")
    assert inspect_name(getattr(importlib.import_module(module), name)) == name
    assert "likelihood" in path or now != path or module not in MOVED
    assert migrate_text(path) == now


def inspect_name(thing: Any) -> str:
    return str(getattr(thing, "__name__", type(thing).__name__))


def test_moved_modules_are_gone_and_their_packages_are_there() -> None:
    assert len(MOVED) == 18
    for old, new in MOVED.items():
        assert importlib.util.find_spec(old) is None
        importlib.import_module(new)


plain = st.recursive(
    st.sampled_from([None, True, 3, 0.5, "text", *OLD]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(["model", "data", "class_path", "x"]), plain))
def test_migrations_are_pure_and_done_once(config: dict[str, Any]) -> None:
    before = copy.deepcopy(config)
    after = migrate_config(config)
    assert config == before
    assert migrate_config(after) == after
    text = json.dumps(after)
    assert not any(re.search(rf'"{re.escape(path)}"', text) for path in OLD if path.split(".")[1] != "likelihood")


def test_a_checkpoint_is_migrated_without_being_touched() -> None:
    content = checkpoint(ASSETS / "mlp")
    before = copy.deepcopy(content["diffusion_pl"])
    now = migrate_checkpoint(content)
    assert content["diffusion_pl"] == before
    assert now["diffusion_pl"]["version"] == "0.1.0"  # that wrote it
    model = now["diffusion_pl"]["model"]
    assert model["loss"]["init_args"]["weighting"]["class_path"] == "diffusion_pl.losses.SNR"
    assert model["sampler"]["init_args"]["grid"]["class_path"] == "diffusion_pl.samplers.UniformGrid"
    assert now["state_dict"] is content["state_dict"]


def test_the_version_decides_which_steps_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """In order, each once: those of the versions after the one that wrote the checkpoint."""

    def noted(name: str) -> Any:
        return lambda content: {**content, "steps": [*content.get("steps", []), name]}

    steps = (*STEPS, Step("0.3.0", content=(noted("c"),)), Step("0.4.1", content=(noted("d"), noted("e"))))
    monkeypatch.setattr(migrations, "STEPS", steps)
    monkeypatch.setattr(migrations, "__version__", "0.5.0")
    taken = {
        version: migrate_checkpoint({"diffusion_pl": {"version": version}}).get("steps", [])
        for version in ("0.1.0", "0.2.9", "0.3.0", "0.4.0", "0.4.1", "0.5.0")
    }
    every = ["c", "d", "e"]
    assert list(taken.values()) == [every, every, ["d", "e"], ["d", "e"], [], []]


@pytest.mark.parametrize("version", ["0.2.1", "0.10.0", "1.0", "2.0.0.dev1"])
def test_a_checkpoint_of_a_newer_version_is_refused(tmp_path: Path, version: str) -> None:
    content = checkpoint(ASSETS / "mlp")
    content["diffusion_pl"]["version"] = version
    torch.save(content, tmp_path / "new.ckpt")
    expected = rf"new\.ckpt was written by diffusion_pl {version}, this is {__version__}\. Fix: pip install -U"
    with pytest.raises(ValueError, match=expected):
        load(tmp_path / "new.ckpt")


def test_a_newer_checkpoint_is_one_line_of_a_command(tmp_path: Path) -> None:
    content = checkpoint(ASSETS / "mlp")
    content["diffusion_pl"]["version"] = "9.0.0"
    torch.save(content, tmp_path / "new.ckpt")
    config = ("--config", ASSETS / "mlp/config.yaml")
    for args in (("sample", "--output", "x"), ("fit", *config)):
        error = cli(tmp_path, *args, "--ckpt_path", "new.ckpt").error
        assert "new.ckpt was written by diffusion_pl 9.0.0" in error


def test_a_class_of_the_users_own_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = checkpoint(ASSETS / "mlp")
    content["diffusion_pl"]["model"]["network"]["class_path"] = "my_networks.Mine"
    torch.save(content, tmp_path / "own.ckpt")
    with pytest.raises(ValueError, match=r"own\.ckpt asks for my_networks\.Mine, .* set DIFFUSION_PL_TRUST=my_network"):
        load(tmp_path / "own.ckpt")
    monkeypatch.setenv("DIFFUSION_PL_TRUST", "my_networks")
    expected = r"own\.ckpt needs the class my_networks\.Mine, which is missing \(No module .*\)\. Fix: put my_networks "
    with pytest.raises(ValueError, match=expected) as caught:
        load(tmp_path / "own.ckpt")
    assert "\n" not in str(caught.value)


def test_old_paths_in_a_file_warn_once(tmp_path: Path) -> None:
    shutil.copy(ASSETS / "config_full_paths.yaml", tmp_path / "old.yaml")
    done = cli(tmp_path, "fit", "--config", "old.yaml", "--run", "run")
    assert done.code == 0, done.err
    lines = [line for line in done.out.splitlines() if " is now " in line]
    assert "diffusion_pl: warning: diffusion_pl.weightings.SNR is now diffusion_pl.losses.SNR" in lines
    assert len(lines) == len(set(lines)) == len(set(re.findall(r"diffusion_pl\.\w+\.\w+ is now", done.out)))
    saved = (tmp_path / "runs/run/config.yaml").read_text()
    assert not [old for old in MOVED if re.search(rf"{re.escape(old)}\.[A-Z]", saved)]
    again = cli(tmp_path, "fit", "--config", "runs/run/config.yaml", "--run", "again")
    assert again.code == 0
    assert " is now " not in again.out


@pytest.mark.parametrize(
    "args",
    [
        ("--model.loss.weighting", "diffusion_pl.weightings.MinSNR"),
        ("--model.loss.weighting=diffusion_pl.weightings.MinSNR",),
        ("--model.loss.weighting", "{class_path: diffusion_pl.weightings.MinSNR, init_args: {gamma: 5}}"),
        ("--model.loss.weighting.class_path", "diffusion_pl.weightings.MinSNR"),
    ],
    ids=["name", "equals", "text", "class_path"],
)
def test_old_paths_on_the_command_line(tmp_path: Path, args: tuple[str, ...]) -> None:
    tiny_config(tmp_path)
    done = cli(tmp_path, "fit", "--config", "tiny.yaml", *args, "--trainer.max_steps", 1, "--run", "run")
    assert done.code == 0, done.err
    assert done.out.count("diffusion_pl.weightings.MinSNR is now diffusion_pl.losses.MinSNR") == 1
    loss = yaml.safe_load((tmp_path / "runs/run/config.yaml").read_text())["model"]["loss"]
    assert loss["init_args"]["weighting"]["class_path"] == "diffusion_pl.losses.MinSNR"


def test_old_paths_in_options_of_a_tool(tmp_path: Path) -> None:
    path = ASSETS / "mlp" / LAST
    args = ("--sampler", "Heun", "--grid", "diffusion_pl.grids.LogSNRGrid", "--grid.steps", 4, "--num_samples", 4)
    done = cli(tmp_path, "sample", "--ckpt_path", path, *args, "--accelerator", "cpu", "--output", "out")
    assert done.code == 0, done.err
    assert done.out.count(" is now ") == 1  # and none of those of the checkpoint


@pytest.mark.parametrize(
    "text",
    [
        "my.diffusion_pl.loss.DenoisingLoss",
        "runs/diffusion_pl.loss.Weights/last.ckpt",
        "diffusion_pl.loss.py",
        "diffusion_pl.losses.SNR",
        "--model.loss.weighting",
    ],
)
def test_what_is_no_old_class_path_stays(text: str) -> None:
    assert migrate_text(text) == text


def test_a_run_card_is_compared_in_new_names(tmp_path: Path) -> None:
    """Else every class path of the configuration would be noted as a change of a resumed run."""
    shutil.copytree(ASSETS / "mlp", tmp_path / "mlp")
    weighting = read_card(tmp_path / "mlp")["config"]["model"]["loss"]["init_args"]["weighting"]
    assert weighting["class_path"] == "diffusion_pl.losses.SNR"
    assert "diffusion_pl.weightings.SNR" in (tmp_path / "mlp/card.json").read_text()


def test_an_exported_description_is_rebuilt() -> None:
    """The config.json of exported weights has no checkpoint around it."""
    described = checkpoint(ASSETS / "mlp")["diffusion_pl"]
    model, data = rebuild(described, {})
    assert (model.shape, type(data).__name__) == ((2,), "Datasaurus")


def test_shared_parts_of_a_description_stay_shared() -> None:
    """Some lines of nested lists would else become more than fits into memory."""
    part: list[Any] = ["diffusion_pl.loss.DenoisingLoss"]
    for _ in range(60):
        part = [part, part]
    deep = migrate_config({"x": part})["x"]
    for _ in range(60):
        assert deep[0] is deep[1]
        deep = deep[0]
    assert deep == ["diffusion_pl.losses.DenoisingLoss"]


@pytest.mark.parametrize("depth", [60, 20_000])
def test_a_description_that_is_nested_too_deeply(depth: int) -> None:
    content = checkpoint(ASSETS / "mlp")
    part: list[Any] = []
    for _ in range(depth):
        part = [part]
    content["diffusion_pl"]["model"]["network"]["init_args"]["width"] = part
    with pytest.raises(ValueError, match="nested more than 50 levels deep"):
        migrate_checkpoint(content, "deep.ckpt")


def test_a_step_index_resumes_a_run_of_scaled_time(tmp_path: Path) -> None:
    """The configurations of 0.1 spelled DDPM's step as ScaledTime(N, -1), their successors as StepIndex."""
    table = {"class_path": "LinearBetas", "init_args": {"steps": 50, "beta_max": 0.4}}
    old = {"class_path": "ScaledTime", "init_args": {"scale": 50, "shift": -1}}
    options: dict[str, Any] = {"model__schedule": table, "trainer__val_check_interval": 1}
    run = fit(tmp_path, **options, model__noise_input=old, trainer__max_steps=1)
    tiny_config(tmp_path, "new.yaml", **options, model__noise_input={"class_path": "StepIndex"}, trainer__max_steps=2)
    args = ("fit", "--config", tmp_path / "new.yaml", "--run", run.name, "--ckpt_path", run / LAST)
    done = cli(tmp_path, *args)
    assert done.code == 0, done.err
    assert read(done_run(tmp_path))["global_step"] == 2
    wrong = cli(tmp_path, *args, "--model.noise_input.steps", 49)
    assert "model.noise_input" in wrong.error


def done_run(folder: Path) -> Path:
    return max(folder.glob("runs/*/checkpoints/last.ckpt"), key=lambda file: file.stat().st_mtime_ns)
