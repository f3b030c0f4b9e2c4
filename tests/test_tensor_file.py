"""Files of tensors: what safetensors writes is read, and the other way round; anything else is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from diffusion_pl.checkpoints.tensor_file import read_header, read_tensors, write_tensors

TENSORS = {
    "weight": torch.arange(12.0).reshape(3, 4).half(),
    "steps": torch.arange(5),
    "scalar": torch.tensor(2.5, dtype=torch.float64),
    "empty": torch.empty(0, 3),
    "turned": torch.arange(4.0).reshape(2, 2).t(),
    "flags": torch.tensor([True, False, True]),
    "narrow": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


def test_safetensors_reads_what_is_written(tmp_path: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import load_file

    write_tensors(tmp_path / "a", TENSORS, {"format": "pt"})
    assert same(load_file(tmp_path / "a"), TENSORS)
    with safe_open(tmp_path / "a", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_what_safetensors_writes_is_read(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({name: tensor.contiguous() for name, tensor in TENSORS.items()}, tmp_path / "a")
    assert same(read_tensors(tmp_path / "a"), TENSORS)
    assert read_header(tmp_path / "a")["weight"][:2] == (torch.float16, (3, 4))


def written(path: Path, header: Any, data: bytes = bytes(16)) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(begin: int = 0, end: int = 16, dtype: str = "F32", shape: Any = (4,)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    "header",
    [
        {"a": entry(0, 12, shape=[3])},
        {"a": entry(4, 16, shape=[3])},
        {"a": entry(0, 8, shape=[2]), "b": entry(4, 16, shape=[3])},
        {"a": entry(0, 8, shape=[2]), "b": entry(0, 8, shape=[2])},
        {"a": entry(0, 20, shape=[5])},
        {"a": entry(shape=[3])},
        {"a": entry(shape=[-4])},
        {"a": entry(shape=[-2, -2])},
        {"a": entry(16, 0)},
        {"a": entry(-16, 0)},
        {"a": entry(shape=[2**62, 4])},
        {"a": entry(dtype="F8_E4M3", shape=[16])},
        {"a": entry(shape="4")},
        {"a": entry(shape=[True, 4])},
        {"a": {"dtype": "F32"}},
        {"a": 3},
        [],
        b"{",
        b"\xff{}",
        b'{"a": 1, "a": 1}',
        b"[" * 100_000,
    ],
)
def test_file_that_is_not_filled_exactly_is_refused(header: Any, tmp_path: Path) -> None:
    good = written(tmp_path / "good", {"a": entry(), "__metadata__": {"x": "y"}})
    assert read_tensors(good)["a"].tolist() == [0.0] * 4
    for read in (read_header, read_tensors):
        with pytest.raises(ValueError):
            read(written(tmp_path / "bad", header))


@pytest.mark.parametrize("content", [b"", b"\x01", (2**40).to_bytes(8, "little"), (5).to_bytes(8, "little") + b"{}"])
def test_file_that_ends_in_its_header_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(ValueError, match="header"):
        read_tensors(tmp_path / "a")
