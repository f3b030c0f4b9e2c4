"""What a run takes: memory, time and money, as `doctor` estimates them."""

import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from shell import cli, tiny_config
from torch import nn

from diffusion_pl.callbacks.cost import _saved
from diffusion_pl.checks import Finding, Length, Need, Speed, cost, memory
from diffusion_pl.runtime.usage import free_memory

LENGTH = Length(steps=1000, batch=64, accumulated=2, devices=4, examples=32_000)
NEED = Need(weights=10**9, gradients=10**9, optimizer=2 * 10**9, averages=10**9, example=10**8)  # 5 GB and 0.1 GB


def one(findings: Any) -> Finding:
    (finding,) = findings
    assert isinstance(finding, Finding)
    return finding


def test_memory_is_that_of_the_share_of_a_device() -> None:
    finding = one(memory(NEED, LENGTH, 10 * 10**9))
    assert finding.level == "fine"
    # 64 examples on 4 devices: 16 each, 1.6 GB.
    assert finding.what.startswith("about 6.6 GB on each device: 5 GB for weights")
    assert "1.6 GB for 16 examples; 10 GB free" in finding.what


def test_a_batch_that_fits_is_named() -> None:
    finding = one(memory(NEED, LENGTH, 7 * 10**9))
    # 0.9 · 7 − 5 = 1.3 GB, 13 examples on each of 4 devices, 52; two batches of 32 in place of one of 64.
    assert finding.level == "warning"
    assert "--data.batch_size 32 --trainer.accumulate_grad_batches 4" in finding.fix
    assert 5 + 0.1 * 32 / 4 <= 0.9 * 7


def test_weights_that_do_not_fit_are_an_error() -> None:
    finding = one(memory(NEED, LENGTH, 5 * 10**9))
    assert (finding.level, finding.fix) == ("error", "choose a smaller network, or a device with more memory")
    assert one(memory(NEED, LENGTH, None)).level == "fine"


def test_time_and_money_follow_from_a_step() -> None:
    # 16 examples on each device take 0.5 + 15 · 0.1 = 2 s, two batches a step 4 s, 1,000 steps 4,000 s.
    finding = one(cost(Speed(0.5, 0.1, "cpu", 8), LENGTH, price_per_hour=3.0))
    assert "1,000 steps of 128 examples: 128,000 examples, 4 epochs; 4 s a step on cpu" in finding.what
    assert "66.7 minutes" in finding.what
    assert "4 x 1.11 hours at 3: 13.33" in finding.what  # 4000/3600 · 4 · 3
    assert "hours" not in one(cost(Speed(0.5, 0.1, "cpu", 8), LENGTH)).what


def test_what_is_not_known_is_said() -> None:
    finding = one(cost("no such kernel", LENGTH))
    assert "128,000 examples" in finding.what and "time not measured: no such kernel" in finding.what
    assert "since trainer.max_steps is -1" in one(cost(Speed(1, 1, "cpu", 8), LENGTH._replace(steps=-1))).what


def test_saved_memory_is_counted_once() -> None:
    x = torch.randn(10, 50, requires_grad=True)
    saved = _saved(lambda: (x.exp().sin() * 2).sum().backward())
    assert saved == 10 * 50 * 4  # exp keeps its result, which is the input that sin keeps: one storage


def _backward(layer: nn.Module, n: int) -> None:
    layer(torch.randn(n, 20)).sum().backward()


def test_saved_memory_grows_with_the_batch() -> None:
    layer = nn.Sequential(nn.Linear(20, 30), nn.Tanh(), nn.Linear(30, 5))
    sizes = [_saved(partial(_backward, layer, n)) for n in (1, 2)]
    assert sizes[1] - sizes[0] == 4 * (20 + 30)  # inputs of both layers; tanh keeps its result, the same storage


def test_free_memory_of_the_machine() -> None:
    free = free_memory(torch.device("cpu"))
    assert free is not None
    assert 10**7 < free < 10**14


def test_doctor_prints_memory_time_and_money(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, trainer__max_steps=5000, trainer__enable_checkpointing=True)
    done = cli(tmp_path, "doctor", "--config", config, "--doctor.price_per_hour", 2.5)
    assert done.code == 0, done.out
    assert re.search(r"memory +ok +about \S+ GB on each device", done.out)
    assert re.search(r"cost +ok +5,000 steps of \d+ examples: .* hours at 2\.5: \d", done.out)
    ignored = cli(tmp_path, "doctor", "--config", config, "--doctor.ignore", "[memory, cost]")
    assert re.search(r"cost +ok +ignored", ignored.out)
    bad = cli(tmp_path, "doctor", "--config", config, "--doctor.price_per_hour", -1)
    assert bad.code == 2
    assert "price_per_hour must not be negative" in bad.out + bad.err


@pytest.mark.parametrize("value", [2.5, None])
def test_no_estimate_during_fit(tmp_path: Path, value: float | None) -> None:
    config = tiny_config(tmp_path, doctor={"price_per_hour": value}, trainer__max_steps=1)
    done = cli(tmp_path, "fit", "--config", config, "--run", "r")
    assert done.code == 0, done.err
    assert "on each device" not in done.out
