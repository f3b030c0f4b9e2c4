"""Points in a few dimensions: the base of all such data sets, the Datasaurus, and tables of the user's own."""

import csv
import io
import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from ..conditions import Condition, Conditions, class_count
from .base import DataModule, count, tell_differences
from .identity import Keys, differences, identity, keys_of
from .loader import Loader, Source, Tensors
from .splits import HASHED, SHUFFLED, hashed


class Points(DataModule):
    """N points in D dimensions, normalised per axis: x = (x_file - mean) / std over the training split.

    The split is drawn over *distinct* points before any repetition, so no held-out point is a training point; copies
    of a point stay on its side. The held-out part serves as validation set and as test set: there is no third part.

    A concrete class defines ``examples``.

    Args:
        source: What to call the data in messages.
        axes: Names of the D axes.
        conditions: Of the examples; None: none.
        batch_size: Points per batch, over all processes.
        val_fraction: Fraction of the distinct points to hold out, in [0, 1).
        repeats: Passes over a split that make one epoch; None: as many as make about 100 batches. Repeating held-out
            points shows each at several noise levels.
        seed: Chooses the split and the order.

    Attributes:
        grows: Whether points may be added between two sessions.  Then the split goes by a hash of their coordinates
            (`splits.hashed`), else by a permutation of the distinct points.
    """

    grows = False

    def __init__(
        self,
        source: str,
        axes: Sequence[str],
        *,
        conditions: Conditions | None = None,
        batch_size: int,
        val_fraction: float,
        repeats: int | None,
        seed: int,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"{type(self).__name__}: batch_size must be at least 1, got {batch_size}")
        if repeats is not None and repeats < 1:
            raise ValueError(f"{type(self).__name__}: repeats must be at least 1, got {repeats}")
        if not 0 <= val_fraction < 1:
            raise ValueError(f"{type(self).__name__}: val_fraction must be in [0, 1), got {val_fraction}")
        if seed < 0:
            raise ValueError(f"{type(self).__name__}: seed must not be negative, got {seed}")
        self.source = source
        self.axes = tuple(axes)
        self._conditions = dict(conditions or {})
        self.batch_size = batch_size
        self.val_fraction = val_fraction
        self.repeats = repeats
        self.seed = seed
        self._splits: tuple[dict[str, Tensor], dict[str, Tensor]] | None = None  # training, held out; units of the file
        self._normalization: tuple[Tensor, Tensor] | None = None  # mean, std: (D,), float64
        self._theirs: dict[str, Any] = {}  # the state of the checkpoint that was loaded
        self._examples: dict[str, Tensor] | None = None
        self._identity: dict[str, Any] | None = None
        self._drawn: dict[str, Any] = {}  # how the split was drawn, as a checkpoint keeps it

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.axes),)

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
        if self._normalization is None:
            self._normalization = x.mean(0), x.std(0, correction=0)
        if "identity" in self._theirs:
            found = differences(self._theirs["identity"], _keys(examples["x"]), True, Tensors(examples))
            tell_differences(self.source, found)

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
        noted = self._theirs.get("split") or {}
        hashes = noted.get("rule") == HASHED if self._theirs else self.grows
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
        return self.encode(self._ready()[0]["x"]).float()

    @property
    def val_points(self) -> Tensor:
        """Held-out points in model units: (N_val, D), float32."""
        return self.encode(self._ready()[1]["x"]).float()

    def part(self, split: str) -> Source:
        part = self._ready()[0 if split == "train" else 1]
        return Tensors({**part, "x": self.encode(part["x"]).float()})

    def stored(self, indices: Tensor) -> dict[str, Tensor]:
        return Tensors(self._ready()[0]).__getitems__(indices)

    def encode(self, x: Tensor) -> Tensor:
        """Units of the file -> model units. x: (*, D)."""
        mean, std = self._mean_and_std(x)
        return (x - mean) / std

    def decode(self, x: Tensor) -> Tensor:
        """Model units -> units of the file. x: (*, D)."""
        mean, std = self._mean_and_std(x)
        return x * std + mean

    def write(self, x: Tensor, folder: Path) -> list[Path]:
        """samples.csv with the names of the axes as header, and samples.png beside the data where these are at hand."""
        from .. import plots

        table, picture = folder / "samples.csv", folder / "samples.png"
        points = self.decode(x.double())
        with table.open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            rows.writerow(self.axes)
            rows.writerows([f"{value:.6g}" for value in row] for row in points.tolist())
        known = points[:0] if self._splits is None else self._splits[0]["x"]
        plots.save(plots.samples_panel(known.numpy(), points.numpy(), count(len(points), "sample")), picture)
        return [table, picture]

    def frame(self, x: Tensor, x_0: Tensor, title: str) -> NDArray[Any]:
        from .. import plots

        pair = [self.decode(part.double()).numpy() for part in (x, x_0)]
        known = (x[:0] if self._splits is None else self._splits[0]["x"]).numpy()
        return plots.to_image(plots.film_panel(pair[0], pair[1], known, title))

    def training_examples(self, most: int) -> Tensor:
        points = self.train_points
        return points[:: -(-len(points) // most)]

    def read(self, path: Path) -> Tensor:
        """Points of a table with a column for each axis."""
        return self.encode(read_columns(path, self.axes)).float()

    def second_moment(self) -> float:
        """Mean of x_0² per dimension over the training points; 1 up to rounding, unless a checkpoint gave the scale."""
        return self.train_points.double().square().mean().item()

    def _ready(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        if self._splits is None:
            raise RuntimeError(f"{self.source}: the points are not there yet: call setup() first")
        return self._splits

    def _mean_and_std(self, like: Tensor) -> tuple[Tensor, Tensor]:
        if self._normalization is None:
            raise RuntimeError(f"{self.source}: the normalisation is not known yet: call setup() or load a checkpoint")
        mean, std = self._normalization
        return mean.to(like), std.to(like)

    def _passes(self) -> int:
        return self.repeats or max(1, round(100 * self.batch_size / len(self._ready()[0]["x"])))

    def train_dataloader(self) -> Loader:
        tensors = {**self._ready()[0], "x": self.train_points}
        return self.loader(tensors, self.batch_size, train=True, repeats=self._passes(), seed=self.seed)

    def val_dataloader(self) -> Loader | list[Any]:
        tensors = {**self._ready()[1], "x": self.val_points}
        if len(tensors["x"]) == 0:
            return []
        return self.loader(tensors, self.batch_size, train=False, repeats=self._passes())

    def test_dataloader(self) -> Loader | list[Any]:
        return self.val_dataloader()

    def state_dict(self) -> dict[str, Any]:
        if self._normalization is None:
            return {}
        mean, std = self._normalization
        state: dict[str, Any] = {"mean": mean.tolist(), "std": std.tolist()}
        if self._examples is None:  # the data were not read
            return state
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
        mean, std = (torch.tensor(state_dict[name], dtype=torch.float64) for name in ("mean", "std"))
        self._normalization = mean, std
        self._theirs = state_dict
        if self._splits is not None:  # split them anew, as the checkpoint's were
            self._splits = None
            self.setup()


def _keys(x: Tensor) -> Keys:
    """Of points (N, D), by their coordinates: equal points have equal keys."""
    return keys_of([row.tobytes().hex() for row in x.double().numpy()], len(x))


class Datasaurus(Points):
    """The dinosaur of the Datasaurus Dozen: 142 points in the plane, of which 128 are trained on by default.

    Reference: Matejka & Fitzmaurice, "Same Stats, Different Graphs", CHI 2017; the drawing is Alberto Cairo's (2016).

    Args:
        batch_size: Points per batch, over all processes.
        val_fraction: Fraction of the points to hold out.
        repeats: Passes over a split that make one epoch; None: as many as make about 100 batches.
        seed: Chooses the split and the order.
    """

    def __init__(
        self, batch_size: int = 512, val_fraction: float = 0.1, repeats: int | None = None, seed: int = 0
    ) -> None:
        super().__init__(
            "Datasaurus", ("x", "y"), batch_size=batch_size, val_fraction=val_fraction, repeats=repeats, seed=seed
        )

    def examples(self) -> dict[str, Tensor]:
        return {"x": read_columns(files("diffusion_pl.data") / "datasaurus.csv", self.axes)}


class Table(Points):
    """Points from a CSV or TSV file with a header line.

    Example: ``path: DatasaurusDozen.tsv, columns: [x, y], where: {dataset: dino}`` is the dinosaur's original file.

    Args:
        path: The file; fields separated by tab, comma, semicolon or ``|``, as its header line is.
        columns: Names of the columns that are the coordinates, one or more.
        where: Keep only the rows in which each of these columns has this text; None keeps all.
        batch_size: Points per batch, over all processes.
        val_fraction: Fraction of the distinct points to hold out.
        repeats: Passes over a split that make one epoch; None: as many as make about 100 batches.
        seed: Chooses the split and the order.
    """

    grows = True

    def __init__(
        self,
        path: str,
        columns: list[str],
        where: dict[str, str] | None = None,
        batch_size: int = 512,
        val_fraction: float = 0.1,
        repeats: int | None = None,
        seed: int = 0,
    ) -> None:
        path = str(path)  # a Path among the hyper-parameters would make the checkpoint unreadable without full pickle
        if isinstance(columns, str) or not columns or len(set(columns)) != len(columns):
            raise ValueError(f"Table: columns must be a list of one or more different column names, got {columns!r}")
        super().__init__(path, columns, batch_size=batch_size, val_fraction=val_fraction, repeats=repeats, seed=seed)
        self.where = dict(where or {})

    def examples(self) -> dict[str, Tensor]:
        return {"x": read_columns(Path(self.source).expanduser(), self.axes, self.where)}


def read_columns(path: Traversable, columns: Sequence[str], where: Mapping[str, str] | None = None) -> Tensor:
    """Numbers in the named columns of a delimited text file with a header line: (rows, columns), float64.

    Args:
        path: The file.
        columns: Names of the columns to read.
        where: Keep only the rows in which each of these columns has this text.
    """
    where = where or {}
    if not path.is_file():  # reading a pipe would wait for ever
        if isinstance(path, Path) and path.exists():
            raise ValueError(f"{path}: not a regular file: give a table in a file")
        raise FileNotFoundError(f"{path}: no such file. Fix: give --data.path FILE")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}): convert the file") from None

    first_line = text.partition("\n")[0]
    # The first of equals wins, so a tab beats a comma in a name, and a single column is read as comma-separated.
    delimiter = "\t" if "\t" in first_line else max(",;|", key=first_line.count)
    reader = csv.reader(io.StringIO(text), delimiter=delimiter)
    rows = _rows(reader, path)
    header = [name.strip() for name in next(rows, [])]
    for name in (*columns, *where):
        if header.count(name) != 1:
            problem = "no column" if name not in header else "more than one column"
            raise ValueError(f"{path}, line 1: {problem} {name!r}; the columns are {', '.join(map(repr, header))}")
    positions = {name: header.index(name) for name in columns}
    conditions = {header.index(name): value for name, value in where.items()}

    points = []
    rejected: list[list[str]] = []  # what the rows that do not match have in the columns of ``where``
    for row in rows:
        if not any(row):
            continue
        if len(row) != len(header):
            raise ValueError(
                f"{path}, line {reader.line_num}: {len(row)} fields where the header has {len(header)}: correct it"
            )
        if [row[at].strip() for at in conditions] == list(conditions.values()):
            place = f"{path}, line {reader.line_num}, column"
            points.append([_number(row[at], f"{place} {name!r}") for name, at in positions.items()])
        else:
            rejected.append([row[at].strip() for at in conditions])
    if not points and not rejected:
        raise ValueError(f"{path}: no rows below the header: give a file with data")
    if not points:
        wanted = " and ".join(f"{name} = {value!r}" for name, value in where.items())
        found = ", ".join(map("/".join, sorted({tuple(texts) for texts in rejected})[:20]))
        raise ValueError(f"{path}: none of {len(rejected)} rows has {wanted}: correct where; the file has {found}")
    return torch.tensor(points, dtype=torch.float64)


def _rows(reader: Any, path: Traversable) -> Iterator[list[str]]:
    try:
        yield from reader
    except csv.Error as error:
        problem = str(error)
        if "field" in problem and "limit" in problem:
            problem = f"a field of more than {csv.field_size_limit():,} characters, is a quotation mark not closed?"
        raise ValueError(f"{path}, line {reader.line_num}: not a table ({problem}): correct the line") from None


def _number(text: str, place: str) -> float:
    try:
        number = float(text.replace("_", "?"))  # Python would read 1_000 as a thousand
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{place}: {text!r} is not a finite number: correct the cell or remove the row")
    return number
