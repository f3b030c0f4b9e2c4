"""PriorCheck: the mismatch against numerical integration, and what a person is told."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm
from shell import cli, tiny_config, tiny_data, tiny_module, tiny_trainer

from diffusion_pl.callbacks import PriorCheck
from diffusion_pl.callbacks.prior_check import prior_mismatch
from diffusion_pl.data import Points
from diffusion_pl.grids import UniformGrid
from diffusion_pl.samplers import DDIM
from diffusion_pl.schedules import VE, VP, Cosine, Karras, LinearBetas, Rectified, Schedule, SubVP

TABLE = LinearBetas(50, 1e-4, 0.05)  # a tutorial's, which ends with ᾱ = 0.28

#: α_T, σ_T and the standard deviation of the noise that sampling starts from, each from its own formula.
ENDS = [
    pytest.param(VP(), math.exp(-5.025), math.sqrt(1 - math.exp(-10.05)), 1.0, id="VP"),
    pytest.param(VP(0.1, 3.0), math.exp(-0.775), math.sqrt(1 - math.exp(-1.55)), 1.0, id="short VP"),
    pytest.param(VE(0.01, 50.0), 1.0, 50.0, math.sqrt(2501), id="VE"),
    pytest.param(VE(0.01, 2.0), 1.0, 2.0, math.sqrt(5), id="short VE"),
    pytest.param(TABLE, float(np.prod(1 - np.linspace(1e-4, 0.05, 50))) ** 0.5, None, 1.0, id="table"),
]


def integrated(alpha: float, sigma: float, prior: float, points: Sequence[float]) -> float:
    """∫ q(x_T | x_0) log q(x_T | x_0)/p(x_T) dx_T, mean over the x_0."""

    def kl(x_0: float) -> float:
        q, p = norm(alpha * x_0, sigma), norm(0, prior)
        low, high = alpha * x_0 - 12 * sigma, alpha * x_0 + 12 * sigma
        return float(quad(lambda x: q.pdf(x) * (q.logpdf(x) - p.logpdf(x)), low, high, limit=200, epsabs=1e-12)[0])

    return float(np.mean([kl(x_0) for x_0 in points]))


@pytest.mark.parametrize(("schedule", "alpha", "sigma", "prior"), ENDS)
@pytest.mark.parametrize("points", [[-1.0, 1.0], [0.0, 0.3, -2.5]], ids=["unit variance", "other"])
def test_the_mismatch_is_the_integral(
    schedule: Schedule, alpha: float, sigma: float | None, prior: float, points: list[float]
) -> None:
    sigma = math.sqrt(1 - alpha**2) if sigma is None else sigma
    second_moment = float(np.mean(np.square(points)))
    kl, snr = prior_mismatch(schedule, second_moment)
    assert kl == pytest.approx(integrated(alpha, sigma, prior, points), rel=1e-5, abs=1e-9)
    assert snr == pytest.approx(alpha**2 * second_moment / sigma**2, rel=1e-6)


def test_the_tutorials_table_keeps_28_percent() -> None:
    kl, snr = prior_mismatch(TABLE, 1.0)
    assert snr == pytest.approx(0.28 / 0.72, rel=0.02)
    assert kl == pytest.approx(-0.5 * math.log(0.72), rel=0.02)


@pytest.mark.parametrize("t", [0.3, 0.8])
def test_it_is_taken_where_sampling_starts(t: float) -> None:
    alpha = math.exp(-0.25 * t**2 * 19.9 - 0.05 * t)
    expected = integrated(alpha, math.sqrt(1 - alpha**2), 1.0, [1.0, -1.0])
    assert prior_mismatch(VP(), 1.0, t)[0] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("schedule", [VP, SubVP, VE, Cosine, Karras, Rectified, LinearBetas])
def test_the_usual_processes_pass_on_unit_variance(schedule: type[Schedule], tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, PriorCheck(), max_steps=1)
    trainer.fit(tiny_module(schedule=schedule()), datamodule=tiny_data())
    assert trainer.global_step == 1


def refused(folder: Path, schedule: Schedule, sampler: DDIM | None = None) -> str:
    """What fit says; nothing was trained."""
    trainer = tiny_trainer(folder, PriorCheck(), max_steps=1)
    module = tiny_module(schedule=schedule, **({} if sampler is None else {"sampler": sampler}))
    with pytest.raises(ValueError) as told:
        trainer.fit(module, datamodule=tiny_data())
    assert trainer.global_step == 0
    return str(told.value)


def test_a_process_that_keeps_the_data_is_refused_with_the_number_and_the_cure(tmp_path: Path) -> None:
    told = refused(tmp_path, TABLE)
    for words in ("LinearBetas", "t=1", "still 0.39", "0.16 nats per dimension", "0.001", "raise beta_max or steps"):
        assert words in told
    assert told.endswith("go on regardless with --prior_check.ignore true")


@pytest.mark.parametrize(
    ("schedule", "cure"), [(VP(0.1, 3.0), "raise beta_max"), (VE(0.01, 2.0), "raise sigma_max")], ids=["VP", "VE"]
)
def test_each_process_has_its_own_cure(tmp_path: Path, schedule: Schedule, cure: str) -> None:
    assert f"To mend it, {cure}" in refused(tmp_path, schedule)


def test_a_sampler_that_starts_too_early_is_named(tmp_path: Path) -> None:
    told = refused(tmp_path, VP(), DDIM(UniformGrid(4, t_max=0.5)))
    assert "at t=0.5, where DDIM's grid starts" in told


class Wide(Points):
    """Two points ten standard deviations from the origin of their units."""

    def __init__(self) -> None:
        super().__init__("Wide", ("x",), batch_size=2, val_fraction=0, repeats=1, seed=0)

    def examples(self) -> dict[str, torch.Tensor]:
        return {"x": torch.tensor([[9.0], [11.0]], dtype=torch.float64)}


def test_the_datas_own_scale_counts(tmp_path: Path) -> None:
    data = Wide()
    data.load_state_dict({"mean": [0.0], "std": [1.0]})  # units of a checkpoint that was trained on other data
    module = tiny_module(schedule=VE(0.01, 50.0), shape=(1,))
    with pytest.raises(ValueError, match=r"root mean square 10.*raise sigma_max or scale the data down"):
        tiny_trainer(tmp_path, PriorCheck(), max_steps=1).fit(module, datamodule=data)
    tiny_trainer(tmp_path, PriorCheck(), max_steps=1).fit(
        tiny_module(schedule=VE(0.01, 50.0), shape=(1,)), datamodule=Wide()
    )


def test_the_command_line_stops_before_the_first_step_and_goes_on_when_told(tmp_path: Path) -> None:
    table = {"class_path": "LinearBetas", "init_args": {"steps": 50, "beta_max": 0.05}}
    config = tiny_config(tmp_path, model__schedule=table, trainer__max_steps=2)
    told = cli(tmp_path, "fit", "--config", config, "--run", "run").error
    assert told.startswith("LinearBetas does not end in noise")
    assert not (tmp_path / "runs" / "run").exists()
    assert cli(tmp_path, "fit", "--config", config, "--run", "run", "--prior_check.ignore", "true").code == 0
    assert cli(tmp_path, "fit", "--config", config, "--run", "lax", "--prior_check.max_kl", "0.2").code == 0


@pytest.mark.parametrize("bad", [0, -1, float("nan")])
def test_a_limit_that_is_not_positive_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match=f"max_kl must be positive, got {bad}"):
        PriorCheck(max_kl=bad)
