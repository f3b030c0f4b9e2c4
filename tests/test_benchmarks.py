"""The benchmarks that need another machine or much time: that they run at all."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from shell import ROOT, environment


def benchmark(folder: Path, name: str, *args: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(ROOT / "benchmarks" / name), *args]
    return subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, check=False)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_its_benchmark_says_so(tmp_path: Path) -> None:
    done = benchmark(tmp_path, "gpu.py", "train")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [
        "benchmarks/gpu.py: torch finds no CUDA card; --device cpu --tiny tries the program itself"
    ]


@pytest.mark.slow
def test_every_part_of_the_gpus_benchmark_runs(tmp_path: Path) -> None:
    done = benchmark(tmp_path, "gpu.py", "--device", "cpu", "--tiny")
    assert done.returncode == 0, done.stderr
    parts = [line.split(",")[0].split(":")[0].split(" ")[0] for line in done.stdout.splitlines()]
    assert list(dict.fromkeys(parts)) == ["matmul", "train", "sample", "features", "memory", "fit"]
    shares = [float(share) for share in re.findall(r"utilisation ([\d.]+) %", done.stdout)]
    assert len(shares) == 4
    assert all(0 < share < 100 for share in shares)


@pytest.mark.slow
def test_every_part_of_the_peer_comparison_runs(tmp_path: Path) -> None:
    done = benchmark(tmp_path, "peers.py", "--rounds", "1", "--steps", "4", "--evaluations", "2")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split(",")[0] for line in lines] == ["train"] * 3 + ["sample"] * 2
    assert all(float(line.rsplit(" ", 1)[1]) > 0 for line in lines)


@pytest.mark.slow
def test_the_cost_of_snapshots_is_a_share_of_a_step(tmp_path: Path) -> None:
    done = benchmark(tmp_path, "averages.py", str(ROOT / "configs/digits/vp.yaml"), "50")
    assert done.returncode == 0, done.stderr
    assert (
        len(re.findall(r"^a run of [\d,]+ steps, every [\d,]+: -?[\d.]+ % of a step$", done.stdout, re.MULTILINE)) == 3
    )
