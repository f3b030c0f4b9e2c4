"""The chain between two times: composition, Bayes by quadrature and by linear algebra, KL."""

import numpy as np
import pytest
import torch
from conftest import SCHEDULES, array
from torch.distributions import Normal, kl_divergence

from diffusion_pl.schedules import VP, Kernel, LinearBetas, Rectified, Schedule, gaussian_kl, posterior, transition

every_schedule = pytest.mark.parametrize("schedule", SCHEDULES)
PAIRS = [(0.0213, 0.0307), (0.1057, 0.5071), (0.5071, 0.5173), (0.3307, 0.9137)]


def kernel(schedule: Schedule, t: float) -> Kernel:
    return schedule(torch.tensor(t, dtype=torch.float64))


@every_schedule
@pytest.mark.parametrize(("s", "t"), PAIRS)
def test_a_step_leads_from_marginal_to_marginal(schedule: Schedule, s: float, t: float) -> None:
    at_s, at_t = kernel(schedule, s), kernel(schedule, t)
    alpha, var = transition(at_s, at_t)
    assert (alpha * at_s.alpha).item() == pytest.approx(at_t.alpha.item(), rel=1e-12)
    assert (alpha**2 * at_s.sigma**2 + var).item() == pytest.approx(at_t.sigma.item() ** 2, rel=1e-10)


@every_schedule
def test_steps_compose(schedule: Schedule) -> None:
    at_s, at_u, at_t = (kernel(schedule, t) for t in (0.1057, 0.3307, 0.7393))
    first, second, both = transition(at_s, at_u), transition(at_u, at_t), transition(at_s, at_t)
    assert (first.alpha * second.alpha).item() == pytest.approx(both.alpha.item(), rel=1e-12)
    composed = second.alpha**2 * first.sigma_sq + second.sigma_sq
    assert composed.item() == pytest.approx(both.sigma_sq.item(), rel=1e-10)


@every_schedule
@pytest.mark.parametrize(("s", "t"), PAIRS)
def test_posterior_is_the_conditional_of_the_joint_gaussian(schedule: Schedule, s: float, t: float) -> None:
    """(x_s, x_t) given x_0 is Gaussian; its covariance comes from x_t = α_ts x_s + noise, then x_s is conditioned."""
    at_s, at_t = kernel(schedule, s), kernel(schedule, t)
    step = float(at_t.alpha / at_s.alpha)
    chain = np.array([[1.0, 0.0], [step, 1.0]])  # from (x_s − α_s x_0, noise of the step)
    noise = np.diag([float(at_s.sigma) ** 2, float(at_t.sigma) ** 2 - step**2 * float(at_s.sigma) ** 2])
    cov = chain @ noise @ chain.T
    precision = np.linalg.inv(cov)
    from_t, from_0, var = (v.item() for v in posterior(at_s, at_t))
    assert var == pytest.approx(1 / precision[0, 0], rel=1e-7)
    gain = -precision[0, 1] / precision[0, 0]
    assert from_t == pytest.approx(gain, rel=1e-7)
    assert from_0 == pytest.approx(float(at_s.alpha) - gain * float(at_t.alpha), rel=1e-6)


@every_schedule
def test_posterior_is_bayes_rule_on_a_grid(schedule: Schedule) -> None:
    """q(x_s | x_t, x_0) ∝ q(x_t | x_s) q(x_s | x_0), normalised by brute force."""
    x_0, at_s, at_t = 0.8, kernel(schedule, 0.3307), kernel(schedule, 0.5071)
    x_t = float(at_t.alpha * x_0 + 1.3 * at_t.sigma)
    step, step_var = (v.item() for v in transition(at_s, at_t))
    centre, width = (float(at_s.alpha) * x_0, float(at_s.sigma))
    x_s = np.linspace(centre - 12 * width, centre + 12 * width, 200_001)
    log_density = -((x_s - centre) ** 2) / (2 * width**2) - (x_t - step * x_s) ** 2 / (2 * step_var)
    weight = np.exp(log_density - log_density.max())
    weight /= weight.sum()
    from_t, from_0, var = (v.item() for v in posterior(at_s, at_t))
    mean = (weight * x_s).sum()
    assert from_t * x_t + from_0 * x_0 == pytest.approx(mean, rel=1e-9)
    assert var == pytest.approx((weight * (x_s - mean) ** 2).sum(), rel=1e-8)


def test_posterior_from_pure_noise_is_the_marginal() -> None:
    """Where α_t = 0, x_t has no information: q(x_s | x_t, x_0) = q(x_s | x_0)."""
    at_s, at_t = kernel(Rectified(), 0.6), kernel(Rectified(), 1.0)
    from_t, from_0, var = posterior(at_s, at_t)
    assert (from_t.item(), from_0.item(), var.item()) == pytest.approx((0, 0.4, 0.36))
    assert transition(at_s, at_t).sigma_sq.item() == 1


def test_small_steps_keep_their_digits_in_single_precision() -> None:
    """β̃ of a chain of 4000 steps against float64; σ_t² − α_ts² σ_s² would lose three digits more."""
    table = LinearBetas(4000, 2.5e-5, 5e-3)
    t, s = torch.tensor([0.3, 0.6, 0.9]), torch.tensor([0.3, 0.6, 0.9]) - 1 / 4000
    single = posterior(table(s), table(t)).var
    double = posterior(table(s.double()), table(t.double())).var
    np.testing.assert_allclose(array(single), array(double), rtol=2e-3)


def test_transition_broadcasts() -> None:
    at_s, at_t = kernel(VP(), 0.2), VP()(torch.tensor([[0.3], [0.9]], dtype=torch.float64))
    alpha, var = transition(at_s, at_t)
    assert alpha.shape == var.shape == (2, 1)
    assert var[1].item() == pytest.approx(transition(at_s, kernel(VP(), 0.9)).sigma_sq.item(), rel=1e-12)


def test_gaussian_kl_is_that_of_torch() -> None:
    rng = torch.Generator().manual_seed(0)
    mean_1, mean_2 = torch.randn(2, 50, dtype=torch.float64, generator=rng)
    std_1, std_2 = torch.rand(2, 50, dtype=torch.float64, generator=rng) + 0.05
    expected = kl_divergence(Normal(mean_1, std_1), Normal(mean_2, std_2))
    np.testing.assert_allclose(array(gaussian_kl(mean_1, std_1**2, mean_2, std_2**2)), array(expected), rtol=1e-10)
    assert gaussian_kl(mean_1, std_1**2, mean_1, std_1**2).abs().max() == 0


def test_gaussian_kl_of_nearly_equal_variances() -> None:
    """½(δ − log(1 + δ)) ≈ δ²/4 for a ratio 1 + δ, in single precision."""
    delta = torch.tensor([2.0**-6, 2.0**-8, 2.0**-10])
    zero = torch.zeros(3)
    exact = array(delta) ** 2 / 4 - array(delta) ** 3 / 6
    np.testing.assert_allclose(array(gaussian_kl(zero, 1 + delta, zero, zero + 1)), exact, rtol=2e-3)
