"""Samples in one, two and four evaluations: quality compared with the teacher's many, with a peer's, and the cost.

    python benchmarks/flow_maps.py [step] [datasaurus] [digits] [fashion] [peer]    (all of them without an argument)

`step` times a training step of MeanFlow against the ordinary one of the same network.  `digits` trains a diffusion
model, makes a consistency model of it, and compares Fréchet distances in the features of
`diffusion_pl.metrics.DigitsClassifier`.  `fashion` does the same with latents of Fashion-MNIST, compared with the best
of the ordinary samplers in 10 evaluations, in the features of benchmarks/latents.py; with TEACHER=FOLDER in the
environment it takes runs/latents and latents/ from there instead of training them.  `peer` trains MeanFlow of
`rectified-flow-pytorch` and ours on the Datasaurus.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT / "benchmarks"), str(ROOT)])
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT)]


def command(folder: Path, *args: Any) -> float:
    """Run a command of the package in a folder; its seconds."""
    begin = time.perf_counter()
    line = [sys.executable, "-m", "diffusion_pl", *map(str, args)]
    done = subprocess.run(line, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(line)}: {done.stderr or done.stdout}")
    return time.perf_counter() - begin


def step(rounds: int = 5, steps: int = 40) -> None:
    """Seconds of a training step of configs/digits/meanflow.yaml ÷ those of DenoisingLoss, medians of turns."""
    import torch

    from diffusion_pl.denoisers import NetworkDenoiser, ScaledTime, Velocity
    from diffusion_pl.losses import DenoisingLoss, FlowMapLoss, LogitNormalTimes, MeanFlow, Plain, TwoTimes
    from diffusion_pl.networks import UNet
    from diffusion_pl.schedules import Rectified

    times = LogitNormalTimes(-0.4, 1.0)
    losses = {
        "ordinary": DenoisingLoss(times, Plain()),
        "MeanFlow, r = t in 75 %": FlowMapLoss(MeanFlow(), TwoTimes(times, 0.75)),
        "MeanFlow, r = t in 50 %": FlowMapLoss(MeanFlow(), TwoTimes(times, 0.5)),
        "MeanFlow, r < t in all": FlowMapLoss(MeanFlow(), TwoTimes(times, 0.0)),
    }
    network = UNet((1, 8, 8), {}, 32, [1, 2], 2, [4], 0.1, flow_map=True)
    denoiser = NetworkDenoiser(network, Rectified(), Velocity(), ScaledTime(1.0))
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)
    took: dict[str, list[float]] = {name: [] for name in losses}
    for _ in range(rounds):
        for name, loss in losses.items():
            begin = time.perf_counter()
            for _ in range(steps):
                loss(denoiser, torch.randn(128, 1, 8, 8)).loss.mean().backward()
                optimizer.step()
                optimizer.zero_grad()
            took[name].append((time.perf_counter() - begin) / steps)
    for name, seconds in took.items():
        ratio = statistics.median(a / b for a, b in zip(seconds, took["ordinary"], strict=True))
        print(f"step, {name}: {1e3 * statistics.median(seconds):.1f} ms, ratio {ratio:.2f}", flush=True)


def datasaurus() -> None:
    """Energy distance of 4,000 samples of configs/datasaurus/flow_map.yaml in 1, 2 and 4 evaluations."""
    import numpy as np
    from datasaurus import energy_distance

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        took = command(folder, "fit", "--config", "datasaurus/flow_map", "--run", "r")
        for steps in (1, 2, 4):
            options = ("--num_samples", 4000, "--steps", steps, "--output", f"s{steps}", "--accelerator", "cpu")
            command(folder, "sample", "--ckpt_path", "runs/r", *options)
            samples = np.loadtxt(folder / f"s{steps}" / "samples.csv", delimiter=",", skiprows=1)
            distance = energy_distance(samples)
            print(f"datasaurus, {steps} evaluations: energy distance {distance:.5f}, fit {took:.0f} s", flush=True)


def distances(folder: Path, run: str, samplers: dict[str, Any], extractor: Any, samples: int) -> dict[str, float]:
    """Fréchet distance of a run's samples by sampler."""
    from diffusion_pl.checkpoints.loading import load_pipeline
    from diffusion_pl.evaluation import Plan
    from diffusion_pl.evaluation.run import run as evaluate

    pipeline, data = load_pipeline(folder / "runs" / run, "ema", {"batch_size": 128})
    plan = Plan(metrics=("fid",), num_samples=samples, extractor=extractor)
    results = {}
    for name, choose in samplers.items():
        chosen = choose(pipeline)
        results[name] = evaluate(chosen, data, plan).metrics["fid"].value
        print(f"  {run}, {name}: {results[name]:.3f}", flush=True)
    return results


def few() -> dict[str, Any]:
    """Exact jumps of a flow map, and jumps with fresh noise between them."""
    from diffusion_pl.samplers import MultistepConsistency

    return {
        "1": lambda pipe: pipe.with_sampler(steps=1),
        "2": lambda pipe: pipe.with_sampler(steps=2),
        "2, fresh noise": lambda pipe: pipe.with_sampler(MultistepConsistency, steps=2),
        "4": lambda pipe: pipe.with_sampler(steps=4),
    }


def digits() -> None:
    """configs/digits/vp.yaml, its 18 steps of Heun; and configs/digits/consistency.yaml from its weights."""
    from diffusion_pl.metrics import DigitsClassifier

    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as name:
        folder = Path(name)
        own = command(folder, "fit", "--config", "digits/vp", "--run", "teacher", "--trainer.callbacks", "[]")
        options = ("--config", "digits/consistency", "--init_from", "runs/teacher", "--run", "student")
        took = command(folder, "fit", *options, "--trainer.callbacks", "[]")
        teacher = distances(folder, "teacher", {"35": lambda pipe: pipe}, DigitsClassifier(), 1000)["35"]
        student = distances(folder, "student", few(), DigitsClassifier(), 1000)
    print(f"digits: teacher {own:.0f} s, 35 evaluations {teacher:.2f}; student {took:.0f} s", flush=True)
    for steps, value in student.items():
        print(f"digits, {steps} evaluations: {value:.2f}, ratio {value / teacher:.2f}", flush=True)


def fashion(minutes: int = 20) -> None:
    """configs/fashion_mnist/latent.yaml after so many minutes, with the best sampler in 10 evaluations; and
    latent_ect.yaml from its weights."""
    from latents import trained_features

    from diffusion_pl.samplers import DDIM, DEIS, DPMpp, Heun, LogSNRGrid, UniformGrid, UniPC

    folder = Path(os.environ.get("TEACHER") or tempfile.mkdtemp(dir=os.environ.get("BENCH_DIR")))
    quiet = ("--trainer.callbacks", "[]", "--trainer.enable_progress_bar", "false")
    if not (folder / "latents").exists():
        command(folder, "fit", "--config", "fashion_mnist/autoencoder", "--run", "auto", *quiet)
        arguments = ("--data", "FashionMNIST", "--autoencoder", "runs/auto", "--output", "latents")
        command(folder, "latents", *arguments)
        limit = ("--trainer.max_steps", -1, "--trainer.max_time", f"00:00:{minutes}:00", "--model.lr_scheduler", "null")
        command(folder, "fit", "--config", "fashion_mnist/latent", "--run", "latents", *limit, *quiet)
    options = ("--config", "fashion_mnist/latent_ect", "--init_from", "runs/latents", "--run", "student")
    took = command(folder, "fit", *options, *quiet)
    extractor = trained_features()
    ordinary: dict[str, Any] = {}
    for sampler in (DDIM, Heun, DEIS, DPMpp, UniPC):
        for grid in (UniformGrid, LogSNRGrid):
            made = sampler(grid(5 if sampler is Heun else 10))  # Heun: 9 evaluations
            ordinary[f"{sampler.__name__}, {grid.__name__}"] = partial(
                lambda pipe, made: pipe.with_sampler(made), made=made
            )
    many = distances(folder, "latents", ordinary, extractor, 2000)
    best = min(many, key=lambda name: many[name])
    print(f"fashion: student {took:.0f} s; teacher's best in 10 evaluations {best} {many[best]:.2f}", flush=True)
    for steps, value in distances(folder, "student", few(), extractor, 2000).items():
        print(f"fashion, {steps} evaluations: {value:.2f}, ratio {value / many[best]:.2f}", flush=True)


def peer(seconds: float = 60.0) -> None:
    """Energy distance of 4,000 samples in one evaluation: MeanFlow of the peer and ours, on the Datasaurus with one
    network, optimizer, batch size and time for both, one after the other."""
    import torch
    from datasaurus import energy_distance
    from rectified_flow_pytorch.mean_flow import MeanFlow as Peer
    from torch import Tensor, nn

    from diffusion_pl.data import Datasaurus
    from diffusion_pl.denoisers import NetworkDenoiser, Velocity
    from diffusion_pl.losses import FlowMapLoss, LogitNormalTimes, MeanFlow, TwoTimes
    from diffusion_pl.networks import MLP, Fourier
    from diffusion_pl.samplers import DDIM, UniformGrid
    from diffusion_pl.schedules import Rectified

    data = Datasaurus()
    data.setup()
    points = data.train_points

    def network() -> MLP:
        torch.manual_seed(0)
        features = partial(Fourier, features=64, scale=0.4), partial(Fourier, features=64, scale=1.0)
        return MLP((2,), {}, 128, 3, *features, flow_map=True)

    class Adapted(nn.Module):
        """The network as the peer calls it."""

        def __init__(self) -> None:
            super().__init__()
            self.network = network()

        def forward(self, x: Tensor, t: Tensor, jump: Tensor) -> Tensor:
            c_in = torch.rsqrt((1 - t).square() + t.square())[:, None]
            output: Tensor = self.network(c_in * x, t, jump=jump)
            return output

    def train(loss: Any, trained: nn.Module) -> int:
        optimizer = torch.optim.AdamW(trained.parameters(), lr=1e-3, fused=True)
        begin, steps = time.perf_counter(), 0
        while time.perf_counter() < begin + seconds:
            loss(points[torch.randint(len(points), (1024,))]).backward()
            optimizer.step()
            optimizer.zero_grad()
            steps += 1
        return steps

    theirs = Peer(Adapted(), data_shape=(2,))
    ours = NetworkDenoiser(network(), Rectified(), Velocity())
    objective = FlowMapLoss(MeanFlow(), TwoTimes(LogitNormalTimes(-0.4, 1.0), 0.5))
    counts = train(theirs, theirs), train(lambda x: objective(ours, x).loss.mean(), ours)
    noise = torch.randn(4000, 2, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        samples = theirs.sample(4000, noise=noise), DDIM(UniformGrid(1))(ours, noise).x_0
    distances = [energy_distance(data.decode(x)) for x in samples]
    print(
        f"peer, Datasaurus, {seconds:.0f} s each: rectified-flow-pytorch {distances[0]:.4f} ({counts[0]} steps), ours "
        f"{distances[1]:.4f} ({counts[1]} steps), ratio {distances[1] / distances[0]:.2f}",
        flush=True,
    )


if __name__ == "__main__":
    parts = {"step": step, "datasaurus": datasaurus, "digits": digits, "fashion": fashion, "peer": peer}
    for name in [a for a in sys.argv[1:] if a in parts] or list(parts):
        parts[name]()
