"""Cost of a training step and of a sample: `fit`, `diffusers`, `denoising-diffusion-pytorch` and a bare loop, on a CPU.

    python benchmarks/peers.py [train] [sample] [--rounds N] [--steps N] [--evaluations N]

Each program is a process of its own, they take turns, and the ratios are medians over the rounds.  `train` is a whole
step, batch 16 of 3x32x32 in bf16: data, forward and backward pass, clipping, optimizer, average of the weights.  Ours
is `fit` with everything that it does; `diffusers` has the loop of its unconditional training example, ddp that of its
Trainer, each around its own network with as many parameters as ours.  `sample` draws 16 samples by DDIM in float32.
"""

import argparse
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
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT / "benchmarks"), str(ROOT)])
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT)]
BATCH, SIZE, SKIP = 16, 32, 2


def images() -> Any:
    """1,000 random images, uint8."""
    import torch

    return torch.randint(0, 256, (1000, 3, SIZE, SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def fit(network: str, steps: int) -> float:
    """Steps per second of configs/cifar10/ddpm.yaml with a network of ours, by the command line."""
    import numpy as np
    from stopwatch import Stopwatch

    from diffusion_pl.__main__ import main

    options = [
        "--config",
        str(ROOT / "configs/cifar10/ddpm.yaml"),
        "--model.network",
        f"diffusion_pl.networks.{network}",
    ]
    options += [
        "--data",
        "Arrays",
        "--data.path",
        "x.npy",
        "--data.batch_size",
        str(BATCH),
        "--data.val_fraction",
        "0.02",
    ]
    options += ["--data.horizontal_flip", "true", "--trainer.max_steps", str(steps), "--trainer.accelerator", "cpu"]
    options += ["--trainer.callbacks", "stopwatch.Stopwatch", "--trainer.callbacks.skip", str(SKIP)]
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        np.save(Path(folder) / "x.npy", images().numpy())
        os.chdir(folder)
        if main(["fit", *options]):
            raise SystemExit("fit failed")
        os.chdir(ROOT)
    return Stopwatch.rates[-1]


def rate(step: Callable[[], object], steps: int) -> float:
    """Calls per second, without the first SKIP and, as Stopwatch counts, the last."""
    for _ in range(SKIP):
        step()
    start = time.perf_counter()
    for _ in range(steps - 1 - SKIP):
        step()
    return (steps - 1 - SKIP) / (time.perf_counter() - start)


def bare(network: str, steps: int) -> float:
    """The same network, optimizer and loss with clipping in a loop: what cannot be done without."""
    import torch

    from diffusion_pl import networks

    model = getattr(networks, network)((3, SIZE, SIZE)).to(memory_format=torch.channels_last)
    parameters, data = list(model.parameters()), images()
    optimizer = torch.optim.Adam(parameters, lr=2e-4, fused=True)
    alpha_bar = (1 - torch.linspace(1e-4, 0.02, 1000)).cumprod(0)

    def step() -> None:
        x_0 = data[torch.randint(1000, (BATCH,))]
        x_0 = torch.where(torch.rand(BATCH, 1, 1, 1) < 0.5, x_0.flip(-1), x_0).float() / 127.5 - 1
        i, eps = torch.randint(1000, (BATCH,)), torch.randn_like(x_0)
        a = alpha_bar[i].view(-1, 1, 1, 1)
        with torch.autocast("cpu", torch.bfloat16):
            output = model(a.sqrt() * x_0 + (1 - a).sqrt() * eps, i.float())
        (output.float() - eps).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return rate(step, steps)


def unet2d(channels: tuple[int, ...] = (128, 256, 256, 256)) -> Any:
    """The network of `diffusers` that is wired as Ho et al.'s, with the parameters of our UNet."""
    from diffusers import UNet2DModel

    kinds = ["", "Attn", *[""] * (len(channels) - 2)]
    return UNet2DModel(
        sample_size=SIZE,
        block_out_channels=channels,
        layers_per_block=2,
        down_block_types=tuple(f"{kind}DownBlock2D" for kind in kinds),
        up_block_types=tuple(f"{kind}UpBlock2D" for kind in reversed(kinds)),
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
        attention_head_dim=None,
        norm_eps=1e-6,
    )


def diffusers(network: str, steps: int) -> float:
    """Steps per second of `diffusers`' example: DataLoader, DDPMScheduler, AdamW, clipping, EMAModel."""
    import torch
    from diffusers import DDPMScheduler
    from diffusers.training_utils import EMAModel
    from torch.utils.data import DataLoader
    from torchvision.transforms import v2

    model = unet2d()
    change = v2.Compose([v2.RandomHorizontalFlip(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5], [0.5])])
    loader = DataLoader([*images()], BATCH, shuffle=True, collate_fn=lambda rows: torch.stack([*map(change, rows)]))
    batches = (batch for _ in range(steps) for batch in loader)
    ema = EMAModel(model.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75)
    scheduler = DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8)

    def step() -> None:
        x_0 = next(batches)
        noise, t = torch.randn_like(x_0), torch.randint(0, 1000, (BATCH,))
        with torch.autocast("cpu", torch.bfloat16):
            output = model(scheduler.add_noise(x_0, noise, t), t).sample
        torch.nn.functional.mse_loss(output.float(), noise).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.step(model.parameters())

    return rate(step, steps)


def process(network: str, evaluations: int = 50) -> Any:
    """denoising-diffusion-pytorch's process of 1,000 linear steps around its own network."""
    from denoising_diffusion_pytorch import GaussianDiffusion, Unet

    options: dict[str, Any] = {"objective": "pred_noise", "beta_schedule": "linear", "timesteps": 1000}
    model = Unet(64, dim_mults=(1, 2, 4, 8))
    return GaussianDiffusion(model, image_size=SIZE, sampling_timesteps=evaluations, **options)


def ddp(network: str, steps: int) -> float:
    """Steps per second of denoising-diffusion-pytorch's Trainer: its process, Adam, clipping, EMA every tenth step."""
    import torch
    from ema_pytorch import EMA

    diffusion, data = process(network), images()
    optimizer = torch.optim.Adam(diffusion.parameters(), lr=1e-4, betas=(0.9, 0.99))
    ema = EMA(diffusion, beta=0.995, update_every=10)

    def step() -> None:
        x_0 = data[torch.randint(1000, (BATCH,))]
        x_0 = torch.where(torch.rand(BATCH, 1, 1, 1) < 0.5, x_0.flip(-1), x_0).float() / 255
        with torch.autocast("cpu", torch.bfloat16):
            loss = diffusion(x_0)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(diffusion.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.update()

    return rate(step, steps)


def sampled(draw: Callable[[], Any]) -> float:
    """Samples per second."""
    start = time.perf_counter()
    result = draw()
    assert len(result) == BATCH
    return BATCH / (time.perf_counter() - start)


def sample_ours(network: str, evaluations: int) -> float:
    """Our DDIM on our network."""
    import torch

    from diffusion_pl import networks
    from diffusion_pl.denoisers import Epsilon, ScaledTime
    from diffusion_pl.losses import SNR, DenoisingLoss, GridTimes
    from diffusion_pl.samplers import DDIM, RespacedGrid
    from diffusion_pl.schedules import LinearBetas
    from diffusion_pl.training import DiffusionModule

    model = DiffusionModule(
        network=getattr(networks, network),
        schedule=LinearBetas(1000),
        parameterization=Epsilon(),
        loss=DenoisingLoss(GridTimes(1000), SNR()),
        sampler=DDIM(RespacedGrid(evaluations, length=1000)),
        optimizer=torch.optim.Adam,
        noise_input=ScaledTime(1000, -1),
        channels_last=True,
        shape=(3, SIZE, SIZE),
    ).eval()
    return sampled(lambda: model.live_pipeline().samples(range(BATCH)).x_0)


def sample_diffusers(network: str, evaluations: int) -> float:
    """`diffusers`' DDIMPipeline."""
    import numpy as np
    from diffusers import DDIMPipeline, DDIMScheduler

    pipeline = DDIMPipeline(unet2d().eval(), DDIMScheduler(num_train_timesteps=1000, beta_schedule="linear"))
    pipeline.set_progress_bar_config(disable=True)
    options: dict[str, Any] = {"batch_size": BATCH, "num_inference_steps": evaluations, "output_type": "np"}
    return sampled(lambda: np.asarray(pipeline(**options).images))


def sample_ddp(network: str, evaluations: int) -> float:
    """denoising-diffusion-pytorch's DDIM."""
    diffusion = process(network, evaluations).eval()
    return sampled(lambda: diffusion.sample(batch_size=BATCH))


def rates(function: str, network: str, number: int) -> float:
    """What one of the functions above measures, in a process of its own."""
    code = f"import peers; print('rate', peers.{function}('{network}', {number}))"
    result = subprocess.run((sys.executable, "-c", code), capture_output=True, text=True, check=False)
    if result.returncode:
        raise SystemExit(f"{function} of {network} failed:\n{result.stderr[-2000:]}")
    return float(result.stdout.split()[-1])


def compare(what: str, network: str, ours: str, others: dict[str, str], number: int, rounds: int) -> None:
    """Ours ÷ each of the others, in turns."""
    programs = {"ours": ours, **others}
    taken = [
        {program: rates(function, network, number) for program, function in programs.items()} for _ in range(rounds)
    ]
    for program in others:
        a, b = (
            statistics.median(BATCH * row[s] if what == "train" else row[s] for row in taken) for s in ("ours", program)
        )
        ratio = statistics.median(row["ours"] / row[program] for row in taken)
        print(f"{what}, {network}: ours {a:.2f} images/s, {program} {b:.2f}: ratio {ratio:.2f}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="train|sample", help="default: both")
    parser.add_argument("--rounds", type=int, default=3, help="1 takes some minutes")
    parser.add_argument("--steps", type=int, default=12, help="of training, in each round")
    parser.add_argument("--evaluations", type=int, default=50, help="of the network for a sample")
    given = parser.parse_args()
    if unknown := set(given.parts) - {"train", "sample"}:
        parser.error(f"there is no part {', '.join(sorted(unknown))}, only train and sample")
    if given.rounds < 1 or given.evaluations < 2 or given.steps < SKIP + 2:
        parser.error(f"rounds must be at least 1, evaluations 2, steps {SKIP + 2}")
    for part in given.parts or ["train", "sample"]:
        if part == "train":
            compared = ("fit", {"bare loop": "bare", "diffusers": "diffusers"}), ("fit", {"ddp": "ddp"})
        else:
            compared = ("sample_ours", {"diffusers": "sample_diffusers"}), ("sample_ours", {"ddp": "sample_ddp"})
        for network, (mine, others) in zip(("UNet", "LinearAttentionUNet"), compared, strict=True):
            compare(part, network, mine, others, given.steps if part == "train" else given.evaluations, given.rounds)
