"""What sampling costs and gives: compared with `diffusers` at equal numbers of evaluations, and the cost of a step.

    python benchmarks/sampling.py [mixture] [digits] [few] [overhead]

`mixture` has the exact scores of a Gaussian mixture in 2 and 3,072 dimensions; `digits` a network, trained by
configs/digits/vp.yaml or the checkpoint named by DIGITS_CKPT; `few` prints the table that tests/test_few_steps.py
holds.  The first two are measured by the sliced Wasserstein distance to the exact samples from the same latents: the
solution of the probability-flow ODE by 400 steps of Heun.
"""

import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ["PYTHONPATH"] = str(ROOT)
COUNT = 2000


def grids(steps: int) -> Iterator[tuple[str, Any]]:
    """Ours, of so many points."""
    from diffusion_pl.samplers import KarrasGrid, LogSNRGrid, UniformGrid

    if steps < 2:
        return
    for t_max in (1.0, 0.9, 0.8, 0.7):
        for t_min in (1e-3, 2e-3, 5e-3):
            yield f"log-SNR {t_max} {t_min}", LogSNRGrid(steps, t_max, t_min)
        yield f"uniform {t_max}", UniformGrid(steps, t_max, 1e-3)
    for rho, low, high in itertools.product((3, 7), (0.01, 0.02, 0.05), (10, 20, 80, 157)):
        yield f"Karras {low} {high} {rho}", KarrasGrid(steps, low, high, rho)


def ours(denoiser: Any, latents: Tensor, nfe: int) -> Iterator[tuple[str, Tensor]]:
    """Samples of every deterministic sampler on every grid."""
    from diffusion_pl.samplers import DDIM, DEIS, DPMpp, DPMppSingle, Heun, UniPC

    methods: list[tuple[str, Callable[[Any], Any], int]] = [
        ("DDIM", DDIM, 1),
        ("Heun", Heun, 2),
        *((f"DPMpp {k}", lambda g, k=k: DPMpp(g, k), 1) for k in (2, 3)),
        ("DPMppSingle 2", DPMppSingle, 2),
        *((f"UniPC {k} B{v}", lambda g, k=k, v=v: UniPC(g, k, v), 1) for k in (2, 3) for v in (1, 2)),
        *((f"DEIS {k}", lambda g, k=k: DEIS(g, k), 1) for k in (2, 3)),
    ]
    for name, method, each in methods:
        for grid_name, grid in grids(1 + (nfe - 1) // each):
            sampler = method(grid)
            result = sampler(denoiser, sampler.prior(denoiser.schedule, latents))
            assert result.nfe <= nfe
            yield f"{name}, {grid_name}", result.x_0


def peers() -> Iterator[tuple[str, Callable[[], Any], int]]:
    """Schedulers of `diffusers` with the spacings and options that they offer."""
    import diffusers

    table = {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
    for spacing in ("linspace", "leading", "trailing"):
        common = {**table, "timestep_spacing": spacing}
        yield f"DDIM {spacing}", lambda c=common: diffusers.DDIMScheduler(**c, clip_sample=False), 1
        for karras in (False, True):
            options = {**common, "use_karras_sigmas": karras}
            tail = f"{spacing}{' Karras' if karras else ''}"
            for k in (2, 3):
                yield (
                    f"DPM++ {k} {tail}",
                    lambda o=options, k=k: diffusers.DPMSolverMultistepScheduler(**o, solver_order=k),
                    1,
                )
                for b in ("bh1", "bh2"):
                    bh = {**options, "solver_order": k, "solver_type": b}
                    yield f"UniPC {k} {b} {tail}", lambda o=bh: diffusers.UniPCMultistepScheduler(**o), 1
                yield (
                    f"DEIS {k} {tail}",
                    lambda o=options, k=k: diffusers.DEISMultistepScheduler(**o, solver_order=k),
                    1,
                )
            yield f"Heun {tail}", lambda o=options: diffusers.HeunDiscreteScheduler(**o), 2
            yield f"Euler {tail}", lambda o=options: diffusers.EulerDiscreteScheduler(**o), 1
        lu = {**common, "use_lu_lambdas": True}
        yield f"DPM++ 2 {spacing} Lu", lambda o=lu: diffusers.DPMSolverMultistepScheduler(**o, solver_order=2), 1


def theirs(denoiser: Any, latents: Tensor, nfe: int) -> Iterator[tuple[str, Tensor]]:
    """Samples of every scheduler; the model is asked at the t whose σ/α the scheduler has."""
    bars = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    table = torch.sqrt(1 / bars - 1)
    for name, make, each in peers():
        scheduler = make()
        steps = nfe if each == 1 else (nfe + 1) // 2
        try:
            scheduler.set_timesteps(steps)
            x, count = latents * float(getattr(scheduler, "init_noise_sigma", 1.0)), 0
            for n in scheduler.timesteps:
                scaled = scheduler.scale_model_input(x, n)
                low = int(n)
                sigma = torch.lerp(table[low], table[min(low + 1, 999)], float(n) - low)
                t = denoiser.schedule.time(-2 * torch.log(sigma))
                eps = denoiser(scaled.to(latents.dtype), t).eps
                x = scheduler.step(eps, n, x).prev_sample
                count += 1
        except (ValueError, IndexError, NotImplementedError, RuntimeError):
            continue  # some combinations they refuse
        if count <= nfe and bool(x.isfinite().all()):
            yield name, x


def compare(name: str, denoiser: Any, latents: Tensor) -> None:
    """The best of ours and of theirs at 5, 10 and 20 evaluations."""
    from diffusion_pl.metrics import SlicedWasserstein
    from diffusion_pl.samplers import Heun, LogSNRGrid

    with torch.no_grad():
        fine = Heun(LogSNRGrid(400, 1.0, 1e-4))
        distance = SlicedWasserstein(fine(denoiser, fine.prior(denoiser.schedule, latents)).x_0)
        for nfe in (5, 10, 20):
            mine, other = (
                min((distance(x), method) for method, x in draw(denoiser, latents, nfe)) for draw in (ours, theirs)
            )
            ratio = mine[0] / other[0]
            print(
                f"{name}, {nfe} evaluations: ours {mine[0]:.4g} ({mine[1]}), diffusers {other[0]:.4g} ({other[1]}): "
                f"ratio {ratio:.2f}",
                flush=True,
            )


def mixture() -> None:
    """Exact scores of five Gaussians under the VP process."""
    from diffusion_pl.denoisers import GaussianMixture
    from diffusion_pl.schedules import VP

    rng = torch.Generator().manual_seed(0)
    for dim in (2, 3072):
        means = torch.randn(5, dim, generator=rng, dtype=torch.float64)
        stds = torch.tensor([0.1, 0.2, 0.3, 0.15, 0.25], dtype=torch.float64)
        latents = torch.randn(COUNT if dim == 2 else 300, dim, generator=rng, dtype=torch.float64)
        compare(f"mixture in {dim} dimensions", GaussianMixture(VP(), means, stds), latents)


def digits() -> None:
    """The network of configs/digits/vp.yaml."""
    from diffusion_pl.checkpoints.loading import load_model

    with tempfile.TemporaryDirectory() as folder:
        path = os.environ.get("DIGITS_CKPT")
        if path is None:
            program = (sys.executable, "-m", "diffusion_pl", "fit", "--run", "r")
            config = ("--config", str(ROOT / "configs/digits/vp.yaml"))
            subprocess.run((*program, *config), cwd=folder, check=True, stdout=subprocess.DEVNULL)
            path = str(Path(folder, "runs/r/checkpoints/last.ckpt"))
        model, _ = load_model(path)
        latents = torch.randn(64, *model.shape, generator=torch.Generator().manual_seed(0))
        compare("digits", model.denoiser, latents)


def few() -> None:
    """Error of `--sampler METHOD --steps n` and of `diffusers`' defaults, on the exact denoiser of 500 digits."""
    sys.path.insert(0, str(ROOT / "tests"))
    from test_few_steps import SCHEDULES, table

    for kind in SCHEDULES:
        rows: dict[str, list[str]] = {}
        for name, nfe, mine, other in table(kind):
            rows.setdefault(name, []).append(f"{nfe}: {mine:.3f} / {other:.3f}")
        for name, cells in rows.items():
            print(f"| {kind} | {name} | {' | '.join(cells)} |", flush=True)


def overhead(rounds: int = 300) -> None:
    """Time of a sampler's step, without the network's, ÷ the same update as bare tensor arithmetic, 64x3x32x32."""
    from diffusion_pl.denoisers import Denoiser, Prediction
    from diffusion_pl.samplers import DDIM, Ancestral, DPMpp, UniformGrid
    from diffusion_pl.samplers.base import Run
    from diffusion_pl.schedules import VP

    rng = torch.Generator().manual_seed(0)
    x, x_0, old, z = torch.randn(4, 64, 3, 32, 32, generator=rng)

    class Known(Denoiser):
        """Costs nothing."""

        schedule = VP()

        def forward(self, x_t: Tensor, t: Tensor, **cond: Tensor) -> Prediction:
            return Prediction(x_0, old)

    grid = UniformGrid(100)
    times = grid(VP())
    pairs = list(itertools.pairwise(times.unbind()))
    a, b, c = 0.9, 0.3, 0.1
    bare: dict[str, Callable[[], Tensor]] = {
        "DDIM": lambda: a * x_0 + b * old,
        "Ancestral": lambda: a * x + b * x_0 + c * z,
        "DPMpp 2": lambda: a * x + b * (x_0 + c * (x_0 - old)),
    }
    methods = {"DDIM": DDIM(grid), "Ancestral": Ancestral(grid), "DPMpp 2": DPMpp(grid, 2)}
    for name, sampler in methods.items():
        run = Run(Known(), lambda _: z, {}, times)
        state: Any = None
        _, state = sampler.step(run, x, *pairs[0], state)
        taken: tuple[list[float], list[float]] = ([], [])
        for k in range(rounds):
            t, s = pairs[1 + k % (len(pairs) - 1)]
            start = time.perf_counter()
            _, new = sampler.step(run, x, t, s, state)
            middle = time.perf_counter()
            bare[name]()
            taken[0].append(middle - start)
            taken[1].append(time.perf_counter() - middle)
            state = new
        mine, plain = (statistics.median(part) for part in taken)
        print(f"step of {name}: {1e6 * mine:.0f} µs, bare {1e6 * plain:.0f} µs: ratio {mine / plain:.2f}", flush=True)


if __name__ == "__main__":
    parts = {f.__name__: f for f in (mixture, digits, few, overhead)}
    for part in sys.argv[1:] or list(parts):
        parts[part]()
