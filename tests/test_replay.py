"""replay: the step at which a run stopped is recomputed from the dump alone, bit-exactly."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from flaws import flawed
from images_model import fit_classifier
from shell import LAST, cli, fit, tiny_config
from test_checkpoints import Evil

from diffusion_pl.callbacks.replaying import read_dump, replay

MOMENTS = {"class_path": "LossSecondMoment", "init_args": {"steps": 4, "history": 2}}


def dump_of(folder: Path, kind: str = "gradient", bad: Any = (12,), **changes: Any) -> Path:
    """The dump of a run that stopped at its first bad step."""
    config = tiny_config(folder, "bad.yaml", **({"model__network": flawed(kind, bad)} | changes))
    done = cli(folder, "fit", "--config", config, "--run", "bad", "--guard.stop_after", 1)
    result = re.search(r"replay (\S+)`", done.error)
    assert result, done
    config.unlink()
    return folder / result[1]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"trainer__precision": "bf16-mixed"},
        {"trainer__precision": "bf16-true", "doctor__ignore": ["precision"]},
        {"trainer__precision": "64-true"},
        {"model__loss__times": MOMENTS},
        {"model__lr_scheduler": {"class_path": "WarmupCosine", "init_args": {"warmup_steps": 5}}},
    ],
    ids=["32-true", "bf16-mixed", "bf16-true", "64-true", "times that learn", "schedule"],
)
def test_it_reproduces_the_step_to_the_last_bit(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = dump_of(tmp_path, **changes)
    about = read_dump(path)["dump"]
    (loss,) = about["ranks"][0]["losses"]
    assert math.isfinite(loss)  # so that bits can be compared
    done = cli(tmp_path, "replay", path)
    assert done.code == 0, done
    lines = [line.strip() for line in done.out.splitlines()]
    assert lines[0] == f"{path}: reproduced"
    assert f"step         12, {changes.get('trainer__precision', '32-true')} on cpu" in lines
    assert f"loss         {loss!r}, in the run {loss!r}" in lines
    assert "activations  all finite" in lines
    names = ["input.weight", "input.bias", "blocks.0.linear.weight", "blocks.0.linear.bias"]
    assert f"gradients    4 parameters' not finite: {', '.join(names)}" in lines
    result = replay(read_dump(path), path, 0)
    assert len(result.examples) == 32
    mean = sum(example.loss for example in result.examples) / 32
    assert mean == pytest.approx(loss, rel=1e-2 if changes.get("trainer__precision") == "bf16-true" else 1e-6)


def test_it_shows_the_worst_examples_and_where_it_begins(tmp_path: Path) -> None:
    path = dump_of(tmp_path, "output")
    done = cli(tmp_path, "replay", path)
    assert done.code == 0, done
    assert "loss         nan, in the run nan" in done.out
    assert "activations  the first that is not finite: the output of blocks.1 (Flaw)" in done.out
    rows = re.findall(r"^ +(\d+) +(0\.\d+) +nan$", done.out, re.MULTILINE)
    assert len(rows) == 10


def test_finite_examples_stand_in_the_order_of_their_losses(tmp_path: Path) -> None:
    path = dump_of(tmp_path)
    rows = json.loads(cli(tmp_path, "replay", path, "--json").out)["rows"]
    result = sorted(replay(read_dump(path), path, 0).examples, key=lambda example: -example.loss)[:10]
    assert rows == [{"row": e.row, "t": e.t, "loss": e.loss} for e in result]


def test_data_that_are_no_numbers_are_named(tmp_path: Path) -> None:
    callback = {"class_path": "flaws.NaNInBatch", "init_args": {"batch": 6}}
    path = dump_of(tmp_path, bad=(), trainer__callbacks=[callback])
    done = cli(tmp_path, "replay", path)
    assert done.code == 0, done
    assert "activations  the first that is not finite: x of the batch" in done.out
    first, second = re.findall(r"^ +(\d+) +0\.\d+ +(\S+)$", done.out, re.MULTILINE)[:2]
    assert first == ("2", "nan")
    assert math.isfinite(float(second[1]))


def test_classifiers_are_replayed_too(tmp_path: Path) -> None:
    callback = {"class_path": "flaws.NaNInBatch", "init_args": {"batch": 1}}
    with pytest.raises(AssertionError, match="loss not finite in one step") as stopped:
        fit_classifier(tmp_path, trainer__callbacks=[callback], guard={"stop_after": 1})
    result = re.search(r"replay (\S+)`", str(stopped.value))
    assert result
    done = cli(tmp_path, "replay", result[1])
    assert done.code == 0, done
    assert "the first that is not finite: x of the batch" in done.out


def test_accumulated_batches_are_all_there(tmp_path: Path) -> None:
    path = dump_of(tmp_path, bad=(13,), trainer__accumulate_grad_batches=3)  # batches 12, 13 and 14 are step 4
    (share,) = read_dump(path)["dump"]["ranks"]
    assert share["numbers"] == [12, 13, 14]
    done = cli(tmp_path, "replay", path)
    assert done.code == 0, done
    facts = json.loads(cli(tmp_path, "replay", path, "--json").out)["facts"]
    for k, loss in enumerate(share["losses"]):
        assert facts[f"loss (process 0, batch {k})"] == f"{loss!r}, in the run {loss!r}"


def test_another_precision_shows_whether_it_is_to_blame(tmp_path: Path) -> None:
    path = dump_of(tmp_path, trainer__precision="bf16-mixed")
    done = cli(tmp_path, "replay", path, "--precision", "64-true")
    assert done.code == 1
    assert f"{path}: not reproduced: " in done.out.splitlines()[0]
    assert "12, 64-true on cpu" in done.out.splitlines()[1]


def test_a_loss_that_is_not_the_same_is_no_reproduction(tmp_path: Path) -> None:
    """Nor are other parameters."""
    path = dump_of(tmp_path)
    for change in ("losses", "not_finite"):
        content = torch.load(path, weights_only=True)
        if change == "losses":
            content["dump"]["ranks"][0]["losses"][0] *= 1 + 1e-7
        else:
            content["dump"]["not_finite"].append("output.weight")
        torch.save(content, tmp_path / "changed.ckpt")
        assert cli(tmp_path, "replay", "changed.ckpt").code == 1


def test_torch_names_the_operation(tmp_path: Path) -> None:
    path = dump_of(tmp_path)
    done = cli(tmp_path, "replay", path, "--detect_anomaly", "true")
    assert done.code == 0, done
    assert "backward     Function 'AbsBackward0' returned nan values in its 0th output" in done.out


def test_what_is_no_dump_is_refused(tmp_path: Path) -> None:
    run = fit(tmp_path, trainer__max_steps=1)
    assert "is no dump of a step" in cli(tmp_path, "replay", run / LAST).error
    assert cli(tmp_path, "replay", "nowhere.ckpt").error == "no checkpoint at nowhere.ckpt"
    torch.save({"state_dict": {}, "dump": Evil(tmp_path / "victim")}, tmp_path / "evil.ckpt")
    assert "holds more than tensors and plain values, maybe code" in cli(tmp_path, "replay", "evil.ckpt").error
    assert not (tmp_path / "victim").exists()
    error = cli(tmp_path, "replay", run / LAST, "--precison", "32-true").error
    assert error == "unknown option --precison; did you mean --precision?"
