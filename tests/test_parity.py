"""Step for step with `diffusers`: the same states after every step, on one smooth nonlinear model.

The model is ε̂ = 0.8 tanh(0.7 x + sin log σ̃) of the variance-preserving x at σ̃ = σ/α.  DDPM's table has t = (n + 1)/1000
for timestep n.  `diffusers` computes its tables in float32; hence the tolerance of 1e-4.
"""

from collections.abc import Callable
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from conftest import GaussianFlow, array
from torch import Tensor

from diffusion_pl.denoiser import Denoiser
from diffusion_pl.grids import ExplicitGrid, Grid
from diffusion_pl.guidance import Thresholded
from diffusion_pl.parameterizations import Prediction
from diffusion_pl.samplers import DDIM, Ancestral, DPMpp, Heun, Run, Sampler, UniPC
from diffusion_pl.samplers.dpmpp import phi
from diffusion_pl.schedules import VP, Karras, LinearBetas, Schedule

TABLE: dict[str, Any] = {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
SHAPE = (3, 2, 4, 4)


def model(x: Tensor, sigma: Tensor) -> Tensor:
    """ε̂ of the variance-preserving x: (B, *), at σ̃: ()."""
    return 0.8 * torch.tanh(0.7 * x + torch.sin(torch.log(sigma)))


class Smooth(Denoiser):
    """That model, on any process."""

    def __init__(self, schedule: Schedule) -> None:
        super().__init__()
        self.schedule = schedule

    def forward(self, x_t: Tensor, t: Tensor, **cond: Tensor) -> Prediction:
        alpha, sigma, *_ = self.schedule(t)
        eps = model(x_t / torch.sqrt(alpha**2 + sigma**2), sigma / alpha)
        return Prediction((x_t - sigma * eps) / alpha, eps)


class Replay:
    """Standard normal noise of a generator, drawn as `diffusers` draws it."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.generator, self.dtype = torch.Generator().manual_seed(7), dtype

    def __call__(self, x: Tensor) -> Tensor:
        return torch.randn(x.shape, generator=self.generator, dtype=self.dtype).to(x.dtype)


def start() -> Tensor:
    return torch.randn(SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def theirs(scheduler: Any, steps: int, **options: Any) -> tuple[list[Tensor], Tensor]:
    """Their states, before the first step and after each; and the timesteps."""
    scheduler.set_timesteps(steps)
    bars = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    x, states = start(), [start()]
    for n in scheduler.timesteps:
        sigma = torch.sqrt(1 / bars[int(n)] - 1)
        x = scheduler.step(model(x, sigma), n, x, **options).prev_sample
        states.append(x)
    return states, scheduler.timesteps


def ours(
    build: Callable[[Grid], Sampler], timesteps: Tensor, clip: bool = False, drawn: torch.dtype = torch.float64
) -> list[Tensor]:
    table = LinearBetas(1000, 1e-4, 0.02)
    grid = ExplicitGrid(((timesteps.double() + 1) / 1000).tolist())
    denoiser: Denoiser = Smooth(table)
    path = build(grid)(Thresholded(denoiser) if clip else denoiser, start(), Replay(drawn), path=True).path
    assert path is not None
    return list(path.x)


def agree(mine: list[Tensor], other: list[Tensor]) -> None:
    assert len(mine) == len(other)
    for k, (a, b) in enumerate(zip(mine, other, strict=True)):
        np.testing.assert_allclose(array(a), array(b), rtol=1e-4, atol=1e-4, err_msg=f"after step {k}")
    assert float((mine[-1] - mine[0]).abs().max()) > 0.5  # they went somewhere


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize(("kind", "variance"), [("fixed_small", 0.0), ("fixed_large", 1.0)])
def test_ddpm(kind: str, variance: float, clip: bool) -> None:
    scheduler = diffusers.DDPMScheduler(**TABLE, variance_type=kind, clip_sample=clip)
    states, timesteps = theirs(scheduler, 25, generator=torch.Generator().manual_seed(7))
    agree(ours(lambda grid: Ancestral(grid, variance), timesteps, clip), states)


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim(eta: float, clip: bool) -> None:
    scheduler = diffusers.DDIMScheduler(**TABLE, clip_sample=clip, set_alpha_to_one=True)
    # Their noise direction keeps the ε̂ of the unclipped estimate unless told otherwise.
    noise = {"generator": torch.Generator().manual_seed(7)} if eta else {}
    states, timesteps = theirs(scheduler, 20, eta=eta, use_clipped_model_output=clip, **noise)
    mine = ours(lambda grid: DDIM(grid, eta), timesteps, clip)
    agree(mine[:-1], states[:-1])
    if eta == 0:
        agree(mine, states)


@pytest.mark.parametrize(("order", "eta"), [(1, 0.0), (2, 0.0), (1, 1.0), (2, 1.0)])
def test_dpm_solver_plus_plus_multistep(order: int, eta: float) -> None:
    kind = "sde-dpmsolver++" if eta else "dpmsolver++"
    options = {"algorithm_type": kind, "solver_order": order, "solver_type": "midpoint", "final_sigmas_type": "zero"}
    scheduler = diffusers.DPMSolverMultistepScheduler(**TABLE, **options)
    noise = {"generator": torch.Generator().manual_seed(7)} if eta else {}
    states, timesteps = theirs(scheduler, 20, **noise)
    # It draws in float32.
    agree(ours(lambda grid: DPMpp(grid, order, eta), timesteps, drawn=torch.float32), states)


@pytest.mark.parametrize("variant", [1, 2])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_unipc(order: int, variant: int) -> None:
    scheduler = diffusers.UniPCMultistepScheduler(**TABLE, solver_order=order, solver_type=f"bh{variant}")
    states, timesteps = theirs(scheduler, 20)
    mine = ours(lambda grid: UniPC(grid, order, variant), timesteps)
    # Theirs lowers the order of the last steps; before that all is the same.
    kept = len(states) - (order if order > 2 else 1)
    agree(mine[:kept], states[:kept])


@pytest.mark.parametrize("name", ["Euler", "Heun"])
def test_solvers_in_sigma(name: str) -> None:
    """Theirs work on x/α; so do ours on a process with α = 1."""
    scheduler = getattr(diffusers, f"{name}DiscreteScheduler")(**TABLE)
    scheduler.set_timesteps(10)
    sigmas = torch.unique(scheduler.sigmas.double()).flip(0)[:-1]
    x = start() * sigmas[0]
    states = [x]
    for k, n in enumerate(scheduler.timesteps):
        scaled = scheduler.scale_model_input(x, n)
        sigma = (torch.linalg.vector_norm(x) / torch.linalg.vector_norm(scaled)).square().sub(1).sqrt()
        x = scheduler.step(model(scaled, sigma), n, x).prev_sample
        if name == "Euler" or k % 2 == 1 or k == len(scheduler.timesteps) - 1:
            states.append(x)
    schedule = Karras(0.002, 200)
    grid = ExplicitGrid(schedule.time(-2 * torch.log(sigmas)).tolist())
    path = (DDIM if name == "Euler" else Heun)(grid)(Smooth(schedule), start() * sigmas[0], path=True).path
    assert path is not None
    assert len(path.x) == len(states)
    for mine, other in zip(path.x, states, strict=True):
        scale = float(other.abs().max())
        np.testing.assert_allclose(array(mine) / scale, array(other) / scale, atol=1e-4)


class Published(Sampler):
    """DPM-Solver++(3M) as in the authors' code, `diffusers` and k-diffusion: φ₃ D₂ where the expansion has 2φ₃ D₂."""

    order = 2

    def step(self, run: Run, x_t: Tensor, t: Tensor, s: Tensor, state: Any) -> tuple[Tensor, Any]:
        at_t, at_s = run.kernel(t), run.kernel(s)
        half, h = at_t.logsnr / 2, (at_s.logsnr - at_t.logsnr) / 2
        past = [(run.denoise(x_t, t).x_0, half), *(state or [])][:3]
        phi_1, phi_2, phi_3 = phi(h)
        mean = phi_1 * past[0][0]
        if len(past) == 2:
            mean = mean + phi_1 / 2 * (past[0][0] - past[1][0]) / ((half - past[1][1]) / h)
        if len(past) == 3:
            r_0, r_1 = (half - past[1][1]) / h, (past[1][1] - past[2][1]) / h
            d_10, d_11 = (past[0][0] - past[1][0]) / r_0, (past[1][0] - past[2][0]) / r_1
            d_1, d_2 = d_10 + r_0 / (r_0 + r_1) * (d_10 - d_11), (d_10 - d_11) / (r_0 + r_1)
            mean = mean + phi_2 * d_1 + phi_3 * d_2
        return at_s.sigma / at_t.sigma * x_t + at_s.alpha * mean, past


def test_the_published_third_order_rule_is_of_second_order_and_ours_of_third() -> None:
    flow = GaussianFlow(VP())
    unit = np.random.default_rng(0).normal(size=(8, 2))
    orders = {}
    for build in (Published, lambda grid: DPMpp(grid, 3)):
        errors = []
        for steps in (64, 128, 256):
            equal = torch.linspace(-3, 3, steps + 1, dtype=torch.float64)
            short = (6 / steps) ** 2 / 8
            grid = ExplicitGrid(
                VP().time(torch.cat([equal[:1], equal[:1] + short, equal[:1] + 2 * short, equal[1:]])).tolist()
            )
            mean, cov = flow.marginal(grid.t[0])
            x_T = mean + unit @ np.linalg.cholesky(cov).T
            path = build(grid)(flow.oracle, torch.from_numpy(x_T), path=True).path
            assert path is not None
            errors.append(abs(array(path.x[-2]) - flow.flow(x_T, grid.t[0], grid.t[-1])).max())
        orders[build is Published] = np.log2(errors[-2] / errors[-1])
    assert orders[True] == pytest.approx(2, abs=0.2)
    assert orders[False] > 2.8
