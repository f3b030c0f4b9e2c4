"""Models of fields from the command line: training, panels, resume, sampling, and what is refused."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fields_model import SmallNet, fields, save
from PIL import Image
from shell import LAST, Outcome, cli, differences, images, scalars, start, tiny_config
from torch import Tensor

from diffusion_pl import load
from diffusion_pl.conditions import Condition, of_batch
from diffusion_pl.data import Fields
from diffusion_pl.denoisers import V
from diffusion_pl.denoisers.network import NetworkDenoiser
from diffusion_pl.losses import SNR, DenoisingLoss, UniformTimes, VarianceBound
from diffusion_pl.schedules import VP

NET = {"class_path": "fields_model.SmallNet"}
PANELS = {"class_path": "FieldPanels", "init_args": {"every_n_steps": 5, "num_samples": 3, "film": False}}


def config(folder: Path, path: str, name: str = "run.yaml", **changes: Any) -> Path:
    options = {"path": path, "batch_size": 8, "repeats": 1, **changes.pop("data", {})}
    data = {"class_path": "Fields", "init_args": options}
    defaults = {"model__network": NET, "data": data, "trainer__max_steps": 8, "trainer__val_check_interval": 4}
    return tiny_config(folder, name, **(defaults | changes))


def fit(folder: Path, path: str, *args: Any, run: str = "run", **changes: Any) -> Path:
    done = cli(folder, "fit", "--config", config(folder, path, f"{run}.yaml", **changes), "--run", run, *args)
    assert done.code == 0, done.err
    return folder / "runs" / run


def state(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(run / LAST, weights_only=True)
    return content


def drawn(folder: Path, command: str, run: Path, *args: Any) -> Outcome:
    """A command on the checkpoint of a run, from another directory."""
    (folder / "away").mkdir(exist_ok=True)
    done = cli(folder / "away", command, "--ckpt_path", run / LAST, "--accelerator", "cpu", *args)
    assert done.code == 0, done.err
    return done


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with x.h5, channels last, and a run of it with all panels."""
    folder = tmp_path_factory.mktemp("plane")
    path = save(folder / "x.h5", weather=fields(40, 2, 8, 8).transpose(0, 2, 3, 1).astype(np.float32))
    panels = {**PANELS, "init_args": {"every_n_steps": 5, "num_samples": 3}}
    fit(folder, Path(path).name, trainer__callbacks=[panels])
    return folder


def test_a_run_leaves_its_panels(plane: Path) -> None:
    run = plane / "runs" / "run"
    names = sorted(path.name for path in (run / "panels").iterdir())
    assert names == [
        "film_ema0.999-00000008.gif",
        "forward_process-00000000.png",
        "samples_ema0.999-00000005.png",
        "samples_ema0.999-00000008.png",
        "samples_raw-00000005.png",
        "samples_raw-00000008.png",
    ]
    assert {"forward_process", "samples/raw", "samples/ema0.999"} <= images(run).keys()
    logged = scalars(run)
    assert logged["data/std_1"][-1][1] == pytest.approx(1, abs=0.5)
    assert {step for step, _ in logged["samples_raw/mean_0"]} == {5, 8}
    with Image.open(run / "panels" / names[0]) as film:
        assert film.n_frames == 5  # type: ignore[attr-defined]


def test_commands_work_from_another_directory(plane: Path) -> None:
    run = plane / "runs" / "run"
    drawn(plane, "sample", run, "--num_samples", 5, "--output", "s", "--film", "true")
    assert {path.name for path in (plane / "away/s").iterdir()} > {"samples.h5", "samples.png", "film.gif"}
    data = Fields(str(plane / "away/s/samples.h5"), key="weather", val_fraction=0.0)
    assert (data.shape, data.format.axes, data.format.dtype) == ((2, 8, 8), "NHWC", "float32")
    data.setup()
    pipe = load(run / LAST)
    assert pipe(5).numpy() == pytest.approx(data.stored(torch.arange(5))["x"].numpy(), rel=1e-5, abs=1e-5)

    drawn(plane, "encode", run, "--path", "s/samples.h5", "--output", "e")
    assert (plane / "away/e/samples.h5").is_file()
    mask = np.zeros((8, 8))
    mask[:4] = 1
    np.save(plane / "away/mask.npy", mask)
    drawn(plane, "restore", run, "--path", "s/samples.h5", "--mask", "mask.npy", "--num_samples", 2, "--output", "r")
    restored = Fields(str(plane / "away/r/samples.h5"), val_fraction=0.0, memory_gb=0)
    restored.setup()
    kept = data.stored(torch.arange(5))["x"].repeat_interleave(2, 0)[:, :, :4]
    assert restored.stored(torch.arange(10))["x"][:, :, :4].numpy() == pytest.approx(kept.numpy(), rel=1e-5, abs=1e-4)
    assert (plane / "away/r/grid.png").is_file()

    few = ("--likelihood_examples", 2, "--likelihood_split", "val", "--bound.times", 2, "--likelihood.rtol", 0.1)
    drawn(plane, "evaluate", run, "--metrics", "[nll, elbo]", *few, "--output", "ev")
    results = json.loads((plane / "away/ev/evaluation.json").read_text())["figures"]
    assert {result["unit"] for result in results.values()} == {"nats/dim"}
    assert cli(plane, "doctor", "--config", "run.yaml").code == 0


def test_samples_of_one_array_have_the_axes_of_the_data(plane: Path) -> None:
    drawn(plane, "sample", plane / "runs/run", "--num_samples", 3, "--output", "npz", "--npz", "true")
    assert np.load(plane / "away/npz/samples.npz")["x"].shape == (3, 8, 8, 2)


@pytest.mark.parametrize(("ending", "sizes"), [(".zarr3", (16,)), (".npz", (4, 6, 6))], ids=["1-D", "3-D"])
def test_fields_of_one_and_three_axes(tmp_path: Path, ending: str, sizes: tuple[int, ...]) -> None:
    path = save(tmp_path / f"x{ending}", x=fields(24, 2, *sizes).astype(np.float32))
    run = fit(tmp_path, path, trainer__callbacks=[PANELS], trainer__max_steps=2)
    assert {path.stem.split("-")[0] for path in (run / "panels").iterdir()} >= {"forward_process", "samples_raw"}
    drawn(tmp_path, "sample", run, "--num_samples", 3, "--output", "s")
    written = tmp_path / "away/s" / f"samples{ending.rstrip('3')}"
    assert Fields(str(written), key="x").shape == (2, *sizes)

    def read(path: Path) -> Tensor:
        data = Fields(str(path), key="x", val_fraction=0.0)
        data.setup()
        return data.stored(torch.arange(len(data.part("train"))))["x"]

    given = read(written).repeat_interleave(2, 0)
    call = ("--path", written, "--num_samples", 2, "--sampler", "Ancestral", "--steps", 5, "--output")
    colons = ",".join([":"] * (len(sizes) - 1) + ["2:4"])
    assert "3 fields restored 2 times" in drawn(tmp_path, "restore", run, *call, "box", "--mask", colons).out
    restored = read(tmp_path / "away/box" / written.name)
    assert restored[..., 2:4].numpy() == pytest.approx(given[..., 2:4].numpy(), rel=1e-5, abs=1e-4)
    assert (restored[..., 4:] - given[..., 4:]).abs().amin() > 0
    factor = [1] * (len(sizes) - 1) + [2]
    drawn(tmp_path, "restore", run, *call, "up", "--task", "upscale", "--factor", json.dumps(factor))
    means = [x.unflatten(-1, (-1, 2)).mean(-1).numpy() for x in (read(tmp_path / "away/up" / written.name), given)]
    assert means[0] == pytest.approx(means[1], rel=1e-5, abs=1e-4)
    assert (tmp_path / "away/up/grid.png").is_file() and (tmp_path / "away/up/samples.png").is_file()


def conditional(folder: Path) -> dict[str, Any]:
    x = fields(40, 1, 8, 8)
    rng = np.random.default_rng(0)
    save(folder / "x.npz", x=x, past=x + 0.1 * rng.normal(size=x.shape), forcing=rng.normal(size=(40, 3)))
    return {"key": "x", "conditions": {"past": "past", "forcing": "forcing"}}


def test_conditions_reach_the_network_and_the_panels(tmp_path: Path) -> None:
    data, dropout = conditional(tmp_path), {"past": 0.2, "forcing": 0.2}
    run = fit(tmp_path, "x.npz", data=data, model__loss__dropout=dropout, trainer__callbacks=[PANELS])
    saved = state(run)
    assert saved["Fields"]["conditions"]["past"]["shape"] == [1, 8, 8]
    assert saved["state_dict"]["denoiser.network.first.weight"].shape[1] == 2
    assert list((run / "panels").glob("samples_*.png"))


@pytest.mark.parametrize("missing", [pytest.param(False, marks=pytest.mark.slow), True], ids=["whole", "missing"])
def test_a_resumed_run_equals_the_uninterrupted_one(tmp_path: Path, missing: bool) -> None:
    x = fields(40, 2, 8, 8)
    if missing:
        x[np.random.default_rng(0).random(x.shape) < 0.2] = np.nan
    path = save(tmp_path / "x.npy", x=x)
    options = {"memory_gb": 0.0, "missing": "mask" if missing else "refuse"}
    whole = fit(tmp_path, path, run="whole", data=options, trainer__callbacks=[PANELS])
    # A signal in the middle of an epoch of five batches.
    stop = {"class_path": "shell.SignalAt", "init_args": {"batch": 3, "number": 15}}
    file = config(tmp_path, path, "parts.yaml", data=options)
    stopped = cli(tmp_path, "fit", "--config", file, "--run", "parts", "--trainer.callbacks", f"[{json.dumps(stop)}]")
    assert stopped.code != 0
    assert state(tmp_path / "runs/parts")["global_step"] == 3
    done = cli(tmp_path, "fit", "--config", file, "--run", "parts", "--ckpt_path", "last")
    assert done.code == 0, done.err
    a, b = state(whole), state(tmp_path / "runs/parts")
    for key in ("state_dict", "averages", "optimizer_states", "Fields"):
        assert not list(differences(a[key], b[key]))


@pytest.mark.slow
@pytest.mark.parametrize(("missing", "memory_gb"), [("refuse", 1.0), ("mask", 0.0)], ids=["memory", "disk-missing"])
def test_two_processes_resume_exactly(tmp_path: Path, missing: str, memory_gb: float) -> None:
    x = fields(40, 2, 8, 8)
    if missing == "mask":
        x[np.random.default_rng(0).random(x.shape) < 0.2] = np.nan
    path = save(tmp_path / "x.h5", x=x)
    pair: dict[str, Any] = {"trainer__devices": 2, "trainer__strategy": "ddp", "trainer__accelerator": "cpu"}
    file = config(tmp_path, path, data={"memory_gb": memory_gb, "missing": missing}, **pair)

    def two(run: str, *args: Any) -> dict[str, Any]:
        process = start(tmp_path, "fit", "--config", file.name, "--run", run, *args)
        _, error = process.communicate(timeout=900)
        assert process.returncode == 0, error
        return state(tmp_path / "runs" / run)

    whole = two("whole")
    assert two("parts", "--trainer.max_steps", 3)["global_step"] == 3
    parts = two("parts", "--ckpt_path", "last")
    for key in ("state_dict", "averages", "optimizer_states", "Fields"):
        assert not list(differences(whole[key], parts[key]))
    alone = state(fit(tmp_path, path, run="alone", data={"memory_gb": memory_gb, "missing": missing}))
    assert not list(differences(whole["Fields"], alone["Fields"]))  # scaling and split
    assert list(differences(whole["state_dict"], alone["state_dict"]))  # the noise is that of two processes


def test_a_likelihood_of_missing_values_is_refused(tmp_path: Path) -> None:
    x = fields(24, 1, 8, 8)
    x[:, 0, 0, 0] = np.nan
    run = fit(tmp_path, save(tmp_path / "x.npy", x=x), data={"missing": "mask"}, trainer__max_steps=2)
    args = ("--metrics", "[elbo]", "--likelihood_split", "val", "--output", "ev")
    done = cli(tmp_path, "evaluate", "--ckpt_path", run / LAST, *args)
    assert "the val split has missing values" in done.error
    assert not (tmp_path / "ev").exists()


# The loss of missing values.


def denoiser(shape: tuple[int, ...]) -> NetworkDenoiser:
    torch.manual_seed(0)
    return NetworkDenoiser(SmallNet(shape), VP(), V(), None).double()


@pytest.mark.parametrize("times_per_sample", [1, 3])
def test_missing_values_have_no_gradient(times_per_sample: int) -> None:
    """The mean is over observed entries only; the gradient of the output is exactly 0 elsewhere."""
    model = denoiser((2, 6, 6))
    x_0 = torch.randn(4, 2, 6, 6, dtype=torch.float64)
    observed = torch.rand(x_0.shape, generator=torch.Generator().manual_seed(1)) < 0.6
    observed[3] = False  # an example of which nothing is known
    x_0 = torch.where(observed, x_0, 0)
    outputs = []
    hook = model.network.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    loss = DenoisingLoss(UniformTimes(), SNR(plus=1), times_per_sample=times_per_sample)
    batches = [loss(model, x_0, {}, torch.Generator().manual_seed(2), observed=mask) for mask in (observed, None)]
    hook.remove()
    (gradient,) = torch.autograd.grad(batches[0].loss.sum(), outputs[0])
    there = observed.repeat(times_per_sample, 1, 1, 1)
    assert (gradient[~there] == 0).all()
    assert (gradient[there] != 0).all()
    # Against the gradient of the plain loss, whose mean is over all entries: the factor is the ratio of their numbers.
    (plain,) = torch.autograd.grad(batches[1].loss.sum(), outputs[1])
    ratio = 72 / there.flatten(1).sum(1).clamp(min=1).double()
    torch.testing.assert_close(gradient, torch.where(there, plain * ratio.reshape(-1, 1, 1, 1), 0), rtol=1e-12, atol=0)
    assert (batches[0].loss[3::4] == 0).all()
    assert batches[0].loss.isfinite().all()


def test_a_mask_of_ones_is_the_plain_loss() -> None:
    model, x_0 = denoiser((1, 6, 6)), torch.randn(4, 1, 6, 6, dtype=torch.float64)
    loss = DenoisingLoss(UniformTimes(), SNR(plus=1))
    masked, plain = (
        loss(model, x_0, {}, torch.Generator().manual_seed(2), observed=mask)
        for mask in (torch.ones_like(x_0, dtype=torch.bool), None)
    )
    torch.testing.assert_close(masked.loss, plain.loss, rtol=1e-12, atol=0)


def test_a_learned_variance_refuses_missing_values() -> None:
    loss = DenoisingLoss(UniformTimes(), SNR(plus=1), variance=VarianceBound(10))
    with pytest.raises(ValueError, match="VarianceBound counts all values"):
        loss(denoiser((1, 4, 4)), torch.zeros(2, 1, 4, 4), {}, None, torch.ones(2, 1, 4, 4, dtype=torch.bool))


def test_the_network_does_not_get_the_mask() -> None:
    batch = {"x": torch.zeros(2, 1), "observed": torch.ones(2, 1), "past": torch.zeros(2, 1)}
    assert of_batch(batch).keys() == {"past"}


# Bad input at the command line.


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"axes": "NHW"}, r"data\.axes NHW names 3 axes"),
        ({"axes": "HWC"}, r"data\.axes must be N"),
        ({"key": "y"}, r"has no array 'y'\. Fix: give --data\.key"),
        ({"path": "nothing.npy"}, r"nothing\.npy: no such file\. Fix: give --data\.path"),
        ({"path": "ints.npy"}, r"data\.as_float"),
        ({"path": "nan.npy"}, r"NaN or infinite, the first in example 0\. Fix"),
        ({"missing": "maybe"}, r"data\.missing"),
        ({"conditions": {"past": "nothing"}}, r"data\.conditions\.past"),
        ({"val_fraction": 1.5}, r"val_fraction must be in \[0, 1\)"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path: Path, data: dict[str, Any], message: str) -> None:
    x = fields(20, 1, 8, 8)
    save(tmp_path / "x.npz", x=x)
    np.save(tmp_path / "ints.npy", x.astype(int))
    np.save(tmp_path / "nan.npy", np.where(x == x[0, 0, 0, 0], np.nan, x))
    done = cli(tmp_path, "fit", "--config", config(tmp_path, "x.npz", data=data), "--run", "run")
    assert re.search(message, done.error), done.error


def test_panels_of_other_data_are_refused(tmp_path: Path) -> None:
    file = tiny_config(tmp_path, trainer__callbacks=[{"class_path": "FieldPanels"}])
    assert "FieldPanels draws fields" in cli(tmp_path, "fit", "--config", file, "--run", "run").error


def test_a_condition_of_one_axis_survives_a_checkpoint(tmp_path: Path) -> None:
    x = fields(24, 1, 16)
    save(tmp_path / "x.npz", x=x, past=x)
    run = fit(tmp_path, "x.npz", data={"key": "x", "conditions": {"past": "past"}}, trainer__max_steps=2)
    assert load(run / LAST).conditions == {"past": Condition((1, 16), image=True)}
