"""Mutated configurations of diffusers: a model or one line, never another error, never a hang."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers_model import bring_in, pipeline

#: What is put in place of each option.
INVALID: list[Any] = [None, True, -1, 10**9, 1e308, "x", [], [[1]], {"a": 1}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("mutated")
    pipeline(made)
    return made


@pytest.mark.parametrize("file", ["unet/config.json", "scheduler/scheduler_config.json", "model_index.json"])
@pytest.mark.parametrize("each", [1, pytest.param(9, marks=pytest.mark.slow)])
def test_mutated_options_give_a_model_or_one_line(folder: Path, file: str, each: int) -> None:
    path = folder / "pipe" / file
    text = path.read_text()
    config = json.loads(text)
    refused = 0
    try:
        for row, name in enumerate(config):
            for k in range(each):  # some of the nine, others for the next option
                path.write_text(json.dumps({**config, name: INVALID[(each * row + k) % len(INVALID)]}))
                refused += is_refused(folder)
        for content in ("", "[]", "{", '{"a": NaN}', "[" * 100_000, "1" * 10_000, "\x00", '"\ud800"'):
            path.write_bytes(content.encode("utf-8", "surrogatepass"))
            assert is_refused(folder), content[:10]
    finally:
        path.write_text(text)
    assert refused >= (0 if file == "model_index.json" else each * len(config) // 3)


def is_refused(folder: Path) -> bool:
    try:
        bring_in(None, folder)
    except (ValueError, FileNotFoundError) as error:
        assert "\n" not in str(error), error
        assert str(folder) in str(error), error
        assert len(str(error)) < 2000, error
        return True
    return False


@pytest.mark.parametrize("side", ["sample_size", "block_out_channels", "num_class_embeds"])
def test_large_numbers_are_compared_before_building(folder: Path, side: str) -> None:
    path = folder / "pipe/unet/config.json"
    text = path.read_text()
    value = {"sample_size": 1 << 20, "block_out_channels": [32768, 65536], "num_class_embeds": 1 << 20}[side]
    path.write_text(json.dumps({**json.loads(text), side: value}))
    try:
        assert is_refused(folder)
    finally:
        path.write_text(text)


def test_weights_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    pipeline(tmp_path)
    path = tmp_path / "pipe/unet/diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    save_file({**tensors, "conv_in.bias": tensors["conv_in.bias"].to(torch.int64)}, path)
    with pytest.raises(ValueError, match=r"conv_in.bias: expected floating-point numbers, got torch.int64"):
        bring_in(None, tmp_path)
    save_file({**tensors, "down_blocks": torch.ones(2), "down_blocks.x": torch.ones(2)}, path)
    assert is_refused(tmp_path)
