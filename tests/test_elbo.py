"""The bounds against closed forms, true likelihoods and each other."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from conftest import array
from scipy.stats import norm
from torch import Tensor

from diffusion_pl.denoisers import Denoiser, Gaussian, GaussianMixture, Prediction
from diffusion_pl.likelihood import Bound, ChainBound, ContinuousBound, decoder_nll
from diffusion_pl.schedules import VE, VP, Karras, LinearBetas, Rectified, Schedule, SubVP
from diffusion_pl.tensors import SampleNoise

PROCESSES = [VP(), SubVP(), VE(), Karras(), Rectified()]
processes = pytest.mark.parametrize("schedule", PROCESSES, ids=lambda s: type(s).__name__)
dimensions = pytest.mark.parametrize("dim", [2, 64])


def gaussian(schedule: Schedule, dim: int) -> tuple[Gaussian, np.ndarray, np.ndarray]:
    """The oracle of a correlated Gaussian, and mean and variance along its axes."""
    rng = np.random.default_rng(3)
    axes, _ = np.linalg.qr(rng.standard_normal((dim, dim)))
    mean, var = rng.uniform(-0.6, 0.6, dim), np.linspace(0.4, 1.3, dim)
    oracle = Gaussian(schedule, torch.tensor(axes @ mean), torch.tensor((axes * var) @ axes.T))
    np.testing.assert_allclose(array(oracle.var), var)
    return oracle, mean, var


def draw(oracle: Gaussian, count: int) -> Tensor:
    rng = torch.Generator().manual_seed(1)
    white = torch.randn(count, len(oracle.mean), dtype=torch.float64, generator=rng)
    x_0: Tensor = oracle.mean + oracle.var.sqrt() * white @ oracle.axes.T
    return x_0


def seeded(seed: int = 0) -> Any:
    """Noise for tests of averages, which need no generator of each sample's own."""
    rng = torch.Generator().manual_seed(seed)
    return lambda x: torch.randn(x.shape, dtype=x.dtype, generator=rng)


def entropy(var: np.ndarray) -> float:
    return float(0.5 * np.log(2 * math.pi * math.e * var).sum())


def scales(schedule: Schedule, t: float) -> tuple[float, float]:
    alpha, sigma, *_ = schedule(torch.tensor(t, dtype=torch.float64))
    return alpha.item(), sigma.item()


def left(schedule: Schedule, t: float, var: np.ndarray) -> np.ndarray:
    """Var(x_0 | x_t) along each axis: the precisions of the data and of the observation x_t/α add up."""
    alpha, sigma = scales(schedule, t)
    return 1 / (1 / var + (alpha / sigma) ** 2)


def prior_term(schedule: Schedule, mean: np.ndarray, var: np.ndarray) -> float:
    """Cross-entropy of the marginal at t = 1 and the prior, less the entropy of the kernel."""
    alpha, sigma = scales(schedule, 1.0)
    wide = alpha**2 + sigma**2
    second = alpha**2 * (var + mean**2) + sigma**2
    cross = 0.5 * np.log(2 * math.pi * wide) + second / (2 * wide)
    return float((cross - 0.5 * np.log(2 * math.pi * math.e * sigma**2)).sum())


def chain_by_hand(
    schedule: Schedule, mean: np.ndarray, var: np.ndarray, steps: int, large: bool
) -> tuple[float, list[float], float]:
    """Exact expectations of the three parts for Gaussian data; the reverse steps from Bayes' rule for x_s."""
    terms = []
    for i in range(2, steps + 1):
        (alpha_s, sigma_s), (alpha_t, sigma_t) = scales(schedule, (i - 1) / steps), scales(schedule, i / steps)
        a = alpha_t / alpha_s
        beta = sigma_t**2 - a**2 * sigma_s**2
        tilde = 1 / (a**2 / beta + 1 / sigma_s**2)
        to_x_0 = tilde * alpha_s / sigma_s**2  # of the mean of x_s on x_0
        gap = to_x_0**2 * left(schedule, i / steps, var)
        p_var = beta if large else tilde
        terms.append(float((0.5 * (np.log(p_var / tilde) + (tilde + gap) / p_var - 1)).sum()))
        if i == 2:
            decoder_var = tilde
    decoder = 0.5 * np.log(2 * math.pi * decoder_var) + left(schedule, 1 / steps, var) / (2 * decoder_var)
    return prior_term(schedule, mean, var), terms, float(decoder.sum())


# The chain ----------------------------------------------------------------------------------------------------------


@dimensions
@processes
@pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
def test_the_chains_parts_are_those_of_the_closed_form(schedule: Schedule, dim: int, large: bool) -> None:
    oracle, mean, var = gaussian(schedule, dim)
    prior, terms, decoder = chain_by_hand(schedule, mean, var, 25, large)
    bound = ChainBound(25, variance=float(large))(oracle, draw(oracle, 24_000 if dim == 2 else 1500), seeded())
    assert bound.terms.shape == (24, len(bound.total))
    np.testing.assert_allclose(array(bound.t), np.arange(2, 26) / 25)
    np.testing.assert_allclose(array(bound.terms.mean(1)), terms, rtol=0.06, atol=1e-9)
    assert float(bound.diffusion.mean()) == pytest.approx(sum(terms), rel=0.01)
    assert float(bound.decoder.mean()) == pytest.approx(decoder, rel=0.01)
    assert float(bound.prior.mean()) == pytest.approx(prior, rel=0.05, abs=1e-9)
    exact = prior + sum(terms) + decoder
    assert float(bound.total.mean()) == pytest.approx(exact, rel=0.01)
    assert exact > entropy(var)  # a bound, and by the closed form not by luck


@processes
def test_few_step_chain_bound_matches_its_closed_form(schedule: Schedule) -> None:
    oracle, mean, var = gaussian(schedule, 2)
    parts = [chain_by_hand(schedule, mean, var, n, False) for n in (8, 32)]
    exact = [prior + sum(terms) + decoder for prior, terms, decoder in parts]
    result = [float(ChainBound(n)(oracle, draw(oracle, 8000), seeded()).total.mean()) for n in (8, 32)]
    np.testing.assert_allclose(result, exact, rtol=0.02)
    assert min(result) > entropy(var)


def test_fixed_large_and_small_are_right_for_opposite_data() -> None:
    """β for N(0, I) under VP, β̃ for a point: Ho et al., Sec. 3.2."""
    totals = {}
    for name, var in (("wide", 1.0), ("point", 1e-4)):
        oracle = Gaussian(VP(), torch.zeros(2, dtype=torch.float64), var * torch.eye(2, dtype=torch.float64))
        for v in (0.0, 0.5, 1.0):
            bound = ChainBound(40, v)(oracle, draw(oracle, 2000), seeded())
            totals[name, v] = float(bound.diffusion.mean())
    assert totals["wide", 1.0] < totals["wide", 0.5] < totals["wide", 0.0]
    assert totals["point", 0.0] < totals["point", 0.5] < totals["point", 1.0]


def test_visiting_some_of_the_steps_is_unbiased() -> None:
    oracle, _, _ = gaussian(VP(), 2)
    x_0 = draw(oracle, 1).expand(20_000, -1)  # one example, many estimates
    whole = ChainBound(60)(oracle, x_0[:4000], seeded(1))
    for times in (2, 7, 59):
        some = ChainBound(60, times=times)(oracle, x_0, seeded(2))
        assert some.nfe == times
        assert some.t.shape == (times - 1,)
        error = math.hypot(*(float(b.diffusion.std()) / math.sqrt(len(b.total)) for b in (some, whole)))
        assert error < 0.05 * float(whole.diffusion.mean())
        assert abs(float(some.diffusion.mean() - whole.diffusion.mean())) < 3.5 * error


def test_all_steps_give_the_full_chain() -> None:
    oracle, _, _ = gaussian(VP(), 2)
    x_0 = draw(oracle, 3)
    whole, same = (ChainBound(9, times=k)(oracle, x_0, SampleNoise(0, range(3))) for k in (None, 9))
    assert torch.equal(whole.total, same.total)
    assert whole.nfe == 9


def test_ddpm_prior_term_is_a_hundred_thousandth_of_a_bit() -> None:
    rng = torch.Generator().manual_seed(0)
    x_0 = torch.randint(0, 256, (8, 3, 16, 16), generator=rng).float() / 127.5 - 1
    x_0 = ((x_0.double() + 1) * 127.5).round().div(127.5) - 1
    flat = GaussianMixture(LinearBetas(1000), torch.zeros(1, 768, dtype=torch.float64), 1.0)
    bits = ChainBound(1000, times=2)(flat, x_0.flatten(1), seeded(), levels=256).prior / (768 * math.log(2))
    assert 1e-6 < float(bits.min()) <= float(bits.max()) < 1e-4
    # The same from the table: with 1 − σ² = ᾱ it is ½(ᾱ(x² − 1) − log(1 − ᾱ)).
    bar = np.prod(1 - np.linspace(1e-4, 0.02, 1000))
    by_hand = 0.5 * (bar * (array(x_0).reshape(8, -1) ** 2 - 1) - np.log1p(-bar)).mean(1) / math.log(2)
    np.testing.assert_allclose(array(bits), by_hand, rtol=1e-6)


class WithVariance(Denoiser):
    """An oracle that also predicts a variance."""

    def __init__(self, oracle: Gaussian, v: float) -> None:
        super().__init__()
        self.oracle, self.schedule, self.v = oracle, oracle.schedule, v

    def forward(self, x_t: Tensor, t: Tensor, **cond: Tensor) -> Prediction:
        prediction: Prediction = self.oracle(x_t, t)
        return prediction._replace(v=torch.full_like(x_t, self.v))


@pytest.mark.parametrize("times", [None, 5])
@pytest.mark.parametrize("v", [0.0, 0.3, 1.0])
def test_a_learned_variance_at_its_ends_is_the_fixed_one(v: float, times: int | None) -> None:
    oracle, _, _ = gaussian(VP(), 2)
    x_0 = draw(oracle, 5)
    learned = ChainBound(12, None, times)(WithVariance(oracle, v), x_0, SampleNoise(0, range(5)))
    fixed = ChainBound(12, v, times)(oracle, x_0, SampleNoise(0, range(5)))
    np.testing.assert_allclose(array(learned.terms), array(fixed.terms), rtol=1e-9)
    # At t = 1/T every fixed variance is β̃_2; a learned one runs from there to β_1.
    small = ChainBound(12, 0.0, times)(oracle, x_0, SampleNoise(0, range(5)))
    np.testing.assert_allclose(array(fixed.decoder), array(small.decoder), rtol=1e-12)
    assert np.allclose(array(learned.decoder), array(fixed.decoder), rtol=1e-9) == (v == 0)


def test_large_variance_takes_the_second_step_first() -> None:
    """Ho et al.'s "fixedlarge", as in their code: log var = log([β̃_2, β_2, …, β_T]); here of DDPM's table, in numpy."""
    betas = np.linspace(1e-4, 0.02, 1000)
    bars = np.cumprod(1 - betas)
    second = betas[1] * (1 - bars[0]) / (1 - bars[1])
    point = torch.full((1, 4), 0.25, dtype=torch.float64)
    oracle = Gaussian(LinearBetas(1000), point[0], 0.01 * torch.eye(4, dtype=torch.float64))
    bound = ChainBound(1000, 1.0, times=2)(oracle, point, lambda x: torch.zeros_like(x))
    # x_t = √ᾱ_1 x_0 is the mean of x_t: x̂_0 = x_0, and the density of x_0 there is the Gaussian's at its mean.
    assert bound.decoder.item() == pytest.approx(4 * 0.5 * math.log(2 * math.pi * second), rel=1e-9)


# Infinitely many steps ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "dim"),
    [
        pytest.param(schedule, dim, marks=pytest.mark.slow if dim == 2 and type(schedule) in (SubVP, Karras) else ())
        for schedule in PROCESSES
        for dim in (2, 64)
    ],
    ids=lambda value: str(value) if isinstance(value, int) else type(value).__name__,
)
def test_the_continuous_bound_is_tight_for_a_gaussian(schedule: Schedule, dim: int) -> None:
    oracle, mean, var = gaussian(schedule, dim)
    bound = ContinuousBound(64)(oracle, draw(oracle, 120_000 if dim == 2 else 3000), seeded())
    snr = [(alpha / sigma) ** 2 for alpha, sigma in (scales(schedule, 1e-5), scales(schedule, 1.0))]
    # ½∫ v SNR/(1 + v SNR) (−dλ), along each axis.
    diffusion = float(0.5 * np.log((1 + var * snr[0]) / (1 + var * snr[1])).sum())
    decoder = float((0.5 * np.log(2 * math.pi / snr[0]) + 0.5 * snr[0] * left(schedule, 1e-5, var)).sum())
    assert float(bound.diffusion.mean()) == pytest.approx(diffusion, rel=0.003)
    assert float(bound.decoder.mean()) == pytest.approx(decoder, rel=0.003)
    assert float(bound.prior.mean()) == pytest.approx(prior_term(schedule, mean, var), rel=0.05, abs=1e-9)
    assert float(bound.total.mean()) == pytest.approx(entropy(var), rel=0.01)
    per_stratum = array(bound.terms.mean(1))
    assert np.all(np.diff(array(bound.t)) > 0)
    assert per_stratum[0] == pytest.approx(per_stratum[1], rel=0.05)  # the plateau at small σ
    assert bound.nfe == 65


@dimensions
@processes
def test_both_bound_the_likelihood_of_a_mixture(schedule: Schedule, dim: int) -> None:
    rng = torch.Generator().manual_seed(5)
    means = torch.randn(4, dim, dtype=torch.float64, generator=rng)
    stds = torch.tensor([0.6, 0.7, 0.5, 0.8], dtype=torch.float64)
    weights = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
    count = 60_000 if dim == 2 else 2000
    which = torch.multinomial(weights, count, replacement=True, generator=rng)
    white = torch.randn(count, dim, dtype=torch.float64, generator=rng)
    x_0 = means[which] + stds[which, None] * white
    log_densities = -0.5 * (x_0[:, None] - means).square().sum(-1) / stds**2 - dim * torch.log(
        stds * math.sqrt(2 * math.pi)
    )
    true = -torch.logsumexp(weights.log() + log_densities, 1)
    oracle = GaussianMixture(schedule, means, stds, weights.tolist())

    continuous = ContinuousBound(64)(oracle, x_0, seeded()).total
    over = continuous - true
    error = float(over.std()) / math.sqrt(count)
    assert float(over.mean()) > -3 * error
    assert float(continuous.mean()) == pytest.approx(float(true.mean()), rel=0.01)
    chain = ChainBound(20)(oracle, x_0[:4000], seeded()).total - true[:4000]
    assert float(chain.mean()) > 0


def test_the_integral_does_not_depend_on_the_number_of_strata() -> None:
    oracle, _, _ = gaussian(Rectified(), 2)
    few, many = (ContinuousBound(k)(oracle, draw(oracle, 100_000), seeded(k)).diffusion for k in (4, 40))
    error = math.hypot(*(float(d.std()) / math.sqrt(len(d)) for d in (few, many)))
    assert error < 0.004 * float(many.mean())
    assert abs(float(few.mean() - many.mean())) < 3.5 * error


# Levels -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [2, 17, 256])
@pytest.mark.parametrize(("mean", "std"), [(-1.3, 0.3), (0.2, 0.01), (0.95, 0.1), (0.0, 5.0)])
def test_the_levels_share_all_of_the_probability(levels: int, mean: float, std: float) -> None:
    x_0 = torch.linspace(-1, 1, levels, dtype=torch.float64)[:, None]
    nats = decoder_nll(x_0, torch.full_like(x_0, mean), torch.tensor(std, dtype=torch.float64), levels)
    assert float(torch.exp(-nats).sum()) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_an_unlikely_level_has_its_own_probability(kind: torch.dtype) -> None:
    """Far out, from the tail of scipy's normal: 2·10⁵ nats are a number though their probability is none."""
    x_0 = torch.tensor([0.2, 0.2, -1.0, 1.0, -0.6], dtype=kind)
    mean = torch.tensor([0.2, -0.2, 0.5, 0.0, 0.4], dtype=kind)
    x_0 = ((x_0 + 1) * 127.5).round() / 127.5 - 1
    for std in (0.03, 0.002):
        result = decoder_nll(x_0, mean, torch.tensor(std, dtype=torch.float64), 256)
        near, far = (np.abs(array(x_0 - mean)) + side / 255 for side in (-1, 1))
        far[[2, 3]] = np.inf
        upper, lower = norm.logsf(near / std), norm.logsf(far / std)
        np.testing.assert_allclose(array(result), -(upper + np.log1p(-np.exp(lower - upper))), rtol=2e-5)


def test_discrete_bound_tends_to_the_density_bound() -> None:
    """−log P(level) ≈ −log p(x) − log(width) where the decoder is much wider than a level."""
    oracle = Gaussian(VP(), torch.zeros(2, dtype=torch.float64), 0.04 * torch.eye(2, dtype=torch.float64))
    levels = 65536
    x_0 = draw(oracle, 200).clamp(-0.9, 0.9)
    x_0 = ((x_0 + 1) * (levels - 1) / 2).round() * 2 / (levels - 1) - 1
    for bound in (ChainBound(30), ContinuousBound(30, t_min=0.003)):
        fine, density = (bound(oracle, x_0, SampleNoise(0, range(200)), n) for n in (levels, None))
        width = 2 * math.log(2 / (levels - 1))
        np.testing.assert_allclose(array(fine.decoder), array(density.decoder) - width, rtol=1e-5)
        assert torch.equal(fine.diffusion, density.diffusion)


def test_the_bound_of_8_bit_data_is_above_their_entropy() -> None:
    """Two levels of 256 at each pixel, equally likely and independent: log 2 each, which the continuous bound reaches.

    The chain's decoder does not: at t = 1/1000 its deviation, √β̃₂, is two half levels wide, 0.9 nats a pixel.
    """
    points = torch.tensor([[a, b] for a in (100, 180) for b in (90, 200)], dtype=torch.float64) / 127.5 - 1
    oracle = GaussianMixture(LinearBetas(1000), points)
    x_0 = points.repeat(500, 1)
    for bound in (ChainBound(1000, times=100), ContinuousBound(100)):
        total = bound(oracle, x_0, seeded(), levels=256).total
        error = float(total.std()) / math.sqrt(len(total))
        assert error < 0.04
        assert float(total.mean()) > 2 * math.log(2) - 3 * error
        decoder = 0.0 if isinstance(bound, ContinuousBound) else 2 * 0.905
        assert float(total.mean()) == pytest.approx(2 * math.log(2) + decoder, rel=0.1)


# What holds of both -------------------------------------------------------------------------------------------------

BOUNDS = [ChainBound(15), ChainBound(200, 1.0, 15), ContinuousBound(15)]
both = pytest.mark.parametrize("bound", BOUNDS, ids=["whole", "some", "continuous"])


@both
@processes
def test_an_examples_bound_does_not_depend_on_its_batch(bound: Any, schedule: Schedule) -> None:
    # Elementwise, so that a matrix product's rounding does not depend on the batch either.
    oracle, x_0 = Counting(schedule), draw(gaussian(schedule, 64)[0], 6)
    whole: Bound = bound(oracle, x_0, SampleNoise(7, range(6)))
    parts = [bound(oracle, x_0[i], SampleNoise(7, i)) for i in ([4], [0, 3], [5, 2, 1])]
    for name in ("prior", "diffusion", "decoder", "total"):
        together = torch.cat([getattr(part, name) for part in parts])
        np.testing.assert_allclose(array(together), array(getattr(whole, name))[[4, 0, 3, 5, 2, 1]], rtol=1e-12)
    assert whole.total.shape == (6,)
    assert len(whole.total.unique()) == 6
    np.testing.assert_allclose(array(whole.terms.sum(0)), array(whole.diffusion), rtol=1e-12)
    np.testing.assert_allclose(array(whole.total), array(whole.prior + whole.diffusion + whole.decoder), rtol=1e-12)
    assert whole.terms.shape == (len(whole.t), 6)
    assert float(whole.terms.min()) >= 0


class Counting(Denoiser):
    """Images of any shape as N(0, I); keeps the types and conditions it is given."""

    def __init__(self, schedule: Schedule) -> None:
        super().__init__()
        self.schedule = schedule
        self.seen: list[tuple[torch.dtype, tuple[int, ...], Any, bool]] = []

    def forward(self, x_t: Tensor, t: Tensor, **cond: Tensor) -> Prediction:
        self.seen.append((x_t.dtype, tuple(t.shape), cond.get("label"), torch.is_grad_enabled()))
        alpha, sigma, *_ = self.schedule(t)
        norm = alpha**2 + sigma**2
        return Prediction(alpha / norm * x_t, sigma / norm * x_t)


@both
@processes
def test_float32_images_keep_their_dtype_and_condition(bound: Any, schedule: Schedule) -> None:
    denoiser, label = Counting(schedule), torch.tensor([1, 2])
    x_0 = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    single: Bound = bound(denoiser, x_0, SampleNoise(0, range(2)), label=label)
    assert len(denoiser.seen) == single.nfe
    assert {(dtype, shape) for dtype, shape, *_ in denoiser.seen} <= {
        (torch.float32, ()),
        (torch.float32, (2, 1, 1, 1)),
    }
    assert all(given is label and not grad for *_, given, grad in denoiser.seen)
    assert single.total.dtype == torch.float32
    # The same noise in twice the digits: nothing is lost but the digits of σ ε that x_t does not hold.
    if isinstance(bound, ChainBound):
        assert bound.steps is not None
        first = 1 / bound.steps
    else:
        first = bound.t_min
    least = scales(schedule, first)[1]
    noise = SampleNoise(0, range(2))
    double = bound(denoiser, x_0.double(), lambda x: noise(x.float()).double())
    np.testing.assert_allclose(array(single.total), array(double.total), rtol=3e-5, atol=3 * 2**-23 / least)


def call(bound: Any, levels: int | None = None, x: float = 0.0) -> Bound:
    result: Bound = bound(Counting(VP()), torch.full((2, 3), x), seeded(), levels)
    return result


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ChainBound(1), "steps must be at least 2, got 1"),
        (lambda: ChainBound(10, 1.5), r"variance must be in \[0, 1\].* got 1.5"),
        (lambda: ChainBound(10, math.nan), r"variance must be in \[0, 1\].* got nan"),
        (lambda: ChainBound(10, times=1), "times must be in 2 … 10 .* got 1"),
        (lambda: ChainBound(10, times=11), "times must be in 2 … 10 .* got 11"),
        (lambda: ContinuousBound(0), "times must be at least 1, got 0"),
        (lambda: ContinuousBound(t_min=0.0), r"t_min must be in \(0, 1\), got 0.0"),
        (lambda: ContinuousBound(t_min=math.nan), "got nan"),
        (lambda: call(ChainBound(4, None)), "predicts no variance. Fix: set variance"),
        (lambda: call(ChainBound(4), 1), "levels must be at least 2, got 1"),
        (lambda: call(ContinuousBound(4), 256, 0.1), "must be on the 256 levels .* between 0.1 and 0.1"),
        (lambda: call(ChainBound(4), 256, 3.0), "must be on the 256 levels .* between 3 and 3"),
        (lambda: call(ChainBound(4), 3, math.nan), "must be on the 3 levels"),
    ],
)
def test_bad_input_is_refused(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
