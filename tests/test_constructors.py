"""Numbers that constructors take: what is not refused works, what is not a number is refused by all."""

import inspect
import math
from collections.abc import Callable
from types import UnionType
from typing import Any, Union, get_args, get_origin

import pytest
import torch
from conftest import ARGUMENTS, classes, label, takes_grid, variants, weigh
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from diffusion_pl.denoisers import Gaussian, LogSNR, NoiseInput, Parameterization, ScaledTime
from diffusion_pl.likelihood import ChainBound, ContinuousBound, FlowLikelihood
from diffusion_pl.losses import TimeSampler, Weighting
from diffusion_pl.samplers import Grid, Sampler, UniformGrid
from diffusion_pl.schedules import VP, Schedule
from diffusion_pl.tensors import SampleNoise

T = torch.tensor([0.0107, 0.2689, 0.5071, 0.9137], dtype=torch.float64)
ORACLE = Gaussian(
    VP(), torch.tensor([0.5, -0.3], dtype=torch.float64), torch.tensor([[0.9, 0.3], [0.3, 0.4]], dtype=torch.float64)
)


def check_schedule(schedule: Schedule) -> None:
    kernel = schedule(T)
    assert all(part.isfinite().all() for part in kernel)
    assert (kernel.sigma > 0).all()
    assert (kernel.logsnr.diff() < 0).all()


def check_grid(grid: Grid) -> None:
    # A grid may still refuse a schedule that does not reach its noise levels.
    times = grid(VP())
    assert times.isfinite().all()
    assert (times.diff() < 0).all()
    assert 0 < times[-1] <= times[0] <= 1


def check_times(times: TimeSampler) -> None:
    t, importance = times(VP(), torch.zeros(64, 2), torch.Generator().manual_seed(0))
    assert t.isfinite().all()
    assert (t >= 0).all() and (t <= 1).all()
    assert torch.as_tensor(importance).isfinite().all()


def check_weighting(weighting: Weighting) -> None:
    schedule = VP()
    weight = weigh(weighting, schedule, T)
    assert weight.isfinite().all()
    assert (weight >= 0).all()


def check_parameterization(parameterization: Parameterization) -> None:
    kernel = VP()(T[:, None])
    x_0, eps = torch.full((4, 2), 0.5), torch.full((4, 2), -1.0)
    target = parameterization.target(kernel, x_0, eps)
    back = parameterization.predict(kernel, kernel.alpha * x_0 + kernel.sigma * eps, target)
    torch.testing.assert_close(back.x_0, x_0.double(), rtol=1e-4, atol=1e-4)


def check_sampler(sampler: Sampler) -> None:
    noise = SampleNoise(0, range(3))
    if sampler.end > sampler.grid(ORACLE.schedule)[-1]:  # which is known with the schedule only
        with pytest.raises(ValueError, match="end must not be later"):
            sampler(ORACLE, torch.zeros(3, 2, dtype=torch.float64), noise=noise)
        return
    samples = sampler(ORACLE, torch.full((3, 2), 0.3, dtype=torch.float64), noise=noise)
    assert samples.x_0.isfinite().all()


def check_noise_input(noise_input: NoiseInput) -> None:
    assert noise_input(VP(), T, VP()(T)).isfinite().all()


def check_any(thing: Any) -> None:
    assert thing is not None


CHECKS: dict[type, Callable[[Any], None]] = {
    Schedule: check_schedule,
    Grid: check_grid,
    TimeSampler: check_times,
    Weighting: check_weighting,
    Parameterization: check_parameterization,
    Sampler: check_sampler,
    NoiseInput: check_noise_input,
}
SINGLE = (FlowLikelihood, ChainBound, ContinuousBound)


def is_union(annotation: Any) -> bool:
    return get_origin(annotation) in (Union, UnionType)


def numbers(cls: type) -> dict[str, type]:
    """The parameters that are an int or a float, or None."""
    result: dict[str, type] = {}
    for name, parameter in inspect.signature(cls).parameters.items():
        kinds = (parameter.annotation, *(get_args(parameter.annotation) if is_union(parameter.annotation) else ()))
        kind = next((k for k in (float, int) if k in kinds), None)
        if kind is not None:
            result[name] = kind
    return result


def built(cls: type) -> list[Any]:
    """(class, arguments of a variant, check) for pytest."""
    base = next((b for b in CHECKS if issubclass(cls, b)), None)
    default: dict[str, Any] = {"steps": 8} if base is Grid else {}
    known = variants(cls, default) if cls.__name__ in ARGUMENTS or base else [{}]
    check = CHECKS[base] if base is not None else check_any
    return [
        pytest.param(cls, kwargs, check, id=label(cls, kwargs))
        for kwargs in known[:1]
        if numbers(cls) and not any(isinstance(v, type) for v in kwargs.values())
    ]


CASES = [case for base in CHECKS for cls in classes(base) for case in built(cls)]
CASES += [case for cls in (*SINGLE, ScaledTime, LogSNR) for case in built(cls)]
CASES = list({case.id: case for case in CASES}.values())


def make(cls: type, kwargs: dict[str, Any]) -> Any:
    if issubclass(cls, Sampler) and takes_grid(cls):
        return cls(UniformGrid(6), **kwargs)
    return cls(**kwargs)


#: Where infinity means something: an interval of noise levels that is open, a schedule from pure data to pure noise.
LIMITS = {
    ("Heun", "churn_max", math.inf),
    ("Heun", "churn_min", math.inf),  # never
    ("Heun", "churn", math.inf),  # as much as the sampler allows
    ("Cosine", "logsnr_max", math.inf),
    ("Cosine", "logsnr_min", -math.inf),
}


@pytest.mark.parametrize(("cls", "kwargs", "check"), CASES)
def test_what_is_no_number_is_refused(cls: type, kwargs: dict[str, Any], check: Callable[[Any], None]) -> None:
    for name, kind in numbers(cls).items():
        for bad in (math.nan, math.inf, -math.inf) if kind is float else ():
            if (cls.__name__, name, bad) in LIMITS:
                continue
            with pytest.raises(ValueError, match=r".") as caught:
                make(cls, {**kwargs, name: bad})
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("cls", "kwargs", "check"), CASES)
@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_what_is_accepted_works(cls: type, kwargs: dict[str, Any], check: Callable[[Any], None], data: Any) -> None:
    """One or two numbers at random, also absurd ones: a ValueError in one line, or an object that does its work."""
    known = numbers(cls)
    changed = data.draw(st.lists(st.sampled_from(sorted(known)), min_size=1, max_size=2, unique=True))
    drawn = {name: data.draw(FLOATS if known[name] is float else INTS, label=name) for name in changed}
    try:
        thing = make(cls, {**kwargs, **drawn})
        check(thing)
    except ValueError as error:
        assert str(error)
        assert "\n" not in str(error)


#: Of the sizes that people write, and of those that they do not.
FLOATS = st.one_of(st.floats(-2, 2), st.floats(1e-4, 100), st.sampled_from([0.0, -1.0, 1.0, 0.5]))
INTS = st.one_of(st.integers(-3, 12), st.sampled_from([0, 1, 50]))
