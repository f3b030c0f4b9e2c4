"""Terms of an autoencoder's loss that look at more than single pixels: LPIPS, and a discriminator of patches."""

import contextlib
import io

import torch
from torch import Tensor, nn
from torch.func import functional_call


class PatchDiscriminator(nn.Module):
    """A score of every patch of an image: positive for real ones.

    Reference: Isola et al., arXiv 1611.07004, Sec. 3.2 and App. 6.1, with group norm.

    Args:
        channels: of the images.
        nf: channels of the first layer.
        layers: of stride 2 after the first.
    """

    def __init__(self, channels: int, nf: int = 32, layers: int = 1) -> None:
        super().__init__()
        parts: list[nn.Module] = [nn.Conv2d(channels, nf, 4, 2, 1), nn.LeakyReLU(0.2)]
        for _ in range(layers):
            parts += [nn.Conv2d(nf, 2 * nf, 4, 2, 1), nn.GroupNorm(8, 2 * nf), nn.LeakyReLU(0.2)]
            nf *= 2
        self.network = nn.Sequential(*parts, nn.Conv2d(nf, 1, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 1, h, w)."""
        scores: Tensor = self.network(x)
        return scores


def frozen_call(module: nn.Module, x: Tensor) -> Tensor:
    """The output of a module, whose parameters get no gradient from it."""
    result: Tensor = functional_call(module, {name: p.detach() for name, p in module.named_parameters()}, x)
    return result


def balance(loss: Tensor, other: Tensor, weight: Tensor) -> Tensor:
    """λ = ‖∂loss/∂weight‖ / ‖∂other/∂weight‖, at most 10⁴, no gradient.

    Reference: Esser et al., arXiv 2012.09841, Eq. 7.
    """
    gradients = (torch.autograd.grad(term, weight, retain_graph=True)[0].norm() for term in (loss, other))
    first, second = gradients
    scale: Tensor = (first / (second + 1e-6)).clamp(max=1e4).detach()
    return scale


class Perceptual:
    """weight · LPIPS(x, x̂) of the package lpips, whose network is not a part of the model: (B,).

    Reference: Zhang et al., arXiv 1801.03924.

    Args:
        weight: of the distance.

    Raises:
        ValueError: the package or its weights are missing.
    """

    def __init__(self, weight: float) -> None:
        self.weight = weight
        try:
            import lpips

            with contextlib.redirect_stdout(io.StringIO()):
                self.network = lpips.LPIPS(net="vgg").eval().requires_grad_(False)
        except (ImportError, OSError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:150]
            raise ValueError(
                f"model.perceptual needs the package lpips and its weights ({reason}). Fix: pip install lpips, or set "
                "model.perceptual to 0"
            ) from error

    def __call__(self, x: Tensor, x_hat: Tensor) -> Tensor:
        """x, x̂: (B, C, H, W) in [−1, 1], 1 or 3 channels."""
        self.network.to(x.device)
        a, b = (part.expand(-1, 3, -1, -1) for part in (x, x_hat))
        distance: Tensor = self.network(a, b).flatten()
        return self.weight * distance
