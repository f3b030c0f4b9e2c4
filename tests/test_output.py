"""Reports of commands: a table for people, one JSON document for machines."""

import io
import json
import sys
from pathlib import Path

import pytest

from diffusion_pl.runtime.output import Report, next_command, show, stdout_for, table

REPORT = Report(
    done="two samplers",
    facts={"weights": ["raw", "ema:0.999"], "parameters": 1234567},
    rows=[
        {"sampler": "DDIM", "nfe": 5, "distance": 0.123456789, "exact": True},
        {"sampler": "DPMpp(order=3)", "nfe": 1000, "distance": None, "exact": False},
    ],
    files=[Path("sweep/sweep.csv")],
    next=[next_command("sample", "--ckpt_path", "my runs/a", "--num_samples", 4)],
)


def test_report_for_people_is_aligned() -> None:
    assert str(REPORT).splitlines() == [
        "two samplers",
        "  weights     raw, ema:0.999",
        "  parameters  1,234,567",
        "  sampler          nfe  distance  exact",
        "  DDIM               5   0.12346    yes",
        "  DPMpp(order=3)  1000         -     no",
        "saved:",
        "  sweep/sweep.csv",
        "next: python -m diffusion_pl sample --ckpt_path 'my runs/a' --num_samples 4",
    ]


def test_table_without_rows_is_empty() -> None:
    assert table([]) == []


def test_columns_without_a_value_are_not_shown() -> None:
    rows = [{"metric": "fid", "error": None, "unit": "", "value": 3.0}]
    assert table(rows) == ["metric  value", "fid         3"]


def test_rows_are_cut_to_the_width_of_the_terminal() -> None:
    report = Report(done="a line that is longer than the terminal", rows=[{"name": "a", "what": "b" * 30}])
    done, head, row = report.text(20).splitlines()
    assert (done, head, row) == (report.done, "  name  what", "  a     " + "b" * 11 + "…")
    assert "…" not in str(report)


def test_report_for_machines_has_all_values() -> None:
    content = json.loads(json.dumps(REPORT.to_json()))
    assert content["rows"][0]["distance"] == 0.123456789
    assert content["rows"][1]["distance"] is None
    assert content["files"] == ["sweep/sweep.csv"]
    assert (content["error"], content["status"]) == ("", 0)


def test_not_finite_numbers_are_strings_in_json() -> None:
    report = Report(done="", facts={"loss": float("nan")}, rows=[{"x": float("inf")}])
    text = json.dumps(report.to_json(), allow_nan=False)
    assert (json.loads(text)["facts"], json.loads(text)["rows"]) == ({"loss": "nan"}, [{"x": "inf"}])


def test_only_the_document_is_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    with stdout_for(as_json=True) as stream:
        print("no distance to the data")
    show(REPORT, stream, as_json=True)
    out, err = capsys.readouterr()
    assert json.loads(out)["done"] == "two samplers"
    assert err == "no distance to the data\n"
    with stdout_for(as_json=False) as stream:
        assert stream is sys.stdout
        print("said")
    assert capsys.readouterr().out == "said\n"


def test_error_of_a_report_is_raised_after_it() -> None:
    stream = io.StringIO()
    with pytest.raises(ValueError, match="not measured alike"):
        show(Report(done="0 of 1", error="not measured alike: fid"), stream)
    assert stream.getvalue() == "0 of 1\n"
    with pytest.raises(SystemExit) as end:
        show(Report(done="not reproduced", status=1), stream)
    assert end.value.code == 1
    show(None, stream)
