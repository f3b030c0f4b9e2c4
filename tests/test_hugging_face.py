"""Data sets of the `datasets` library, from a folder."""

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from diffusion_pl.data import HuggingFace

RNG = np.random.default_rng(0)
X = RNG.integers(0, 256, (20, 8, 6, 3), dtype=np.uint8)


@pytest.fixture
def path(tmp_path: Path) -> str:
    columns = datasets.Features(
        {"picture": datasets.Image(), "kind": datasets.ClassLabel(names=["a", "b"]), "note": datasets.Value("string")}
    )
    rows = {"picture": [Image.fromarray(x) for x in X], "kind": [i % 2 for i in range(20)], "note": ["n"] * 20}
    table = datasets.Dataset.from_dict(rows, features=columns)
    datasets.DatasetDict({"train": table, "held": table.select(range(5))}).save_to_disk(str(tmp_path / "d"))
    return str(tmp_path / "d")


def ready(path: str, **options: Any) -> HuggingFace:
    data = HuggingFace(path, **({"batch_size": 4, "val_fraction": 0.0, "workers": 0} | options))
    data.setup()
    return data


@pytest.mark.parametrize("memory_gb", [1.0, 0.0])
def test_pictures_labels_and_a_test_split(path: str, memory_gb: float) -> None:
    data = ready(path, label_column="kind", test_split="held", memory_gb=memory_gb)
    assert (data.shape, data.classes) == ((3, 8, 6), 2)
    indices = torch.tensor([7, 2, 7, 19])
    batch = data.splits[0].__getitems__(indices)
    assert np.array_equal(batch["x"].numpy(), X.transpose(0, 3, 1, 2)[indices])
    assert batch["label"].tolist() == [1, 0, 1, 1]
    assert len(data.splits[2]) == 5


def test_sizes_and_modes(path: str) -> None:
    assert ready(path, size=4, mode="L").shape == (1, 4, 4)
    assert next(iter(ready(path, size=4, mode="L").train_dataloader()))["x"].shape == (4, 1, 4, 4)


def test_pictures_that_differ_are_named(tmp_path: Path) -> None:
    pictures = [Image.fromarray(x) for x in X[:5]] + [Image.fromarray(X[0, :4])]
    table = datasets.Dataset.from_dict({"image": pictures}, features=datasets.Features({"image": datasets.Image()}))
    table.save_to_disk(str(tmp_path / "d"))
    with pytest.raises(ValueError, match=r"picture 5, is \(3, 4, 6\), others are \(3, 8, 6\) .*: give size"):
        ready(str(tmp_path / "d"))
    assert ready(str(tmp_path / "d"), size=4).shape == (3, 4, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_column": "note"}, "which column holds the pictures? Give image_column, of picture"),
        ({"label_column": "note"}, "'note' is no column of labels: there is kind"),
        ({"split": "validation"}, "no such folder, or not to be had from the hub as split 'validation'"),
    ],
)
def test_what_is_refused(options: Any, message: str, path: str) -> None:
    with pytest.raises(ValueError, match=r"/d: ") as error:
        ready(path, **options)
    assert message in str(error.value)


def test_without_the_library_the_extra_is_named(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"pip install 'diffusion_pl\[huggingface\]'"):
        ready(path)
