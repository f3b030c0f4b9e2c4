"""Cost of metrics: likelihood against scipy's RK45 as score_sde uses it, and the moments of FID against their features.

    python benchmarks/evaluation.py [nll] [digits] [fid] [frechet] [--ckpt_path FILE]

`nll` has the exact scores, and the exact density, of eight Gaussians in the plane; `digits` a network: that of the
checkpoint, or one that configs/digits/vp.yaml trains for 600 steps.  `fid` takes Inception's network with random
weights, which cost what others do.  `frechet` is from features to the distance.
"""

import argparse
import copy
import itertools
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ["PYTHONPATH"] = str(ROOT)
TOLERANCES = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7)
EXAMPLES = 64  # of the digits
T_MIN = 1e-5


def axes(x: Tensor) -> list[Tensor]:
    """Unit vectors for the exact trace."""
    basis = torch.eye(x[0].numel(), dtype=x.dtype).view(-1, *x.shape[1:])
    return [axis.expand_as(x) for axis in basis]


def peer(denoiser: Any, x_0: Tensor, probes: list[Tensor], tolerance: float, dtype: Any) -> tuple[Tensor, int]:
    """log p of x_0: (B, *), as score_sde computes it, and its evaluations of the network.

    scipy's RK45 carries the whole batch as one vector from t = 1e-5 to 1, with the log densities at its end, along
    dx/dt = f x − ½ g² ∇log p; the prior is N(0, I).
    """
    import numpy as np
    from scipy.integrate import solve_ivp

    n, dims = len(x_0), x_0[0].numel()

    def field(t: float, y: Any) -> Any:
        x = torch.from_numpy(y[: n * dims]).view(x_0.shape).to(dtype).requires_grad_(True)
        at = torch.full((n, *[1] * (x.ndim - 1)), t, dtype=dtype)
        kernel = denoiser.schedule(at)
        score = -denoiser(x, at).eps / kernel.sigma
        drift = kernel.drift * x - 0.5 * kernel.diffusion_sq * score
        div = torch.zeros(n, dtype=dtype)
        for k, z in enumerate(probes):
            (back,) = torch.autograd.grad(drift, x, z.to(dtype), retain_graph=k < len(probes) - 1)
            div += (back * z.to(dtype)).flatten(1).sum(1)
        return np.concatenate([part.detach().double().numpy().ravel() for part in (drift, div)])

    start = np.concatenate([x_0.double().numpy().ravel(), np.zeros(n)])
    solution = solve_ivp(field, (T_MIN, 1.0), start, rtol=tolerance, atol=tolerance, method="RK45")
    end = torch.from_numpy(solution.y[:, -1])
    prior = -0.5 * (end[: n * dims].view(n, dims).square().sum(1) + dims * math.log(2 * math.pi))
    return prior + end[n * dims :], solution.nfev


def at_error(curve: list[tuple[float, float]], error: float) -> float:
    """Evaluations at which a curve of (evaluations, error) has that error, between its points on logarithmic scales.

    Of points that are worse than others at no more evaluations nothing is taken.
    """
    best: list[tuple[float, float]] = []
    for cost, value in sorted(curve):
        if not best or value < best[-1][1]:
            best.append((cost, value))
    for (a, high), (b, low) in itertools.pairwise(best):
        if high >= error >= low:
            share = math.log(high / error) / math.log(high / low)
            return math.exp(math.log(a) + share * math.log(b / a))
    return math.nan


def nll(count: int = 500, std: float = 0.3) -> None:
    """Evaluations for equal error of the log density, of five mixtures."""
    from diffusion_pl.denoisers import GaussianMixture
    from diffusion_pl.likelihood import FlowLikelihood
    from diffusion_pl.schedules import VP
    from diffusion_pl.tensors import SampleNoise

    for seed in range(1, 6):
        g = torch.Generator().manual_seed(seed)
        means = torch.randn(8, 2, dtype=torch.float64, generator=g)
        means -= means.mean(0)
        pick = torch.randint(8, (count,), generator=g)
        x = means[pick] + std * torch.randn(count, 2, dtype=torch.float64, generator=g)
        squares = (x[:, None] - means).square().sum(-1) / (2 * std**2)
        exact = torch.logsumexp(-squares, 1) - math.log(8 * 2 * math.pi * std**2)
        denoiser = GaussianMixture(VP(beta_max=40.0), means, std)
        mine, theirs = [], []
        for tol in TOLERANCES:
            density = FlowLikelihood(0, rtol=tol, atol=tol, t_min=T_MIN)(denoiser, x, SampleNoise(0, range(count)))
            log_p, nfe = peer(denoiser, x, axes(x), tol, torch.float64)
            errors = [(value - exact).abs().mean().item() / 2 / math.log(2) for value in (density.log_p, log_p)]
            mine.append((density.nfe.double().mean().item(), errors[0]))
            theirs.append((float(nfe), errors[1]))
            print(
                f"nll, mixture {seed}, tolerance {tol:.0e}: ours {mine[-1][0]:.0f} evaluations, mean |error| "
                f"{errors[0]:.1e} bits/dim; scipy {nfe}, {errors[1]:.1e}",
                flush=True,
            )
        error = theirs[TOLERANCES.index(1e-5)][1]
        a, b = at_error(mine, error), at_error(theirs, error)
        print(f"nll, mixture {seed}, at an error of {error:.1e}: ours {a:.0f}, scipy {b:.0f}: ratio {a / b:.2f}")


def network(ckpt_path: str | None, folder: str) -> Any:
    """Denoiser and data of a checkpoint; without one, of one that is trained now."""
    from diffusion_pl.checkpoints.loading import load_pipeline

    if ckpt_path is None:
        program = (sys.executable, "-m", "diffusion_pl", "fit", "--run", "r", "--trainer.max_steps", "600")
        config = ("--config", str(ROOT / "configs/digits/vp.yaml"))
        subprocess.run((*program, *config), cwd=folder, check=True, stdout=subprocess.DEVNULL)
        ckpt_path = str(Path(folder, "runs/r/checkpoints/last.ckpt"))
    pipeline, data = load_pipeline(Path(ckpt_path))
    data.setup("test")
    return pipeline.denoiser, data


def double(denoiser: Any) -> Any:
    """The same network in float64, for a reference without its rounding."""
    from diffusion_pl.denoisers import NetworkDenoiser

    parts = (denoiser.schedule, denoiser.parameterization, denoiser.noise_input)
    return NetworkDenoiser(copy.deepcopy(denoiser.network).double(), *parts)


def digits(ckpt_path: str | None = None, rounds: int = 3) -> None:
    """Seconds, evaluations and error of the likelihood of 64 test examples with one probe each.

    The error is that of the integration: the difference to float64 at a tolerance of 1e-6 with the same probes.
    """
    from diffusion_pl.likelihood import FlowLikelihood, bits_per_dim, dequantized, width
    from diffusion_pl.tensors import SampleNoise

    with tempfile.TemporaryDirectory() as folder:
        trained, data = network(ckpt_path, folder)
    delta = width(data.units.levels, data.units.value_range)
    x = dequantized(next(data.batches("test", EXAMPLES))["x"], delta, SampleNoise(0, range(EXAMPLES)))
    signs = torch.where(SampleNoise(1, range(EXAMPLES))(x) < 0, -1.0, 1.0).to(x)
    dims = x[0].numel()

    def ours(tolerance: float, denoiser: Any = trained, extend: bool = True) -> tuple[Tensor, Tensor]:
        likelihood = FlowLikelihood(1, rtol=tolerance, atol=tolerance, t_min=T_MIN, extend=extend)
        density = likelihood(denoiser, x, lambda _: signs)
        return bits_per_dim(density.log_p, dims, delta), density.nfe.double()

    def theirs(tolerance: float) -> tuple[Tensor, Tensor]:
        log_p, nfe = peer(trained, x, [signs], tolerance, torch.float32)
        return bits_per_dim(log_p, dims, delta), torch.tensor(float(nfe)).double()

    precise = double(trained)
    exact = {True: ours(1e-6, precise)[0], False: ours(1e-6, precise, extend=False)[0]}
    bits, deviation = exact[True].mean().item(), exact[True].std().item() / EXAMPLES**0.5
    print(f"digits: {bits:.4f} bits/dim, standard error {deviation:.4f}; held below t = {T_MIN:g} ", end="")
    print(f"instead of cut off there: {(exact[True] - exact[False]).mean():+.1e}", flush=True)
    default = FlowLikelihood().rtol
    curves: dict[str, list[tuple[float, float]]] = {}
    values: dict[tuple[str, float], Tensor] = {}
    for name, find, tolerances in (
        ("ours", ours, (1e-3, 1e-4, default, 1e-5)),
        ("scipy", theirs, (1e-3, 1e-4, 1e-5, 1e-6)),
    ):
        for tolerance in tolerances:
            values[name, tolerance], nfe = find(tolerance)
            error = values[name, tolerance] - exact[name == "ours"]
            curves.setdefault(name, []).append((nfe.mean().item(), error.abs().mean().item()))
            print(
                f"digits, {name} at {tolerance:.0e}: {nfe.mean():.0f} evaluations (at most {nfe.max():.0f}), "
                f"mean |error| {error.abs().mean():.1e} bits/dim, error of the mean {error.mean():+.1e}",
                flush=True,
            )
    error = curves["scipy"][2][1]
    a, b = at_error(curves["ours"], error), at_error(curves["scipy"], error)
    print(f"digits, at an error of {error:.1e} bits/dim: ours {a:.0f} evaluations, scipy {b:.0f}: ratio {a / b:.2f}")
    seconds: dict[str, list[float]] = {"ours": [], "scipy": []}
    for _ in range(rounds):
        for name, call in (("ours", partial(ours, default)), ("scipy", partial(theirs, 1e-5))):
            start = time.perf_counter()
            call()
            seconds[name].append((time.perf_counter() - start) / EXAMPLES)
    one, other = (statistics.median(taken) for taken in seconds.values())
    ratio = statistics.median(a / b for a, b in zip(*seconds.values(), strict=True))
    gap = (values["ours", default] - values["scipy", 1e-5]).mean().item()
    print(
        f"digits, ours at {default:g} {one:.3f} s an example, scipy at 1e-05 {other:.3f}: ratio {ratio:.2f}; "
        f"the values are {abs(gap):.1e} bits/dim apart",
        flush=True,
    )


def inception() -> Any:
    """Inception's network with random weights: nothing is downloaded."""
    from torch import nn
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    from diffusion_pl.metrics import InceptionV3

    class Unloaded(FeatureExtractorInceptionV3):  # type: ignore[misc]
        def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
            return None

    with tempfile.TemporaryDirectory() as folder:
        empty, drawn = Path(folder, "empty.pth"), Path(folder, "weights.pth")
        torch.save({}, empty)
        torch.manual_seed(0)
        made = Unloaded("x", ["2048"], feature_extractor_weights_path=str(empty))
        for part in made.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight)
        torch.save(made.state_dict(), drawn)
        return InceptionV3(str(drawn))


def fid(batch: int = 32, rounds: int = 7) -> None:
    """Time of adding a batch's features to the moments ÷ that of making them; memory after 1, 10 and 100 batches."""
    from diffusion_pl.metrics import FeatureStatistics
    from diffusion_pl.metrics.extractors import extract

    def peak() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # MiB; Linux has KiB

    statistic, index = FeatureStatistics(2048), torch.arange(batch)
    peaks = []
    for number in range(1, 101):
        statistic.update(torch.rand(batch, 2048), index)
        if number in (1, 10, 100):
            peaks.append(f"{peak():.0f} MiB after {number}")
    print(f"fid, peak memory: {', '.join(peaks)} batches of {batch}", flush=True)
    network = inception()
    images = torch.randint(0, 256, (batch, 3, 32, 32), dtype=torch.uint8)
    making, adding = [], []
    for number in range(rounds + 1):
        start = time.perf_counter()
        features, *_ = extract(network, images)
        middle = time.perf_counter()
        statistic.update(features, index)
        if number:
            making.append(middle - start)
            adding.append(time.perf_counter() - middle)
    a, b = statistics.median(adding), statistics.median(making)
    ratio = statistics.median(x / y for x, y in zip(adding, making, strict=True))
    print(f"fid, batch of {batch}: moments {1e3 * a:.0f} ms, features {1e3 * b:.0f} ms: ratio {ratio:.3f}", flush=True)


def frechet(count: int = 50_000, dim: int = 2048) -> None:
    """Seconds from so many features, in memory, to their Fréchet distance to a reference."""
    from diffusion_pl.metrics import FeatureStatistics
    from diffusion_pl.metrics.frechet import frechet_distance

    g = torch.Generator().manual_seed(0)
    mixing = torch.randn(dim, dim, generator=g) / dim**0.5
    reference = FeatureStatistics(dim)
    for first in range(0, count, 1000):
        reference.update((torch.randn(1000, dim, generator=g) @ mixing).relu(), torch.arange(first, first + 1000))
    known = reference.compute()
    rows = (torch.randn(count, dim, generator=g) @ mixing).relu()
    start = time.perf_counter()
    statistics = FeatureStatistics(dim)
    for first in range(0, count, 1000):
        statistics.update(rows[first : first + 1000], torch.arange(first, first + 1000))
    moments = statistics.compute()
    middle = time.perf_counter()
    value = frechet_distance(moments, known)
    end = time.perf_counter()
    print(
        f"frechet, {count:,} x {dim:,}: {end - start:.1f} s, moments {middle - start:.1f}, "
        f"distance {end - middle:.1f}; the value is {value:.3f}",
        flush=True,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*")
    parser.add_argument("--ckpt_path")
    given = parser.parse_args()
    parts: dict[str, Callable[[], None]] = {"nll": nll, "digits": partial(digits, given.ckpt_path), "fid": fid}
    parts["frechet"] = frechet
    for name in given.parts or parts:
        parts[name]()
