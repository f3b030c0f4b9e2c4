"""Linear inverse problems  y = A x_0 + s ε:  the measurement of an image, and a denoiser consistent with it.

Only operators with A Aᵀ = c I are here, whose pseudo-inverse is Aᵀ/c: a mask, the mean of colours, the mean of blocks.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from ..tensors import Recorded
from .base import Denoiser
from .guidance import add_score
from .parameterizations import Prediction


class Operator(Recorded, ABC):
    """Subclasses define A, its transpose and c."""

    #: c in A Aᵀ = c I.
    gram: float

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """A x: (B, *) -> (B, …)."""

    @abstractmethod
    def transpose(self, y: Tensor) -> Tensor:
        """Aᵀ y: (B, …) -> (B, *)."""

    def consistent(self, x: Tensor, y: Tensor) -> Tensor:
        """The nearest to x: (B, *) of all that A maps to y."""
        return x + self.transpose(y - self(x)) / self.gram


class Masked(Operator):
    """Keeps what the mask marks.

    Args:
        mask: 1 where x is known, 0 elsewhere; broadcasts against (B, *).
    """

    gram = 1.0

    def __init__(self, mask: Tensor) -> None:
        self.mask = mask

    def __call__(self, x: Tensor) -> Tensor:
        return self.mask * x

    def transpose(self, y: Tensor) -> Tensor:
        return self.mask * y


class Gray(Operator):
    """Mean of the C channels: (B, C, *sizes) -> (B, 1, *sizes)."""

    def __init__(self, channels: int = 3) -> None:
        self.channels, self.gram = channels, 1 / channels

    def __call__(self, x: Tensor) -> Tensor:
        return x.mean(1, keepdim=True)

    def transpose(self, y: Tensor) -> Tensor:
        return y.expand(-1, self.channels, *[-1] * (y.ndim - 2)) / self.channels


class Coarse(Operator):
    """Mean of blocks along the spatial axes: (B, C, *sizes) -> (B, C, *sizes/factor).

    Args:
        factor: Size of the blocks on each axis, at least 1, and not 1 on all; one number: on both axes of images.
    """

    def __init__(self, factor: int | Sequence[int]) -> None:
        self.factor = (factor, factor) if isinstance(factor, int) else tuple(factor)
        if not self.factor or min(self.factor) < 1 or max(self.factor) < 2:
            same = len(set(self.factor)) == 1
            raise ValueError(f"factor must be at least 2, got {self.factor[0] if same else factor}")
        self.gram = 1 / math.prod(self.factor)

    def __call__(self, x: Tensor) -> Tensor:
        for axis, factor in enumerate(self.factor, 2):
            x = x.unflatten(axis, (-1, factor)).mean(axis + 1)
        return x

    def transpose(self, y: Tensor) -> Tensor:
        for axis, factor in enumerate(self.factor, 2):
            y = y.repeat_interleave(factor, axis)
        return y * self.gram


class Reconstructing(Denoiser):
    """Adds the gradient of the likelihood of y, with x_0 | x_t taken as N(x̂_0, r²):

        ∇log p(y | x_t) ≈ (∂x̂_0/∂x_t)ᵀ Aᵀ (y − A x̂_0)/(c r² + s²),     r² = σ²d²/(α²d² + σ²)

    Exact where the data are N(0, d²).

    Reference: Song et al., "Pseudoinverse-guided diffusion models for inverse problems" (ICLR 2023), Eq. 7–8; Chung et
    al., arXiv 2209.14687.

    Args:
        denoiser: what is wrapped; it is differentiated.
        operator: A.
        y: what is known, for each sample of the batch, or with a batch axis of 1.
        noise: s, standard deviation of the noise in y.
        data_std: d, of the data.
        scale: factor of the gradient.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        operator: Operator,
        y: Tensor,
        noise: float = 0.0,
        data_std: float = 1.0,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        if not (noise >= 0 and data_std > 0 and scale >= 0):
            raise ValueError(f"need noise >= 0, data_std > 0 and scale >= 0, got {noise}, {data_std}, {scale}")
        self.denoiser, self.schedule, self.self_conditioned = denoiser, denoiser.schedule, denoiser.self_conditioned
        self.operator, self.y, self.noise, self.data_std, self.scale = operator, y, noise, data_std, scale

    def forward(self, x_t: Tensor, t: Tensor, **cond: Tensor) -> Prediction:
        kernel = self.schedule(t)
        if not (kernel.alpha > 0).all():  # nothing of the data is in x_t
            return self.denoiser(x_t, t, **cond)  # type: ignore[no-any-return]
        data_var, noise_var = (kernel.alpha * self.data_std).square(), kernel.sigma.square()
        var = noise_var * self.data_std**2 / (data_var + noise_var)
        with torch.enable_grad():
            x = x_t.detach().requires_grad_()
            prediction: Prediction = self.denoiser(x, t, **cond)
            residual = self.y - self.operator(prediction.x_0)
            pull = self.operator.transpose(residual.detach()) / (self.operator.gram * var + self.noise**2)
            gradient = torch.autograd.grad((pull.to(x.dtype) * prediction.x_0).sum(), x)[0]
        plain = Prediction(
            prediction.x_0.detach(), prediction.eps.detach(), None if prediction.v is None else prediction.v.detach()
        )
        return add_score(plain, kernel, self.scale * gradient)
