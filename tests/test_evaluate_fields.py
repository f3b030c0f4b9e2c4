"""`evaluate` of continuous fields: spectra, moments and ensembles, as people call it."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from field_data import Waves, fit_waves
from shell import cli, start
from torch import Tensor

from diffusion_pl.checkpoints.loading import load_pipeline
from diffusion_pl.denoisers import Denoiser, GaussianField, Prediction, radial
from diffusion_pl.evaluation import EnsembleResult, FieldResult, Plan, read_results
from diffusion_pl.evaluation.run import run
from diffusion_pl.metrics.ensembles import crps, spread_and_error
from diffusion_pl.metrics.fields import FieldStatistics, scores
from diffusion_pl.pipeline import Pipeline
from diffusion_pl.samplers import DPMpp, LogSNRGrid
from diffusion_pl.schedules import VP


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fields")


@pytest.fixture(scope="module")
def waves(folder: Path) -> Path:
    return fit_waves(folder)


@pytest.fixture(scope="module")
def conditional(folder: Path) -> Path:
    return fit_waves(folder, "conditional", {"conditional": True, "sizes": [8]})


def evaluate(folder: Path, checkpoint: Path, output: str, *args: Any) -> dict[str, Any]:
    done = cli(folder, "evaluate", "--ckpt_path", checkpoint, "--output", output, "--accelerator", "cpu", *args)
    assert done.code == 0, done.err
    results: dict[str, Any] = json.loads((folder / output / "evaluation.json").read_text())["figures"]
    return results


def test_fields_have_metrics_of_their_own(folder: Path, waves: Path) -> None:
    results = evaluate(folder, waves, "a", "--num_samples", 80, "--repeats", 2)
    moments = {"mean_error", "std_error", "skewness_error", "kurtosis_error"}
    assert set(results) == moments | {"marginals", "spectrum", "energy"}
    spectrum = results["spectrum"]
    assert len(spectrum["values"]) == 2
    assert spectrum["protocol"]["num_samples"] == 80
    reference = spectrum["protocol"]["reference"]
    assert (reference["data"], reference["split"], reference["n"]) == ("Waves", "train", 96)
    assert (folder / "a/spectrum.png").stat().st_size > 10_000
    # The same by hand, of the same samples.
    pipeline, data = load_pipeline(folder / waves)
    assert data.is_field and not data.is_image and not data.is_point
    data.setup("fit")
    x = torch.cat([block.x_0 for block in pipeline.draw(80)])[:80]
    samples, known = FieldStatistics(data.shape), FieldStatistics(data.shape)
    samples.update(x, torch.ones(80, dtype=torch.bool))
    known.update(data.training_examples(96), torch.ones(96, dtype=torch.bool))
    expected = scores(["moments", "marginals", "spectrum", "energy"], samples, known)
    for name, result in results.items():
        assert result["values"][0] == pytest.approx(expected[name]["value"], rel=1e-6)
    np.testing.assert_allclose(spectrum["channels"]["data"], expected["spectrum"]["channels"]["data"], rtol=1e-9)
    read = read_results(folder / "a/evaluation.json")
    assert all(isinstance(result, FieldResult) for result in read.values())
    assert read["spectrum"].to_json() == spectrum
    done = cli(folder, "compare", "a/evaluation.json", "a/evaluation.json")
    assert "lower is better" in done.out


def test_ensembles_of_a_conditional_model(folder: Path, conditional: Path) -> None:
    options = ("--metrics", "crps", "spread", "--likelihood_examples", 20, "--ensemble", 5, "--repeats", 2)
    results = evaluate(folder, conditional, "e", *options)
    assert set(results) == {"crps", "spread"}
    assert (folder / "e/ranks.png").stat().st_size > 10_000
    pipeline, data = load_pipeline(folder / conditional)
    data.setup("fit")
    batch: dict[str, Any] = next(data.batches("test", 20))
    x = batch.pop("x").double()
    for repeat in range(2):
        drawn = [pipeline.samples([(repeat << 48) + (k << 32) + i for i in range(20)], **batch).x_0 for k in range(5)]
        members = torch.stack(drawn).double()
        assert results["crps"]["values"][repeat] == pytest.approx(float(crps(members, x).mean()), rel=1e-5)
        spread, error = spread_and_error(members, x)
        assert results["spread"]["values"][repeat] == pytest.approx(
            math.sqrt(float(spread.mean() / error.mean())), rel=1e-5
        )
        own = crps(members, x).flatten(1).mean(1)
    assert results["crps"]["standard_error"] == pytest.approx(float(own.std() / math.sqrt(20)), rel=0.3)
    (ranks,) = results["spread"]["channels"]["ranks"]
    assert len(ranks) == 6 and sum(ranks) == pytest.approx(1)
    assert results["crps"]["protocol"]["ensemble"] == 5
    assert results["crps"]["model"]["nfe"] == 4
    read = read_results(folder / "e/evaluation.json")
    assert all(isinstance(result, EnsembleResult) for result in read.values())
    # The values do not depend on how many examples there are, nor the members on how many of them.
    fewer = evaluate(folder, conditional, "f", *options[:3], *options[3:5], "--ensemble", 5)
    assert fewer["crps"]["value"] == results["crps"]["values"][0]


@pytest.mark.slow
def test_two_processes_measure_what_one_does(folder: Path, waves: Path, conditional: Path) -> None:
    ensembles: tuple[Any, ...] = (conditional, "--metrics", "crps", "spread", "--ensemble", 3)
    samples: tuple[Any, ...] = (waves, "--metrics", "moments", "spectrum", "energy", "--num_samples", 300)
    for k, (checkpoint, *options) in enumerate((ensembles, samples)):
        one = evaluate(folder, checkpoint, f"one{k}", *options)
        call = ("evaluate", "--ckpt_path", checkpoint, "--output", f"two{k}", *options, "--accelerator", "cpu")
        process = start(folder, *call, "--devices", 2)
        _, error = process.communicate(timeout=240)
        assert process.returncode == 0, error
        two = json.loads((folder / f"two{k}/evaluation.json").read_text())["figures"]
        for name, result in one.items():
            assert two[name]["value"] == pytest.approx(result["value"], rel=1e-5)
            assert two[name]["protocol"] == result["protocol"]


class Wiener(Denoiser):
    """The exact denoiser of Waves under their condition `past`: x + 0.5 ε has a Gaussian posterior in each mode."""

    def __init__(self, sizes: tuple[int, ...]) -> None:
        super().__init__()
        power = radial(sizes, lambda k: 1 / (1 + k**2)).float()
        self.schedule, self.power = VP(), power / power.mean()

    def forward(self, x_t: Tensor, t: Tensor, **cond: Tensor) -> Prediction:
        axes = tuple(range(2, x_t.ndim))
        gain = self.power / (self.power + 0.25)
        mean = torch.fft.ifftn(gain * torch.fft.fftn(cond["past"], dim=axes), dim=axes).real
        made: Prediction = GaussianField(self.schedule, gain * 0.25, mean)(x_t, t)
        return made


def test_the_exact_posterior_has_spread_1_and_a_known_crps() -> None:
    """Spread over error 1; CRPS of a calibrated Gaussian of standard deviation s: s/√π."""
    data = Waves(n=64, sizes=(8, 8), conditional=True)
    denoiser = Wiener((8, 8))
    sampler = DPMpp(LogSNRGrid(20, 1.0, 1e-3))
    pipeline = Pipeline(denoiser, sampler, data.shape, data.conditions)
    plan = Plan(metrics=("crps", "spread"), ensemble=8)
    results = run(pipeline, data, plan, accelerator="cpu")
    std = float((0.25 * denoiser.power / (denoiser.power + 0.25)).mean().sqrt())
    crps_result, spread_result = results["crps"], results["spread"]
    assert crps_result.error is not None and spread_result.error is not None
    assert crps_result.value == pytest.approx(std / math.sqrt(math.pi), abs=4 * crps_result.error)
    assert spread_result.value == pytest.approx(1, abs=4 * spread_result.error)
    assert crps_result.error < 0.01 and spread_result.error < 0.02
    (ranks,) = spread_result.channels["ranks"]  # type: ignore[attr-defined]
    np.testing.assert_allclose(ranks, 1 / 9, atol=0.02)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--metrics", "fid"], "there is no metric 'fid' of fields, only moments, marginals, spectrum, energy, nll"),
        (["--metrics", "crps"], "crps is of a model with conditions, and this one has none"),
        (["--metrics", "crps", "--ensemble", 1], "ensemble must be at least 2, got 1"),
        (["--num_samples", 1], "num_samples must be at least 2"),
        (["--reference", "none.npz"], "none.npz: file not found"),
    ],
)
def test_bad_input_is_one_line(folder: Path, waves: Path, options: list[Any], message: str) -> None:
    done = cli(folder, "evaluate", "--ckpt_path", waves, "--output", "bad", *options)
    assert message in done.error
    assert not (folder / "bad/evaluation.json").exists()


def test_one_example_is_too_few_for_an_ensemble(folder: Path, conditional: Path) -> None:
    call = ("--metrics", "crps", "--likelihood_examples", 1, "--output", "one")
    done = cli(folder, "evaluate", "--ckpt_path", conditional, *call)
    assert "likelihood_examples" in done.error


def test_ensembles_that_are_not_finite_are_counted(
    folder: Path, conditional: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Pipeline.samples

    def with_nan(self: Pipeline, indices: Any, **options: Any) -> Any:
        drawn = original(self, indices, **options)
        drawn.x_0[3, 0, 0] = math.nan
        return drawn

    monkeypatch.setattr(Pipeline, "samples", with_nan)
    call = ("--metrics", "crps", "--likelihood_examples", 10, "--ensemble", 3, "--output", "nan")
    done = cli(folder, "evaluate", "--ckpt_path", conditional, *call)
    assert done.code == 2
    assert "1 of 10 ensembles of samples are not finite" in done.err
    result = json.loads((folder / "nan/evaluation.json").read_text())["figures"]["crps"]
    assert result["not_finite"] == 1 and math.isfinite(result["value"])


@pytest.mark.parametrize("sizes", [(12,), (6, 5), (4, 3, 2)], ids=str)
def test_data_of_one_to_three_axes_are_fields(sizes: tuple[int, ...]) -> None:
    assert Waves(sizes=sizes).is_field
