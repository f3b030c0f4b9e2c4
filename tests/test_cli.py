"""The command line over Lightning: the run's folder, resuming, composition of files, several processes."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch.accelerators import MPSAccelerator
from shell import (
    LAST,
    assert_same_training,
    checkpoint,
    cli,
    differences,
    fit,
    no_files_change,
    scalars,
    start,
    tiny_config,
)

from diffusion_pl.__main__ import TRAINER_COMMANDS
from diffusion_pl.runtime.devices import device_of


def saved(run: Path) -> dict[str, Any]:
    """The configuration in a run's folder."""
    config: dict[str, Any] = yaml.safe_load((run / "config.yaml").read_text())
    return config


def runs(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "runs").iterdir())


# The run's folder


def test_a_run_folder_is_named_after_its_config(tmp_path: Path) -> None:
    config = tiny_config(tmp_path / "moons", "vp.yaml", trainer__max_steps=1)
    assert cli(tmp_path, "fit", "--config", config.relative_to(tmp_path)).code == 0
    assert runs(tmp_path) == ["moons-vp"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["moons", "runs"]
    inside = {path.name.split(".")[0] for path in (tmp_path / "runs" / "moons-vp").iterdir()}
    assert inside == {"card", "config", "checkpoints", "events"}


def test_a_second_fit_gets_a_folder_of_its_own(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, trainer__max_steps=1)
    for number in range(3):
        name = f"{tmp_path.name}-tiny" + (f"-{number + 1}" if number else "")
        others = {run: checkpoint(tmp_path / "runs" / run) for run in (runs(tmp_path) if number else [])}
        assert cli(tmp_path, "fit", "--config", config).run == f"runs/{name}"
        assert all(not list(differences(checkpoint(tmp_path / "runs" / run), old)) for run, old in others.items())
    assert cli(tmp_path, "fit", "--config", config, "--run", "mine").run == "runs/mine"
    another = cli(tmp_path, "fit", "--config", config, "--run", "mine")
    assert another.run == "runs/mine-2" and another.next == ["sample", "--ckpt_path", "runs/mine-2"]


def test_several_files_all_give_their_names(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, trainer__max_steps=1)
    (tmp_path / "fast.yaml").write_text("model: {optimizer: {init_args: {lr: 0.5}}}")
    assert cli(tmp_path, "fit", "--config", config, "--config", "fast.yaml").code == 0
    assert runs(tmp_path) == [f"{tmp_path.name}-tiny-fast"]


def test_last_resumes_the_newest_run_in_its_folder(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, trainer__max_steps=2)
    for _ in range(2):
        assert cli(tmp_path, "fit", "--config", config).code == 0
    first, second = (tmp_path / "runs" / name for name in runs(tmp_path))
    # A newer folder without a checkpoint, of a run that was killed at once, does not count.
    (tmp_path / "runs" / f"{tmp_path.name}-tiny-3").mkdir()
    more = ["--ckpt_path", "last", "--trainer.max_steps", 5]
    assert cli(tmp_path, "fit", "--config", config, *more).run == f"runs/{second.name}"
    assert [checkpoint(run)["global_step"] for run in (first, second)] == [2, 5]
    assert len(runs(tmp_path)) == 3


def test_a_checkpoint_path_resumes_in_its_own_run(tmp_path: Path) -> None:
    fit(tmp_path, run="a", trainer__max_steps=2)
    other = fit(tmp_path, run="b", trainer__max_steps=2)
    before = (other / LAST).read_bytes()
    # The file's own name would lead to another folder, and --run b to b.
    path = Path("runs/a") / LAST
    done = cli(tmp_path, "fit", "--config", "b.yaml", "--ckpt_path", path, "--trainer.max_steps", 4)
    assert done.run == "runs/a"
    assert checkpoint(tmp_path / "runs" / "a")["global_step"] == 4
    assert (other / LAST).read_bytes() == before


def test_a_checkpoint_from_elsewhere_resumes_in_a_new_run(tmp_path: Path) -> None:
    fit(tmp_path, run="a", trainer__max_steps=2)
    other = fit(tmp_path, run="b", trainer__max_steps=3)
    copy = tmp_path / "copy.ckpt"
    (tmp_path / "runs" / "a" / LAST).rename(copy)
    kept = copy.read_bytes(), (other / LAST).read_bytes()
    args = ["--config", "b.yaml", "--run", "b", "--ckpt_path", "copy.ckpt", "--trainer.max_steps", 5]
    assert cli(tmp_path, "fit", *args).run == "runs/b-2"
    assert checkpoint(tmp_path / "runs" / "b-2")["global_step"] == 5
    assert (copy.read_bytes(), (other / LAST).read_bytes()) == kept


def test_a_trial_run_leaves_nothing(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    assert cli(tmp_path, "fit", "--config", config, "--trainer.fast_dev_run", "true").code == 0
    assert not (tmp_path / "runs").exists()


# The configuration


def test_the_saved_configuration_trains_the_same_model(tmp_path: Path) -> None:
    run = fit(tmp_path, "--model.optimizer.lr", 0.02, trainer__max_steps=12)
    config = saved(run)
    assert config["model"]["optimizer"]["init_args"]["lr"] == 0.02
    assert config["model"]["optimizer"]["init_args"]["weight_decay"] == 0.01  # defaults too
    assert config["model"]["schedule"]["init_args"] == {"beta_min": 0.1, "beta_max": 20.0}
    assert config["seed_everything"] == 0
    again = cli(tmp_path, "fit", "--config", "runs/run/config.yaml")
    assert again.run == "runs/run-2"
    assert_same_training(run, tmp_path / "runs" / "run-2")
    assert saved(tmp_path / "runs" / "run-2") | {"run": None} == config | {"run": None}


def test_the_saved_configuration_of_a_resumed_run_starts_fresh(tmp_path: Path) -> None:
    run = fit(tmp_path, trainer__max_steps=3)
    fit(tmp_path, "--ckpt_path", "last", trainer__max_steps=6)
    assert saved(run)["trainer"]["max_steps"] == 6
    assert saved(run).get("ckpt_path") is None
    assert cli(tmp_path, "fit", "--config", "runs/run/config.yaml", "--run", "again").code == 0
    whole = fit(tmp_path, run="whole", trainer__max_steps=6)
    assert_same_training(whole, tmp_path / "runs" / "again")


def test_evaluation_does_not_touch_the_saved_configuration(tmp_path: Path) -> None:
    run = fit(tmp_path, trainer__max_steps=2)
    before = (run / "config.yaml").read_bytes(), (run / LAST).read_bytes()
    for command in ("validate", "test", "predict"):
        args = ["--config", "run.yaml", "--run", "run", "--ckpt_path", "last", "--data.batch_size", 64]
        assert cli(tmp_path, command, *args).code == 0
    assert ((run / "config.yaml").read_bytes(), (run / LAST).read_bytes()) == before


def test_later_files_and_options_win(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, trainer__max_steps=1)
    (tmp_path / "over.yaml").write_text("trainer: {max_steps: 2}\nmodel: {network: {init_args: {width: 8}}}\n")
    args = ["--config", config, "--config", "over.yaml", "--run", "run", "--model.network.depth", 2]
    assert cli(tmp_path, "fit", *args).code == 0
    config_ = saved(tmp_path / "runs" / "run")
    assert config_["trainer"]["max_steps"] == 2
    assert config_["model"]["network"]["init_args"] == {
        "width": 8,
        "depth": 2,
        "input_embedding": None,
        "time_embedding": None,
        "flow_map": False,
    }
    assert config_["data"]["init_args"]["batch_size"] == 32  # what the second file does not name stays


def test_callbacks_can_be_added_to_those_of_the_file(tmp_path: Path) -> None:
    callback = [{"class_path": "LearningRateMonitor"}]
    run = fit(tmp_path, "--trainer.callbacks+=ModelSummary", trainer__max_steps=1, trainer__callbacks=callback)
    names = [entry["class_path"].split(".")[-1] for entry in saved(run)["trainer"]["callbacks"]]
    assert names == ["LearningRateMonitor", "ModelSummary"]


def test_print_config_prints_what_would_be_run_and_runs_nothing(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    done = cli(tmp_path, "fit", "--config", config, "--model.optimizer.lr", "0.5", "--print_config")
    assert done.code == 0
    printed = yaml.safe_load(done.out)
    assert printed["model"]["optimizer"]["init_args"]["lr"] == 0.5
    assert printed["ema"]["decays"] == [0.999]
    assert not (tmp_path / "runs").exists()
    (tmp_path / "printed.yaml").write_text(done.out)
    assert cli(tmp_path, "fit", "--config", "printed.yaml", "--trainer.max_steps", 1).code == 0


def test_an_optimizer_keeps_its_own_defaults(tmp_path: Path) -> None:
    """A default of ours would leak into whatever class the file picks."""
    for name, decay in (("torch.optim.AdamW", 0.01), ("torch.optim.Adam", 0)):
        optimizer = {"class_path": name, "init_args": {"lr": 0.1}}
        run = fit(tmp_path, run=name.split(".")[-1], model__optimizer=optimizer, trainer__max_steps=1)
        assert saved(run)["model"]["optimizer"]["init_args"]["weight_decay"] == decay
        assert checkpoint(run)["optimizer_states"][0]["param_groups"][0]["weight_decay"] == decay


def test_the_shape_and_classes_come_from_the_data(tmp_path: Path) -> None:
    moons = {"class_path": "Moons", "init_args": {"num_points": 200, "conditional": True, "batch_size": 32}}
    run = fit(tmp_path, data=moons, trainer__max_steps=1)
    assert checkpoint(run)["state_dict"]["denoiser.network.label.table.weight"].shape == (3, 16)
    assert not {"shape", "conditions"} & saved(run)["model"].keys()


def test_the_checkpoint_does_not_override_what_the_user_wrote(tmp_path: Path) -> None:
    run = fit(tmp_path, trainer__max_steps=2)
    fit(
        tmp_path,
        "--ckpt_path",
        "last",
        "--saver.every_n_steps",
        3,
        trainer__max_steps=4,
        trainer__gradient_clip_val=1.0,
    )
    assert saved(run)["saver"]["every_n_steps"] == 3
    assert saved(run)["trainer"]["gradient_clip_val"] == 1.0


# Resuming


@pytest.mark.parametrize(
    "changes",
    [
        {},
        pytest.param(
            {"model__lr_scheduler": {"class_path": "Warmup", "init_args": {"warmup_steps": 20}}}, marks=pytest.mark.slow
        ),
        {"trainer__accumulate_grad_batches": 3},
        {"data": {"class_path": "Moons", "init_args": {"num_points": 200, "batch_size": 32, "conditional": True}}},
    ],
    ids=["plain", "warm-up", "accumulation", "labels"],
)
def test_13_steps_and_17_more_are_30(tmp_path: Path, changes: dict[str, Any]) -> None:
    """Bit by bit, in mid-epoch, and with validations at other places: weights, averages, optimizer, rate, losses."""
    common = {"trainer__log_every_n_steps": 1, "trainer__max_steps": 30} | changes
    whole = fit(tmp_path, run="whole", **common)
    parts = fit(tmp_path, "--trainer.max_steps", 13, run="parts", **common)
    assert checkpoint(parts)["global_step"] == 13
    torch.manual_seed(99)  # a new process would start elsewhere too
    fit(tmp_path, "--ckpt_path", "last", run="parts", **common)
    if "data" in changes:
        state = [
            {k: v for k, v in checkpoint(run).items() if k in ("state_dict", "callbacks")} for run in (whole, parts)
        ]
        assert not list(differences(state[0], state[1]))
    else:
        assert_same_training(whole, parts)
    ours, theirs = scalars(whole), scalars(parts)
    for tag in ("train_loss/raw", "learning_rate", "val_loss/ema0.999"):
        assert ours[tag] == theirs[tag], tag
    assert [step for step, _ in theirs["train_loss/raw"]] == list(range(1, 31))


def test_a_finished_run_has_nothing_to_resume(tmp_path: Path) -> None:
    run = fit(tmp_path, trainer__max_steps=3)
    before = (run / LAST).read_bytes()
    fit(tmp_path, "--ckpt_path", "last", trainer__max_steps=3)
    assert (run / LAST).read_bytes() == before


# Evaluation


def test_validate_and_test_repeat_logged_metrics_and_only_log(tmp_path: Path) -> None:
    run = fit(tmp_path)
    logged = dict(scalars(run)["val_loss/ema0.999"])[40]
    for command, name in (("validate", "val_loss"), ("test", "test_loss")):
        done = cli(tmp_path, command, "--config", "run.yaml", "--run", "run", "--ckpt_path", "last")
        assert done.code == 0
        # Lightning draws another table where rich is installed.
        shown = re.search(rf"{name}/ema0.999\W+([\d.]+)", done.out)
        assert shown and float(shown[1]) == pytest.approx(logged, rel=1e-6)
        assert done.run == "runs/run"


def test_predict_writes_1000_samples_into_the_runs_folder(tmp_path: Path) -> None:
    run = fit(tmp_path, trainer__max_steps=3)
    args = ["--config", "run.yaml", "--run", "run", "--ckpt_path", "last"]
    assert cli(tmp_path, "predict", *args).code == 0
    table = np.loadtxt(run / "samples" / "samples.csv", delimiter=",", skiprows=1)
    assert table.shape == (1000, 2)
    assert (run / "samples" / "samples.png").stat().st_size > 1000
    with no_files_change(run / "samples"):  # nor does a second call overwrite them
        again = cli(tmp_path, "predict", *args)
    assert again.code == 0
    fit(tmp_path, "--ckpt_path", "last", trainer__max_steps=4)
    with no_files_change(run / "samples"):
        assert "holds the finished results of another call (sha256" in cli(tmp_path, "predict", *args).error


def test_every_command_takes_the_same_file(tmp_path: Path) -> None:
    fit(tmp_path, trainer__max_steps=1)
    for command in TRAINER_COMMANDS:
        with no_files_change(tmp_path):
            done = cli(tmp_path, command, "--config", "run.yaml", "--print_config")
        assert yaml.safe_load(done.out)["model"]["schedule"]["class_path"].endswith("VP")


# Several processes


def test_two_processes_split_data_draw_own_noise_share_weights(tmp_path: Path) -> None:
    """Global batches of 64 of the 128 points: two ranks see each point once an epoch."""
    config = tiny_config(
        tmp_path,
        data__init_args={"batch_size": 64, "repeats": 1},
        trainer__max_steps=4,
        trainer__val_check_interval=2,
        model__loss__times={"class_path": "LossSecondMoment", "init_args": {"steps": 10}},
        trainer__devices=2,
        trainer__strategy="ddp",
        trainer__callbacks=[{"class_path": "shell.Witness"}],
    )
    process = start(tmp_path, "fit", "--config", config.name, "--run", "two")
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert out.count("run saved to runs/two") == 1
    assert runs(tmp_path) == ["two"]
    ranks = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert len(ranks[0]["seeds"]) == 4
    assert len({*ranks[0]["seeds"], *ranks[1]["seeds"]}) == 8
    for epoch in (0, 2):
        seen = torch.cat([x for rank in ranks for x in rank["x"][epoch : epoch + 2]])
        assert len(seen) == len(seen.unique(dim=0)) == 128
    assert not list(differences(ranks[0]["weights"], ranks[1]["weights"]))
    # The timestep distribution has learned from the losses of both.
    assert int(ranks[0]["weights"]["loss.times.seen"].sum()) == 4 * 64
    assert ranks[0]["metrics"]["val_loss/ema0.999"] == ranks[1]["metrics"]["val_loss/ema0.999"]
    assert checkpoint(tmp_path / "runs" / "two")["averages"]["updates"] == 4


@pytest.mark.slow
@pytest.mark.parametrize("devices", [2, 3])
def test_evaluation_is_independent_of_the_number_of_processes(tmp_path: Path, devices: int) -> None:
    """Three batches of 512 of the validation points, and samples against the data."""
    data = {"class_path": "Moons", "init_args": {"batch_size": 512, "num_points": 6000, "val_fraction": 0.2}}
    config = tiny_config(tmp_path, data=data, trainer__max_steps=5)
    fit(tmp_path, run="run", data=data, trainer__max_steps=5)
    call = ["validate", "--config", config.name, "--ckpt_path", Path("runs/run") / LAST]
    assert cli(tmp_path, *call, "--run", "one").code == 0
    several = start(tmp_path, *call, "--run", "several", "--trainer.devices", devices, "--trainer.strategy", "ddp")
    options = ["--num_samples", 700, "--likelihood_split", "val", "--accelerator", "cpu", "--likelihood.rtol", 1e-2]
    judge = ["evaluate", "--ckpt_path", Path("runs/run") / LAST, *options, "--metrics", "energy", "nll", "elbo"]
    assert cli(tmp_path, *judge, "--output", "judged-one").code == 0
    assert several.wait(240) == 0, several.communicate()
    losses = [{k: v[-1][1] for k, v in scalars(tmp_path / "runs" / name).items()} for name in ("one", "several")]
    assert losses[0].keys() == losses[1].keys()
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    judged = start(tmp_path, *judge, "--output", "judged-several", "--devices", devices)
    assert judged.wait(240) == 0, judged.communicate()
    results = [
        json.loads((tmp_path / f"judged-{name}/evaluation.json").read_text())["figures"] for name in ("one", "several")
    ]
    for name, result in results[0].items():
        assert result["value"] == pytest.approx(results[1][name]["value"], rel=1e-6)


@pytest.mark.slow
def test_two_processes_resume_exactly_and_sample_like_one(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, trainer__devices=2, trainer__strategy="ddp", trainer__max_steps=9)

    def two(*args: Any) -> None:
        process = start(tmp_path, *args)
        _, err = process.communicate(timeout=240)
        assert process.returncode == 0, err

    two("fit", "--config", config.name, "--run", "whole")
    two("fit", "--config", config.name, "--run", "parts", "--trainer.max_steps", 5)
    two("fit", "--config", config.name, "--run", "parts", "--ckpt_path", "last")
    whole, parts = (tmp_path / "runs" / name for name in ("whole", "parts"))
    assert_same_training(whole, parts)
    two("predict", "--config", config.name, "--run", "whole", "--ckpt_path", "last")
    assert cli(tmp_path, "sample", "--ckpt_path", whole / LAST, "--output", "one").code == 0
    tables = [np.loadtxt(f / "samples.csv", delimiter=",", skiprows=1) for f in (whole / "samples", tmp_path / "one")]
    np.testing.assert_allclose(tables[0], tables[1], 1e-5)


def test_auto_is_the_processor_where_the_gpu_is_apples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has no float64; Lightning would take it."""
    monkeypatch.setattr(MPSAccelerator, "is_available", staticmethod(lambda: True))
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    run = fit(tmp_path, trainer__accelerator="auto", trainer__max_steps=3)
    assert checkpoint(run)["global_step"] == 3
    assert saved(run)["trainer"]["accelerator"] == "auto"
    assert device_of("auto").type == "cpu"
