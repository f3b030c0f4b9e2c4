"""Options, discovery of classes, and the numbers that tests compare with.

`--device` and `--dtype` say where the tensors under test are; tolerances widen with the type.  Tests of rounding, of
convergence orders and of identities at 1e-12 fix their own type.

`instances(Base)` builds every concrete subclass of Base in the package's core, so that a new class is tested without an
edit here; one that needs arguments gets a line in ARGUMENTS.
"""

import importlib
import inspect
import math
import os
import pkgutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import diffusion_pl
from diffusion_pl import conditions
from diffusion_pl.conditions import Condition
from diffusion_pl.denoisers import EDM, Denoiser, Gaussian, Masked, Parameterization, Prediction
from diffusion_pl.losses import LikelihoodTimes, UniformTimes, Weighting
from diffusion_pl.samplers import DDIM, Ancestral, AnnealedLangevin, ExplicitGrid, Grid, Sampler, UniformGrid
from diffusion_pl.schedules import VP, LinearBetas, Schedule

ROOT = Path(diffusion_pl.__file__).parent

#: Checkpoints of the tests may name classes of the tests.
os.environ["DIFFUSION_PL_TRUST"] = ",".join(sorted(file.stem for file in Path(__file__).parent.glob("*.py")))

#: The floor of every package of diffusion_pl, and of modules that have one of their own, bottom first.  A module
#: imports from strictly lower floors and from its own package.
FLOORS: dict[str, float] = {
    "tensors": 0,
    "conditions": 0,
    "ode": 0.5,
    "schedules": 1,
    "denoisers": 2,
    "samplers": 4,
    "likelihood": 4,
    "losses": 4.1,
    "pipeline": 4.2,
    # What needs nothing of the package: files, bounds, processes, signals.
    "runtime.bounds": 4.5,
    "runtime.reading": 4.5,
    "runtime.storage": 4.5,
    "runtime.startup": 4.5,
    "runtime.usage": 4.5,
    # What touches private names of other libraries, for whoever needs it.
    "runtime.upstream": 4.8,
    "training": 5,
    "checkpoints": 6,
    "checks": 6,
    "runtime": 6.2,
    "runtime.upstream.loops": 6.25,
    "checkpoints.snapshots": 6.25,
    "checkpoints.loading": 6.3,
    "checkpoints.teacher": 6.4,
    "checkpoints.warm_start": 6.4,
    "evaluation": 6.5,
    "interop": 6.55,
    "callbacks": 6.6,
    "evaluation.outcome": 6.65,
    "evaluation.run": 6.7,
    "evaluation.stored": 6.75,
    "cli": 6.9,
    "commands": 7,
    "__main__": 7.9,
}

#: Side floors: what each may import of the package besides itself; floors 5 and up may import them.
ISLANDS: dict[str, set[str]] = {
    "networks": {"tensors", "conditions"},
    "autoencoders": {"tensors", "conditions"},
    "data": {"tensors", "conditions", "autoencoders"},
    "metrics": set(),
    "plots": set(),
}

NOTHING = torch.zeros(1, 2)
NETWORK = EDM(0.5)


class Standard(Denoiser):
    """x_0 ~ N(0, I), of any shape."""

    def __init__(self, schedule: Schedule) -> None:
        super().__init__()
        self.schedule = schedule

    def forward(self, x_t: Tensor, t: Tensor, **cond: Tensor) -> Prediction:
        alpha, sigma, *_ = self.schedule(t)
        unit = x_t / (alpha.square() + sigma.square())
        return Prediction(alpha * unit, sigma * unit)


#: Constructor arguments, a list of variants by class name; a class that is not here is built without arguments (grids:
#: with steps, samplers: with a grid).
ARGUMENTS: dict[str, list[dict[str, Any]]] = {
    "BetaTable": [{"betas": [0.001, 0.02, 0.05, 0.2, 0.4, 0.3, 0.7, 0.9, 0.97]}],
    "ZeroTerminalSNR": [{"table": LinearBetas(1000)}],
    "LearnedLogSNR": [{"features": 8, "logsnr_min": -10.0}],
    "SNR": [{}, {"plus": 1.0}],
    "ChainELBO": [{"steps": 1000}, {"steps": 10}],
    "P2": [{}, {"k": 0.5, "gamma": 0.5}],
    "EDM": [{}, {"sigma_data": 2.0}],
    "FlowMatching": [{}, {"clip": 0.05}],
    "ShiftedTimes": [{"times": UniformTimes(), "shift": 3.0}, {"times": LikelihoodTimes(), "values": 1024}],
    "GridTimes": [{"steps": 1000}],
    "VarianceBound": [{"steps": 1000}],
    "StepIndex": [{"steps": 1000}],
    "UniformGrid": [{"steps": 8}, {"steps": 8, "t_max": 0.9, "t_min": 0.01}],
    "LogSNRGrid": [{"steps": 8, "t_max": 0.99}],
    "KarrasGrid": [{"steps": 8, "sigma_min": 0.02, "sigma_max": 40.0}],
    "RespacedGrid": [{"length": 100, "steps": 8}, {"length": 100, "steps": 8, "power": 2.0}],
    "TrailingGrid": [{"length": 100, "steps": 8}],
    "LeadingGrid": [{"length": 100, "steps": 8, "offset": 1}],
    "ShiftedGrid": [
        {"grid": UniformGrid(8, 1.0, 0.02), "shift": 3.0},
        {"grid": UniformGrid(8, 0.9, 0.01), "values": 1024},
    ],
    "ExplicitGrid": [{"t": [0.9, 0.7, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05]}],
    "Ancestral": [{"variance": 0.0}, {"variance": 0.4}, {"variance": 1.0}],
    "DDIM": [{"eta": 0.0}, {"eta": 0.6}, {"eta": 1.0}],
    "EulerMaruyama": [{"noise": 1.0}, {"noise": 0.0}, {"noise": 0.7}],
    "Heun": [{}, {"churn": 4.0}],
    "DPMpp": [{"order": 2}, {"order": 3}, {"order": 1, "eta": 1.0}, {"order": 2, "eta": 1.0}, {"order": 2, "eta": 0.5}],
    "DPMppSingle": [{"order": 2}, {"order": 3}],
    "DEIS": [{"order": k} for k in (1, 2, 3)],
    "UniPC": [{"order": k, "variant": v} for k in (1, 2, 3) for v in (1, 2)],
    "AdaptiveODE": [{"rtol": 1e-8, "atol": 1e-8}],
    # With a corrector that hardly changes the distribution: how well it corrects a wrong one has its own test.
    "Replacement": [{"sampler": Ancestral, "operator": Masked(NOTHING), "y": NOTHING, "repeats": 2}],
    "DPS": [{"operator": Masked(NOTHING), "y": NOTHING}],
    "PredictorCorrector": [{"corrector": AnnealedLangevin(snr=1e-4)}],
    # It samples from flow maps alone: test_flow_maps.py.
    "MultistepConsistency": [],
    "Reflow": [{"teacher": Standard(VP()), "sampler": DDIM(UniformGrid(2))}],
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="device of the tensors under test")
    parser.addoption("--dtype", default="float64", choices=["float32", "float64"], help="their type")


def pytest_make_parametrize_id(val: Any) -> str | None:
    """Names of tests without addresses in memory: those that run in several processes must be the same in all."""
    return type(val).__name__ if " object at 0x" in repr(val) else None


@pytest.fixture(autouse=True)
def environment_stays() -> Iterator[None]:
    """Lightning notes in the environment where the processes of a run meet; the next test's are others."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.config.getoption("--device"))


@pytest.fixture(scope="session")
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    kind: torch.dtype = getattr(torch, request.config.getoption("--dtype"))
    return kind


@pytest.fixture(scope="session")
def near(dtype: torch.dtype) -> Callable[..., None]:
    """near(actual, expected, rel, abs): assert_allclose with tolerances given for float64, at least 1e-3 in float32."""

    def check(actual: Any, expected: Any, rel: float = 1e-9, abs: float = 0.0) -> None:
        floor = 1e-3 if dtype == torch.float32 else 0.0
        np.testing.assert_allclose(array(actual), array(expected), rtol=max(rel, floor), atol=max(abs, floor * 0.1))

    return check


@pytest.fixture
def generator(device: torch.device) -> torch.Generator:
    return torch.Generator(device).manual_seed(0)


def array(x: Any) -> np.ndarray:
    """x as float64 numpy."""
    return x.detach().cpu().double().numpy() if isinstance(x, Tensor) else np.asarray(x, dtype=np.float64)


def by_class(classes: int | None) -> dict[str, Condition]:
    """The conditions of data with a label of so many classes, or of unconditional data."""
    return {} if classes is None else {"label": conditions.label(classes)}


def core_modules() -> Iterator[str]:
    """Names of the modules on floors 0 to 4."""
    for info in pkgutil.iter_modules([str(ROOT)]):
        if FLOORS.get(info.name, math.inf) >= 5:
            continue
        yield f"diffusion_pl.{info.name}"
        if info.ispkg:
            for inner in pkgutil.iter_modules([str(ROOT / info.name)]):
                yield f"diffusion_pl.{info.name}.{inner.name}"


def classes(base: type) -> list[type]:
    """The concrete subclasses of base in the core."""
    for name in core_modules():
        importlib.import_module(name)
    names, stack = set(), [base]
    while stack:
        cls = stack.pop()
        stack.extend(cls.__subclasses__())
        if not inspect.isabstract(cls) and cls.__module__.startswith("diffusion_pl."):
            names.add(cls)
    return sorted(names, key=lambda c: c.__name__)


def variants(cls: type, default: dict[str, Any]) -> list[dict[str, Any]]:
    """Keyword arguments of each variant of cls that is to be tested."""
    chosen = ARGUMENTS.get(cls.__name__, [default])
    for kwargs in chosen:
        try:
            inspect.signature(cls).bind(**({"grid": None} if takes_grid(cls) else {}), **kwargs)
        except TypeError as error:
            raise TypeError(f"{cls.__name__}: {error}; give conftest.ARGUMENTS a line for it") from error
    return chosen


def takes_grid(cls: type) -> bool:
    """Whether cls is a sampler with a grid of its own, not one that wraps another sampler."""
    return issubclass(cls, Sampler) and "grid" in inspect.signature(cls).parameters


def label(cls: type, kwargs: dict[str, Any]) -> str:
    short = [f"{v:g}" for v in kwargs.values() if isinstance(v, (int, float))]
    return "-".join([cls.__name__, *short])


def instances(base: type) -> list[Any]:
    """One pytest.param per concrete subclass and variant."""
    default = {"steps": 8} if base is Grid else {}
    return [
        pytest.param(cls(**kwargs), id=label(cls, kwargs)) for cls in classes(base) for kwargs in variants(cls, default)
    ]


def samplers() -> list[Any]:
    """pytest.param(build) per sampler and variant: build(grid) makes it."""

    def builder(cls: type[Sampler], kwargs: dict[str, Any]) -> Callable[[Grid], Sampler]:
        if takes_grid(cls):
            return lambda grid: cls(grid, **kwargs)
        return lambda grid: cls(**{k: v(grid) if isinstance(v, type) else v for k, v in kwargs.items()})

    return [
        pytest.param(builder(cls, kwargs), id=label(cls, kwargs))
        for cls in classes(Sampler)
        for kwargs in variants(cls, {})
    ]


SCHEDULES = instances(Schedule)

#: Times inside every cell of every table (no multiple of 1/N), where all schedules are regular.
INNER = [0.00307, 0.0213, 0.1057, 0.2689, 0.5071, 0.7393, 0.9137, 0.9871]


class ExactNetwork(nn.Module):
    """The network F whose NetworkDenoiser is the given oracle; its c_noise is t itself."""

    def __init__(self, oracle: Denoiser, parameterization: Parameterization) -> None:
        super().__init__()
        # In a tuple: a learned schedule's parameters, and their type, are not the network's.
        self._oracle, self.parameterization = (oracle,), parameterization

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        (oracle,) = self._oracle
        t = c_noise.reshape(-1, *[1] * (x.ndim - 1))
        kernel = oracle.schedule(t)
        scale = torch.sqrt((self.parameterization.sigma_data * kernel.alpha) ** 2 + kernel.sigma**2)
        return self.parameterization.target(kernel, *oracle(scale * x, t)[:2])


class GaussianFlow:
    """Exact distributions of the diffusion of x_0 ~ N(mean, cov) in numpy: marginals, probability flow, posterior mean.

    Marginal at t: N(α mean, α² cov + σ² I).  Flow: the optimal transport map between the (commuting) marginals.
    """

    mean = np.array([0.7, -0.4])
    cov = np.array([[0.9, 0.35], [0.35, 0.4]])

    def __init__(self, schedule: Schedule, dtype: torch.dtype = torch.float64, device: Any = "cpu") -> None:
        self.schedule = schedule
        self.oracle = Gaussian(schedule, *(torch.tensor(a, dtype=dtype, device=device) for a in (self.mean, self.cov)))

    def scales(self, t: float) -> tuple[float, float]:
        alpha, sigma, *_ = self.schedule(torch.tensor(t, dtype=torch.float64))
        return alpha.item(), sigma.item()

    def marginal(self, t: float) -> tuple[np.ndarray, np.ndarray]:
        alpha, sigma = self.scales(t)
        return alpha * self.mean, alpha**2 * self.cov + sigma**2 * np.eye(2)

    def denoised(self, t: float) -> tuple[np.ndarray, np.ndarray]:
        """Mean and covariance of E[x_0 | x_t]: what a sampler ends with after the exact marginal at t."""
        alpha, _ = self.scales(t)
        gain = alpha * self.cov @ np.linalg.inv(self.marginal(t)[1])
        return self.mean, gain @ self.marginal(t)[1] @ gain.T

    def flow(self, x_t: np.ndarray, t: float, s: float) -> np.ndarray:
        """x_s on the path of the probability-flow ODE through x_t: (B, 2)."""
        (mean_t, cov_t), (mean_s, cov_s) = self.marginal(t), self.marginal(s)
        _, axes = np.linalg.eigh(self.cov)
        widths = [np.diag(axes.T @ c @ axes) for c in (cov_t, cov_s)]
        x_s: np.ndarray = mean_s + (x_t - mean_t) @ (axes * np.sqrt(widths[1] / widths[0])) @ axes.T
        return x_s


def weigh(weighting: Weighting, schedule: Schedule, t: Tensor, parameterization: Parameterization = NETWORK) -> Tensor:
    """w(t), for a network of this parameterization."""
    kernel = schedule(t)
    return weighting(schedule, t, kernel, parameterization.c_out(kernel))


def explicit(grid: Grid, schedule: Schedule) -> ExplicitGrid:
    """The grid's times on this schedule, as a grid of their own."""
    return ExplicitGrid(grid(schedule).tolist())
