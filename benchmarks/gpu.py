"""What a GPU makes of it: utilisation in training, samples and FID features per second, where the memory goes, `fit`.

    python benchmarks/gpu.py [matmul] [train] [sample] [features] [memory] [fit]     (all of them without an argument)
    python benchmarks/gpu.py --device cpu --tiny      tiny networks and few steps, to try the program itself

The networks are DDPM's of Ho et al., DDPM++ and EDM's DDPM++ (three levels) for 3x32x32, in bf16 with channels_last.
Utilisation is model FLOPs (forward and backward pass, counted by torch) ÷ time ÷ the peak of a bf16 matrix product that
was measured on the same card.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT)]
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT / "benchmarks"), str(ROOT)])
SHAPE = (3, 32, 32)


class Bench:
    """The device, the sizes, and the peak of matrix products once it is measured."""

    def __init__(self, device: str, tiny: bool, batch: int, rounds: int) -> None:
        self.device, self.tiny = torch.device(device), tiny
        self.batch, self.rounds = (4 if tiny else batch), (2 if tiny else rounds)
        self._peak = 0.0

    def wait(self) -> None:
        """Wait until the device has finished its work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def seconds(self, call: Callable[[], object], warm: int = 3) -> float:
        """Median time of a call, after some that compile and choose."""
        for _ in range(1 if self.tiny else warm):
            call()
        taken = []
        for _ in range(self.rounds):
            self.wait()
            start = time.perf_counter()
            call()
            self.wait()
            taken.append(time.perf_counter() - start)
        return statistics.median(taken)

    def autocast(self) -> Any:
        return torch.autocast(self.device.type, torch.bfloat16)

    def peak(self) -> float:
        """FLOP/s of the best square bf16 matrix product."""
        if not self._peak:
            sizes = (256,) if self.tiny else (4096, 8192, 16384)
            for n in sizes:
                a, b = torch.randn(2, n, n, device=self.device, dtype=torch.bfloat16)
                self._peak = max(self._peak, 2 * n**3 / self.seconds(lambda a=a, b=b: a @ b))
        return self._peak

    def network(self, name: str) -> nn.Module:
        """Of ours DDPM, DDPM++ or EDM; or `diffusers`' UNet2DModel with DDPM's wiring and number of parameters."""
        from diffusion_pl.networks import NCSNpp, UNet

        small: dict[str, Any] = {"nf": 16, "ch_mult": (1, 2), "num_res_blocks": 1} if self.tiny else {}
        if name == "diffusers":
            from peers import unet2d

            net: nn.Module = unet2d(*((32, 32),) if self.tiny else ())
        elif name == "DDPM":
            net = UNet(SHAPE, **small)
        elif name == "DDPM++":
            net = NCSNpp(SHAPE, **small)
        else:
            net = NCSNpp(SHAPE, **({"ch_mult": (2, 2, 2), "dropout": 0.13} | small))
        return net.to(self.device)


def matmul(bench: Bench) -> None:
    """The peak that utilisation is measured against."""
    print(f"matmul: {bench.peak() / 1e12:.4g} TFLOP/s in bf16", flush=True)


def training_step(bench: Bench, name: str, recipe: str, batch: int) -> Callable[[], None]:
    """A whole step on data on the device: batch, loss, backward pass, clipping, optimizer, average.

    recipe: ours is channels_last, fused Adam and a foreach average; `diffusers`' its example's loop and EMAModel.
    """
    net = bench.network(name).train()
    data = torch.randint(0, 256, (2048, *SHAPE), dtype=torch.uint8, device=bench.device)
    alpha_bar = (1 - torch.linspace(1e-4, 0.02, 1000, device=bench.device)).cumprod(0)
    parameters = list(net.parameters())
    if recipe == "diffusers":
        from diffusers.training_utils import EMAModel

        optimizer: torch.optim.Optimizer = torch.optim.AdamW(
            parameters, lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6
        )
        ema = EMAModel(parameters, decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75)
        ema.to(bench.device)
    else:
        net.to(memory_format=torch.channels_last)
        optimizer = torch.optim.Adam(parameters, lr=2e-4, fused=True)
        average = [p.detach().clone() for p in parameters]
        if recipe == "compiled":
            net.compile()

    def step() -> None:
        x_0 = data[torch.randint(len(data), (batch,), device=bench.device)].float() / 127.5 - 1
        i, eps = torch.randint(1000, (batch,), device=bench.device), torch.randn_like(x_0)
        a = alpha_bar[i].view(-1, 1, 1, 1)
        x_t = a.sqrt() * x_0 + (1 - a).sqrt() * eps
        if recipe != "diffusers":
            x_t = x_t.contiguous(memory_format=torch.channels_last)
        with bench.autocast():
            output = net(x_t, i.float())
        output = output if isinstance(output, Tensor) else output.sample
        (output.float() - eps).square().mean().backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if recipe == "diffusers":
            ema.step(parameters)
        else:
            with torch.no_grad():
                torch._foreach_lerp_(average, parameters, 1e-4)

    return step


def flops(bench: Bench, name: str, batch: int) -> float:
    """Of the forward and backward pass of a step, in matrix products and convolutions, by torch's own count."""
    from torch.utils.flop_counter import FlopCounterMode

    net, few = bench.network(name), min(batch, 4)  # they grow as the batch does
    x = torch.randn(few, *SHAPE, device=bench.device)
    with FlopCounterMode(display=False) as counter:
        output = net(x, torch.ones(few, device=bench.device))
        (output if isinstance(output, Tensor) else output.sample).sum().backward()
    return counter.get_total_flops() * batch / few


def train(bench: Bench) -> None:
    """Utilisation of each network and recipe."""
    rates: dict[str, float] = {}
    for name in ("DDPM", "DDPM++", "EDM", "diffusers"):
        # Compiling tiny networks takes longer than all the rest.
        for recipe in ("diffusers",) if name == "diffusers" else ("eager",) if bench.tiny else ("eager", "compiled"):
            try:
                taken = bench.seconds(training_step(bench, name, recipe, bench.batch), warm=10)
            except torch.OutOfMemoryError:
                print(f"train, {name}, {recipe}: batch {bench.batch} does not fit, take --batch {bench.batch // 2}")
                _forget(bench)
                continue
            rates[name] = max(rates.get(name, 0.0), bench.batch / taken)
            utilisation = flops(bench, name, bench.batch) / taken / bench.peak()
            print(
                f"train, {name}, {recipe}, batch {bench.batch}: {1e3 * taken:.1f} ms a step, "
                f"{bench.batch / taken:.1f} images/s, utilisation {100 * utilisation:.1f} %",
                flush=True,
            )
            _forget(bench)
    if {"DDPM", "diffusers"} <= rates.keys():
        a, b = rates["DDPM"], rates["diffusers"]
        print(f"train, DDPM's network, the better of ours {a:.1f} images/s, diffusers {b:.1f}: ratio {a / b:.2f}")


def sample(bench: Bench) -> None:
    """Images per second of 18 points of Heun and 10 of DPM-Solver++, eager, compiled, and with CUDA graphs."""
    from functools import partial

    from diffusion_pl.denoisers import EDM, LogSNR
    from diffusion_pl.losses import DenoisingLoss, LogNormalTimes, Plain
    from diffusion_pl.samplers import DPMpp, Heun, KarrasGrid
    from diffusion_pl.schedules import Karras
    from diffusion_pl.training import DiffusionModule

    points = 2 if bench.tiny else 18
    heun, dpmpp = Heun(KarrasGrid(points)), DPMpp(KarrasGrid(2 if bench.tiny else 10), 2)
    modes: tuple[bool | str, ...] = (False,) if bench.tiny else (False, True, "reduce-overhead")
    first: dict[str, float] = {}
    for mode in modes:
        model = DiffusionModule(
            network=lambda shape, conditions: bench.network("EDM"),
            schedule=Karras(),
            parameterization=EDM(0.5),
            loss=DenoisingLoss(LogNormalTimes(), Plain()),
            sampler=heun,
            optimizer=torch.optim.Adam,
            noise_input=LogSNR(),
            compile=mode,
            channels_last=True,
            shape=SHAPE,
        )
        model.to(bench.device).eval()
        for name, sampler in (("Heun", heun), ("DPM-Solver++", dpmpp)):
            with bench.autocast():
                taken = bench.seconds(partial(model.live_pipeline().with_sampler(sampler).samples, range(bench.batch)))
            rate = bench.batch / taken
            how = {False: "eager", True: "compiled", "reduce-overhead": "compiled with CUDA graphs"}[mode]
            ratio = rate / first.setdefault(name, rate)
            count = len(sampler.grid(model.schedule))
            print(f"sample, {name} of {count} points, {how}: {rate:.1f} images/s, ratio {ratio:.2f}", flush=True)
        del model
        _forget(bench)


def features(bench: Bench) -> None:
    """FID's features per second: Inception with weights drawn at random, which cost what others do."""
    from evaluation import inception

    from diffusion_pl.metrics.extractors import extract

    network, batch = inception().to(bench.device), 2 if bench.tiny else 256
    images = torch.randint(0, 256, (batch, *SHAPE), dtype=torch.uint8, device=bench.device)
    taken = bench.seconds(lambda: extract(network, images))
    print(f"features: {batch / taken:.1f} images/s in batches of {batch}", flush=True)


def memory(bench: Bench) -> None:
    """Peak memory of a step of DDPM++, and what of it is parameters, gradients, optimizer, average, and the rest."""
    step = training_step(bench, "DDPM++", "eager", bench.batch)
    count = sum(p.numel() for p in bench.network("DDPM++").parameters())
    _forget(bench)
    parts = {"parameters": 4 * count, "gradients": 4 * count, "optimizer": 8 * count, "average": 4 * count}
    sizes = ", ".join(f"{name} {size / 2**20:.0f}" for name, size in parts.items())
    if bench.device.type != "cuda":
        step()
        print(f"memory of DDPM++, MiB by count: {sizes}; the peak is measured on a GPU only", flush=True)
        return
    step()
    torch.cuda.reset_peak_memory_stats()
    step()
    bench.wait()
    peak = torch.cuda.max_memory_allocated()
    rest = (peak - sum(parts.values())) / 2**20
    print(f"memory of DDPM++, batch {bench.batch}, MiB: peak {peak / 2**20:.0f}: {sizes}, ", end="")
    print(f"the rest, mostly activations, {rest:.0f}", flush=True)


def fit(bench: Bench) -> None:
    """The command line trains digits and CIFAR-shaped images on the device; exit status, and does the loss fall?"""
    import csv

    import numpy as np

    gpu = bench.device.type == "cuda"
    steps = 20 if bench.tiny else 300
    with tempfile.TemporaryDirectory() as folder:
        images = np.random.default_rng(0).integers(0, 256, (512, 3, 1, 1)).repeat(32, 2).repeat(32, 3)
        np.save(Path(folder) / "x.npy", images.astype(np.uint8))
        arrays = ["--data", "Arrays", "--data.path", "x.npy", "--data.val_fraction", "0.1"]
        small = ["--model.network.nf", "32", "--model.network.num_res_blocks", "1", "--data.batch_size", "8"]
        few = ["--trainer.callbacks", "null"] if bench.tiny else []
        for name, options in (("digits/vp", few), ("cifar10/ddpm", [*arrays, *few, *(small if bench.tiny else [])])):
            precision = "bf16-mixed" if gpu else "32-true"
            device = (
                f"--trainer.accelerator {'gpu' if gpu else 'cpu'} --trainer.devices 1 --trainer.precision {precision}"
            )
            length = f"--trainer.max_steps {steps} --trainer.val_check_interval {steps} --trainer.log_every_n_steps 5"
            # Without their warm-up, which is longer than this run.
            rest = ["--trainer.logger", "CSVLogger", "--model.lr_scheduler", "null"]
            config = ["--config", str(ROOT / f"configs/{name}.yaml"), "--run", name.replace("/", "-")]
            command = [sys.executable, "-m", "diffusion_pl", "fit", *config, *options]
            start = time.perf_counter()
            done = subprocess.run(
                [*command, *device.split(), *length.split(), *rest],
                cwd=folder,
                capture_output=True,
                text=True,
                check=False,
            )
            taken = time.perf_counter() - start
            if done.returncode:
                raise SystemExit(f"fit of {name} ended with {done.returncode}:\n{done.stderr[-2000:]}")
            (table,) = Path(folder).glob(f"runs/{name.replace('/', '-')}/csv/version_0/metrics.csv")
            with table.open(newline="") as file:
                losses = [float(row["train_loss/raw"]) for row in csv.DictReader(file) if row.get("train_loss/raw")]
            early, late = statistics.mean(losses[:2]), statistics.mean(losses[-2:])
            if not late < early:
                raise SystemExit(f"fit of {name}: the loss did not fall, {early:.3f} to {late:.3f}")
            print(
                f"fit, {name}: status 0, {steps} steps, {precision}, {taken:.0f} s, loss {early:.3f} to {late:.3f}",
                flush=True,
            )


def _forget(bench: Bench) -> None:
    """Give back memory, and what was compiled."""
    torch._dynamo.reset()
    if bench.device.type == "cuda":
        torch.cuda.empty_cache()


if __name__ == "__main__":
    parts = {f.__name__: f for f in (matmul, train, sample, features, memory, fit)}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="|".join(parts), help="default: all")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--tiny", action="store_true", help="tiny networks, to try the program itself")
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=20, help="calls of which the median is printed")
    given = parser.parse_args()
    if unknown := set(given.parts) - parts.keys():
        parser.error(f"there is no part {', '.join(sorted(unknown))}, only {', '.join(parts)}")
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.exit(2, "benchmarks/gpu.py: torch finds no CUDA card; --device cpu --tiny tries the program itself\n")
    if given.device == "cuda":
        torch.backends.cudnn.benchmark = True
        print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, CUDA {torch.version.cuda}", flush=True)
    bench = Bench(given.device, given.tiny, given.batch, given.rounds)
    for part in given.parts or parts:
        parts[part](bench)
