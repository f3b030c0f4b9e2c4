"""The doctor: what `fit` and the command `doctor` report before the first step."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from images_model import DIGITS, ENCODER, NETWORK, TIME, digits_changes
from shell import LAST, Outcome, cli, fit, no_files_change, tiny_config, tiny_data, tiny_module, tiny_trainer
from torch import Tensor, nn

from diffusion_pl import checks
from diffusion_pl.callbacks import EMA, Doctor
from diffusion_pl.checks import CHECKS
from diffusion_pl.conditions import Conditions
from diffusion_pl.data import Points
from diffusion_pl.data.units import Standardized
from diffusion_pl.samplers import DDIM, UniformGrid
from diffusion_pl.schedules import VE, VP, Cosine, Karras, LinearBetas, Rectified, Schedule, SubVP

TABLE = LinearBetas(50, 1e-4, 0.05)  # a tutorial's, which ends with ᾱ = 0.28
BETAS: dict[str, Any] = {"class_path": "LinearBetas", "init_args": {"steps": 50, "beta_max": 0.05}}
GRID_TIMES: dict[str, Any] = {"class_path": "GridTimes", "init_args": {"steps": 1000}}
LOW_NOISE: dict[str, Any] = {"class_path": "LogNormalTimes", "init_args": {"mean": -3, "std": 0.5}}
GOOD: dict[str, Any] = {"trainer__max_steps": 5000, "trainer__enable_checkpointing": True}


def lines(done: Outcome) -> dict[str, tuple[str, str]]:
    """Level and text of each check in the table."""
    return {name: (level, text) for name, level, text in cells(done)}


def cells(done: Outcome) -> list[list[str]]:
    """Name, level and text of each line of the table, in order."""
    lines = [line for line in done.out.splitlines() if line.startswith("  ")]
    assert lines[0].split() == ["check", "level", "finding"]
    return [re.split(r"  +", line.strip(), maxsplit=2) for line in lines[1:]]


def doctor(folder: Path, *args: Any, **changes: Any) -> Outcome:
    """python -m diffusion_pl doctor on the tiny model, which writes nothing."""
    config = tiny_config(folder, **changes)
    with no_files_change(folder):
        done = cli(folder, "doctor", "--config", config, *args)
    assert not (folder / "runs").exists()
    assert done.err == ""
    return done


# The command


def test_a_sound_configuration_has_nothing_but_numbers(tmp_path: Path) -> None:
    done = doctor(tmp_path, **GOOD)
    result = lines(done)
    assert list(result) == list(CHECKS)
    assert {level for level, _ in result.values()} == {"ok"}
    assert done.code == 0
    assert done.out.splitlines()[0] == "no errors, no warnings: ready for fit"
    assert result["prior"][1].startswith("2.2e-05 nats per dimension")  # ½ log(1 + e^−10.05)
    assert result["data"][1].startswith("128 training examples are in [-1.92, 2.59], root mean square 1")
    assert result["validation"][1] == "14 examples, every 20 optimizer steps"


def test_all_errors_of_a_point_model_are_reported_at_once(tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "model__schedule": BETAS,
        "model__loss__times": GRID_TIMES,
        "data__init_args": {"val_fraction": 0},
        "ema": {"decays": [0.9999, 0.001]},
        "trainer__max_steps": 5000,
        "trainer__precision": "bf16-true",
    }
    done = doctor(tmp_path, **changes)
    assert done.code == 2
    assert done.out.splitlines()[0] == "3 errors, 3 warnings: fix the errors first"
    wrong = [cell for cell in cells(done) if cell[1] != "ok"]
    expected = [
        ("prior", "error", r"LinearBetas .*t=1, .* 0.39 .* Fix: raise beta_max"),
        (
            "tables",
            "warning",
            r"LinearBetas 50, GridTimes 1000, .* Fix: .*steps",
        ),
        ("validation", "warning", r"split is empty: .* Fix: raise data.init_args.val_fraction"),
        ("ema", "warning", r"half-life of 6,931 steps, the run has 5,000.* lower the decay to 0.998"),
        ("ema", "error", r"decay 0.001 .* Fix: give --ema.decays '\[0.999\]'"),
        ("precision", "error", r"decay 0.9999 .* Fix: .*--trainer.precision bf16-mixed"),
    ]
    assert [(name, level) for name, level, _ in wrong] == [(name, level) for name, level, _ in expected]
    for (_, _, text), (_, _, pattern) in zip(wrong, expected, strict=True):
        assert re.search(pattern, text), text


@pytest.fixture
def poor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No network connection, no weights on disk, little space."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(checks, "unreachable", lambda url: "no route")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=5000))


@pytest.mark.usefixtures("poor")
def test_all_errors_of_an_image_model_are_reported_at_once(tmp_path: Path) -> None:
    changes = digits_changes(
        model__noise_input=None,
        model__loss__times=LOW_NOISE,
        trainer__callbacks=[{"class_path": "GenerationMetrics"}],
        trainer__max_steps=5000,
        trainer__precision="16-mixed",
    )
    del changes["model__noise_input"]
    done = doctor(tmp_path, **changes)
    actual = {name: finding for name, finding in lines(done).items() if finding[0] != "ok"}
    expected = {
        "embedding": (
            "warning",
            r"Sinusoidal by 0.00\d+ .* Fix: .*noise_input StepIndex .* ScaledTime .*999",
        ),
        "times": ("warning", r"the sampler visits -10 … 9.12, .* never seen. Fix: .* reach nearer to t=1"),
        "precision": ("warning", r"16-mixed was requested, but is bf16-mixed on a CPU. .*precision bf16-mixed"),
        "disk": ("error", r"three checkpoints take \d.\d MB, .* 0.0 MB free. Fix: make room"),
        "metrics": ("error", r"needs the weights of InceptionV3, .*\(no route\). Fix: fetch https://"),
    }
    assert {name: level for name, (level, _) in actual.items()} == {k: level for k, (level, _) in expected.items()}
    for name, (_, pattern) in expected.items():
        assert re.search(pattern, actual[name][1]), actual[name][1]
    assert done.code == 2
    # The same with the noise input as it should be, and with the checks named that cannot be fixed here.
    changes |= {"model__noise_input": TIME, "model__loss__times": {"class_path": "UniformTimes"}}
    done = doctor(tmp_path, "--doctor.ignore", "[disk, metrics, precision]", **changes)
    assert done.code == 0, done.out
    assert [name for name, (_, finding) in lines(done).items() if finding == "ignored"] == [
        "precision",
        "disk",
        "metrics",
    ]
    assert done.out.splitlines()[0] == "no errors, no warnings: ready for fit"


class Pairs(nn.Module):
    """Makes two of one."""

    def __init__(self, shape: tuple[int, ...], conditions: Conditions | None = None) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 3)

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        return self.linear(x)  # type: ignore[no-any-return]


class Bytes(Points):
    """Points that declare another range than they have."""

    @property
    def units(self) -> Standardized:
        units = super().units
        units.value_range = (-1.0, 1.0)
        return units

    def __init__(self) -> None:
        super().__init__("Bytes", ("x", "y"), batch_size=2, val_fraction=0.2, repeats=1, seed=0)

    def examples(self) -> dict[str, Tensor]:
        return {"x": torch.arange(40, dtype=torch.float64).view(20, 2)}


def test_wrong_output_shape_and_data_out_of_range(tmp_path: Path) -> None:
    changes = {"model__network": {"class_path": "test_doctor.Pairs"}, "data": {"class_path": "test_doctor.Bytes"}}
    done = doctor(tmp_path, **changes, **GOOD)
    result = {name: finding for name, finding in lines(done).items() if finding[0] != "ok"}
    assert result.keys() == {"data", "network"}
    assert re.search(r"16 training examples are in \[-1.\d+, 1.\d+\], the data declare \[-1, 1\]", result["data"][1])
    assert "the network makes (2, 3) of x_t: (2, 2); it must keep the shape" in result["network"][1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            digits_changes(model__network={**NETWORK, "init_args": {**NETWORK["init_args"], "ch_mult": [1] * 5}}),
            r"^build +error +.*: UNet: .*multiples of 16, got 8x8 .*16x16",
        ),
        (
            digits_changes(data={"class_path": "MNIST", "init_args": {"root": "none"}}),
            r"^data +error +MNIST: .*'none'",
        ),
        (
            {"model__sampler__init_args__grid": {"class_path": "ExplicitGrid", "init_args": {"t": [0.1, 0.5]}}},
            r"^data +error +ExplicitGrid: times must fall strictly",
        ),
    ],
    ids=["size", "no data", "grid"],
)
def test_what_cannot_be_built_or_read_is_a_finding(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    done = doctor(tmp_path, **changes)
    assert done.code == 2
    first, _, line = done.out.splitlines()
    assert re.search(message, line.strip()), line
    assert first == "1 error, no warnings: fix the errors first"


def test_a_classifier_is_examined_too(tmp_path: Path) -> None:
    model = {
        "class_path": "NoisyClassifier",
        "init_args": {
            "network": {**ENCODER, "init_args": {**ENCODER["init_args"], "nf": 32}},
            "schedule": {"class_path": "VP"},
            "times": {"class_path": "UniformTimes"},
            "optimizer": {"class_path": "torch.optim.AdamW"},
        },
    }
    result = lines(doctor(tmp_path, model=model, data=DIGITS, **GOOD))
    assert result.keys() == set(CHECKS) - {"prior", "times", "jumps", "tables"}
    assert result["network"] == ("ok", "2 examples of 10 pass")
    assert {name for name, (level, _) in result.items() if level != "ok"} == {"embedding"}


def test_it_takes_the_options_of_fit_and_explains_itself(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    helped = cli(tmp_path, "doctor", "--help").out
    assert "Check what fit would train with the same options" in " ".join(helped.split())
    assert cli(tmp_path, "doctor", "--config", config, "--trainer.max_stepz", 3).error.startswith("unknown option")
    assert cli(tmp_path, "doctor").error.startswith("missing: model.network")
    ours, fits = (cli(tmp_path, command, "--config", config, "--print_config").out for command in ("doctor", "fit"))
    assert ours == fits


# fit


@pytest.mark.parametrize("schedule", [VP, SubVP, VE, Cosine, Karras, Rectified, LinearBetas])
def test_the_usual_processes_pass_in_silence(
    schedule: type[Schedule], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = tiny_trainer(tmp_path, EMA([0.9]), Doctor(), max_steps=20)
    trainer.fit(tiny_module(schedule=schedule()), datamodule=tiny_data())
    assert trainer.global_step == 20
    assert "warning" not in capsys.readouterr().out


def refused(folder: Path, schedule: Schedule, sampler: DDIM | None = None) -> str:
    """What fit says; nothing was trained."""
    trainer = tiny_trainer(folder, Doctor(), max_steps=1)
    chosen: dict[str, Any] = {} if sampler is None else {"sampler": sampler}
    module = tiny_module(schedule=schedule, **chosen)
    with pytest.raises(ValueError) as caught:
        trainer.fit(module, datamodule=tiny_data())
    assert trainer.global_step == 0
    return str(caught.value)


def test_a_schedule_with_signal_left_at_t_1_is_refused(tmp_path: Path) -> None:
    error = refused(tmp_path, TABLE)
    for words in ("LinearBetas", "t=1", "still 0.39", "0.16 nats per dimension", "0.001", "raise beta_max or steps"):
        assert words in error
    assert error.endswith("train anyway with --doctor.ignore '[prior]'")


@pytest.mark.parametrize(
    ("schedule", "fix"), [(VP(0.1, 3.0), "raise beta_max"), (VE(0.01, 2.0), "raise sigma_max")], ids=["VP", "VE"]
)
def test_each_schedule_has_its_own_fix(tmp_path: Path, schedule: Schedule, fix: str) -> None:
    assert f"Fix: {fix}" in refused(tmp_path, schedule)


def test_a_sampler_that_starts_too_early_is_named(tmp_path: Path) -> None:
    error = refused(tmp_path, VP(), DDIM(UniformGrid(4, t_max=0.5)))
    assert "at t=0.5, where DDIM's grid starts" in error
    assert "let the sampler's grid start at t=1" in error


class Wide(Points):
    """Two points ten standard deviations from the origin of their units."""

    def __init__(self) -> None:
        super().__init__("Wide", ("x",), batch_size=2, val_fraction=0, repeats=1, seed=0)

    def examples(self) -> dict[str, Tensor]:
        return {"x": torch.tensor([[9.0], [11.0]], dtype=torch.float64)}


def test_the_datas_own_scale_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = Wide()
    data.load_state_dict({"mean": [0.0], "std": [1.0]})  # units of a checkpoint that was trained on other data
    module = tiny_module(schedule=VE(0.01, 50.0), shape=(1,))
    with pytest.raises(ValueError, match=r"root mean square 10.*raise sigma_max or scale the data down"):
        tiny_trainer(tmp_path, Doctor(), max_steps=1).fit(module, datamodule=data)
    assert "a root mean square of 10, the parameterization assumes 1" in capsys.readouterr().out
    tiny_trainer(tmp_path, Doctor(), max_steps=1).fit(
        tiny_module(schedule=VE(0.01, 50.0), shape=(1,)), datamodule=Wide()
    )


def test_fit_stops_at_a_failed_check_unless_disabled(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, model__schedule=BETAS, trainer__max_steps=2)
    error = cli(tmp_path, "fit", "--config", config, "--run", "run").error
    assert error.startswith("LinearBetas does not end in noise")
    assert not (tmp_path / "runs" / "run").exists()
    assert cli(tmp_path, "fit", "--config", config, "--run", "run", "--doctor.ignore", "[prior]").code == 0
    assert cli(tmp_path, "fit", "--config", config, "--run", "lax", "--doctor.max_kl", "0.2").code == 0


def test_several_errors_are_one_line_and_warnings_a_line_each(tmp_path: Path) -> None:
    options = {"trainer__max_steps": 2, "trainer__precision": "bf16-true", "data__init_args": {"val_fraction": 0}}
    config = tiny_config(tmp_path, model__schedule=BETAS, **options)
    done = cli(tmp_path, "fit", "--config", config)
    assert re.search(r"^LinearBetas .*; and weights in bfloat16.*\.ignore '\[prior, precision\]'$", done.error), (
        done.err
    )
    starts = [line.split(":")[1:3] for line in done.out.splitlines()]
    assert starts == [[" warning", " validation"], [" warning", " ema"]]
    done = cli(tmp_path, "fit", "--config", config, "--doctor.ignore", "[prior, precision, ema, validation]")
    assert (done.code, "warning" in done.out) == (0, False)


@pytest.mark.usefixtures("poor")
def test_it_speaks_before_whatever_else_begins(tmp_path: Path) -> None:
    """GenerationMetrics would try to download its weights."""
    config = tiny_config(tmp_path, **digits_changes(trainer__callbacks=[{"class_path": "GenerationMetrics"}]))
    error = cli(tmp_path, "fit", "--config", config, "--doctor.ignore", "[disk]").error
    assert error.startswith("GenerationMetrics needs the weights of InceptionV3")


def test_a_look_changes_neither_the_training_nor_the_modes(tmp_path: Path) -> None:
    def trained(*callbacks: Any) -> Iterator[Tensor]:
        module, trainer = tiny_module(), tiny_trainer(tmp_path, *callbacks, max_steps=3)
        torch.manual_seed(1)
        trainer.fit(module, datamodule=tiny_data())
        assert module.network.training
        return module.network.parameters()

    for ours, theirs in zip(trained(Doctor()), trained(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_checkpoint_is_as_large_as_the_check_says(tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "model__network__init_args__width": 512,
        "trainer__max_steps": 1,
        "ema": {"decays": [0.9, 0.99]},
    }
    run = fit(tmp_path / "a", **changes)
    text = lines(doctor(tmp_path / "b", **changes))["disk"][1]
    size = float(text.split("take ")[1].split(" MB")[0]) / 3
    assert size == pytest.approx((run / LAST).stat().st_size / 1e6, rel=0.05)


@pytest.mark.parametrize("bad", [0, -1, float("nan")])
def test_a_limit_that_is_not_positive_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match=f"max_kl must be positive, got {bad}"):
        Doctor(max_kl=bad)


def test_a_check_that_there_is_not_is_refused() -> None:
    with pytest.raises(ValueError, match=r"there is no check 'proir', there are prior, data, .*metrics"):
        Doctor(ignore=["prior", "proir"])
    assert Doctor.__doc__ is not None
    assert all(name in Doctor.__doc__ for name in CHECKS)
