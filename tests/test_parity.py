"""Step for step with `diffusers`: the same states after every step, on one smooth nonlinear model.

The model is ε̂ = 0.8 tanh(0.7 x + sin log σ̃) of the variance-preserving x at σ̃ = σ/α.  DDPM's table has t = (n + 1)/1000
for timestep n.  `diffusers` keeps its tables in float32: here they are replaced by the same numbers in float64, and
states agree to rounding.  Two schedulers also round every state to float32; those are compared to SINGLE.
"""

from collections.abc import Callable, Sequence
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from conftest import GaussianFlow, array
from torch import Tensor

from diffusion_pl.denoisers import Denoiser, Prediction, Thresholded
from diffusion_pl.samplers import DDIM, Ancestral, DPMpp, ExplicitGrid, Grid, Heun, Run, Sampler, UniPC
from diffusion_pl.samplers.dpmpp import phi
from diffusion_pl.schedules import VP, Karras, LinearBetas, Schedule

#: Beta ends away from both packages' defaults: a default that is used in place of them shows.
ENDS = (2e-4, 0.018)
TABLE: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": ENDS[0],
    "beta_end": ENDS[1],
    "beta_schedule": "linear",
}
BARS = torch.cumprod(1 - torch.linspace(*ENDS, 1000, dtype=torch.float64), 0)
SHAPE = (3, 2, 4, 4)
SINGLE = 1e-5

pytestmark = pytest.mark.filterwarnings("ignore:.*__array__ implementation.*:DeprecationWarning")


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
        self.generator, self.dtype = drawn(), dtype

    def __call__(self, x: Tensor) -> Tensor:
        return torch.randn(x.shape, generator=self.generator, dtype=self.dtype).to(x.dtype)


def drawn() -> torch.Generator:
    return torch.Generator().manual_seed(7)


def start() -> Tensor:
    return torch.randn(SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def ratio(n: Tensor) -> Tensor:
    """σ̃ at timestep n."""
    return torch.sqrt(1 / BARS[n.long()] - 1)


def theirs(
    scheduler: Any, steps: int, x: Tensor | None = None, left_out: int = 0, **options: Any
) -> tuple[list[Tensor], Tensor]:
    """Their states, before the first step and after each but the last `left_out`; and all timesteps."""
    np.testing.assert_allclose(array(scheduler.alphas_cumprod), array(BARS), rtol=1e-4)
    scheduler.alphas_cumprod = BARS
    scheduler.set_timesteps(steps)
    if len(getattr(scheduler, "sigmas", ())) == len(scheduler.timesteps) + 1:
        exact = torch.cat([ratio(scheduler.timesteps), BARS.new_zeros(1)])
        np.testing.assert_allclose(array(scheduler.sigmas), array(exact), rtol=1e-6)
        scheduler.sigmas = exact
    x = start() if x is None else x
    states = [x]
    for n in scheduler.timesteps[: steps - left_out]:
        scaled = scheduler.scale_model_input(x, n)
        x = scheduler.step(model(scaled, ratio(n)), n, x, **options).prev_sample
        assert x.dtype == torch.float64
        states.append(x)
    return states, scheduler.timesteps


def ours(
    build: Callable[[Grid], Sampler], timesteps: Tensor, clip: bool = False, noise: torch.dtype = torch.float64
) -> list[Tensor]:
    grid = ExplicitGrid(((timesteps.double() + 1) / 1000).tolist())
    smooth: Denoiser = Smooth(LinearBetas(1000, *ENDS))
    path = build(grid)(Thresholded(smooth) if clip else smooth, start(), Replay(noise), path=True).path
    assert path is not None
    return list(path.x)


def agree(mine: Sequence[Tensor], other: Sequence[Tensor], rel: float = 1e-10) -> None:
    """Every state, to `rel` of its greatest number."""
    assert len(mine) == len(other)
    for k, (a, b) in enumerate(zip(mine, other, strict=True)):
        np.testing.assert_allclose(array(a), array(b), rtol=0, atol=rel * float(b.abs().max()), err_msg=f"state {k}")
    assert float((mine[-1] - mine[0]).abs().max()) > 0.5  # they went somewhere


@pytest.mark.parametrize("steps", [25, 1000])
@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize(("kind", "variance"), [("fixed_small", 0.0), ("fixed_large", 1.0)])
def test_ancestral_is_their_ddpm(kind: str, variance: float, clip: bool, steps: int) -> None:
    scheduler = diffusers.DDPMScheduler(**TABLE, variance_type=kind, clip_sample=clip)
    states, timesteps = theirs(scheduler, steps, generator=drawn())
    agree(ours(lambda grid: Ancestral(grid, variance), timesteps, clip), states)


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_is_their_ddim(eta: float, clip: bool) -> None:
    scheduler = diffusers.DDIMScheduler(**TABLE, clip_sample=clip, set_alpha_to_one=True)
    # Their noise direction keeps the ε̂ of the unclipped estimate by default.
    states, timesteps = theirs(scheduler, 20, eta=eta, use_clipped_model_output=clip, generator=drawn())
    agree(ours(lambda grid: DDIM(grid, eta), timesteps, clip), states)


@pytest.mark.parametrize("build", [DDIM, Ancestral])
def test_clipping_has_something_to_clip(build: Callable[[Grid], Sampler]) -> None:
    timesteps = torch.arange(950, -1, -50)
    plain, clipped = ours(build, timesteps), ours(build, timesteps, clip=True)
    assert float((plain[-1] - clipped[-1]).abs().max()) > 0.1


@pytest.mark.parametrize(("order", "eta"), [(1, 0.0), (2, 0.0), (1, 1.0), (2, 1.0)])
def test_dpmpp_is_their_multistep_solver(order: int, eta: float) -> None:
    scheduler = diffusers.DPMSolverMultistepScheduler(
        **TABLE,
        algorithm_type="sde-dpmsolver++" if eta else "dpmsolver++",
        solver_order=order,
        solver_type="midpoint",
        use_karras_sigmas=False,
        final_sigmas_type="zero",
    )
    states, timesteps = theirs(scheduler, 20, generator=drawn())
    # It draws in float32.
    agree(ours(lambda grid: DPMpp(grid, order, eta), timesteps, noise=torch.float32), states, SINGLE)


@pytest.mark.parametrize("variant", [1, 2])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_unipc_is_theirs(order: int, variant: int) -> None:
    def scheduler(lower: bool) -> Any:
        return diffusers.UniPCMultistepScheduler(
            **TABLE, solver_order=order, solver_type=f"bh{variant}", predict_x0=True, lower_order_final=lower
        )

    # At σ = 0 their weights of order 2 and 3 do not exist, so the last step must be skipped or lowered to order 1 ...
    states, timesteps = theirs(scheduler(False), 20, left_out=1)
    mine = ours(lambda grid: UniPC(grid, order, variant), timesteps)
    agree(mine[:-1], states)
    # ... where B(h) = h makes it ∞·0 still; and of order 3 the step before is lowered too, which ours is not.
    lowered, _ = theirs(scheduler(True), 20)
    same = len(mine) - 2 if order == 3 else len(mine) - (variant == 1)
    agree(mine[:same], lowered[:same])


def test_ddim_is_euler_in_sigma() -> None:
    """Theirs works on x/α."""
    timesteps = torch.arange(999, -1, -111)
    alpha = torch.cat([BARS[timesteps].sqrt(), BARS.new_ones(1)])
    states, asked = theirs(diffusers.EulerDiscreteScheduler(**TABLE), 10, start() / alpha[0])
    assert asked.tolist() == timesteps.tolist()
    mine = ours(DDIM, timesteps)
    agree([x / a for x, a in zip(mine, alpha, strict=True)], states, SINGLE)


def test_heun_is_their_heun_where_alpha_is_one() -> None:
    """Both use the trapezoidal rule in (α, σ); on x/α that is a different scheme than on x, so ours runs with α = 1."""
    scheduler, schedule = diffusers.HeunDiscreteScheduler(**TABLE), Karras(0.002, 200)
    sigmas = ratio(torch.arange(999, -1, -111))
    scheduler.set_timesteps(10)
    assert scheduler.timesteps[::2].tolist() == list(range(999, -1, -111))
    inner = sigmas[1:].repeat_interleave(2)
    exact = torch.cat([sigmas[:1], inner, sigmas.new_zeros(1)])
    np.testing.assert_allclose(array(scheduler.sigmas), array(exact), rtol=1e-4)
    scheduler.sigmas = exact
    x = start() * sigmas[0]
    states = [x]
    for k, n in enumerate(scheduler.timesteps):
        x = scheduler.step(model(scheduler.scale_model_input(x, n), ratio(n)), n, x).prev_sample
        if k % 2 == 1 or k == len(scheduler.timesteps) - 1:  # the others are Euler's, on the way
            states.append(x)
    grid = ExplicitGrid(schedule.time(-2 * torch.log(sigmas)).tolist())
    path = Heun(grid)(Smooth(schedule), start() * sigmas[0], path=True).path
    assert path is not None
    agree(list(path.x), states)


# Order 3 ----------------------------------------------------------------------------------------------------------


class Published(Sampler):
    """DPM-Solver++(3M) as in the authors' code and `diffusers`: φ₃ D₂ where the expansion has 2φ₃ D₂."""

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


def test_the_published_third_order_solver_is_theirs_and_not_ours() -> None:
    options: dict[str, Any] = {"algorithm_type": "dpmsolver++", "solver_order": 3, "final_sigmas_type": "zero"}
    states, timesteps = theirs(diffusers.DPMSolverMultistepScheduler(**TABLE, **options), 20)
    agree(ours(Published, timesteps), states, SINGLE)
    mine = ours(lambda grid: DPMpp(grid, 3), timesteps)
    agree(mine[:3], states[:3], SINGLE)  # the first two steps are of lower order
    assert float((mine[3] - states[3]).abs().max()) > 100 * SINGLE


@pytest.mark.parametrize(("build", "order"), [(Published, 2), (lambda grid: DPMpp(grid, 3), 3)], ids=["theirs", "ours"])
def test_our_third_order_solver_reaches_order_3_the_published_2(build: Callable[[Grid], Sampler], order: int) -> None:
    flow, errors = GaussianFlow(VP()), []
    unit = np.random.default_rng(0).normal(size=(8, 2))
    for steps in (128, 256, 512):
        equal = torch.linspace(-3, 3, steps + 1, dtype=torch.float64)
        short = (6 / steps) ** 2 / 8  # the low order of the first two steps must not show
        logsnr = torch.cat([equal[:1], equal[:1] + short, equal[:1] + 2 * short, equal[1:]])
        grid = ExplicitGrid(VP().time(logsnr).tolist())
        mean, cov = flow.marginal(grid.t[0])
        x_T = mean + unit @ np.linalg.cholesky(cov).T
        path = build(grid)(flow.oracle, torch.from_numpy(x_T), path=True).path
        assert path is not None
        errors.append(abs(array(path.x[-2]) - flow.flow(x_T, grid.t[0], grid.t[-1])).max())
    actual = np.log2(np.divide(errors[:-1], errors[1:]))
    np.testing.assert_allclose(actual, order, atol=0.15, err_msg=str(errors))
