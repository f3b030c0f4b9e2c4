"""Inverse problems  y = A(x_0) + s ε  with any differentiable A: a denoiser whose samples are those of x_0 | y.

    ∇log p(y | x_t) ≈ Jᵀ Hᵀ (H C Hᵀ + s² I)⁻¹ (y − A(x̂_0)),   J = ∂x̂_0/∂x_t,   H = ∂A/∂x_0

with C = Cov[x_0 | x_t] = (σ²/α) J, the covariance that the denoiser itself implies.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..tensors import check_finite, per_sample
from .base import Denoiser
from .guidance import add_score
from .parameterizations import Prediction


class MomentMatched(Denoiser):
    """Adds the gradient of the likelihood of y, with x_0 | x_t taken as a Gaussian of the denoiser's own covariance.

    Exact where the data are Gaussian, with any covariance, and A is linear; elsewhere A is linearised at x̂_0.  The
    equation is solved by conjugate gradients, each iteration of which differentiates the denoiser once more.

    Reference: Rozet et al., arXiv 2405.13712, Sec. 4.2; Boys et al., arXiv 2310.06721, Eq. 9.

    Args:
        denoiser: what is wrapped; it is differentiated.
        operator: A, a function or a module: (B, *) -> (B, …).
        y: what is known, for each sample of the batch, or with a batch axis of 1.
        noise: s, standard deviation of the noise in y, at least 0.
        iterations: of conjugate gradients, at least 1; as many as y has numbers are exact.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        operator: Callable[[Tensor], Tensor],
        y: Tensor,
        noise: float = 0.0,
        iterations: int = 5,
    ) -> None:
        super().__init__()
        check_finite(noise=noise)
        if noise < 0 or iterations < 1:
            raise ValueError(f"need noise >= 0 and iterations >= 1, got {noise} and {iterations}")
        self.denoiser, self.schedule, self.self_conditioned = denoiser, denoiser.schedule, denoiser.self_conditioned
        self.operator, self.y, self.noise, self.iterations = operator, y, noise, iterations

    def forward(self, x_t: Tensor, t: Tensor, **cond: Tensor) -> Prediction:
        kernel = self.schedule(t)
        if not (kernel.alpha > 0).all():  # nothing of the data is in x_t
            return self.denoiser(x_t, t, **cond)  # type: ignore[no-any-return]
        with torch.enable_grad():
            x = x_t.detach().requires_grad_()
            prediction: Prediction = self.denoiser(x, t, **cond)
            x_0 = prediction.x_0.detach().requires_grad_()
            measured = self.operator(x_0)
            seed = torch.zeros_like(measured, requires_grad=True)
            # Hᵀ v as a function of v: its own gradient is H.
            transposed = torch.autograd.grad(measured, x_0, seed, create_graph=True)[0]

            def back(v: Tensor) -> Tensor:  # Jᵀ Hᵀ v
                u = torch.autograd.grad(measured, x_0, v, retain_graph=True)[0]
                return torch.autograd.grad(prediction.x_0, x, u, retain_graph=True)[0]

            def covariance(v: Tensor) -> Tensor:  # of y given x_t, times v
                w = (kernel.sigma.square() / kernel.alpha).to(v) * back(v)
                return torch.autograd.grad(transposed, seed, w, retain_graph=True)[0] + self.noise**2 * v

            residual = (self.y - measured).detach().to(x)
            gradient = back(conjugate_gradients(covariance, residual, self.iterations))
        plain = Prediction(*(None if part is None else part.detach() for part in prediction))  # type: ignore[arg-type]
        return add_score(plain, kernel, gradient)


def conjugate_gradients(matrix: Callable[[Tensor], Tensor], b: Tensor, iterations: int) -> Tensor:
    """The solution of  matrix(x) = b  for each sample of b: (B, *); matrix is symmetric and positive semi-definite.

    Reference: Hestenes & Stiefel, "Methods of conjugate gradients for solving linear systems" (1952).
    """

    def dot(u: Tensor, v: Tensor) -> Tensor:
        return per_sample((u * v).flatten(1).sum(1), b)

    def ratio(u: Tensor, v: Tensor) -> Tensor:  # 0 / 0 of a sample that is solved is 0
        return torch.where(v > 0, u / torch.where(v > 0, v, 1), 0)

    x, rest = torch.zeros_like(b), b
    direction, square = rest, dot(rest, rest)
    start = square * torch.finfo(b.dtype).eps ** 2
    for _ in range(iterations):
        image = matrix(direction)
        step = torch.where(square > start, ratio(square, dot(direction, image)), 0)
        x, rest = x + step * direction, rest - step * image
        before, square = square, dot(rest, rest)
        direction = rest + ratio(square, before) * direction
    return x


class Clipped(nn.Module):
    """What a saturated sensor sees: values are cut off at both ends, softly, so that there is a gradient.

        (B, *) -> (B, *):   centre + h tanh((x − centre)/h),   h = (high − low)/2

    Args:
        low: Smallest value, in model units.
        high: Largest value, in model units, above low.
    """

    def __init__(self, low: float = -1.0, high: float = 1.0) -> None:
        super().__init__()
        check_finite(low=low, high=high)
        if not low < high:
            raise ValueError(f"Clipped: low must be below high, got {low} and {high}")
        self.low, self.high = low, high

    def forward(self, x: Tensor) -> Tensor:
        centre, half = (self.high + self.low) / 2, (self.high - self.low) / 2
        return centre + half * torch.tanh((x - centre) / half)


class Magnitude(nn.Module):
    """Magnitudes of the Fourier modes over all spatial axes, without their phases: (B, C, *sizes) -> the same shape.

    The orthonormal FFT.  The phases are ambiguous: a field, its shifts and its mirror image have the same magnitudes.

    Reference: Chung et al., arXiv 2209.14687, App. B, "phase retrieval".
    """

    def forward(self, x: Tensor) -> Tensor:
        modes = torch.fft.fftn(x, dim=tuple(range(2, x.ndim)), norm="ortho")
        return torch.sqrt(modes.real.square() + modes.imag.square() + 1e-12)  # with a gradient at 0
