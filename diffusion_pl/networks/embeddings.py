"""Embeddings of noise levels and coordinates as features."""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn


class Embedding(nn.Module, ABC):
    """A map of numbers to features, coordinate by coordinate: (B, dim) -> (B, ``width``)."""

    width: int

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """x: (B, dim) -> (B, width)."""


class Identity(Embedding):
    """The numbers as they are.

    Args:
        dim: Number of coordinates (given by the network).
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.width = dim

    def forward(self, x: Tensor) -> Tensor:
        return x


class Blind(Embedding):
    """No features at all: as embedding of the noise level, a network that has to guess it from the point.

    Args:
        dim: Number of coordinates (given by the network).
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.width = 0

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :0]


class Fourier(Embedding):
    """Random Fourier features of each coordinate: sin(2π f x), cos(2π f x), with f ~ N(0, scale²).

    Frequencies count cycles per unit of x, so the finest detail is about 1 / (4 scale) wide. Features too fine for the
    data let the network memorise the training points. The frequencies are fixed: drawn from a generator of their own,
    different for each coordinate, and kept in a buffer.

    Reference: "Fourier Features Let Networks Learn High Frequency Functions in Low Dimensional Domains", 2006.10739,
    section 6 (there the frequencies mix the coordinates; here each coordinate has its own).

    Args:
        dim: Number of coordinates (given by the network).
        features: Features of each coordinate, an even number: half sines, half cosines.
        scale: Standard deviation of the frequencies, in cycles per unit.
        seed: Chooses the frequencies.
    """

    frequencies: Tensor

    def __init__(self, dim: int, features: int = 64, scale: float = 1.0, seed: int = 0) -> None:
        super().__init__()
        if features < 2 or features % 2:
            raise ValueError(f"Fourier: features must be an even number, half sines, half cosines, got {features}")
        if not 0 < scale < math.inf:
            raise ValueError(f"Fourier: scale must be positive and finite, got {scale}")
        self.width = dim * features
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer("frequencies", scale * torch.randn(dim, features // 2, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        phase = (2 * math.pi * x.unsqueeze(-1) * self.frequencies).flatten(1)
        return torch.cat((phase.sin(), phase.cos()), 1)


class Sinusoidal(Embedding):
    """The transformer's encoding of one number: sin(ω_i x), cos(ω_i x), ω_i = max_period^(−i/(n−1)), i = 0 … n − 1.

    Made for integer steps 0 … 999: a number in [0, 1] hardly moves it, so a schedule's t must reach it scaled, as the
    noise inputs StepIndex (DDPM's steps) and ScaledTime with scale 999 (score_sde's continuous time) do.

    Reference: Vaswani et al., arXiv 1706.03762, Sec. 3.5, with the frequencies of Ho et al.'s code.

    Args:
        dim: Number of coordinates, one (given by the network).
        features: 2n, an even number: half sines, half cosines.
        max_period: 2π times this is the longest period.
    """

    def __init__(self, dim: int = 1, features: int = 128, max_period: float = 10_000.0) -> None:
        super().__init__()
        if dim != 1:
            raise ValueError(f"Sinusoidal: embeds one number, got {dim} coordinates")
        if features < 2 or features % 2:
            raise ValueError(f"Sinusoidal: features must be an even number, half sines, half cosines, got {features}")
        if not 1 < max_period < math.inf:
            raise ValueError(f"Sinusoidal: max_period must be finite and above 1, got {max_period}")
        self.width = features
        self.max_period = max_period

    def forward(self, x: Tensor) -> Tensor:
        # Computed each time: a buffer would be rounded with the weights, and steps near 1000 would lose their phase.
        half = self.width // 2
        exponent = torch.arange(half, dtype=torch.float64) / max(1, half - 1)
        phase = x * (self.max_period**-exponent).to(x)
        return torch.cat((phase.sin(), phase.cos()), 1)


class JumpEmbedding(nn.Module):
    """Adds features of the length of a flow map's jump, t − r, to those of the noise level.

    32 sines and cosines of frequencies 1/4 to 4, linear, SiLU, and a linear layer that starts at zero: a network with
    it is at first the network without it.  The frequencies are low: the targets of flow maps contain derivatives with
    respect to t and r, and with frequencies up to 32 the training of a small network became unstable.

    Args:
        width: Length of the features.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embedding = Sinusoidal(1, 32, 16.0)
        self.hidden, self.output = nn.Linear(32, width), nn.Linear(width, width)
        self.silence()

    def silence(self) -> None:
        """Let it add nothing, as at the start."""
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, features: Tensor, jump: Tensor | None) -> Tensor:
        """features + the embedding.

        Args:
            features: (B, width).
            jump: Lengths in [0, 1], (B,); None: 0, an ordinary denoiser.
        """
        jump = features.new_zeros(features.shape[0]) if jump is None else jump
        waves = self.embedding(4 * jump.float()[:, None]).to(self.hidden.weight.dtype)
        y: Tensor = features + self.output(nn.functional.silu(self.hidden(waves)))
        return y


def check_jump(network: str, embedding: JumpEmbedding | None, jump: Tensor | None) -> None:
    """Raise ValueError if a network without flow_map is given the length of a jump."""
    if embedding is None and jump is not None:
        raise ValueError(f"{network}: got the length of a jump but has no input for it: set flow_map to true")
