"""Flow maps against independent implementations: the loss of MeanFlow, and the steps of samplers."""

from collections.abc import Callable, Iterator
from itertools import pairwise

import diffusers
import pytest
import torch
from flow_maps import At, Given, exact, examples, gaussian
from rectified_flow_pytorch.mean_flow import MeanFlow as PeerMeanFlow
from torch import Tensor, nn

from diffusion_pl.denoisers import EDM, Denoiser, NetworkDenoiser, V, Velocity
from diffusion_pl.losses import FlowMapLoss, MeanFlow
from diffusion_pl.samplers import DDIM, ExplicitGrid, MultistepConsistency
from diffusion_pl.samplers.base import Run
from diffusion_pl.schedules import BetaTable, Cosine, Karras, Rectified, Schedule


@pytest.fixture(autouse=True)
def double_precision() -> Iterator[None]:
    """The peers make tensors of the default type."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def normal(seed: int) -> Tensor:
    return torch.randn(6, 2, generator=torch.Generator().manual_seed(seed))


# The loss -----------------------------------------------------------------------------------------------------------


class Smooth(nn.Module):
    """A network with an input for jumps, of the package's kind."""

    flow_map = True

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(4, 16), nn.SiLU(), nn.Linear(16, 2))

    def forward(self, x: Tensor, c_noise: Tensor, jump: Tensor) -> Tensor:
        out: Tensor = self.layers(torch.cat((x, c_noise[:, None], jump[:, None]), 1))
        return out


class Scaled(nn.Module):
    """The network with c_in of a rectified flow before it, as their model."""

    def __init__(self, network: Smooth) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, t: Tensor, jump: Tensor) -> Tensor:
        out: Tensor = self.network(torch.rsqrt((1 - t).square() + t.square())[:, None] * x, t, jump)
        return out


class Peer(PeerMeanFlow):  # type: ignore[misc]
    """Their loss at the given two times of each example."""

    def __init__(self, network: Smooth, times: tuple[Tensor, Tensor], power: float) -> None:
        options = {"use_adaptive_loss_weight": power > 0, "adaptive_loss_weight_p": power}
        super().__init__(Scaled(network), prob_default_flow_obj=0.0, eps=1e-3, **options)
        self.queue = list(times)

    def sample_times(self, batch: int) -> Tensor:
        return self.queue.pop()


@pytest.mark.parametrize("power", [0.0, 0.75])
def test_mean_flow_has_the_loss_of_the_peer(power: float) -> None:
    """Theirs weighs by the mean square, 1/(m + c)^p; ours by the sum, 1/(D m + D c)^p with D times the offset."""
    x_0, eps, size = examples(16), normal(1).repeat(3, 1)[:16], 2
    first, second = torch.rand(2, 16, generator=torch.Generator().manual_seed(2))
    t, r = torch.maximum(first, second), torch.minimum(first, second)
    network = Smooth()
    denoiser = NetworkDenoiser(network, Rectified(), Velocity())
    rule = MeanFlow(power, offset=size * 1e-3)
    ours = size**power * FlowMapLoss(rule, At(t, r), coupling=Given(eps))(denoiser, x_0).loss.mean()
    ours_slopes = torch.autograd.grad(ours, list(network.parameters()))
    theirs = Peer(network, (first, second), power)(x_0, noise=eps)
    theirs_slopes = torch.autograd.grad(theirs, list(network.parameters()))
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=0)
    for one, other in zip(ours_slopes, theirs_slopes, strict=True):
        assert other.abs().max() > 0
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-12)


# Samplers -----------------------------------------------------------------------------------------------------------


def as_drawn(seed: int) -> Callable[[Tensor], Tensor]:
    """The noise that a peer with a generator of this seed draws, in its type."""
    generator = torch.Generator().manual_seed(seed)
    return lambda x: torch.randn(x.shape, generator=generator, dtype=torch.get_default_dtype())


def step(sampler: MultistepConsistency | DDIM, denoiser: Denoiser, x: Tensor, t: float, s: float, seed: int) -> Tensor:
    times = torch.tensor([t, s])
    x_s, _ = sampler.step(Run(denoiser, as_drawn(seed), {}, times), x, times[0], times[1], None)
    return x_s


def raw(denoiser: NetworkDenoiser, x: Tensor, t: float, r: float) -> Tensor:
    """F, for a peer's step."""
    time = torch.tensor(t)
    output, _ = denoiser.raw(x, time, denoiser.schedule(time), torch.tensor(r))
    return output


def test_full_noise_is_the_scm_scheduler() -> None:
    """TrigFlow: x = cos(s) x_0 + sin(s) ε, a network of V."""
    schedule, times = Cosine(), [0.9, 0.5, 0.2]
    kernel = schedule(torch.tensor(times))
    peer = diffusers.SCMScheduler(sigma_data=1.0)
    angles = torch.atan2(kernel.sigma, kernel.alpha)
    peer.set_timesteps(2, timesteps=angles, max_timesteps=None, intermediate_timesteps=None)
    peer.timesteps, denoiser, x = angles, exact(gaussian(schedule), V()), normal(0)
    for k, (t, s) in enumerate(pairwise(times)):
        generator = torch.Generator().manual_seed(k)
        theirs = peer.step(raw(denoiser, x, t, 0.0), angles[k], x, generator).prev_sample
        x = step(MultistepConsistency(ExplicitGrid(times)), denoiser, x, t, s, k)
        torch.testing.assert_close(x, theirs, rtol=1e-6, atol=1e-6)


def test_full_noise_is_the_consistency_model_scheduler() -> None:
    """x = x_0 + σ ε, a network of EDM; theirs keeps sigma_min of noise in the data, here nearly none."""
    schedule, denoiser = Karras(), exact(gaussian(Karras()), EDM(0.5))
    peer = diffusers.CMStochasticIterativeScheduler(
        num_train_timesteps=40, sigma_min=1e-9, sigma_max=60.0, sigma_data=0.5, clip_denoised=False
    )
    peer.set_timesteps(timesteps=[30, 20, 10])
    peer.sigmas = peer.sigmas.double()
    times = schedule.time(-2 * torch.log(peer.sigmas[:-1])).tolist()
    x = 10 * normal(0)
    for k, (t, s) in enumerate(pairwise(times)):
        peer.scale_model_input(x, peer.timesteps[k])
        generator = torch.Generator().manual_seed(k)
        theirs = peer.step(raw(denoiser, x, t, 0.0), peer.timesteps[k], x, generator).prev_sample
        x = step(MultistepConsistency(ExplicitGrid(times)), denoiser, x, t, s, k)
        torch.testing.assert_close(x, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("eta", [0.0, 0.3, 0.7])
def test_some_noise_is_the_tcd_scheduler(eta: float) -> None:
    """Theirs gives the time u where the jump ends as a part of s; ours the noise ratio there: γ² = 1 − (u/s)²."""
    peer = diffusers.TCDScheduler(num_train_timesteps=50, beta_schedule="linear", beta_start=1e-3, beta_end=0.1)
    peer.alphas_cumprod = torch.cumprod(1 - peer.betas.double(), 0)
    schedule: Schedule = BetaTable(peer.betas.double().tolist())
    denoiser, x = gaussian(schedule), normal(0)
    peer.set_timesteps(timesteps=[49, 30, 12])
    for k, (index, after) in enumerate([(49, 30), (30, 12)]):
        end = int((1 - eta) * after)
        t, s, u = ((j + 1) / 50 for j in (index, after, end))
        _, noise, _ = denoiser(x, torch.tensor(t), r=torch.tensor(u))
        theirs = peer.step(noise, index, x, eta, torch.Generator().manual_seed(k)).prev_sample
        ratios = [float(schedule(torch.tensor(time)).sigma / schedule(torch.tensor(time)).alpha) for time in (u, s)]
        sampler = MultistepConsistency(ExplicitGrid([t, s]), (1 - (ratios[0] / ratios[1]) ** 2) ** 0.5)
        x = step(sampler, denoiser, x, t, s, k)
        torch.testing.assert_close(x, theirs, rtol=1e-6, atol=1e-6)


def test_ddim_is_the_flow_map_euler_scheduler() -> None:
    """A network of Velocity gives the mean velocity of the jump: x_r = x_t − (t − r) F."""
    denoiser, x, times = exact(gaussian(Rectified()), Velocity()), normal(0), [1.0, 0.6, 0.25]
    peer = diffusers.FlowMapEulerDiscreteScheduler()
    peer.set_timesteps(sigmas=times)
    for t, s in pairwise(times):
        theirs = peer.step(raw(denoiser, x, t, s), 1000 * t, x, r_timestep=1000 * s).prev_sample
        x = step(DDIM(ExplicitGrid(times)), denoiser, x, t, s, 0)
        torch.testing.assert_close(x, theirs, rtol=1e-6, atol=1e-6)
