"""Log densities against those known in closed form, for every kind of process."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from conftest import array
from scipy.integrate import solve_ivp
from torch import Tensor

from diffusion_pl.denoisers import Gaussian, GaussianMixture
from diffusion_pl.likelihood import FlowLikelihood, bits_per_dim, dequantized, width
from diffusion_pl.schedules import VE, VP, Cosine, Karras, LinearBetas, Rectified, Schedule, SubVP
from diffusion_pl.tensors import SampleNoise

#: All end so near to the prior that what the prior is off does not count.
PROCESSES: list[Schedule] = [
    VP(beta_max=40.0),
    SubVP(beta_max=40.0),
    VE(sigma_max=2000.0),
    Karras(sigma_max=2000.0),
    Rectified(),
    Cosine(),
]
named = pytest.mark.parametrize("schedule", PROCESSES, ids=lambda s: type(s).__name__)
STD = 0.3


def mixture(schedule: Schedule, dims: int) -> tuple[GaussianMixture, Tensor]:
    means = torch.randn(8, dims, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    means -= means.mean(0)
    return GaussianMixture(schedule, means, STD), means


def draws(means: Tensor, n: int) -> Tensor:
    g = torch.Generator().manual_seed(2)
    pick = torch.randint(len(means), (n,), generator=g)
    return means[pick] + STD * torch.randn(n, means.shape[1], dtype=torch.float64, generator=g)


def exact(x: Tensor, means: Tensor) -> np.ndarray:
    """log p of the mixture, in numpy."""
    a, b = array(x), array(means)
    log = -((a[:, None] - b) ** 2).sum(-1) / (2 * STD**2) - a.shape[1] / 2 * math.log(2 * math.pi * STD**2)
    top = log.max(1)
    result: np.ndarray = top + np.log(np.exp(log - top[:, None]).mean(1))
    return result


@named
@pytest.mark.parametrize(("dims", "n"), [(2, 500), (64, 8)])
def test_the_log_density_is_the_exact_one(schedule: Schedule, dims: int, n: int) -> None:
    oracle, means = mixture(schedule, dims)
    x = draws(means, n)
    result = FlowLikelihood(probes=0)(oracle, x, SampleNoise(0, range(n)))
    error = (exact(x, means) - array(result.log_p)) / dims / math.log(2)
    assert abs(error.mean()) < 1e-4  # bits/dim
    assert np.abs(error).max() < 3e-3
    assert 20 < result.nfe.min() <= result.nfe.max() < 400


@named
@pytest.mark.parametrize("gaussian", [False, True])
def test_hutchinsons_estimate_is_unbiased(schedule: Schedule, gaussian: bool) -> None:
    oracle, means = mixture(schedule, 64)
    x = draws(means, 100)
    result = FlowLikelihood(probes=2, gaussian=gaussian)(oracle, x, SampleNoise(3, range(100)))
    error = (exact(x, means) - array(result.log_p)) / 64 / math.log(2)
    assert 1e-3 < error.std() < 0.5
    assert abs(error.mean()) < 4 * error.std() / 10


def test_more_probes_vary_less_and_signs_less_than_normal_ones() -> None:
    oracle, means = mixture(VP(), 64)
    x = draws(means, 100)

    def spread(**kwargs: Any) -> float:
        result = FlowLikelihood(**kwargs)(oracle, x, SampleNoise(3, range(100)))
        return float((exact(x, means) - array(result.log_p)).std())

    one, four, normal = spread(probes=1), spread(probes=4), spread(probes=1, gaussian=True)
    assert 0.35 < four / one < 0.7
    assert normal > 1.1 * one


def test_an_anisotropic_gaussian() -> None:
    g = torch.Generator().manual_seed(0)
    root = torch.randn(3, 3, dtype=torch.float64, generator=g)
    mean, cov = torch.tensor([0.2, -0.1, 0.3], dtype=torch.float64), root @ root.T + 0.1 * torch.eye(3)
    x = torch.distributions.MultivariateNormal(mean, cov).sample((200,))
    for schedule in (LinearBetas(), Rectified()):
        result = FlowLikelihood(probes=0)(Gaussian(schedule, mean, cov), x, SampleNoise(0, range(200)))
        truth = torch.distributions.MultivariateNormal(mean, cov).log_prob(x)
        assert abs(float((truth - result.log_p).mean())) < 2e-3
    np.testing.assert_allclose(array(result.latent.square().mean()), 1, atol=0.1)


@pytest.mark.parametrize("probes", [0, 1])
def test_a_likelihood_does_not_depend_on_its_batch(probes: int) -> None:
    oracle, means = mixture(VP(), 2)
    x, likelihood = draws(means, 8), FlowLikelihood(probes)
    whole = likelihood(oracle, x, SampleNoise(0, range(8)))
    others = x.clone()
    others[1:] = 5 * x[1:] + 1  # as many, but others
    for batch in (x, others):
        result = likelihood(oracle, batch, SampleNoise(0, range(8)))
        assert result.log_p[0] == whole.log_p[0]
        assert result.nfe[0] == whole.nfe[0]


def test_without_the_extension_it_is_the_density_at_t_min() -> None:
    """Which for the variance-exploding schedule is that of the data convolved with σ_min."""
    oracle, means = mixture(VE(sigma_min=0.1, sigma_max=2000.0), 2)
    x = draws(means, 300)
    noise = SampleNoise(0, range(300))
    held = FlowLikelihood(0, extend=False)(oracle, x, noise).log_p
    wider = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(torch.ones(8, dtype=torch.float64)),
        torch.distributions.Independent(torch.distributions.Normal(means, math.hypot(STD, 0.1)), 1),
    )
    assert abs(float((wider.log_prob(x) - held).mean())) < 1e-3
    error = np.abs(exact(x, means) - array(FlowLikelihood(0)(oracle, x, noise).log_p)).mean()
    assert error < 0.2 * np.abs(exact(x, means) - array(held)).mean()


def test_a_ripple_in_time_is_not_pursued() -> None:
    """As a network's embedding of t makes one: of so little that it does not move the density it costs little more."""

    class Rippling(GaussianMixture):
        def forward(self, x_t: Tensor, t: Tensor, **cond: Tensor) -> Any:
            x_0, eps, v = super().forward(x_t, t, **cond)
            wave = 3e-3 * torch.sin(999 * t)
            kernel = self.schedule(t)
            return type(super().forward(x_t, t))(x_0 - kernel.sigma * wave, eps + kernel.alpha * wave, v)

    _, means = mixture(VP(beta_max=40.0), 64)
    x, noise = draws(means, 5), SampleNoise(0, range(5))
    smooth, rough = (
        FlowLikelihood(0)(kind(VP(beta_max=40.0), means, STD), x, noise) for kind in (GaussianMixture, Rippling)
    )
    assert rough.nfe.float().mean() < 1.5 * smooth.nfe.float().mean()
    assert float((rough.log_p - smooth.log_p).abs().mean()) / 64 < 1e-3


def test_it_needs_no_more_evaluations_than_scipy() -> None:
    """Song et al., App. D.2: RK45 in t on x and its log density, one step size for the batch."""
    oracle, means = mixture(VP(beta_max=40.0), 2)
    x = draws(means, 200)

    def flow(t: float, y: np.ndarray) -> np.ndarray:
        u = torch.from_numpy(y[:400]).view(200, 2).requires_grad_(True)
        at = torch.full((200, 1), t, dtype=torch.float64)
        kernel = oracle.schedule(at)
        v = kernel.d_alpha * oracle(u, at).x_0 + kernel.d_sigma * oracle(u, at).eps
        div = sum(torch.autograd.grad(v[:, k].sum(), u, retain_graph=True)[0][:, k] for k in (0, 1))
        return np.concatenate([array(v.detach()).ravel(), array(div)])

    start = np.concatenate([array(x).ravel(), np.zeros(200)])
    actual = solve_ivp(flow, (1e-5, 1.0), start, rtol=1e-5, atol=1e-5)
    noise = actual.y[:400, -1].reshape(200, 2)
    theirs = actual.y[400:, -1] - 0.5 * (noise**2).sum(1) - math.log(2 * math.pi)
    ours = FlowLikelihood(0, rtol=1e-5, atol=1e-5)(oracle, x, SampleNoise(0, range(200)))
    np.testing.assert_allclose(array(ours.log_p), theirs, atol=3e-3)
    assert ours.nfe.double().mean() < actual.nfev


def test_a_looser_pair_costs_less() -> None:
    oracle, means = mixture(VP(), 2)
    x, noise = draws(means, 50), SampleNoise(0, range(50))
    loose, tight = (FlowLikelihood(0, rtol=tol, atol=tol, pair=pair) for tol, pair in ((1e-2, 3), (1e-5, 5)))
    rough, fine = loose(oracle, x, noise), tight(oracle, x, noise)
    assert rough.nfe.float().mean() < 0.5 * fine.nfe.float().mean()
    assert abs(float((rough.log_p - fine.log_p).mean())) < 0.1


def test_a_uniform_distribution_over_levels_has_its_bits() -> None:
    """The probabilities of all levels of a density sum to one, whatever the depth and the range."""
    for levels, span in ((2, (-1.0, 1.0)), (17, (-1.0, 1.0)), (256, (0.0, 1.0))):
        delta = width(levels, span)
        assert delta * (levels - 1) == pytest.approx(span[1] - span[0])
        whole = levels * delta  # a uniform density over all bins
        bits = bits_per_dim(torch.tensor([-5 * math.log(whole)], dtype=torch.float64), 5, delta)
        assert float(bits) == pytest.approx(math.log2(levels))


def test_dequantised_values_fill_their_level() -> None:
    x = torch.zeros(2000, 3)
    noisy = array(dequantized(x, 0.25, SampleNoise(0, range(2000))))
    assert -0.125 <= noisy.min() < -0.124
    assert 0.124 < noisy.max() <= 0.125
    assert noisy.var() == pytest.approx(0.25**2 / 12, rel=0.05)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"probes": -1}, "0 for the exact trace"),
        ({"t_min": 1.0}, "t_min must be"),
        ({"atol": 0.0}, "rtol and atol must be in"),
    ],
)
def test_bad_numbers_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FlowLikelihood(**arguments)


def test_a_start_free_of_noise_is_refused() -> None:
    oracle, means = mixture(VP(), 2)
    with pytest.raises(ValueError, match="free of noise under VP: raise it"):
        FlowLikelihood(0, t_min=0.0)(oracle, means, SampleNoise(0, range(8)))
