"""Results of an evaluation as objects and as files of today and of version 0.1; plans that make no sense."""

import json
from pathlib import Path
from typing import Any

import pytest

from diffusion_pl.commands.compare import compare
from diffusion_pl.evaluation import (
    Band,
    BoundResult,
    LikelihoodResult,
    Plan,
    SampleResult,
    differences,
    from_json,
    incomparable,
    read_results,
    row,
)

OLD = Path(__file__).parent / "assets" / "v0_1" / "evaluation.json"


def sampled(values: list[float], **changes: Any) -> SampleResult:
    protocol = {"num_samples": 100, "extractor": {"class": "InceptionV3"}, "reference": {"data": "D", "split": "train"}}
    return SampleResult.of(
        values, unit="", protocol=protocol | changes, model={"sha256": None, "weights": "raw", "nfe": 4}
    )


def test_a_file_of_version_0_1_is_read_and_written_unchanged() -> None:
    content, results = json.loads(OLD.read_text())["figures"], read_results(OLD)
    kinds = {"fid": SampleResult, "nll": LikelihoodResult, "elbo": BoundResult, "energy": SampleResult}
    assert {name: type(result) for name, result in results.items()} == kinds
    written = {name: result.to_json() for name, result in results.items()}
    assert json.dumps(written) == json.dumps(content)  # also in the order of the keys


def test_what_a_result_says_of_itself() -> None:
    results = read_results(OLD)
    fid, nll, elbo, energy = (results[name] for name in ("fid", "nll", "elbo", "energy"))
    assert [r.counted for r in (fid, nll, elbo, energy)] == ["samples", "examples", "examples", "samples"]
    assert [r.count for r in (fid, nll, elbo, energy)] == [80, 70, 70, 300]
    assert [r.measured_by for r in (fid, nll, elbo)] == ["DigitsClassifier", "FlowLikelihood", "ChainBound"]
    assert energy.measured_by is None
    assert [r.data["split"] for r in (fid, nll)] == ["val", "val"]
    assert fid.error is None  # of one repeat
    assert nll.error == nll.std != nll.standard_error  # type: ignore[attr-defined]
    assert elbo.error == elbo.standard_error  # type: ignore[attr-defined]
    shown = row("fid", fid)
    assert (shown["value"], shown["better"], shown["number"], shown["of"]) == (fid.value, "lower", 80, "samples")


def test_of_repeats_mean_and_deviation() -> None:
    result = sampled([1.0, 2.0, 6.0])
    assert result.value == 3.0
    assert result.std == pytest.approx(7**0.5)  # (4 + 1 + 9) / 2
    assert sampled([1.0]).std is None
    assert from_json(result.to_json()) == result


def test_keys_that_an_older_file_lacks_have_defaults() -> None:
    content = sampled([1.0]).to_json()
    del content["values"], content["not_finite"]
    result = from_json(content)
    assert isinstance(result, SampleResult)
    assert result.not_finite == 0


def test_a_result_that_does_not_say_what_it_is_of_is_refused(tmp_path: Path) -> None:
    content = sampled([1.0]).to_json()
    del content["protocol"]["reference"]
    path = tmp_path / "evaluation.json"
    path.write_text(json.dumps({"figures": {"fid": content}}))
    with pytest.raises(ValueError, match=r"evaluation\.json is damaged.*fid: neither samples and reference"):
        read_results(path)


def test_results_differ_in_what_was_measured() -> None:
    one, other = sampled([1.0, 2.0]), sampled([2.0, 4.0], num_samples=200, units="model units")
    assert differences(one, one) == []
    assert differences(one, other) == ["num_samples: 100 and 200", "units: not given and model units"]


def test_compare_shows_the_difference_and_its_error(tmp_path: Path) -> None:
    for name, values in (("a", [1.0, 2.0]), ("b", [2.0, 4.0])):
        (tmp_path / name).write_text(json.dumps({"figures": {"fid": sampled(values).to_json()}}))
    (row,) = compare([tmp_path / "a", tmp_path / "b"]).rows
    assert (row["A"], row["B"], row["B - A"], row["best"]) == (1.5, 3.0, 1.5, "A")
    assert row["± B"] == pytest.approx(2.5**0.5)  # √(½ + 2)
    assert row["direction"] == "lower is better"


def test_an_expected_range_applies_to_the_same_protocol_only() -> None:
    band = Band((1.0, 2.0), 100, "a test")
    assert incomparable("fid", band, sampled([1.5])) == []
    other = sampled([1.5], num_samples=99, extractor={"class": "DigitsClassifier"})
    assert incomparable("fid", band, other) == [
        "samples 99, not 100",
        "measured by DigitsClassifier, not InceptionV3",
    ]
    assert [band.contains(value) for value in (1.0, 2.0, 2.1, float("nan"))] == [True, True, False, False]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_samples": 1}, "num_samples must be at least 2, got 1"),
        ({"repeats": 0}, "repeats must be at least 1, got 0"),
        ({"likelihood_examples": 0}, "likelihood_examples must be at least 1, got 0"),
        ({"seed": -1}, "seed must not be negative, got -1"),
    ],
)
def test_plans_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Plan(**options)


def test_a_plan_names_the_metrics_of_images_and_of_points() -> None:
    assert Plan().names("images") == (["fid", "is", "kid", "prc"], [])
    assert Plan().names("points") == (["energy", "mmd", "sliced", "prc"], [])
    assert Plan(metrics=("elbo", "fid", "fid")).names("images") == (["fid"], ["elbo"])
    with pytest.raises(ValueError, match="there is no metric 'fid' of points, only energy"):
        Plan(metrics=("fid",)).names("points")
    assert Plan(metrics=("spectrum", "crps")).names("fields") == (["spectrum"], ["crps"])
