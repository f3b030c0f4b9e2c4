"""Tensors in a safetensors file: the length of a header, the header as JSON, then the bytes of all tensors.

    {"NAME": {"dtype": "F32", "shape": […], "data_offsets": [begin, end]}, …, "__metadata__": {"KEY": "text"}}

Such a file can hold no code.  It is read strictly: the tensors must fill the file without a gap or an overlap.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from ..runtime.reading import check
from ..runtime.storage import write_file

_TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in _TYPES.items()}
_METADATA = "__metadata__"
_MOST_HEADER = 100_000_000  # bytes, as the format says
_ENTRY = {"dtype": str, "shape": [int], "data_offsets": [int]}


class Entry(NamedTuple):
    """dtype and shape of a tensor;  begin, end: of its bytes after the header."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


def read_header(path: Path) -> dict[str, Entry]:
    """What tensors a file holds, by name, in the order of their bytes.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or no safetensors file.
    """
    with path.open("rb") as file:
        return _header(file, path.stat().st_size)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file, on the CPU, see `read_header`."""
    with path.open("rb") as file:
        entries = _header(file, path.stat().st_size)
        return {name: _tensor(file.read(entry.end - entry.begin), entry) for name, entry in entries.items()}


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a file in one instant, see `storage.write_file`.

    Args:
        path: which is replaced.
        tensors: by name, dense, on any device.
        metadata: texts.
    """
    header: dict[str, Any] = {_METADATA: dict(metadata)}
    # Larger types first, so that each tensor begins at a multiple of its item size.
    order = sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))
    place = 0
    for name in order:
        tensor = tensors[name]
        end = place + tensor.numel() * tensor.itemsize
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [place, end]}
        place = end
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)

    def write(file: BinaryIO) -> None:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            flat = tensors[name].detach().cpu().contiguous().reshape(-1)
            file.write(flat.view(torch.uint8).numpy().tobytes())

    write_file(path, write)


def _header(file: BinaryIO, size: int) -> dict[str, Entry]:
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > min(_MOST_HEADER, size - 8):
        raise ValueError("its header is incomplete")
    try:
        content = json.loads(file.read(length).decode("utf-8"), object_pairs_hook=_distinct)
    except (UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"its header is no JSON ({type(error).__name__})") from None
    check(content, {"*": dict})
    content.pop(_METADATA, None)
    check(content, {"*": _ENTRY})
    entries = {name: _entry(name, spec) for name, spec in content.items()}
    entries = dict(sorted(entries.items(), key=lambda item: item[1][2:]))
    place = 0
    for name, entry in entries.items():
        if entry.begin != place:
            raise ValueError(f"{name} begins at byte {entry.begin}, expected {place}")
        place = entry.end
    if place != size - 8 - length:
        raise ValueError(f"it has {size - 8 - length:,} bytes of tensors, expected {place:,}")
    return entries


def _entry(name: str, spec: dict[str, Any]) -> Entry:
    dtype, shape, offsets = _TYPES.get(spec["dtype"]), spec["shape"], spec["data_offsets"]
    if dtype is None:
        raise ValueError(f"{name}: the type {spec['dtype'][:20]} is not supported")
    if any(side < 0 for side in shape) or len(offsets) != 2:
        raise ValueError(f"{name}: expected sizes of at least 0 and two offsets")
    begin, end = offsets
    if begin < 0 or end - begin != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{name} has {end - begin:,} bytes, expected {math.prod(shape) * dtype.itemsize:,}")
    return Entry(dtype, tuple(shape), begin, end)


def _tensor(content: bytes, entry: Entry) -> Tensor:
    if len(content) != entry.end - entry.begin:
        raise ValueError("it ends within a tensor")
    if not content:
        return torch.empty(entry.shape, dtype=entry.dtype)
    return torch.frombuffer(bytearray(content), dtype=entry.dtype).reshape(entry.shape)


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        raise ValueError("its header has a name twice")
    return content
