"""Flow maps and consistency models from the command line: teachers, warm starts, few steps, sweeps, exports."""

import csv
import json
import re
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import by_class
from PIL import Image
from shell import LAST, Outcome, checkpoint, cli, fit, tiny_config, tiny_module

import diffusion_pl
from diffusion_pl.checkpoints.io import sha256_of
from diffusion_pl.checkpoints.loading import load_pipeline
from diffusion_pl.losses import FlowMapLoss, MeanFlow, TwoTimes, UniformTimes
from diffusion_pl.networks import MLP
from diffusion_pl.runtime.run_card import read_card
from diffusion_pl.samplers import DDIM, Heun, MultistepConsistency, UniformGrid

NETWORK: dict[str, Any] = {
    "class_path": "diffusion_pl.networks.MLP",
    "init_args": {"width": 16, "depth": 1, "flow_map": True},
}
ONE = {"grid": {"class_path": "UniformGrid", "init_args": {"steps": 1}}}
TIMES = {"class_path": "UniformTimes"}
MAP = {"rule": {"class_path": "MeanFlow"}, "pairs": {"class_path": "TwoTimes", "init_args": {"times": TIMES}}}
TO_DATA = {"rule": {"class_path": "Consistency"}, "pairs": {"class_path": "ToData", "init_args": {"times": TIMES}}}


def changes(loss: dict[str, Any], sampler: str) -> dict[str, Any]:
    """What makes the tiny model a flow map."""
    return {
        "model__network": NETWORK,
        "model__loss": {"class_path": "FlowMapLoss", "init_args": loss},
        "model__sampler": {"class_path": sampler, "init_args": ONE},
        "trainer__max_steps": 2,
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of points: teacher, an ordinary model; map, a flow map that learns from it; data, a consistency model that
    begins from it."""
    folder = tmp_path_factory.mktemp("flow")
    fit(folder, run="teacher")
    fit(folder, "--model.loss.teacher", "runs/teacher", run="map", **changes(MAP, "DDIM"))
    fit(folder, "--init_from", "runs/teacher", run="data", **changes(TO_DATA, "MultistepConsistency"))
    return folder


def sample(folder: Path, run: str, *args: Any) -> Outcome:
    """Eight samples in a folder of their own."""
    output = folder / f"samples{len(list(folder.glob('samples*')))}"
    done = cli(folder, "sample", "--ckpt_path", f"runs/{run}", "--num_samples", 8, "--output", output, *args)
    if done.code == 0:
        assert len((output / "samples.csv").read_text().splitlines()) == 9
    return done


# training ----------------------------------------------------------------------------------------------------------


def test_the_card_names_the_teacher(folder: Path) -> None:
    (teacher,) = read_card(folder / "runs/map")["teachers"]
    assert teacher == {
        "path": "runs/teacher",
        "sha256": sha256_of(folder / "runs/teacher" / LAST),
        "weights": "ema0.999",
        "scale": 1.0,
    }
    assert "teachers" not in read_card(folder / "runs/data")
    assert read_card(folder / "runs/data")["init_from"]["path"] == "runs/teacher"


def test_the_teachers_weights_are_not_in_the_checkpoint(folder: Path) -> None:
    names = checkpoint(folder / "runs/map")["state_dict"]
    assert not [name for name in names if "teacher" in name]
    assert any(name.startswith("denoiser.network.jump.") for name in names)


def test_a_teacher_can_be_named_in_a_file(folder: Path) -> None:
    teacher = {"class_path": "Teacher", "init_args": {"path": "runs/teacher"}}
    fit(folder, run="named", **changes({**MAP, "teacher": teacher}, "DDIM"))
    ours, theirs = (checkpoint(folder / "runs" / run)["state_dict"] for run in ("named", "map"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_without_its_teacher_a_map_samples_and_does_not_train(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "runs/map", tmp_path / "runs/map")
    assert sample(tmp_path, "map").code == 0
    resumed = ("fit", "--config", "runs/map/config.yaml", "--ckpt_path", "runs/map", "--trainer.max_steps", 4)
    error = cli(tmp_path, *resumed).error
    assert "runs/teacher" in error
    shutil.copytree(folder / "runs/teacher", tmp_path / "runs/teacher")
    done = cli(tmp_path, *resumed)
    assert done.code == 0, done.err
    assert checkpoint(tmp_path / "runs/map")["global_step"] == 4


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ("runs/none", "runs/none"),
        ("runs/data", "consistency model, which has learned jumps to the data only"),
        ("runs/other", "teacher has another noise schedule, Rectified"),
    ],
)
def test_a_teacher_that_does_not_fit_is_one_line(folder: Path, teacher: str, message: str) -> None:
    if teacher == "runs/other" and not (folder / teacher).exists():
        other = {"model__schedule": {"class_path": "Rectified"}, "model__parameterization": {"class_path": "Velocity"}}
        fit(folder, run="other", trainer__max_steps=1, **other)
    config = tiny_config(folder, "unfit.yaml", **changes(MAP, "DDIM"))
    assert message in cli(folder, "fit", "--config", config, "--model.loss.teacher", teacher, "--run", "no").error


def test_a_guided_teacher_needs_conditions(folder: Path) -> None:
    config = tiny_config(folder, "guided.yaml", **changes(MAP, "DDIM"))
    options = ("--model.loss.teacher", "runs/teacher", "--model.loss.teacher.scale", 2)
    assert "unconditional" in cli(folder, "fit", "--config", config, *options, "--run", "no").error


# sampling ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_a_flow_map_takes_any_number_of_jumps(folder: Path, steps: int) -> None:
    done = sample(folder, "map", "--steps", steps)
    assert f"{steps} NFE each" in done.out
    assert "warning" not in done.out


def test_its_jumps_have_equal_shares_of_the_time(folder: Path) -> None:
    pipeline, _ = load_pipeline(folder / "runs/map")
    few = pipeline.with_sampler(steps=4)
    assert few.sampler.grid(few.schedule).tolist() == [1.0, 0.75, 0.5, 0.25]
    assert few.with_sampler(MultistepConsistency, steps=2).sampler.grid(few.schedule).tolist() == [1.0, 0.5]
    solver = few.with_sampler(Heun(UniformGrid(1))).with_sampler(steps=3)  # not exact: shares of evaluations
    assert solver.sampler.grid(few.schedule).tolist() == pytest.approx([1.0, 0.6, 0.2])


def test_fresh_noise_between_jumps_follows_the_seed(folder: Path) -> None:
    pipeline, _ = load_pipeline(folder / "runs/data")
    pipe = pipeline.with_sampler(steps=2)
    x = pipe.samples(range(4)).x_0
    assert torch.equal(x, pipe.samples(range(4)).x_0)
    jump = pipeline.samples(range(4)).x_0
    assert torch.equal(jump, pipeline.with_sampler(DDIM, steps=1).samples(range(4)).x_0)
    assert not torch.equal(x, jump)


@pytest.mark.parametrize(
    ("run", "args", "message"),
    [
        ("teacher", ["--steps", 1], "1 NFE are few for a diffusion model, this one's own sampler takes 4"),
        ("map", ["--sampler", "Heun", "--steps", 2], "Heun uses the flow map as an ordinary denoiser"),
    ],
)
def test_few_steps_of_what_is_not_exact_are_warned_of(folder: Path, run: str, args: list[Any], message: str) -> None:
    done = sample(folder, run, *args)
    assert done.code == 0, done.err
    (line,) = (line for line in done.out.splitlines() if "warning" in line)
    assert message in line


def test_enough_steps_are_not_warned_of(folder: Path) -> None:
    assert "warning" not in sample(folder, "teacher").out
    assert "warning" not in sample(folder, "map", "--sampler", "Heun", "--steps", 20).out


@pytest.mark.parametrize("args", [["--sampler", "Heun"], ["--sampler", "DDIM", "--steps", 2]])
def test_a_consistency_model_jumps_to_the_data_only(folder: Path, args: list[Any]) -> None:
    assert "Fix: take the sampler MultistepConsistency" in sample(folder, "data", *args).error
    assert sample(folder, "data", "--sampler", "DDIM", "--steps", 1).code == 0


def test_guidance_makes_an_ordinary_denoiser_of_a_flow_map() -> None:
    network, loss = partial(MLP, width=16, depth=1, flow_map=True), FlowMapLoss(MeanFlow(), TwoTimes(UniformTimes()))
    pipeline = tiny_module(network=network, loss=loss, conditions=by_class(3)).live_pipeline()
    assert pipeline.exact_jumps and not pipeline.with_scale(2.0).exact_jumps


# sweep, encode, evaluate, export -----------------------------------------------------------------------------------


def test_a_sweep_shows_few_steps_next_to_the_teacher(folder: Path) -> None:
    options = ("--samplers", "DDIM", "MultistepConsistency", "--nfe", 1, 2, 4, "--num_samples", 16)
    done = cli(folder, "sweep", "--ckpt_path", "runs/map", *options, "--baseline", "runs/teacher", "--output", "s")
    assert done.code == 0, done.err
    with (folder / "s/sweep.csv").open() as file:
        rows = [(row["sampler"], int(row["nfe"]), float(row["error"])) for row in csv.DictReader(file)]
    names = ("DDIM", "MultistepConsistency", "teacher: DDIM")
    assert [row[:2] for row in rows] == [(name, n) for name in names for n in (1, 2, 4)]
    assert rows[0][2] == rows[3][2]  # the one jump of both samplers
    assert "--sampler" in next(line for line in done.out.splitlines() if line.startswith("next: "))
    with Image.open(folder / "s/sweep.png") as plot:
        assert plot.width > 500


def test_a_sweep_of_a_consistency_model_has_no_solution(folder: Path) -> None:
    options = ("--samplers", "MultistepConsistency", "--nfe", 1, 2, "--num_samples", 16, "--output", "c")
    done = cli(folder, "sweep", "--ckpt_path", "runs/data", *options)
    assert done.code == 0, done.err
    assert "distance" in done.out and "error" not in done.out
    with (folder / "c/sweep.csv").open() as file:
        assert all(row["error"] == "nan" for row in csv.DictReader(file))


def test_examples_come_back_from_a_flow_maps_latents(folder: Path) -> None:
    (folder / "points.csv").write_text("x,y\n50,40\n30,80\n")
    encoded = ("encode", "--path", "points.csv", "--ckpt_path")
    out = cli(folder, *encoded, "runs/map", "--output", "e").out
    assert "Heun in 33 steps" in out and "and back by Heun and DDIM" in out
    # With the ODE's own solver on the way back too the round trip closes, whatever the map has learned.
    args = ("--sampler", "Heun", "--grid", "UniformGrid", "--grid.steps", 200, "--grid.t_min", 0.001, "--output", "b")
    assert cli(folder, "sample", "--ckpt_path", "runs/map", "--latents", "e/latents.npz", *args).code == 0
    back = np.loadtxt(folder / "b/samples.csv", delimiter=",", skiprows=1)
    np.testing.assert_allclose(back, [[50, 40], [30, 80]], atol=0.5)
    assert "needs an ordinary denoiser" in cli(folder, *encoded, "runs/data", "--output", "no").error


def test_a_map_has_a_likelihood_and_a_consistency_model_none(folder: Path) -> None:
    args = ("--metrics", "nll", "--num_samples", 4, "--output")
    done = cli(folder, "evaluate", "--ckpt_path", "runs/map", *args, "nll")
    assert done.code == 0, done.err
    assert "needs the ODE's velocity" in cli(folder, "evaluate", "--ckpt_path", "runs/data", *args, "no").error


@pytest.mark.parametrize("run", ["map", "data"])
def test_a_program_takes_the_end_of_a_jump(folder: Path, run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    out = folder / f"program-{run}"
    done = cli(folder, "export", "--ckpt_path", f"runs/{run}", "--to", "torch_export", "--output", out, "--steps", 2)
    assert done.code == 0, done.err
    pipeline, _ = load_pipeline(folder / "runs" / run)
    x_t, t = torch.randn(3, 2), torch.tensor([0.3, 0.6, 1.0])
    x_0, _ = torch.export.load(out / "model.pt2").module()(x_t, t, t / 3)
    with torch.no_grad():
        ours = pipeline.denoiser(x_t, t[:, None], t[:, None] / 3)
    torch.testing.assert_close(x_0, ours.x_0, rtol=0, atol=1e-5)
    monkeypatch.chdir(out)
    code = re.findall(r"```python\n(.*?)```", (out / "README.md").read_text(), re.DOTALL)
    namespace: dict[str, Any] = {}
    exec(code[0], namespace)
    assert namespace["samples"].shape == (4, 2) and np.isfinite(namespace["samples"]).all()
    if run == "map":
        start = torch.from_numpy(np.random.default_rng(0).standard_normal((4, 2)).astype(np.float32))
        again = pipeline.with_sampler(steps=2).with_latents(start).samples(range(4)).x_0
        torch.testing.assert_close(torch.from_numpy(namespace["samples"]), again, rtol=0, atol=1e-4)


def test_safetensors_rebuild_a_map(folder: Path) -> None:
    assert cli(folder, "export", "--ckpt_path", "runs/map", "--to", "safetensors", "--output", "st").code == 0
    ours, theirs = diffusion_pl.load(folder / "st"), diffusion_pl.load(folder / "runs/map")
    assert torch.equal(ours(4, steps=1), theirs(4, steps=1))


# doctor ------------------------------------------------------------------------------------------------------------


def findings(folder: Path, *args: Any, **changed: Any) -> dict[str, dict[str, str]]:
    done = cli(folder, "doctor", "--config", tiny_config(folder, "doctor.yaml", **changed), "--json", *args)
    return {row["check"]: row for row in json.loads(done.out)["rows"]}


def test_the_doctor_accepts_one_jump(folder: Path) -> None:
    checks = findings(folder, **changes(MAP, "DDIM"))
    assert [name for name, row in checks.items() if row["level"] != "ok"] == ["ema"]  # of two steps
    assert checks["times"]["finding"].endswith("0% of it never seen")


def test_the_doctor_warns_of_an_embedding_that_is_too_fast(folder: Path) -> None:
    fast = {"class_path": "diffusion_pl.networks.Sinusoidal"}
    changed = changes(MAP, "DDIM")
    changed["model__network"] = {**NETWORK, "init_args": {**NETWORK["init_args"], "time_embedding": fast}}
    changed["model__noise_input"] = {"class_path": "ScaledTime", "init_args": {"scale": 999}}
    checks = findings(folder, **changed)
    assert checks["jumps"]["level"] == "warning" and "differentiated" in checks["jumps"]["finding"]
    changed["model__loss"] = {"class_path": "FlowMapLoss", "init_args": {**MAP, "rule": {"class_path": "Semigroup"}}}
    assert findings(folder, **changed)["jumps"]["level"] == "ok"


def test_the_doctor_refuses_a_sampler_the_model_cannot_serve(folder: Path) -> None:
    changed = changes(TO_DATA, "Heun")
    assert findings(folder, **changed)["jumps"]["level"] == "error"
    assert "MultistepConsistency" in cli(folder, "fit", "--config", "doctor.yaml", "--run", "no").error
