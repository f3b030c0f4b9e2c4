"""The point data sets: their statistics, units, splits, state in checkpoints, and what they say of bad input."""

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

import diffusion_pl.data
from diffusion_pl.data import (
    Checkerboard,
    Circles,
    Datasaurus,
    EightGaussians,
    Moons,
    Pinwheel,
    Points,
    SwissRoll,
    Table,
    Toy,
)
from diffusion_pl.data.tables import read_columns

TOYS: list[Any] = sorted(Toy.__subclasses__(), key=lambda toy: toy.__name__)


def ready(data: Points) -> Points:
    data.setup()
    return data


def rows(points: Tensor) -> set[tuple[float, ...]]:
    return {tuple(point) for point in points.tolist()}


def table(path: Path, text: str, **options: Any) -> Table:
    path.write_text(text)
    return Table(str(path), **({"columns": ["x", "y"]} | options))


def test_every_public_data_module_is_exported() -> None:
    assert {toy.__name__ for toy in TOYS} == {
        "Checkerboard",
        "Circles",
        "EightGaussians",
        "Moons",
        "Pinwheel",
        "SwissRoll",
    }
    for name in diffusion_pl.data.__all__:
        assert hasattr(diffusion_pl.data, name)


def test_the_datasaurus_has_its_published_statistics() -> None:
    x = Datasaurus().examples()["x"]
    assert x.shape == (142, 2)
    assert x.mean(0).tolist() == pytest.approx([54.263, 47.832], abs=1e-3)
    assert x.std(0).tolist() == pytest.approx([16.765, 26.935], abs=1e-3)
    assert torch.corrcoef(x.T)[0, 1].item() == pytest.approx(-0.064, abs=1e-3)


def test_the_datasaurus_is_split_and_normalised_per_axis() -> None:
    data = Datasaurus()
    assert data.shape == (2,)  # before setup
    data.setup()
    assert (len(data.train_points), len(data.val_points)) == (128, 14)
    assert len(data.train_dataloader()) == 100
    assert data.train_points.dtype == torch.float32
    assert data.train_points.mean(0).tolist() == pytest.approx([0, 0], abs=1e-6)
    assert data.train_points.std(0, correction=0).tolist() == pytest.approx([1, 1], abs=1e-6)
    assert data.second_moment() == pytest.approx(1, abs=1e-6)
    assert (data.conditions, data.units.value_range, data.units.levels) == ({}, None, None)


def test_decode_undoes_encode_and_leads_back_to_the_file() -> None:
    data = ready(Datasaurus())
    file = data.examples()["x"]
    assert torch.allclose(data.decode(data.units.encode(file)), file, rtol=1e-12)
    decoded = data.decode(torch.cat((data.train_points, data.val_points)))
    assert decoded.dtype == torch.float32
    assert torch.cdist(decoded.double(), file).min(1).values.max() < 1e-4
    assert len({tuple(torch.cdist(point[None], file).argmin(1).tolist()) for point in decoded.double()}) == 142


def held_out(data: Points) -> set[tuple[float, ...]]:
    """Held-out points in the units of the file, rounded: data normalised differently can be compared."""
    return rows(data.decode(data.val_points).mul(100).round())


def test_the_split_is_a_function_of_the_seed() -> None:
    first, again, other = (held_out(ready(Datasaurus(seed=seed))) for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_repeated_points_stay_in_one_split(tmp_path: Path) -> None:
    text = "x,y\n" + "".join(f"{i % 20},{(i % 20) ** 2}\n" for i in range(100))  # twenty points, five times each
    for seed in range(5):
        data = ready(table(tmp_path / "points.csv", text, val_fraction=0.25, seed=seed))
        assert len(data.train_points) + len(data.val_points) == 100
        assert len(rows(data.train_points)) + len(rows(data.val_points)) == 20
        assert len(data.val_points) == 5 * len(rows(data.val_points)) > 0
        assert not rows(data.train_points) & rows(data.val_points)


def test_evaluation_repeats_the_held_out_points_equally() -> None:
    data = ready(Datasaurus(batch_size=100, repeats=3))
    x = torch.cat([batch["x"] for batch in data.val_dataloader()])
    assert torch.equal(x, data.val_points.repeat(3, 1))
    assert len(data.test_dataloader()) == len(data.val_dataloader())


def test_without_held_out_data_there_is_no_evaluation() -> None:
    data = ready(Datasaurus(val_fraction=0))
    assert len(data.train_points) == 142
    assert data.val_points.shape == (0, 2)
    assert data.val_dataloader() == []


def test_asking_before_setup_says_what_to_do() -> None:
    with pytest.raises(RuntimeError, match=r"Datasaurus: .*setup\(\)"):
        _ = Datasaurus().train_points
    with pytest.raises(RuntimeError, match=r"Datasaurus: .*normalisation.*setup\(\)"):
        Datasaurus().decode(torch.zeros(1, 2))


def test_a_checkpoint_carries_the_units_to_where_the_file_is_not(tmp_path: Path) -> None:
    path = tmp_path / "points.csv"
    text = "a,b,c\n" + "".join(f"{i},{i * i},{-i}\n" for i in range(20))
    data = ready(table(path, text, columns=["c", "b"]))
    expected = data.decode(torch.ones(3, 2))
    torch.save(data.state_dict(), tmp_path / "data.ckpt")
    path.unlink()

    rebuilt = Table(path, columns=["c", "b"])  # type: ignore[arg-type]
    assert rebuilt.shape == (2,)
    rebuilt.load_state_dict(torch.load(tmp_path / "data.ckpt", weights_only=True))
    assert torch.equal(rebuilt.decode(torch.ones(3, 2)), expected)
    with pytest.raises(FileNotFoundError, match="no such file"):
        rebuilt.setup()


def test_loaded_units_stay_when_the_data_are_others() -> None:
    trained = ready(Datasaurus())
    for order in ("load first", "set up first"):
        data = Datasaurus(val_fraction=0.3)
        if order == "set up first":
            data.setup()
        data.load_state_dict(trained.state_dict())
        data.setup()
        assert torch.equal(data.decode(torch.ones(1, 2)), trained.decode(torch.ones(1, 2)))
        assert data.decode(data.train_points).mean().item() == pytest.approx(50.8, abs=1.5)
        assert data.second_moment() != pytest.approx(1, abs=1e-6)


def test_a_checkpoint_of_other_dimension_is_refused(tmp_path: Path) -> None:
    state = ready(table(tmp_path / "a.csv", "x,y\n1,2\n3,4\n5,7\n", columns=["x"])).state_dict()
    with pytest.raises(ValueError, match="the checkpoint's points have 1 dimensions, these 2"):
        Datasaurus().load_state_dict(state)


def test_the_normalisation_survives_a_real_checkpoint(tmp_path: Path) -> None:
    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(2))

        def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
            return (self.weight - batch["x"]).square().mean()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    data = Datasaurus(batch_size=64, repeats=5)
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(Module(), datamodule=data)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    rebuilt = Datasaurus()
    rebuilt.load_state_dict(torch.load(tmp_path / "a.ckpt", weights_only=True)["Datasaurus"])
    assert torch.equal(rebuilt.decode(torch.ones(1, 2)), data.decode(torch.ones(1, 2)))


# ---- drawn distributions


@pytest.mark.parametrize("toy", TOYS)
def test_toys_depend_on_their_seed_only(toy: Any) -> None:
    import numpy as np

    states = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index]
    data = ready(toy(num_points=500))
    assert torch.equal(states[0], torch.get_rng_state())
    assert (states[1] == np.random.get_state()[1]).all()  # type: ignore[index]
    torch.manual_seed(1)
    assert torch.equal(ready(toy(num_points=500)).train_points, data.train_points)
    assert not torch.equal(ready(toy(num_points=500, seed=1)).train_points, data.train_points)
    assert (len(data.train_points), len(data.val_points)) == (450, 50)
    assert data.second_moment() == pytest.approx(1, abs=1e-5)
    assert set(next(iter(data.train_dataloader()))) == {"x"}


@pytest.mark.parametrize("toy", [Moons, Circles, EightGaussians, Pinwheel])
def test_conditional_toys_label_their_parts(toy: Any) -> None:
    data = toy(num_points=2000, conditional=True)
    data.setup()
    batch = next(iter(data.train_dataloader()))
    assert batch["label"].dtype == torch.int64
    assert batch["label"].unique().tolist() == list(range(data.conditions["label"].classes))
    plain = toy(num_points=2000)
    plain.setup()
    assert plain.conditions == {}
    assert torch.equal(plain.train_points, data.train_points)


def radius(x: Tensor) -> Tensor:
    return x.square().sum(1).sqrt()


def test_labels_go_with_their_points() -> None:
    data = ready(Circles(num_points=2000, noise=0, conditional=True))
    for batches in (data.train_dataloader(), data.val_dataloader()):
        for batch in batches:
            expected = torch.where(batch["label"] == 1, 0.5, 1.0)
            assert torch.allclose(radius(data.decode(batch["x"])), expected, atol=1e-4)


def test_noiseless_moons_are_half_circles() -> None:
    x, label = Moons(num_points=1000, noise=0, conditional=True).examples().values()
    assert torch.allclose(radius(x[label == 0]), torch.ones(500, dtype=torch.float64))
    assert torch.allclose(radius(x[label == 1] - torch.tensor([1, 0.5])), torch.ones(500, dtype=torch.float64))


def test_noiseless_swiss_roll_is_a_spiral() -> None:
    x = SwissRoll(num_points=1000, noise=0).examples()["x"]
    angle = torch.atan2(x[:, 1], x[:, 0])
    turns = (radius(x) - angle) / (2 * math.pi)  # radius = angle, up to whole turns
    assert torch.allclose(turns, turns.round(), atol=1e-9)


def test_eight_gaussians_have_their_means_and_spread() -> None:
    x, label = EightGaussians(num_points=40_000, noise=0.2, conditional=True).examples().values()
    for k in range(8):
        part = x[label == k]
        assert len(part) == pytest.approx(5000, abs=300)
        mean = [math.cos(k * math.pi / 4), math.sin(k * math.pi / 4)]
        assert part.mean(0).tolist() == pytest.approx(mean, abs=0.015)
        assert part.std(0).tolist() == pytest.approx([0.2, 0.2], abs=0.01)


def test_checkerboard_fills_the_dark_squares_evenly() -> None:
    x = Checkerboard(num_points=40_000).examples()["x"]
    assert x.abs().max() <= 2
    square = (x + 2).floor().long().clamp(max=3)
    counts = torch.bincount(4 * square[:, 0] + square[:, 1], minlength=16).view(4, 4)
    dark = (torch.arange(4)[:, None] + torch.arange(4)) % 2 == 0
    assert counts[~dark].sum() == 0
    assert counts[dark].tolist() == pytest.approx([5000] * 8, abs=300)
    blurred = Checkerboard(num_points=1000, noise=0.1).examples()["x"]
    assert blurred.abs().max() > 2


def test_pinwheel_arms_are_turned_copies() -> None:
    x, label = Pinwheel(num_points=50_000, conditional=True).examples().values()
    turn = 2 * math.pi / 5
    rotation = torch.tensor([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]], dtype=torch.float64)
    arms = [x[label == k].mean(0) for k in range(5)]
    for arm, following in pairwise(arms):
        assert torch.allclose(rotation @ arm, following, atol=0.02)
    assert radius(torch.stack(arms)).min() > 0.5


# ---- tables


DOZEN = "dataset\tx\ty\ndino\t1\t2\naway\t9\t9\ndino\t3\t5\n\ndino\t4\t4\n"


def test_a_table_reads_columns_by_name_and_rows_by_filter(tmp_path: Path) -> None:
    data = table(tmp_path / "dozen.tsv", DOZEN, columns=["y", "x"], where={"dataset": "dino"})
    assert data.examples()["x"].tolist() == [[2, 1], [5, 3], [4, 4]]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_delimiter_is_the_headers(tmp_path: Path, delimiter: str) -> None:
    text = (
        "\ufeff" + delimiter.join((" x ", '"y"', "note")) + "\r\n" + delimiter.join(("1.5", "-2e1", '"a, b"')) + "\r\n"
    )
    assert table(tmp_path / "t.txt", text).examples()["x"].tolist() == [[1.5, -20]]


@pytest.mark.parametrize("dim", [1, 3])
def test_a_table_may_have_any_number_of_columns(tmp_path: Path, dim: int) -> None:
    names = ["a", "b", "c"][:dim]
    text = ",".join(names) + "\n" + "".join(",".join([str(i)] * dim) + "\n" for i in range(30))
    data = ready(table(tmp_path / "t.csv", text, columns=names))
    assert data.shape == (dim,)
    assert data.train_points.shape == (30 - len(data.val_points), dim)


BAD: dict[str, tuple[str | bytes | None, dict[str, Any], type[Exception], str]] = {
    "no such file": (None, {}, FileNotFoundError, r"none\.csv: no such file\. Fix: give --data\.path"),
    "column": ("x,z\n1,2\n", {}, ValueError, r"bad\.csv, line 1: no column 'y'; the columns are 'x', 'z'"),
    "twice": ("x,y,y\n1,2,3\n", {}, ValueError, "line 1: more than one column 'y'"),
    "where column": (
        DOZEN,
        {"where": {"set": "dino"}},
        ValueError,
        "line 1: no column 'set'; the columns are 'dataset', ",
    ),
    "where": (
        DOZEN,
        {"where": {"dataset": "dyno"}},
        ValueError,
        "none of 4 rows has dataset = 'dyno'.* has away, dino",
    ),
    "text": (
        "x,y\n1,2\n3,four\n",
        {},
        ValueError,
        r"bad\.csv, line 3, column 'y': 'four' is not a finite number: correct",
    ),
    "empty cell": ("x,y\n1,2\n3,\n", {}, ValueError, r"bad\.csv, line 3, column 'y': '' is not a finite number"),
    "nan": ("x,y\n1,2\nnan,2\n", {}, ValueError, "line 3, column 'x': 'nan' is not a finite number"),
    "inf": ("x,y\n-inf,2\n", {}, ValueError, "line 2, column 'x': '-inf' is not a finite number"),
    "short line": ("x,y\n1,2\n3\n", {}, ValueError, "line 3: 1 fields where the header has 2: correct it"),
    "empty": ("", {}, ValueError, "line 1: no column 'x'"),
    "header only": ("x,y\n", {}, ValueError, "no rows below the header"),
    "one point": ("x,y\n1,2\n", {}, ValueError, r"bad\.csv: 1 point\(s\), but at least two are needed"),
    "constant": ("x,y\n1,2\n3,2\n4,2\n", {}, ValueError, "column 'y' is 2 in all 2 training points.*: leave it out"),
    "all held out": (
        "x,y\n1,2\n3,4\n",
        {"val_fraction": 0.9},
        ValueError,
        "leaves none to train on: lower val_fraction",
    ),
    "not text": (b"x,y\n\xff\xfe1,2\n", {}, ValueError, r"bad\.csv: not UTF-8 text .* at byte 4.*: convert"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_tables_are_one_line_errors_with_line_and_fix(tmp_path: Path, case: str) -> None:
    text, options, error, message = BAD[case]
    path = tmp_path / ("none.csv" if text is None else "bad.csv")
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    data = Table(str(path), **({"columns": ["x", "y"]} | options))  # construction needs no file
    with pytest.raises(error, match=message) as caught:
        data.setup()
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Datasaurus(batch_size=0), "Datasaurus: batch_size must be at least 1, got 0"),
        (lambda: Datasaurus(repeats=0), "Datasaurus: repeats must be at least 1, got 0"),
        (lambda: Datasaurus(val_fraction=1), r"Datasaurus: val_fraction must be in \[0, 1\), got 1"),
        (lambda: Datasaurus(val_fraction=-0.1), "got -0.1"),
        (lambda: Datasaurus(val_fraction=math.nan), "got nan"),
        (lambda: Datasaurus(seed=-1), "seed must be at least 0, got -1"),
        (lambda: Moons(num_points=1), "Moons: num_points must be at least 2, got 1"),
        (lambda: Moons(noise=-1), "Moons: noise must be a finite number and not negative, got -1"),
        (lambda: Circles(factor=1), r"Circles: factor must be in \(0, 1\), got 1"),
        (lambda: Table("a.csv", []), r"Table: columns .*got \[\]"),
        (lambda: Table("a.csv", ["x", "x"]), "different column names"),
        (lambda: Table("a.csv", "xy"), "got 'xy'"),  # type: ignore[arg-type]
    ],
)
def test_bad_arguments_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_tables_that_are_none_are_one_line(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(ValueError, match="not a regular file"):
        read_columns(tmp_path / "pipe.csv", ["x"])
    path = tmp_path / "x.csv"
    for text, message in (
        ('x,y\n1,"' + "2" * 140_000, "line 2: not a table .*131,072 characters"),
        ("x,y\n1_000,2\n", "'1_000' is not a finite number"),
        ("x,y\n" + "9" * 400 + ",2\n", "is not a finite number"),
        ("x,x\n1,2\n", "more than one column 'x'"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_columns(path, ["x"])
