"""Latents: how fast they are read, and what they are worth against pixels, on Fashion-MNIST.

    python benchmarks/latents.py [loading] [race] [--minutes 10]

`loading` reads latents of 16 KiB (32 x 16 x 16, float16) from the disk, in training's order.
`race` trains configs/fashion_mnist/autoencoder.yaml, encodes the images, and trains a model of the latents for so many
minutes (the autoencoder and the encoding not counted, but printed), and vp.yaml's of pixels for twice as long.  Fréchet
distance of 2,000 samples to the training images, in 64 features of a small classifier that is trained first, since
Inception's weights are a download; rfid is that of the autoencoder's reconstructions.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
N, SHAPE, READ = 8000, (32, 16, 16), 20_000


class Features(nn.Module):
    """A classifier of Fashion-MNIST: uint8 images to 64 features and 10 logits."""

    resize = "none"

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for channels, out in ((1, 16), (16, 32), (32, 64)):
            layers += [nn.Conv2d(channels, out, 3, 2, 1), nn.SiLU()]
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 16, 64))
        self.head = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        rows = self.body(images.float() / 127.5 - 1)
        return rows, self.head(F.silu(rows))


def trained_features(seconds: float = 25) -> Features:
    from diffusion_pl.data import FashionMNIST

    torch.manual_seed(0)
    data = FashionMNIST(conditional=True)
    data.setup()
    net = Features()
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3)
    begin, source = time.perf_counter(), data.part("train")
    while time.perf_counter() < begin + seconds:
        batch = source.__getitems__(torch.randint(len(source), (128,)))
        loss = F.cross_entropy(net(batch["x"])[1], batch["label"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    held_out = data.part("test").__getitems__(torch.arange(2000))
    accuracy = (net(held_out["x"])[1].argmax(1) == held_out["label"]).float().mean()
    print(f"features: {100 * accuracy:.1f} % of the test labels right")
    return net


def loading() -> None:
    """Latents of 16 KiB a second, one process: the mean alone, and mean and std."""
    from diffusion_pl.data import Loader
    from diffusion_pl.data.latent_draws import Drawn
    from diffusion_pl.data.latent_files import Rows

    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as folder:
        for moments in (1, 2):
            path = Path(folder) / f"{moments}.npy"
            array = np.lib.format.open_memmap(path, "w+", np.float16, (N, 1, moments, *SHAPE))
            for first in range(0, N, 500):
                array[first : first + 500] = np.random.default_rng(0).normal(size=array[first : first + 500].shape)
            array.flush()
            del array
            os.sync()
            rows = Rows({"x": path})
            loader = Loader(rows, 128, shuffle=True, augmentation=Drawn(rows), repeats=-(-READ // N))
            batches, begin, own, count = iter(loader), time.perf_counter(), time.process_time(), 0
            while count < READ:
                count += len(next(batches)["x"])
            rate, of_cpu = count / (time.perf_counter() - begin), count / (time.process_time() - own)
            name = "mean" if moments == 1 else "mean + std · noise"
            size = 2 * np.prod(SHAPE) // 1024
            print(f"loading, {name}: {rate:,.0f} latents of {size} KiB a second, {of_cpu:,.0f} a second of CPU")


def command(folder: Path, *args: Any) -> float:
    """Run a command of the package in a folder; its seconds."""
    begin = time.perf_counter()
    line = [sys.executable, "-m", "diffusion_pl", *map(str, args)]
    done = subprocess.run(line, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(line)}: {done.stderr or done.stdout}")
    return time.perf_counter() - begin


def race(minutes: float) -> None:
    """Fréchet distances of a model of latents and one of pixels that is trained twice as long."""
    from diffusion_pl.checkpoints.loading import load_pipeline
    from diffusion_pl.evaluation import Plan
    from diffusion_pl.evaluation.run import run

    folder = Path(tempfile.mkdtemp(dir=os.environ.get("BENCH_DIR")))
    extractor = trained_features()
    quiet = ("--trainer.enable_progress_bar", "false", "--trainer.val_check_interval", 10**6)
    bare = (*quiet, "--trainer.callbacks", "[]", "--model.lr_scheduler", "null")
    share = max(1, round(minutes * 15))  # seconds of the autoencoder: a quarter
    auto = command(
        folder, "fit", "--config", "fashion_mnist/autoencoder", "--run", "auto", *quiet, "--trainer.max_steps", -1,
        "--trainer.callbacks", "[]", "--model.init_args.lr_scheduler", "null", "--trainer.max_time", _time(share),
    )  # fmt: skip
    encoding = command(folder, "latents", "--data", "FashionMNIST", "--autoencoder", "runs/auto", "--output", "latents")
    print(f"autoencoder {auto:.0f} s, encoding {encoding:.0f} s", flush=True)
    arms = {"latents": (minutes, "fashion_mnist/latent"), "pixels": (2 * minutes, "fashion_mnist/vp")}
    for name, (length, config) in arms.items():
        limits = ("--trainer.max_steps", -1, "--trainer.max_time", _time(round(60 * length)))
        command(folder, "fit", "--config", config, *bare, *limits, "--run", name)
        pipeline, data = load_pipeline(folder / "runs" / name, "ema", {"batch_size": 128})
        results = run(pipeline, data, Plan(metrics=("fid",), num_samples=2000, extractor=extractor))
        card = json.loads((folder / "runs" / name / "card.json").read_text())
        values = ", ".join(f"{metric} {result.value:.4g}" for metric, result in results.metrics.items())
        print(f"{name}, {length:g} minutes, {card['steps']} steps: {values}", flush=True)


def _time(seconds: int) -> str:
    return f"00:{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Speed and worth of latents.")
    parser.add_argument("parts", nargs="*", default=["loading", "race"], help="loading, race")
    parser.add_argument("--minutes", type=float, default=10.0, help="minutes of training on latents")
    options = parser.parse_args()
    for part in options.parts:
        loading() if part == "loading" else race(options.minutes)
