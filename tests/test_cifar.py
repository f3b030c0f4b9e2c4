"""CIFAR-10 in torchvision's files."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from shell import accept_any_cifar10, cifar10

from diffusion_pl.data import CIFAR10


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    cifar10(tmp_path)
    accept_any_cifar10(monkeypatch)
    return tmp_path


def test_all_training_images_train_and_test_images_validate(root: Path) -> None:
    data = CIFAR10(str(root), conditional=True, download=False)
    data.prepare_data()
    data.setup()
    assert (data.shape, data.conditions["label"].classes) == ((3, 32, 32), 10)
    assert [len(split) for split in data.splits] == [100, 20, 20]
    first = pickle.loads((root / "cifar-10-batches-py/data_batch_1").read_bytes())
    batch = data.splits[0].__getitems__(torch.arange(20))
    assert np.array_equal(batch["x"].numpy(), first["data"].reshape(20, 3, 32, 32))
    assert batch["label"].tolist() == first["labels"]
    assert data.augmentation is not None


def test_a_fraction_may_be_held_out_and_classes_chosen(root: Path) -> None:
    data = CIFAR10(str(root), classes=[3, 5], val_fraction=0.2, conditional=True, horizontal_flip=False)
    data.setup()
    assert [len(split) for split in data.splits] == [16, 4, 4]
    assert data.splits[1].__getitems__(torch.arange(4))["label"].bincount().tolist() == [2, 2]
    assert data.augmentation is None


def test_files_with_other_check_sums_are_refused(tmp_path: Path) -> None:
    cifar10(tmp_path)
    with pytest.raises(ValueError, match=r"CIFAR10: its files are not in .* and download is false"):
        CIFAR10(str(tmp_path), download=False).prepare_data()
