"""What the tests of flow maps share: exact maps as networks, that are differentiated and perturbed as a network is."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from diffusion_pl.denoisers import Denoiser, GaussianMap, GaussianMixture, NetworkDenoiser, Parameterization
from diffusion_pl.losses import Coupling, Pairs, PairSampler, Times, TimeSampler, UniformTimes
from diffusion_pl.networks import MLP
from diffusion_pl.schedules import Schedule

MEAN = torch.tensor([0.3, -0.5], dtype=torch.float64)
COV = torch.tensor([[1.0, 0.3], [0.3, 0.5]], dtype=torch.float64)


class MapNetwork(nn.Module):
    """The network F whose NetworkDenoiser is the given flow map, plus  bump · jump · sin(input + 1).

    Its c_noise is t itself.
    """

    flow_map = True

    def __init__(self, oracle: Denoiser, parameterization: Parameterization, bump: float = 0.0) -> None:
        super().__init__()
        self.oracle, self.parameterization = oracle, parameterization
        self.bump = nn.Parameter(torch.tensor(bump, dtype=torch.float64))

    def forward(self, x: Tensor, c_noise: Tensor, jump: Tensor | None = None) -> Tensor:
        t = c_noise[:, None]
        jump = torch.zeros_like(t) if jump is None else jump[:, None]
        kernel = self.oracle.schedule(t)
        c_in = self.parameterization.c_in(kernel)
        r = t - jump
        # At r = 0 σ' may be infinite, and its product with a derivative of 0 is no number.
        x_0, eps, _ = self.oracle(x / c_in, t, r=r if bool((r > 0).all()) else r.detach())
        return self.parameterization.target(kernel, x_0, eps) + self.bump * jump * torch.sin(x + 1)


class DoubleTimes(TimeSampler):
    """Uniform times in float64, away from both ends."""

    def draw(self, schedule: Schedule, n: int, device: torch.device, generator: torch.Generator | None) -> Times:
        return Times(0.05 + 0.9 * torch.rand(n, dtype=torch.float64, device=device, generator=generator))


def gaussian(schedule: Schedule) -> GaussianMap:
    """The exact map of N(MEAN, COV)."""
    return GaussianMap(schedule, MEAN, COV)


def mixture(schedule: Schedule) -> GaussianMixture:
    """Three clusters of unequal width and weight."""
    means = torch.tensor([[-1.0, 0.0], [1.0, 0.6], [0.4, -1.0]], dtype=torch.float64)
    return GaussianMixture(schedule, means, torch.tensor([0.3, 0.5, 0.2], dtype=torch.float64), [0.5, 0.3, 0.2])


def smooth_mixture(schedule: Schedule) -> GaussianMixture:
    """Three clusters that overlap, so that the map is smooth and a small network can learn it."""
    means = torch.tensor([[-0.8, 0.0], [0.8, 0.5], [0.3, -0.8]], dtype=torch.float64)
    return GaussianMixture(schedule, means, torch.tensor([0.5, 0.6, 0.4], dtype=torch.float64), [0.5, 0.3, 0.2])


def exact(oracle: Denoiser, parameterization: Parameterization, bump: float = 0.0) -> NetworkDenoiser:
    """The flow map as the denoiser of a network."""
    return NetworkDenoiser(MapNetwork(oracle, parameterization, bump), oracle.schedule, parameterization)


def examples(n: int, seed: int = 0) -> Tensor:
    """From N(MEAN, COV): (n, 2)."""
    noise = torch.randn(n, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    x_0: Tensor = MEAN + noise @ torch.linalg.cholesky(COV).T
    return x_0


def bump_of(denoiser: NetworkDenoiser) -> Any:
    """The parameter of the perturbation."""
    return denoiser.network.bump


class At(PairSampler):
    """t and r as given, the first so many of them jumps."""

    def __init__(self, t: Tensor, r: Tensor, jumps: int | None = None) -> None:
        super().__init__(UniformTimes())
        self.t, self.r, self.jumps = t, r, len(t) if jumps is None else jumps

    def draw(self, schedule: Schedule, n: int, device: torch.device, generator: torch.Generator | None) -> Pairs:
        return Pairs(self.t, self.r, self.jumps)


class Given(Coupling):
    """ε as given."""

    def __init__(self, eps: Tensor) -> None:
        self.eps = eps

    def __call__(self, x_0: Tensor, eps: Tensor, cond: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        return x_0, self.eps


def mlp(**options: Any) -> MLP:
    """A network with jumps, all of whose outputs depend on them."""
    torch.manual_seed(0)
    network = MLP((2,), width=16, depth=1, flow_map=True, **options)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return network
