"""Points in a few dimensions: base class, the Datasaurus, and the user's tables."""

import csv
from abc import abstractmethod
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..conditions import Condition, Conditions, class_count
from .base import DataModule, tell_differences
from .identity import Keys, differences, identity, keys_of
from .loader import Loader, Source, Tensors
from .splits import HASHED, SHUFFLED, hashed, recorded_split
from .tables import read_columns
from .units import Standardized


class Points(DataModule):
    """N points in D dimensions, normalised per axis: x = (x_file - mean) / std over the training split.

    The split is drawn over *distinct* points before any repetition, so no held-out point is a training point; copies
    of a point stay in its split. The held-out part serves as validation set and as test set: there is no third part.
    Held-out points are repeated as often as training points, which shows each at several noise levels.

    A concrete class defines ``examples``.

    Args:
        source: What to call the data in messages.
        axes: Names of the D axes.
        conditions: Of the examples; None: none.
        batch_size: Points per batch, over all processes.
        val_fraction: Fraction of the distinct points to hold out, in [0, 1).
        kwargs: Other options of `DataModule`.
    """

    def __init__(
        self,
        source: str,
        axes: Sequence[str],
        *,
        conditions: Conditions | None = None,
        batch_size: int = 512,
        val_fraction: float = 0.1,
        **kwargs: Any,
    ) -> None:
        super().__init__(source, batch_size=batch_size, val_fraction=val_fraction, **kwargs)
        self.axes = tuple(axes)
        self._conditions = dict(conditions or {})
        self._units: Standardized | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.axes),)

    @property
    def units(self) -> Standardized:
        if self._units is None:
            raise RuntimeError(f"{self.source}: the normalisation is not known yet: call setup() or load a checkpoint")
        return self._units

    @property
    def conditions(self) -> dict[str, Condition]:
        return self._conditions

    @abstractmethod
    def examples(self) -> dict[str, Tensor]:
        """All points: ``x`` of shape (N, D), float64, in the units of the file; each condition, (N, *)."""

    def setup(self, stage: str | None = None) -> None:
        """Read or draw the points and split them; compute the normalisation unless a checkpoint has given it."""
        if self._splits is not None:
            return
        super().setup(stage)
        if self._examples is None:
            self._examples = self.examples()
        examples = self._examples
        held_out = self._held_out(examples["x"])
        train = {name: values[~held_out] for name, values in examples.items()}
        x = train["x"]
        for name, column in zip(self.axes, x.unbind(1), strict=True):
            if column.min() == column.max():
                raise ValueError(
                    f"{self.source}: column {name!r} is {column[0].item():g} in all {len(x)} training points and "
                    "cannot be scaled to unit variance: leave it out"
                )
        self._splits = train, {name: values[held_out] for name, values in examples.items()}
        if self._units is None:
            self._units = Standardized(x.mean(0), x.std(0, correction=0))
        if "identity" in self._saved:
            changes = differences(self._saved["identity"], _keys(examples["x"]), True, Tensors(examples))
            tell_differences(self.source, changes)

    @property
    def class_counts(self) -> list[int] | None:
        classes = class_count(self._conditions)
        if classes is None or self._splits is None or "label" not in self._splits[0]:
            return None
        counts: list[int] = self._splits[0]["label"].bincount(minlength=classes).tolist()
        return counts

    def _held_out(self, x: Tensor) -> Tensor:
        """Which rows are held out: (N,), bool."""
        if len(x) < 2:
            raise ValueError(f"{self.source}: {len(x)} point(s), but at least two are needed")
        _, point = torch.unique(x, dim=0, return_inverse=True)
        distinct = int(point.max()) + 1
        number = max(1, round(self.val_fraction * distinct)) if self.val_fraction else 0
        if number >= distinct:
            raise ValueError(
                f"{self.source}: val_fraction = {self.val_fraction} holds out all {distinct} distinct point(s) and "
                "leaves none to train on: lower val_fraction"
            )
        noted = recorded_split(self._saved)
        hashes = noted.get("rule", HASHED if self.grows else SHUFFLED) == HASHED
        seed, exceptions = noted.get("seed", self.seed), noted.get("exceptions")
        self._drawn = {"rule": HASHED if hashes else SHUFFLED, "seed": seed}
        if hashes:
            fractions = self.val_fraction, 0.0
            (_, val, _), self._drawn["exceptions"] = hashed(_keys(x), None, fractions, seed, exceptions)
            return torch.isin(torch.arange(len(x)), val)
        chosen = torch.randperm(distinct, generator=torch.Generator().manual_seed(seed))[:number]
        return torch.isin(point, chosen)

    @property
    def train_points(self) -> Tensor:
        """Training points in model units: (N_train, D), float32."""
        train, _ = self._ready()
        return self.units.encode(train["x"]).float()

    @property
    def val_points(self) -> Tensor:
        """Held-out points in model units: (N_val, D), float32."""
        _, held_out = self._ready()
        return self.units.encode(held_out["x"]).float()

    def part(self, split: str) -> Source:
        part = self._ready()[0 if split == "train" else 1]
        return Tensors({**part, "x": self.units.encode(part["x"]).float()})

    def stored(self, indices: Tensor) -> dict[str, Tensor]:
        return Tensors(self._ready()[0]).__getitems__(indices)

    def write(self, x: Tensor, folder: Path) -> list[Path]:
        """samples.csv, with the names of the axes as header."""
        table = folder / "samples.csv"
        with table.open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            rows.writerow(self.axes)
            rows.writerows([f"{value:.6g}" for value in row] for row in self.decode(x.double()).tolist())
        return [table]

    def training_examples(self, most: int) -> Tensor:
        points = self.train_points
        return points[:: -(-len(points) // most)]

    def read(self, path: Path) -> Tensor:
        """Points of a table with a column for each axis."""
        return self.units.encode(read_columns(path, self.axes)).float()

    def second_moment(self) -> float:
        """Mean of x_0² per dimension over the training points; 1 up to rounding, unless a checkpoint gave the scale."""
        return self.train_points.double().square().mean().item()

    def _ready(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        if self._splits is None:
            raise RuntimeError(f"{self.source}: the data are not set up: call setup() first")
        splits: tuple[dict[str, Tensor], dict[str, Tensor]] = self._splits
        return splits

    def val_dataloader(self) -> Loader | list[Any]:
        return self.evaluation_loader("val", self.passes())

    def test_dataloader(self) -> Loader | list[Any]:
        return self.evaluation_loader("test", self.passes())

    def state_dict(self) -> dict[str, Any]:
        if self._units is None:
            return {}
        state: dict[str, Any] = {"mean": self._units.mean.tolist(), "std": self._units.std.tolist()}
        if self.turns:
            state["turns"] = self.turns
        if self._examples is None:  # the data were not read
            return {**state, **self.saved_split}
        if self.grows and self._identity is None:
            self._identity = identity(_keys(self._examples["x"]), True, Tensors(self._examples))
        kept = {} if self._identity is None else {"identity": self._identity}
        return {**state, "split": self._drawn, **kept}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if not state_dict:
            return
        if len(state_dict["mean"]) != len(self.axes):
            raise ValueError(
                f"{self.source}: the checkpoint's points have {len(state_dict['mean'])} dimensions, these "
                f"{len(self.axes)}: use the data the checkpoint was trained on"
            )
        # Kept in place of what setup() finds, even in other data: these are the units the network was trained in.
        self._units = Standardized(*(torch.tensor(state_dict[name], dtype=torch.float64) for name in ("mean", "std")))
        self._saved = state_dict
        self._turns = {name: torch.as_tensor(value) for name, value in state_dict.get("turns", {}).items()}
        if self._splits is not None:  # split them again, as the checkpoint's were
            self._splits = None
            self.setup()


def _keys(x: Tensor) -> Keys:
    """Of points (N, D), by their coordinates: equal points have equal keys."""
    return keys_of([row.tobytes().hex() for row in x.double().numpy()], len(x))


class Datasaurus(Points):
    """The dinosaur of the Datasaurus Dozen: 142 points in the plane, of which 128 are trained on by default.

    Reference: Matejka & Fitzmaurice, "Same Stats, Different Graphs", CHI 2017; the drawing is Alberto Cairo's (2016).

    Args:
        kwargs: Of `Points`: batch_size, val_fraction, repeats, seed.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__("Datasaurus", ("x", "y"), conditions=None, **kwargs)

    def examples(self) -> dict[str, Tensor]:
        return {"x": read_columns(files("diffusion_pl.data") / "datasaurus.csv", self.axes)}


class Table(Points):
    """Points from a CSV or TSV file with a header line.

    Example: ``path: DatasaurusDozen.tsv, columns: [x, y], where: {dataset: dino}`` is the dinosaur's original file.

    Args:
        path: The file; fields separated by tab, comma, semicolon or ``|``, as its header line is.
        columns: Names of the columns that are the coordinates, one or more.
        where: Keep only the rows in which each of these columns has this text; None keeps all.
        kwargs: Of `Points`: batch_size, val_fraction, repeats, seed.
    """

    grows = True

    def __init__(self, path: str, columns: list[str], where: dict[str, str] | None = None, **kwargs: Any) -> None:
        path = str(path)  # a Path among the hyper-parameters would make the checkpoint unreadable without full pickle
        if isinstance(columns, str) or not columns or len(set(columns)) != len(columns):
            raise ValueError(f"Table: columns must be a list of one or more different column names, got {columns!r}")
        super().__init__(path, columns, conditions=None, **kwargs)
        self.where = dict(where or {})

    def examples(self) -> dict[str, Tensor]:
        return {"x": read_columns(Path(self.source).expanduser(), self.axes, self.where)}
