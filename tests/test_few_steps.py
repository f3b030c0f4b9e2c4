"""Few steps on the exact denoiser of 500 digits, compared with `diffusers` with its defaults at equal evaluations.

The error is the root mean square over 128 samples to the exact solution of the ODE from the same latents.  The exact
denoiser carries samples onto digits; one of the 128 that ends at another digit adds about FLIP to the squared error.
"""

from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any, NamedTuple

import diffusers
import pytest
import torch
from conftest import array
from sklearn.datasets import load_digits
from torch import Tensor, nn

from diffusion_pl.callbacks.sample_writer import steps_hint
from diffusion_pl.denoisers import Denoiser, Prediction, empirical
from diffusion_pl.pipeline import Pipeline
from diffusion_pl.samplers import (
    DDIM,
    DEIS,
    AdaptiveODE,
    Ancestral,
    DPMpp,
    DPMppSingle,
    ExplicitGrid,
    Grid,
    Heun,
    KarrasGrid,
    LogSNRGrid,
    RespacedGrid,
    Sampler,
    UniformGrid,
    UniPC,
)
from diffusion_pl.schedules import CosineBetas, Karras, LinearBetas, Rectified, Schedule

DIGITS = torch.from_numpy(load_digits().data[:500] / 8 - 1)
LATENTS = torch.randn(128, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
FLIP = 0.2 / len(LATENTS)
TABLE: dict[str, Any] = {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02}
FLOW: dict[str, Any] = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 1.0}

pytestmark = pytest.mark.filterwarnings("ignore:.*__array__ implementation.*:DeprecationWarning")


class Digits(Denoiser):
    """`empirical` of the digits blurred by std, as two matrix products: fast, and exact enough in float64."""

    def __init__(self, schedule: Schedule, std: float = 0.0) -> None:
        super().__init__()
        self.schedule, self.var, self.norms = schedule, std**2, DIGITS.square().sum(1)

    def forward(self, x_t: Tensor, t: Tensor, **cond: Tensor) -> Prediction:
        alpha, sigma, *_ = self.schedule(t)
        var_t = alpha**2 * self.var + sigma**2
        mean = torch.softmax((alpha * x_t @ DIGITS.T - alpha**2 / 2 * self.norms) / var_t, 1) @ DIGITS
        off = (x_t - alpha * mean) / var_t
        return Prediction(mean + alpha * self.var * off, sigma * off)


class Method(NamedTuple):
    """One of our samplers, and the scheduler of `diffusers` with the same formula; evaluations of a step of both."""

    name: str
    ours: Callable[[Grid], Sampler]
    theirs: Callable[[], Any]
    evaluations: int = 1


def methods(kind: str) -> Iterator[Method]:
    if kind == "edm":
        yield Method("DDIM", DDIM, diffusers.EDMEulerScheduler)
        for k in (1, 2, 3):
            yield Method(
                f"DPMpp {k}",
                partial(DPMpp, order=k),
                partial(diffusers.EDMDPMSolverMultistepScheduler, solver_order=k),
            )
        return
    betas = "squaredcos_cap_v2" if kind == "cosine" else "linear"
    kw = FLOW if kind == "rectified" else {**TABLE, "beta_schedule": betas}
    if kind == "rectified":
        yield Method("DDIM", DDIM, diffusers.FlowMatchEulerDiscreteScheduler)
        yield Method("Heun", Heun, diffusers.FlowMatchHeunDiscreteScheduler, 2)
    else:
        yield Method("DDIM", DDIM, lambda: diffusers.DDIMScheduler(**kw, clip_sample=False))
        yield Method("Heun", Heun, lambda: diffusers.HeunDiscreteScheduler(**kw), 2)
    multistep = (
        ("DPMpp", DPMpp, diffusers.DPMSolverMultistepScheduler),
        ("UniPC", UniPC, diffusers.UniPCMultistepScheduler),
        ("DEIS", DEIS, diffusers.DEISMultistepScheduler),
    )
    for name, ours, theirs in multistep:
        for k in (1, 2, 3):
            yield Method(f"{name} {k}", partial(ours, order=k), partial(theirs, **kw, solver_order=k))
    for k in (2, 3):
        single = partial(diffusers.DPMSolverSinglestepScheduler, **kw, solver_order=k)
        yield Method(f"DPMppSingle {k}", partial(DPMppSingle, order=k), single, k)


SCHEDULES: dict[str, Schedule] = {
    "table": LinearBetas(1000),
    "cosine": CosineBetas(1000),
    "rectified": Rectified(),
    "edm": Karras(),
}


@cache
def reference(kind: str, std: float = 0.0) -> Tensor:
    """The exact solution, by 160 steps of Heun that are short both in t and, near the end, in λ."""
    schedule = SCHEDULES[kind]
    sampler = Heun(ExplicitGrid((torch.linspace(1, 1e-2, 160, dtype=torch.float64) ** 2).tolist()))
    return sampler(Digits(schedule, std), sampler.prior(schedule, LATENTS)).x_0


def error(x: Tensor, kind: str, std: float = 0.0) -> float:
    return float((x - reference(kind, std)).square().mean().sqrt())


def ours(sampler: Sampler, kind: str, std: float = 0.0) -> float:
    schedule = SCHEDULES[kind]
    return error(sampler(Digits(schedule, std), sampler.prior(schedule, LATENTS)).x_0, kind, std)


def theirs(make: Callable[[], Any], kind: str, steps: int) -> float:
    """Error of a scheduler; the denoiser is asked at the time that the scheduler has."""
    denoiser, scheduler = Digits(SCHEDULES[kind]), make()
    scheduler.set_timesteps(steps)
    x = LATENTS * (1.0 if kind == "rectified" else float(scheduler.init_noise_sigma))
    for k, n in enumerate(scheduler.timesteps):
        scaled = scheduler.scale_model_input(x, n) if kind != "rectified" else x
        sigma = scheduler.sigmas[k].double() if kind in ("edm", "rectified") else None
        if kind == "edm":
            assert sigma is not None
            x_0 = denoiser(x, denoiser.schedule.time(-2 * torch.log(sigma))).x_0
            norm = sigma**2 + 0.25  # EDM's preconditioning at σ_data ½ undone
            out = (x_0 - 0.25 / norm * x) / (sigma * 0.5 / norm.sqrt())
        elif kind == "rectified":
            assert sigma is not None
            x_0, eps, _ = denoiser(x.double(), sigma)
            out = eps - x_0
        else:
            out = denoiser(scaled.double(), (n.double() + 1) / 1000).eps
        x = scheduler.step(out, n, x).prev_sample
    return error(x, kind)


def chosen(kind: str, grid: Grid, sampler: Any, new: Grid | None, steps: int | None) -> Sampler:
    """The sampler of a pipeline that had another one on a grid."""
    pipeline = Pipeline(Digits(SCHEDULES[kind]), Ancestral(grid), (64,))
    return pipeline.with_sampler(sampler, new, steps).sampler


def table(kind: str) -> Iterator[tuple[str, int, float, float]]:
    """(method, evaluations, our error, theirs) of `--sampler METHOD --steps n` at 5, 10 and 20 evaluations or fewer."""
    for method in methods(kind):
        for nfe in (5, 10, 20):
            points = 1 + (nfe - 1) // method.evaluations
            taken = 1 + (points - 1) * method.evaluations
            made = chosen(kind, UniformGrid(1000), method.ours, None, points)
            other = theirs(method.theirs, kind, points if method.name == "Heun" else taken)
            yield method.name, taken, ours(made, kind), other


@pytest.mark.parametrize(
    "kind", ["table", "rectified", *(pytest.param(p, marks=pytest.mark.slow) for p in ("cosine", "edm"))]
)
def test_few_steps_are_no_worse_than_diffusers(kind: str) -> None:
    worse = [row for row in table(kind) if not row[2] ** 2 <= (1.03 * row[3]) ** 2 + FLIP]
    assert not worse


def test_the_fast_denoiser_is_the_oracle() -> None:
    schedule, x = LinearBetas(1000), LATENTS[:8]
    for t in (1.0, 0.4, 0.05, 0.001):
        at = torch.tensor(t, dtype=torch.float64)
        for mine, exact in zip(Digits(schedule)(x, at)[:2], empirical(schedule, DIGITS)(x, at)[:2], strict=True):
            torch.testing.assert_close(mine, exact, rtol=1e-9, atol=1e-9)


# Which grid ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "own",
    [
        UniformGrid(1000),
        UniformGrid(1000, t_min=1e-3),
        RespacedGrid(50, length=1000),
        LogSNRGrid(20),
        KarrasGrid(18, 0.02),
    ],
    ids=lambda grid: type(grid).__name__,
)
def test_steps_choose_equal_shares_of_t(own: Grid) -> None:
    ten = chosen("table", own, DPMpp, None, 10).grid(LinearBetas(1000))
    start = float(own(LinearBetas(1000))[0])
    torch.testing.assert_close(ten, start * torch.arange(10, 0, -1, dtype=torch.float64) / 10)
    heun = chosen("table", own, Heun, None, 3).grid(LinearBetas(1000))
    torch.testing.assert_close(heun, start * torch.tensor([1, 0.6, 0.2], dtype=torch.float64))


def test_a_grid_that_is_given_is_kept() -> None:
    given = LogSNRGrid(7, t_min=0.01)
    grid = chosen("table", UniformGrid(1000), DDIM, given, 12).grid
    assert isinstance(grid, LogSNRGrid)
    assert (grid.steps, grid.t_min) == (12, 0.01)
    assert chosen("table", UniformGrid(1000), DDIM, given, None).grid is given
    assert chosen("table", given, DDIM, None, None).grid is given


def test_an_adaptive_solver_keeps_both_ends() -> None:
    adaptive = chosen("edm", KarrasGrid(18), AdaptiveODE, None, 2)
    assert array(adaptive.grid(Karras())).tolist() == pytest.approx([1.0, 0.0], abs=1e-9)
    assert ours(chosen("table", UniformGrid(1000), AdaptiveODE, None, 2), "table") < 0.01


def test_few_steps_start_at_a_finite_log_snr() -> None:
    grid = chosen("rectified", UniformGrid(50), UniPC, None, 10).grid(Rectified())
    assert array(grid)[[0, -1]].tolist() == pytest.approx([0.999, 0.0999])


def test_the_hint_names_a_faster_sampler_on_a_cpu() -> None:
    denoiser = Digits(LinearBetas(1000))
    slow = Pipeline(denoiser, Ancestral(UniformGrid(1000)), (64,))
    line = steps_hint(slow)
    assert line is not None
    assert "1,000 function evaluations" in line
    assert "--sampler DPMpp --steps 20 is about 50 times faster" in line
    assert steps_hint(slow.with_sampler(DPMpp(UniformGrid(20)))) is None
    denoiser.register_parameter("elsewhere", nn.Parameter(torch.zeros(1, device="meta")))
    assert steps_hint(slow) is None


# Long steps ---------------------------------------------------------------------------------------------------------

THIRD: dict[str, Callable[[Grid], Sampler]] = {
    "DPMpp": partial(DPMpp, order=3),
    "UniPC": partial(UniPC, order=3),
    "DEIS": partial(DEIS, order=3),
}


@pytest.mark.parametrize("name", THIRD)
@pytest.mark.parametrize("kind", ["table", "cosine", "rectified"])
def test_a_long_last_step_is_of_lower_order(kind: str, name: str) -> None:
    """Ten uniform steps that end at t = 1/1000: the last is 3 in log α/σ, and a parabola there missed by up to 0.8."""
    grid = UniformGrid(10, t_min=1e-3)
    assert ours(THIRD[name](grid), kind) < ours(DDIM(grid), kind)


@pytest.mark.parametrize("name", ["DPMpp", "UniPC"])
def test_long_steps_of_third_order_do_not_overshoot(name: str) -> None:
    """Five points of a Karras grid are 2.2 apart in log α/σ; a parabola missed a blurred digit by 0.87."""
    assert ours(THIRD[name](KarrasGrid(5, 0.01, 80.0)), "table", 0.1) < 0.5


@pytest.mark.parametrize("order", [1, 2])
def test_unipc_b1_is_bounded_in_a_long_first_step(order: int) -> None:
    """B(h) = h of a step that is 8 long in log α/σ weighed a difference of estimates fourfold."""
    grid = UniformGrid(5)
    assert ours(UniPC(grid, order, variant=1), "cosine") < ours(DDIM(grid), "cosine")
