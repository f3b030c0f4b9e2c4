"""What images cost: quality of digits in four minutes, a step of the network, loading.

    python benchmarks/images.py [classifier] [floor] [quality] [peer] [net] [loading] [floats]     (all but classifier)

`quality` trains configs/digits/vp.yaml; `peer` gives a `diffusers` network of the same width its own training recipe
for as long.  Both are measured by the Fréchet distance of 1,000 samples to all digits, in the features of the small
classifier diffusion_pl.metrics.DigitsClassifier, whose weights `classifier` trained.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
WEIGHTS = ROOT / "diffusion_pl" / "metrics" / "digits.npz"
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT / "benchmarks"), str(ROOT)])
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT)]
SECONDS = 240.0


def digits() -> tuple[Any, Any]:
    """All digits in [-1, 1]: (1797, 1, 8, 8), and their labels."""
    import torch
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return torch.from_numpy(bunch.images).float()[:, None] / 8 - 1, torch.from_numpy(bunch.target)


def classifier() -> None:
    """Train the classifier again and write its weights."""
    import numpy as np
    import torch
    from torch import nn

    from diffusion_pl.metrics import DigitsClassifier

    x, y = digits()
    held_out = torch.arange(len(x)) % 5 == 0
    known = DigitsClassifier()
    # As one sequence, as which it is filed.
    net = nn.Sequential(*known.features, nn.ReLU(), known.logits).train().requires_grad_(True)
    torch.manual_seed(0)
    for layer in net:
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            layer.reset_parameters()
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=0.05)
    train_x, train_y = x[~held_out], y[~held_out]
    for _ in range(1500):
        chosen = torch.randint(len(train_x), (128,))
        noisy = train_x[chosen] + 0.1 * torch.randn(128, 1, 8, 8)
        loss = torch.nn.functional.cross_entropy(net(noisy), train_y[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        accuracy = (net(x[held_out]).argmax(1) == y[held_out]).float().mean()
    np.savez_compressed(WEIGHTS, **{name: value.numpy().astype(np.float16) for name, value in net.state_dict().items()})
    print(f"classifier: {100 * accuracy:.1f} % of the held-out digits right")


def frechet(samples: Any) -> float:
    """Fréchet distance of samples (N, 1, 8, 8) in [-1, 1] to all digits, in the classifier's 64 features."""
    import numpy as np
    import torch
    from scipy.linalg import sqrtm

    from diffusion_pl.metrics import DigitsClassifier

    net = DigitsClassifier()

    def moments(x: torch.Tensor) -> tuple[Any, Any]:
        # As images have them: 17 levels.
        with torch.no_grad():
            features = net.features(((x.clamp(-1, 1) + 1) * 8).round() / 8 - 1).double().numpy()
        return features.mean(0), np.cov(features, rowvar=False)

    (mean_a, cov_a), (mean_b, cov_b) = moments(samples), moments(digits()[0])
    return float(((mean_a - mean_b) ** 2).sum() + np.trace(cov_a + cov_b - 2 * sqrtm(cov_a @ cov_b).real))


def floor() -> None:
    """What 1,000 of the digits themselves have: no model can be expected to do better."""
    import torch

    x, _ = digits()
    values = [frechet(x[torch.randperm(len(x))[:1000]]) for _ in range(5)]
    print(f"1,000 real digits: Fréchet distance {sum(values) / 5:.3f}")


def quality(config: str = "vp") -> None:
    """Fréchet distance after `fit` of configs/digits/CONFIG.yaml, and the wall clock of that."""
    import numpy as np
    import torch
    from PIL import Image

    with tempfile.TemporaryDirectory() as folder:
        program = (sys.executable, "-m", "diffusion_pl")
        start = time.perf_counter()
        fit = (*program, "fit", "--config", str(ROOT / f"configs/digits/{config}.yaml"), "--run", "r")
        subprocess.run(fit, cwd=folder, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        took = time.perf_counter() - start
        options = ("--ckpt_path", "runs/r/checkpoints/last.ckpt", "--num_samples", "1000", "--batch_size", "250")
        draw = (*program, "sample", *options, "--output", "s", "--accelerator", "cpu")
        subprocess.run(draw, cwd=folder, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        images = [np.asarray(Image.open(file)) for file in sorted(Path(folder, "s").glob("[0-9]*.png"))]
    assert len(images) == 1000
    samples = torch.from_numpy(np.stack(images)).float()[:, None] / 127.5 - 1
    print(f"digits/{config}: Fréchet distance {frechet(samples):.3f} after {took:.0f} s of fit", flush=True)


def peer() -> None:
    """`diffusers`: UNet2DModel of the same width, and the recipe of its unconditional training example.

    AdamW 1e-4 (0.95, 0.999), weight decay 1e-6, cosine schedule with 500 steps of warm-up, batch 16, ε-loss of DDPM
    with 1,000 linear steps, EMA (power 3/4, at most 0.9999); sampled by its DDPM pipeline's 1,000 steps.
    """
    import torch
    from diffusers import DDPMScheduler, UNet2DModel
    from diffusers.optimization import get_scheduler
    from diffusers.training_utils import EMAModel

    torch.manual_seed(0)
    x, _ = digits()
    model = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=2,
        block_out_channels=(32, 64),
        norm_num_groups=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    ema = EMAModel(model.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75)
    scheduler = DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8)
    rates = get_scheduler("cosine", optimizer=optimizer, num_warmup_steps=500, num_training_steps=100 * (len(x) // 16))
    start, steps = time.perf_counter(), 0
    while time.perf_counter() - start < SECONDS:
        order = torch.randperm(len(x))
        for chosen in order.split(16):
            noise, t = torch.randn(len(chosen), 1, 8, 8), torch.randint(0, 1000, (len(chosen),))
            noisy = scheduler.add_noise(x[chosen], noise, t)
            loss = torch.nn.functional.mse_loss(model(noisy, t).sample, noise)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            rates.step()
            optimizer.zero_grad()
            ema.step(model.parameters())
            steps += 1
            if time.perf_counter() - start >= SECONDS:
                break
    ema.copy_to(model.parameters())
    generator = torch.Generator().manual_seed(0)
    samples = torch.randn(1000, 1, 8, 8, generator=generator)
    scheduler.set_timesteps(1000)
    with torch.no_grad():
        for t in scheduler.timesteps:
            samples = scheduler.step(model(samples, t).sample, t, samples, generator=generator).prev_sample
    print(f"diffusers' recipe: Fréchet distance {frechet(samples):.3f} after {SECONDS:.0f} s, {steps} steps of 16")


def _timed(step: Callable[[], object], rounds: int) -> float:
    """Median seconds of one call."""
    import statistics

    step()
    taken = []
    for _ in range(rounds):
        start = time.perf_counter()
        step()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def net(rounds: int = 3) -> None:
    """Training step of the 35.7 M network at batch 16: fp32, bf16, channels_last; `diffusers`' of the same shape."""
    import torch
    from diffusers import UNet2DModel

    from diffusion_pl.networks import UNet

    x, t = torch.randn(16, 3, 32, 32), torch.rand(16) * 999

    def step_of(model: Any, call: Callable[[Any], Any], bf16: bool) -> Callable[[], None]:
        def step() -> None:
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                output = call(model)
            output.float().square().mean().backward()
            model.zero_grad()

        return step

    theirs = UNet2DModel(
        sample_size=32,
        block_out_channels=(128, 256, 256, 256),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
        attention_head_dim=None,
        norm_eps=1e-6,
    )
    ours = UNet((3, 32, 32))
    sizes = [sum(p.numel() for p in m.parameters()) for m in (ours, theirs)]
    print(f"parameters: ours {sizes[0]:,}, diffusers {sizes[1]:,}")
    for last in (False, True):
        form = torch.channels_last if last else torch.contiguous_format
        for m in (ours, theirs):
            m.to(memory_format=form)
        for bf16 in (False, True):
            mine = _timed(step_of(ours, lambda m: m(x, t), bf16), rounds) / 16
            other = _timed(step_of(theirs, lambda m: m(x, t).sample, bf16), rounds) / 16
            name = f"{'bf16' if bf16 else 'fp32'}{' channels_last' if last else ''}"
            print(
                f"{name}: {1e3 * mine:.0f} ms an image, diffusers {1e3 * other:.0f}, ratio {mine / other:.2f}",
                flush=True,
            )


def loading(batch: int = 128) -> None:
    """Samples per second of our loaders ÷ torch's DataLoader, and of HDF5 by sorted batch reads ÷ item reads."""
    import h5py
    import torch
    from torch.utils.data import DataLoader, Dataset, TensorDataset
    from torchvision.transforms import v2

    from diffusion_pl.data.augmentation import HorizontalFlip
    from diffusion_pl.data.hdf5 import HDF5
    from diffusion_pl.data.loader import Loader, Tensors

    def rate(batches: Any, limit: float = 3.0) -> float:
        seen, start = 0, time.perf_counter()
        while time.perf_counter() - start < limit:
            for b in batches:
                seen += len(b["x"] if isinstance(b, dict) else b[0] if isinstance(b, (list, tuple)) else b)
                if time.perf_counter() - start > limit:
                    break
        return seen / (time.perf_counter() - start)

    class Items(Dataset[Any]):
        def __init__(self, x: torch.Tensor) -> None:
            self.x = x
            self.change = v2.Compose(
                [v2.RandomHorizontalFlip(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5], [0.5])]
            )

        def __len__(self) -> int:
            return len(self.x)

        def __getitem__(self, i: int) -> Any:
            return self.change(self.x[i])

    class Scaled(Loader):
        """Batches as training gets them: mirrored and scaled."""

        def __iter__(self) -> Any:
            return (batch["x"].float() * (2 / 255) - 1 for batch in super().__iter__())

    for name, shape in (("MNIST", (1, 28, 28)), ("CIFAR-10", (3, 32, 32))):
        x = torch.randint(0, 256, (20_000, *shape), dtype=torch.uint8)
        ours = rate(Scaled(Tensors({"x": x}), batch, shuffle=True, augmentation=HorizontalFlip()))
        theirs = rate(DataLoader(Items(x), batch, shuffle=True))
        print(f"{name}: {ours:,.0f} samples/s, DataLoader with transforms {theirs:,.0f}: ratio {ours / theirs:.1f}")
    points = torch.randn(100_000, 2)
    ours = rate(Loader(Tensors({"x": points}), batch, shuffle=True))
    theirs = rate(DataLoader(TensorDataset(points), batch, shuffle=True))
    print(f"points: {ours:,.0f} samples/s, DataLoader(TensorDataset) {theirs:,.0f}: ratio {ours / theirs:.1f}")

    class ItemReads(Dataset[Any]):
        def __init__(self, path: str) -> None:
            self.file = h5py.File(path)["imgs"]

        def __len__(self) -> int:
            return len(self.file)

        def __getitem__(self, i: int) -> Any:
            return torch.from_numpy(self.file[i])

    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "x.hdf5")
        with h5py.File(path, "w") as file:
            file["imgs"] = torch.randint(0, 256, (20_000, 32, 32, 3), dtype=torch.uint8).numpy()
        data = HDF5(path, dataset="imgs", batch_size=64, memory_gb=0.0, workers=0, val_fraction=0.0, test_fraction=0.0)
        data.setup()
        ours = rate(data.train_dataloader())
        theirs = rate(DataLoader(ItemReads(path), 64, shuffle=True))
        print(f"HDF5: {ours:,.0f} samples/s, item reads {theirs:,.0f}: ratio {ours / theirs:.1f}")


def floats(batch: int = 128) -> None:
    """Fields of float32 per second of processor time ÷ images of the same shape, as training gets both: scaled."""
    import statistics

    import numpy as np

    from diffusion_pl.data import Arrays, DataModule, Fields

    def rate(data: DataModule) -> float:
        """Examples of one epoch per second of processor time."""
        seen, start = 0, time.process_time()
        for taken in data.train_dataloader():
            seen += len(data.on_after_batch_transfer(taken, 0)["x"])
        return seen / (time.process_time() - start)

    rng, n, shape = np.random.default_rng(0), 12_000, (3, 32, 32)
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: str(Path(folder) / f"{name}.npy") for name in ("uint8", "uint16", "float32")}
        for name in ("uint8", "uint16"):
            np.save(paths[name], rng.integers(0, 256, (n, *shape)).astype(name))
        np.save(paths["float32"], rng.normal(size=(n, *shape)).astype(np.float32))
        for place, memory_gb in (("memory", 10.0), ("disk", 0.0)):
            options: dict[str, Any] = {"batch_size": batch, "memory_gb": memory_gb, "repeats": 1}
            sets = {name: (Fields if name == "float32" else Arrays)(path, **options) for name, path in paths.items()}
            for data in sets.values():
                data.setup()
            rounds = [{name: rate(data) for name, data in sets.items()} for _ in range(9)]
            rates = {name: statistics.median(each[name] for each in rounds) for name in sets}
            ratios = ", ".join(f"{rates['float32'] / rates[k]:.2f} of {k}" for k in ("uint8", "uint16"))
            print(f"fields from {place}: {rates['float32']:,.0f} samples/s of 12 KiB, {ratios}", flush=True)


if __name__ == "__main__":
    parts = {f.__name__: f for f in (classifier, floor, quality, peer, net, loading, floats)}
    names = sys.argv[1:] or ["floor", "quality", "peer", "net", "loading", "floats"]
    for name in names:
        parts[name]()
