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
        {"photo": datasets.Image(), "kind": datasets.ClassLabel(names=["a", "b"]), "note": datasets.Value("string")}
    )
    rows = {"photo": [Image.fromarray(x) for x in X], "kind": [i % 2 for i in range(20)], "note": ["n"] * 20}
    table = datasets.Dataset.from_dict(rows, features=columns)
    datasets.DatasetDict({"train": table, "held": table.select(range(5))}).save_to_disk(str(tmp_path / "d"))
    return str(tmp_path / "d")


def ready(path: str, **options: Any) -> HuggingFace:
    data = HuggingFace(path, **({"batch_size": 4, "val_fraction": 0.0, "workers": 0} | options))
    data.setup()
    return data


@pytest.mark.parametrize("memory_gb", [1.0, 0.0])
def test_images_labels_and_a_test_split(path: str, memory_gb: float) -> None:
    data = ready(path, label_column="kind", test_split="held", memory_gb=memory_gb)
    assert (data.shape, data.conditions["label"].classes) == ((3, 8, 6), 2)
    indices = torch.tensor([7, 2, 7, 19])
    batch = data.splits[0].__getitems__(indices)
    assert np.array_equal(batch["x"].numpy(), X.transpose(0, 3, 1, 2)[indices])
    assert batch["label"].tolist() == [1, 0, 1, 1]
    assert len(data.splits[2]) == 5


def test_sizes_and_modes(path: str) -> None:
    assert ready(path, size=4, mode="L").shape == (1, 4, 4)
    assert next(iter(ready(path, size=4, mode="L").train_dataloader()))["x"].shape == (4, 1, 4, 4)


def test_images_of_different_sizes_are_named(tmp_path: Path) -> None:
    images = [Image.fromarray(x) for x in X[:5]] + [Image.fromarray(X[0, :4])]
    table = datasets.Dataset.from_dict({"image": images}, features=datasets.Features({"image": datasets.Image()}))
    table.save_to_disk(str(tmp_path / "d"))
    with pytest.raises(ValueError, match=r"image 5: is 4x6 \(height x width\), .*image 0 is 8x6: give size"):
        ready(str(tmp_path / "d"))
    assert ready(str(tmp_path / "d"), size=4).shape == (3, 4, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_column": "note"}, "which column holds the images? Give image_column, of photo"),
        ({"label_column": "note"}, "'note' is no column of labels: there is kind"),
        ({"split": "validation"}, "no such folder, or not available from the hub as split 'validation'"),
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


def table(folder: Path, images: list[Any], labels: list[int] | None = None) -> str:
    """A data set without splits."""
    columns: dict[str, Any] = {"image": datasets.Image()}
    rows: dict[str, Any] = {"image": images}
    if labels is not None:
        columns["kind"], rows["kind"] = datasets.ClassLabel(names=["a", "b"]), labels
    datasets.Dataset.from_dict(rows, features=datasets.Features(columns)).save_to_disk(str(folder / "t"))
    return str(folder / "t")


def png(x: np.ndarray, length: int | None = None) -> dict[str, Any]:
    import io

    file = io.BytesIO()
    Image.fromarray(x).save(file, "PNG")
    return {"bytes": file.getvalue()[:length], "path": None}


def test_a_data_set_without_splits_has_no_test_split(tmp_path: Path) -> None:
    path = table(tmp_path, [png(x) for x in X])
    assert len(ready(path).splits[0]) == 20
    with pytest.raises(ValueError, match=r"as split 'test' \(the folder holds one data set without splits\)"):
        ready(path, test_split="test")


def test_unlabelled_rows_are_refused(tmp_path: Path) -> None:
    path = table(tmp_path, [png(x) for x in X], [0] * 7 + [-1] + [1] * 12)
    with pytest.raises(ValueError, match=r"t, train: label -1 of image 7 is outside 0 … 1"):
        ready(path, label_column="kind")


def test_grey_of_8_and_of_16_bits_do_not_mix(tmp_path: Path) -> None:
    path = table(tmp_path, [png(x[..., 0]) for x in X[:9]] + [png(X[0, :, :, 0].astype(np.uint16))])
    with pytest.raises(ValueError, match=r"channels differ \(9 L, 1 I;16; .*image 9 is another\)"):
        ready(path)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (None, r"image 3: cannot be read \(there is none\): repair or remove it, or give corrupt: skip"),
        (png(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8), 2000), r"image 3: cannot be decoded \(.*truncated"),
    ],
)
@pytest.mark.parametrize("memory_gb", [1.0, 0.0])
def test_unreadable_images_are_named_or_skipped(tmp_path: Path, bad: Any, message: str, memory_gb: float) -> None:
    path = table(tmp_path, [png(X[0]), png(X[1]), png(X[2]), bad, png(X[4])], [0, 0, 0, 1, 0])
    options: dict[str, Any] = {"label_column": "kind", "size": (8, 6), "memory_gb": memory_gb, "batch_size": 4}
    with pytest.raises(ValueError, match=message):
        list(ready(path, **options).train_dataloader())
    if memory_gb or bad is None:
        train = ready(path, **options, corrupt="skip").splits[0]
        batch = train.__getitems__(torch.arange(4))
        assert (len(train), batch["label"].tolist()) == (4, [0, 0, 0, 0])
        assert np.array_equal(batch["x"].numpy(), X[[0, 1, 2, 4]].transpose(0, 3, 1, 2))


def test_a_checkpoints_state_serves_where_the_folder_is_not(path: str) -> None:
    state = ready(path, label_column="kind").state_dict()
    data = HuggingFace("/nowhere/at/all", label_column="kind")
    data.load_state_dict(state)
    assert (data.shape, data.conditions["label"].classes) == ((3, 8, 6), 2)
