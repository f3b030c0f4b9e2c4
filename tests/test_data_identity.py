"""Data are what the user thinks they are: names of classes, splits that stay, what is said when data have changed."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from shell import LAST, Outcome, checkpoint, cli, tiny_config

from diffusion_pl.conditions import class_count, class_names, from_plain
from diffusion_pl.data import Arrays, Folder, Table
from diffusion_pl.data.folder import natural_order
from diffusion_pl.data.identity import differences, identity, keys_of
from diffusion_pl.data.loader import Tensors
from diffusion_pl.data.splits import divide, hashed, recorded_split
from diffusion_pl.runtime.run_card import read_card

UNET = {
    "class_path": "UNet",
    "init_args": {"nf": 8, "ch_mult": [1], "num_res_blocks": 1, "attn_resolutions": []},
}
#: The values of the held-out images of `numbered`, as version 0.1 drew them, and the labels that it gave them.
OLD_SPLIT = {0: 0, 20: 1, 203: 2, 43: 3, 60: 4, 80: 5, 102: 6, 123: 7, 140: 8, 161: 9, 181: 10}


def save(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8), value, np.uint8)).save(path)


def numbered(folder: Path) -> Path:
    """Classes 0 … 10 of four images each, of the value 20 class + number."""
    for k in range(11):
        for i in range(4):
            save(folder / str(k) / f"{i}.png", 20 * k + i)
    return folder


def ready(path: Path, state: dict[str, Any] | None = None, **options: Any) -> Folder:
    data = Folder(str(path), **({"batch_size": 4, "workers": 0} | options))
    if state is not None:
        data.load_state_dict(state)
    data.setup()
    return data


def parts(data: Any) -> list[dict[int, int]]:
    """Label by value, of each split."""
    result = []
    for split in data.splits:
        batch = split.__getitems__(torch.arange(len(split)))
        label = batch.get("label", torch.zeros(len(batch["x"]), dtype=torch.int64))
        result.append(dict(zip(batch["x"][:, 0, 0, 0].tolist(), label.tolist(), strict=True)))
    return result


def as_written_by_0_1(state: dict[str, Any]) -> dict[str, Any]:
    return {"shape": state["shape"], "classes": class_count(from_plain(state["conditions"])), "levels": state["levels"]}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with images/ and a conditional run of them, runs/run."""
    folder = tmp_path_factory.mktemp("run")
    numbered(folder / "images")
    done = fit(folder)
    assert done.code == 0, done.err
    (folder / "fit.txt").write_text(done.out)
    return folder


def fit(folder: Path, *args: Any, command: str = "fit", steps: int = 4, **changes: Any) -> Outcome:
    data = {"class_path": "Folder", "init_args": {"path": "images", "conditional": True, "batch_size": 4, "workers": 0}}
    config = tiny_config(
        folder, model__network=UNET, data=data, trainer__max_steps=steps, trainer__val_check_interval=2, **changes
    )
    return cli(folder, command, "--config", config, *(["--run", "run"] if command == "fit" else []), *args)


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    """The same, for a test to change."""
    shutil.copytree(run, tmp_path, dirs_exist_ok=True)
    return tmp_path


def sample(folder: Path, *args: Any) -> Outcome:
    return cli(folder, "sample", "--ckpt_path", f"runs/run/{LAST}", "--weights", "raw", "--num_samples", 11, *args)


def evaluate(folder: Path, *args: Any, ckpt: Any = f"runs/run/{LAST}") -> Outcome:
    options = ("--metrics", "elbo", "--bound.times", 2, "--likelihood_examples", 2, "--weights", "raw")
    return cli(folder, "evaluate", "--ckpt_path", ckpt, *options, *args)


# Names and order of classes.


def test_natural_order() -> None:
    names = ["10", "2", "b10", "b9", "a", "01", "1", "b9c", "-3"]
    assert sorted(names, key=natural_order) == ["01", "1", "2", "10", "-3", "a", "b9", "b9c", "b10"]
    assert sorted(map(str, range(300)), key=natural_order) == list(map(str, range(300)))


def test_class_folders_are_numbered_in_natural_order(tmp_path: Path) -> None:
    data = ready(numbered(tmp_path))
    assert class_names(data.conditions) is None
    data = ready(tmp_path, conditional=True)
    assert class_names(data.conditions) == [str(k) for k in range(11)]
    every: dict[int, int] = {}
    for part in parts(data):
        every |= part
    assert every == {20 * k + i: k for k in range(11) for i in range(4)}


def test_names_are_in_checkpoint_card_and_samples(run: Path) -> None:
    names = [str(k) for k in range(11)]
    state = checkpoint(run / "runs/run")["Folder"]
    assert (state["conditions"]["label"]["names"], sum(state["class_counts"])) == (names, 33)
    card = read_card(run / "runs/run")
    assert card["data"]["class_names"] == names
    assert "classes: " not in (run / "fit.txt").read_text()  # they are their own numbers
    assert sample(run, "--output", "all").code == 0
    note = json.loads((run / "all/samples.json").read_text())
    assert (note["labels"], note["class_names"]) == (list(range(11)), names)


def test_a_name_conditions_samples_as_its_number_does(run: Path, tmp_path: Path) -> None:
    named = tmp_path / "images"
    for k, name in enumerate(("cat", "dog", "30", "20")):
        for i in range(3):
            save(named / name / f"{i}.png", 40 * k + i)
    done = fit(tmp_path)
    assert done.code == 0, done.err
    assert "classes 0 20, 1 30, 2 cat, 3 dog\n" in done.out
    for name, label in (("dog", 3), ("3", 3), ("20", 0)):
        drawn = sample(tmp_path, "--cond.label", name, "--output", name)
        assert drawn.code == 0, drawn.err
        note = json.loads((tmp_path / name / "samples.json").read_text())
        assert (note["cond"], note["labels"]) == ({"label": label}, [label])
        assert ("which is number 0" in drawn.out) == (name == "20")
    assert (tmp_path / "dog/00.png").read_bytes() == (tmp_path / "3/00.png").read_bytes()
    refused = sample(tmp_path, "--cond.label", "dgo", "--output", "none")
    assert "cond.label" in refused.error
    assert "did you mean dog?" in refused.error


def test_a_run_of_0_1_keeps_its_order_and_its_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    numbered(tmp_path)
    old = as_written_by_0_1(ready(tmp_path, conditional=True).state_dict())
    for late in (False, True):  # fit loads a state after `setup`, evaluate before
        data = ready(tmp_path, None if late else old, conditional=True)
        if late:
            data.load_state_dict(old)
        assert parts(data)[1] == OLD_SPLIT
        assert "classes are numbered as in the checkpoint, in the order 0, 1, 10, 2" in capsys.readouterr().out
        state = data.state_dict()
        assert state["conditions"]["label"]["names"] == sorted(map(str, range(11)))
        again = ready(tmp_path, state, conditional=True)  # and hands both on
        assert parts(again) == parts(data)
        assert capsys.readouterr().out == ""


def test_a_resumed_run_of_0_1_keeps_its_old_split(copy: Path) -> None:
    path = copy / "runs/run" / LAST
    content = torch.load(path, weights_only=True)
    content["Folder"] = as_written_by_0_1(content["Folder"])
    del content["diffusion_pl"]["places"]
    torch.save(content, path)
    done = fit(copy, "--ckpt_path", "last", "--data.init_args.seed", 5, steps=6)
    assert done.code == 0, done.err
    assert "seed is 5, was 0 in the checkpoint; the split of the checkpoint stays" in done.out
    state = checkpoint(copy / "runs/run")["Folder"]
    assert (state["split"]["rule"], state["split"]["seed"]) == ("shuffled", 0)
    assert parts(ready(copy / "images", state, conditional=True))[1] == OLD_SPLIT


# Splits.


def test_a_split_does_not_move_when_images_are_added(tmp_path: Path) -> None:
    for i in range(150):
        save(tmp_path / f"{i:03d}.png", i)
    before = parts(ready(tmp_path, val_fraction=0.2, test_fraction=0.1))
    for i in range(150, 250):
        save(tmp_path / f"x{i}.png" if i % 2 else tmp_path / "a" / f"{i}.png", i)
    after = parts(ready(tmp_path, val_fraction=0.2, test_fraction=0.1))
    assert [{value for value in part if value < 150} for part in after] == [set(part) for part in before]
    # Binomial shares: within four standard deviations.
    for part, share in zip(after, (0.7, 0.2, 0.1), strict=True):
        assert abs(len(part) - 250 * share) < 4 * (250 * share * (1 - share)) ** 0.5
    assert parts(ready(tmp_path, val_fraction=0.2, test_fraction=0.1, seed=1)) != after


def test_rows_added_to_an_array_do_not_move_the_others(tmp_path: Path) -> None:
    held = []
    for n in (60, 90):
        x = np.broadcast_to(np.arange(n, dtype=np.uint8)[:, None, None], (n, 4, 4))
        np.save(tmp_path / "x.npy", x)
        data = Arrays(str(tmp_path / "x.npy"), batch_size=4)
        data.setup()
        held.append({value for value in parts(data)[1] if value < 60})
    assert held[0] == held[1]
    assert held[0]


def test_each_class_is_trained_and_held_out_however_small() -> None:
    labels = torch.tensor([0] + [1] * 2 + [2] * 3 + [3] * 50)
    for seed in range(50):
        (train, val, test), _ = hashed(keys_of(None, 56), labels, (0.1, 0.1), seed)
        assert sorted([*train.tolist(), *val.tolist(), *test.tolist()]) == list(range(56))
        assert set(labels[train].tolist()) == {0, 1, 2, 3}
        assert set(labels[torch.cat((val, test))].tolist()) == {1, 2, 3}  # the only one of class 0 is trained on
        assert 3 in labels[val]
        assert 3 in labels[test]


def test_what_was_trained_on_stays_so_when_images_go_or_come(tmp_path: Path) -> None:
    for i in range(6):
        save(tmp_path / f"{i}.png", i)
    data = ready(tmp_path, val_fraction=0.02)  # so small that the one held-out image is an exception
    train, held = (set(part) for part in parts(data)[:2])
    assert len(held) == 1
    (tmp_path / f"{next(iter(held))}.png").unlink()
    again = ready(tmp_path, data.state_dict(), val_fraction=0.02)
    assert [set(part) for part in parts(again)[:2]] == [train, set()]


def test_a_table_that_grows_keeps_its_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, rows = tmp_path / "t.csv", np.random.default_rng(0).normal(size=(80, 2)).tolist()
    held: list[set[Any]] = []
    states: list[dict[str, Any]] = []
    for some in (rows[:50], rows[30:] + rows[:30]):
        path.write_text("x,y\n" + "".join(f"{x},{y}\n" for x, y in some))
        data = Table(str(path), ["x", "y"])
        data.setup()
        if states:
            data.load_state_dict(states[0])
        assert data._splits is not None
        held.append({tuple(row) for row in data._splits[1]["x"].tolist()})
        states.append(data.state_dict())
    assert {row for row in held[1] if list(row) in rows[:50]} == held[0]
    assert "t.csv: not the data that the checkpoint was trained on: 30 added" in capsys.readouterr().out


# What has changed since a checkpoint.


def test_differences_are_counted() -> None:
    def source(values: list[int]) -> Tensors:
        return Tensors({"x": torch.tensor(values).reshape(-1, 1, 1, 1)})

    names = [f"{i}.png" for i in range(30)]
    state = identity(keys_of(names, 30), True, source(list(range(30))))

    def counts(names: list[str], values: list[int]) -> list[str]:
        return differences(state, keys_of(names, len(names)), True, source(values))

    assert counts(names[::-1], list(range(30))[::-1]) == []
    assert counts([*names[2:], "new.png"], [*range(2, 29), 99, 0]) == ["1 added", "2 removed", "1 changed"]
    assert counts(["other.png"], [0]) == ["1 added", "30 removed"]
    numbers = identity(keys_of(None, 30), False, source(list(range(30))))
    assert differences(numbers, keys_of(None, 31), False, source([7, *range(1, 31)])) == ["1 added", "1 changed"]


def test_of_very_many_names_differences_are_estimated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffusion_pl.data.identity.KEPT", 400)
    names = [f"{i}.png" for i in range(3000)]
    x = Tensors({"x": torch.zeros(4000, 1, 1, 1)})
    state = identity(keys_of(names, 3000), True, x)
    assert len(state["keys"]) == 400
    assert differences(state, keys_of(names, 3000), True, x) == []
    (estimate,) = differences(state, keys_of([*names, *(f"{i}.jpg" for i in range(1000))], 4000), True, x)
    assert estimate.startswith("about ")
    assert int(estimate.split()[1].replace(",", "")) == pytest.approx(1000, rel=0.35)  # four standard deviations


def test_changed_data_warn_at_resume_and_trained_images_stay(copy: Path) -> None:
    before = parts(ready(copy / "images", checkpoint(copy / "runs/run")["Folder"], conditional=True))
    save(copy / "images/3/new.png", 255)
    trained = next(value for value in before[0] if value < 20)
    save(copy / f"images/0/{trained}.png", 19)
    done = fit(copy, "--ckpt_path", "last", "--data.init_args.batch_size", 8, "--data.init_args.seed", 3, steps=6)
    assert done.code == 0, done.err
    assert "not the data that the checkpoint was trained on: 1 added, 1 changed" in done.out
    assert "batch_size is 8, was 4, seed is 3, was 0 in the checkpoint; the split of the checkpoint stays" in done.out
    after = parts(ready(copy / "images", checkpoint(copy / "runs/run")["Folder"], conditional=True, seed=3))
    assert set(after[1]) - {255} == set(before[1])


def test_unchanged_data_are_not_remarked_on(copy: Path) -> None:
    done = fit(copy, "--ckpt_path", "last", steps=6)
    assert done.code == 0, done.err
    assert "checkpoint was trained on" not in done.out
    assert "in the checkpoint" not in done.out


@pytest.mark.parametrize(("old", "new", "message"), [("10", "ten", "class 10 is '10'"), ("10", None, "missing: 10")])
def test_other_classes_are_refused_at_resume(copy: Path, old: str, new: str | None, message: str) -> None:
    if new is None:
        shutil.rmtree(copy / "images" / old)
    else:
        (copy / "images" / old).rename(copy / "images" / new)
    refused = fit(copy, "--ckpt_path", "last", steps=6)
    assert message in refused.error


# Classes without examples.


def test_classes_without_examples_are_reported_and_not_sampled(tmp_path: Path) -> None:
    x, y = np.zeros((30, 8, 8), np.uint8), 1 + 2 * (np.arange(30) % 3)  # 1, 3, 5
    np.savez(tmp_path / "a.npz", x=x, y=y)
    data = {"class_path": "Arrays", "init_args": {"path": "a.npz", "key": "x", "labels": "y", "batch_size": 8}}
    config = tiny_config(tmp_path, model__network=UNET, data=data, trainer__max_steps=2)
    seen = cli(tmp_path, "doctor", "--config", config)
    (line,) = (line for line in seen.out.splitlines() if line.lstrip().startswith("classes"))
    assert "warning" in line
    assert "no training examples of classes 0, 2, 4" in line
    assert cli(tmp_path, "fit", "--config", config, "--run", "run").code == 0
    drawn = sample(tmp_path)
    assert "no samples of classes 0, 2, 4" in drawn.out
    assert json.loads((tmp_path / "samples/samples.json").read_text())["labels"] == [1, 3, 5]


# Data that a checkpoint names.


def test_evaluate_finds_the_data_from_another_directory(run: Path, tmp_path: Path) -> None:
    done = evaluate(tmp_path, ckpt=run / "runs/run" / LAST)
    assert done.code == 0, done.err
    spec = json.loads((run / "runs/run/card.json").read_text())["config"]["data"]
    assert spec["init_args"]["path"] == "images"  # the card says what the user wrote


def test_moved_data_are_given_by_option(copy: Path) -> None:
    (copy / "images").rename(copy / "moved")
    path = copy / "runs/run" / LAST
    content = torch.load(path, weights_only=True)
    content["diffusion_pl"]["places"] = {"path": str(copy / "images")}
    torch.save(content, path)
    refused = evaluate(copy)
    assert "--data.path" in refused.error
    done = evaluate(copy, "--data.path", "moved")
    assert done.code == 0, done.err
    assert "checkpoint was trained on" not in done.out
    wrong = evaluate(copy, "--data.pth", "moved", "--output", "other")
    assert "pth" in wrong.error
    swept = (
        "--ckpt_path",
        f"runs/run/{LAST}",
        "--samplers",
        "DDIM",
        "--nfe",
        2,
        "--num_samples",
        4,
        "--weights",
        "raw",
    )
    assert "no distance to the data" in cli(copy, "sweep", *swept, "--output", "without").out
    assert "no distance to the data" not in cli(copy, "sweep", *swept, "--data.path", "moved").out


def test_a_strangers_data_are_read_only_when_asked_for(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIFFUSION_PL_TRUST", "")
    shutil.copy(run / "runs/run" / LAST, tmp_path / "stranger.ckpt")
    refused = evaluate(tmp_path, ckpt="stranger.ckpt")
    assert "stranger.ckpt" in refused.error
    assert "--data.path" in refused.error
    drawn = cli(tmp_path, "sample", "--ckpt_path", "stranger.ckpt", "--weights", "raw", "--num_samples", 2)
    assert drawn.code == 0, drawn.err
    assert evaluate(tmp_path, "--data.path", run / "images", ckpt="stranger.ckpt").code == 0
    monkeypatch.setenv("DIFFUSION_PL_TRUST", "diffusion_pl.data")
    assert evaluate(tmp_path, "--output", "trusted", ckpt="stranger.ckpt").code == 0


def test_an_empty_foreign_state_reads_no_data(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFUSION_PL_TRUST", "")
    content = checkpoint(run / "runs/run")
    content["Folder"] = {}
    torch.save(content, tmp_path / "stranger.ckpt")
    refused = cli(tmp_path, "sample", "--ckpt_path", "stranger.ckpt", "--weights", "raw")
    assert "stranger.ckpt" in refused.error


@pytest.mark.parametrize(
    "split",
    [
        5,
        "hash",
        {"rule": "odd"},
        {"seed": "0"},
        {"seed": True},
        {"exceptions": 1},
        {"exceptions": {"keys": torch.ones(2)}},
    ],
)
def test_a_damaged_record_of_the_split_is_refused(split: Any) -> None:
    with pytest.raises(ValueError, match="checkpoint"):
        recorded_split({"split": split})
    with pytest.raises(ValueError, match="checkpoint"):
        divide(4, None, None, None, (0.5, 0.0), 0, grows=True, saved={"split": split})
