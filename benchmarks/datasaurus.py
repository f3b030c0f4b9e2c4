"""What the Datasaurus costs: quality in a minute, steps per second compared with a bare loop, start-up.

    python benchmarks/datasaurus.py [quality] [plain] [speed] [start]        (all of them without an argument)

Each part measures both programs in the same run, interleaved, and prints the ratio: machines are shared, seconds noisy.
"""

import contextlib
import io
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / "configs" / "datasaurus" / "vp.yaml"
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT / "benchmarks"), str(ROOT)])
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT)]


def seconds(*command: str, cwd: str | None = None) -> float:
    """Wall clock of one command, from Enter to the prompt."""
    start = time.perf_counter()
    subprocess.run(command, cwd=cwd, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start


def energy_distance(samples: "object") -> float:
    """2E|X−Y| − E|X−X'| − E|Y−Y'| to the 142 points, both scaled by the points' one mean and deviation."""
    import torch

    from diffusion_pl.data import Datasaurus

    points = Datasaurus().examples()["x"]
    x, y = ((torch.as_tensor(v, dtype=torch.float64) - points.mean()) / points.std() for v in (samples, points))

    def mean_distance(a: torch.Tensor, b: torch.Tensor) -> float:
        return torch.cdist(a, b).mean().item()

    return 2 * mean_distance(x, y) - mean_distance(x, x) - mean_distance(y, y)


def quality() -> None:
    """Energy distance of 4,000 samples after `fit`, and the wall clock of that."""
    import numpy as np

    for config in sorted(CONFIG.parent.glob("*.yaml")) if "--all" in sys.argv else [CONFIG]:
        with tempfile.TemporaryDirectory() as folder:
            program = (sys.executable, "-m", "diffusion_pl")
            took = seconds(*program, "fit", "--config", str(config), "--run", "r", cwd=folder)
            checkpoint = "runs/r/checkpoints/last.ckpt"
            options = ("--ckpt_path", checkpoint, "--num_samples", "4000", "--output", "s", "--accelerator", "cpu")
            seconds(*program, "sample", *options, cwd=folder)
            samples = np.loadtxt(Path(folder) / "s" / "samples.csv", delimiter=",", skiprows=1)
        print(f"{config.stem}: energy distance {energy_distance(samples):.5f} after {took:.1f} s of fit", flush=True)


def plain(steps: int = 24_000) -> None:
    """The document's plain PyTorch loop (attempt 3, its own process), 24,000 steps of 32 points, ancestral sampling."""
    import torch

    from diffusion_pl.data import Datasaurus
    from diffusion_pl.networks import MLP, Fourier

    torch.manual_seed(0)
    points = Datasaurus().examples()["x"]
    mean, std = points.mean(), points.std()
    data = ((points - mean) / std).float().repeat(6, 1)
    network = MLP((2,), {}, 128, 3, lambda dim: Fourier(dim, 64, 4.0), lambda dim: Fourier(dim, 128, 0.16))
    optimizer = torch.optim.AdamW(network.parameters(), lr=4e-4)
    beta = torch.linspace(1e-4, 0.05, 50)
    alpha_bar = (1 - beta).cumprod(0)
    start = time.perf_counter()
    for _ in range(steps):
        x_0 = data[torch.randint(len(data), (32,))]
        t, eps = torch.randint(50, (32,)), torch.randn(32, 2)
        a = alpha_bar[t][:, None]
        loss = (network(a.sqrt() * x_0 + (1 - a).sqrt() * eps, t / 50 - 0.5) - eps).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    took = time.perf_counter() - start
    with torch.no_grad():
        x = torch.randn(4000, 2)
        for i in reversed(range(50)):
            eps = network(x, torch.full((4000,), i / 50 - 0.5))
            x = (x - beta[i] / (1 - alpha_bar[i]).sqrt() * eps) / (1 - beta[i]).sqrt()
            if i:
                x = x + beta[i].sqrt() * torch.randn_like(x)
    distance = energy_distance(x.double() * std + mean)
    print(f"plain loop: energy distance {distance:.5f} after {took:.1f} s, {steps / took:.0f} steps/s", flush=True)


def bare_loop(batch: int, steps: int, skip: int = 100) -> float:
    """Steps per second of the same net, batch, optimizer and loss as configs/datasaurus/vp.yaml, in 20 lines."""
    import torch
    import torch.nn.functional as F

    from diffusion_pl.data import Datasaurus
    from diffusion_pl.networks import MLP, Fourier

    torch.manual_seed(0)
    source = Datasaurus()
    source.setup()
    data = source.train_points
    network = MLP((2,), {}, 128, 3, lambda dim: Fourier(dim, 64, 0.4), lambda dim: Fourier(dim, 32, 0.3))
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, betas=(0.9, 0.99), fused=True)
    start = 0.0
    for step in range(steps):
        if step == skip:
            start = time.perf_counter()
        x_0 = data[torch.randint(len(data), (batch,))]
        logsnr = 3.0 + 3.0 * torch.randn(batch, 1)
        integral = F.softplus(-logsnr)
        alpha, sigma = torch.exp(-0.5 * integral), torch.sqrt(-torch.expm1(-integral))
        eps = torch.randn_like(x_0)
        output = network(alpha * x_0 + sigma * eps, -logsnr[:, 0] / 8)
        loss = (output - (alpha * eps - sigma * x_0)).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return (steps - skip) / (time.perf_counter() - start)


def fit_rate(batch: int, steps: int) -> float:
    """Steps per second of `fit`: EMA, logging, validation, checkpoints and progress bar on, no panels."""
    from stopwatch import Stopwatch

    from diffusion_pl.__main__ import main

    options = f"--trainer.max_steps {steps} --data.batch_size {batch} --trainer.callbacks stopwatch.Stopwatch"
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        os.chdir(folder)
        main(["fit", "--config", str(CONFIG), *options.split()])
        os.chdir(ROOT)
    return Stopwatch.rates[-1]


def rate_of(function: str, batch: int, steps: int) -> float:
    """What one of the two functions above measures in a process of its own."""
    code = f"import datasaurus; print('rate', datasaurus.{function}({batch}, {steps}))"
    result = subprocess.run((sys.executable, "-c", code), check=True, capture_output=True, text=True)
    return float(result.stdout.split()[-1])


def speed(rounds: int = 5) -> None:
    """Steps per second of fit ÷ bare loop, medians of interleaved rounds."""
    for batch, steps in ((2048, 600), (512, 1000), (32, 2000)):
        pairs = [(rate_of("fit_rate", batch, steps), rate_of("bare_loop", batch, steps)) for _ in range(rounds)]
        ratio = statistics.median(ours / bare for ours, bare in pairs)
        ours, bare = (statistics.median(column) for column in zip(*pairs, strict=True))
        print(f"batch {batch}: fit {ours:.0f} steps/s, bare loop {bare:.0f}, ratio {ratio:.2f}", flush=True)


def start(rounds: int = 5) -> None:
    """Start-up: --help compared with import torch, fit up to its first step with import lightning.pytorch."""
    python = sys.executable
    fit = (python, "-m", "diffusion_pl", "fit", "--config", str(CONFIG), "--trainer.callbacks+=stopwatch.FirstStep")
    compared: dict[str, tuple[Callable[[], float], Callable[[], float]]] = {
        "--help / import torch": (
            lambda: seconds(python, "-m", "diffusion_pl", "--help"),
            lambda: seconds(python, "-c", "import torch"),
        ),
        "fit to its first step / import lightning.pytorch": (
            lambda: _in_empty_folder(fit),
            lambda: seconds(python, "-c", "import lightning.pytorch"),
        ),
    }
    for name, (ours, theirs) in compared.items():
        ours(), theirs()  # fill the file cache
        pairs = [(ours(), theirs()) for _ in range(rounds)]
        a, b = (statistics.median(column) for column in zip(*pairs, strict=True))
        print(f"{name}: {a:.2f} s / {b:.2f} s = {statistics.median(x / y for x, y in pairs):.3f}", flush=True)


def _in_empty_folder(command: tuple[str, ...]) -> float:
    with tempfile.TemporaryDirectory() as folder:
        return seconds(*command, cwd=folder)


if __name__ == "__main__":
    parts = {"quality": quality, "plain": plain, "speed": speed, "start": start}
    for name in [a for a in sys.argv[1:] if a in parts] or list(parts):
        parts[name]()
