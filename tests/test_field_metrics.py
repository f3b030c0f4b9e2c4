"""Metrics of fields and ensembles against scipy, numpy.fft and closed forms."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from diffusion_pl.metrics.ensembles import crps, ranks, spread_and_error
from diffusion_pl.metrics.fields import FieldStatistics, Summary, power, scores, shells

SIZES = [(32,), (31,), (16, 12), (7, 9), (6, 8, 4), (8, 1, 5)]


def fields(n: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.randn(n, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def statistics(*batches: Tensor) -> FieldStatistics:
    made = FieldStatistics(batches[0].shape[1:])
    for x in batches:
        made.update(x, torch.ones(len(x), dtype=torch.bool))
    return made


def summary(*batches: Tensor) -> Summary:
    made: Summary = statistics(*batches).compute()
    return made


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_spectrum_equals_the_full_fft_of_numpy(sizes: tuple[int, ...]) -> None:
    x, by = fields(3, 2, *sizes), shells(sizes)
    full = np.abs(np.fft.fftn(x.numpy(), axes=tuple(range(2, x.ndim)))) ** 2 / math.prod(sizes)
    axes = np.meshgrid(*(np.fft.fftfreq(n) * max(sizes) for n in sizes), indexing="ij")
    radius = np.rint(np.sqrt(sum(a**2 for a in axes)))
    actual = power(x, by).numpy()
    assert int(by.modes.sum()) == math.prod(sizes)
    assert sorted(set(radius.ravel())) == by.k.tolist()
    for place, k in enumerate(by.k.tolist()):
        assert by.modes[place] == (radius == k).sum()
        np.testing.assert_allclose(actual[:, :, place], full[:, :, radius == k].mean(-1), rtol=1e-10)
    # Parseval: nothing of the variance is lost.
    total = (power(x, by) * by.modes).sum(-1).numpy()
    np.testing.assert_allclose(total, (x.flatten(2) ** 2).sum(-1).numpy(), rtol=1e-10)


def test_one_wave_is_in_its_shell_and_white_noise_is_flat() -> None:
    y, x = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    wave = math.sqrt(2) * torch.cos(2 * math.pi * (3 * y + 4 * x) / 16)
    made = power(wave[None, None], by := shells((16, 16)))[0, 0]
    assert float(made[5] * by.modes[5]) == pytest.approx(256, rel=1e-6)  # all of the variance at k = 5
    assert float(made.sum() - made[5]) < 1e-9
    flat = summary(fields(400, 1, 16, 16)).power[0]
    errors = (flat - 1) / torch.sqrt(2 / (400 * by.modes))  # in standard deviations, at least: modes come in pairs
    assert float(errors.abs().max()) < 4 * math.sqrt(2)


def test_moments_and_marginals_equal_scipy() -> None:
    x = torch.stack([fields(50, 40).exp() / 3, 2 * fields(50, 40, seed=1)], 1).float()
    y = torch.stack([fields(70, 40, seed=2), 0.3 + fields(70, 40, seed=3)], 1).float()
    s, d = summary(x[:20], x[20:]), summary(y)
    for c in range(2):
        a, b = (z[:, c].flatten().double().numpy() for z in (x, y))
        assert float(s.mean[c]) == pytest.approx(a.mean(), rel=1e-9)
        assert float(s.std[c]) == pytest.approx(a.std(), rel=1e-9)
        assert float(s.skewness[c]) == pytest.approx(stats.skew(a), rel=1e-7)
        assert float(s.kurtosis[c]) == pytest.approx(stats.kurtosis(a), rel=1e-7)
        expected = stats.wasserstein_distance(a, b) / b.std()
        assert scores(["marginals"], statistics(x), statistics(y))["marginals"]["channels"]["distance"][
            c
        ] == pytest.approx(expected, abs=1e-4)
        assert float(d.cdf[c, -1]) == 1
    errors = scores(["moments"], statistics(x), statistics(y))
    assert set(errors) == {"mean_error", "std_error", "skewness_error", "kurtosis_error"}
    ratios = x.numpy().std((0, 2), dtype=np.float64) / y.numpy().std((0, 2), dtype=np.float64)
    assert errors["std_error"]["value"] == pytest.approx(np.sqrt(np.mean((ratios - 1) ** 2)), rel=1e-6)


def test_log_spectral_distance_of_scaled_fields_is_known() -> None:
    """All powers 100 times larger: log10 of the ratio is 2 in every shell; the same fields: 0."""
    x = fields(20, 2, 8, 6)
    made = scores(["spectrum"], statistics(10 * x), statistics(x))["spectrum"]
    without = x - x.flatten(2).mean(2).reshape(*x.shape[:2], *[1] * (x.ndim - 2))  # the mean has no part in it
    assert scores(["spectrum"], statistics(x), statistics(without))["spectrum"]["value"] < 1e-6
    assert made["value"] == pytest.approx(2, rel=1e-12)
    assert scores(["spectrum", "marginals"], statistics(x), statistics(x))["spectrum"]["value"] == 0
    # What the data lack altogether counts no more than their rounding.
    smooth = x[:, :, :1, :1].expand(-1, -1, 8, 6).contiguous()
    assert scores(["spectrum"], statistics(smooth), statistics(smooth.float()))["spectrum"]["value"] < 1e-3


def test_energy_distance_of_fields_equals_scipy() -> None:
    x, y = fields(60, 1, 1), 1 + fields(80, 1, 1, seed=1)
    made = scores(["energy"], statistics(x), statistics(y))["energy"]
    assert made["fields"] == [60, 80]
    expected = stats.energy_distance(x.flatten().numpy(), y.flatten().numpy()) ** 2
    assert made["value"] == pytest.approx(expected, rel=1e-5)


def test_fields_that_are_not_finite_are_counted() -> None:
    x = fields(5, 1, 4)
    x[2, 0, 1] = math.nan
    made = statistics(x)
    assert (int(made.bad), int(made.count), len(made.kept())) == (1, 4, 4)
    assert torch.equal(made.compute().power, summary(x[[0, 1, 3, 4]]).power)
    with pytest.raises(ValueError, match="4 of 5 samples are not finite"):
        statistics(torch.cat([x[:1], x[[2, 2, 2, 2]]])).compute()
    with pytest.raises(ValueError, match="channel 0"):
        scores(["moments"], statistics(x), statistics(torch.zeros(4, 1, 4)))
    with pytest.raises(ValueError, match="shape"):
        FieldStatistics((3,))


def test_crps_of_a_gaussian_is_that_of_the_closed_form() -> None:
    """Gneiting & Raftery, Eq. 5: σ [z (2Φ(z) − 1) + 2φ(z) − 1/√π], at fixed truths, for 2 members and for 20."""
    mean, std, truth = 0.3, 1.7, torch.tensor([-2.0, 0.1, 0.3, 5.0], dtype=torch.float64)
    z = (truth.numpy() - mean) / std
    expected = std * (z * (2 * stats.norm.cdf(z) - 1) + 2 * stats.norm.pdf(z) - 1 / math.sqrt(math.pi))
    for count, draws in ((2, 200_000), (20, 20_000)):
        members = mean + std * fields(count, draws, 1)
        made = crps(members, truth)
        error = made.std(0) / math.sqrt(draws)
        assert np.all(np.abs(made.mean(0).numpy() - expected) < 4 * error.numpy())
        assert float(error.max()) < 0.015  # so that the plain estimator of 2 members, biased by 0.48, would fail


def test_crps_equals_the_double_sum() -> None:
    members, truth = fields(7, 3, 5), fields(3, 5, seed=1)
    pairs = (members[:, None] - members[None]).abs().sum((0, 1)) / (2 * 7 * 6)
    expected = (members - truth).abs().mean(0) - pairs
    np.testing.assert_allclose(crps(members, truth).numpy(), expected.numpy(), rtol=1e-10, atol=1e-13)
    with pytest.raises(ValueError, match="at least 2 members, got 1"):
        crps(members[:1], truth)


@pytest.mark.parametrize("width", [1.0, 0.5])
def test_spread_and_ranks_of_exchangeable_members(width: float) -> None:
    """Reliable: ratio 1 for any number of members and uniform ranks; members half as wide as the truth: far from it."""
    count, draws = 4, 40_000
    members, truth = width * fields(count, draws), fields(draws, seed=1)
    spread, error = spread_and_error(members, truth)
    ratio = float((spread.mean() / error.mean()).sqrt())
    # Var(x̄ − y) = w²/K + 1, so the ratio is w √(1 + 1/K) / √(w²/K + 1).
    expected = width * math.sqrt((1 + 1 / count) / (width**2 / count + 1))
    assert ratio == pytest.approx(expected, rel=0.01)
    p = stats.chisquare(ranks(members, truth).bincount(minlength=count + 1).numpy()).pvalue
    assert (p > 1e-3) == (width == 1)
