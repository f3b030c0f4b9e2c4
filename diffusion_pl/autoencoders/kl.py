"""KL: a variational autoencoder with a very small weight of the KL divergence."""

from collections.abc import Sequence

from torch import Tensor

from .base import Moments, Shape
from .convolutional import Convolutional, Reconstruction

LOG_VAR = (-30.0, 20.0)  # range of log std², beyond which training would overflow


class KL(Convolutional):
    """q(z | x) = N(mean, std²) of the encoder.

        penalty = KL(q ‖ N(0, 1)) / D = ½ Σ (mean² + std² − 1 − log std²) / D,      D = C·H·W

    Reference: Kingma & Welling, arXiv 1312.6114, App. B; Rombach et al., arXiv 2112.10752, App. G.

    Args:
        shape: of the images, (C, H, W); the command line takes it from the data.
        latent_channels: c.
        nf: channels at the size of the images, a multiple of 8.
        ch_mult: channels at each size, as multiples of nf; L sizes divide height and width by 2^(L−1).
        num_res_blocks: residual blocks at each size.
    """

    def __init__(
        self,
        shape: Shape,
        latent_channels: int = 4,
        nf: int = 32,
        ch_mult: Sequence[int] = (1, 2, 2),
        num_res_blocks: int = 1,
    ) -> None:
        super().__init__(shape, latent_channels, nf, ch_mult, num_res_blocks, moments=2)

    def encode(self, x: Tensor) -> Moments:
        mean, log_var = self.encoder(x).chunk(2, 1)
        return Moments(mean, (0.5 * log_var.clamp(*LOG_VAR)).exp())

    def reconstruct(self, x: Tensor, eps: Tensor) -> Reconstruction:
        moments = self.encode(x)
        mean, std = moments
        return Reconstruction(self.decode(mean + std * eps), kl(moments) / x[0].numel())


def kl(moments: Moments) -> Tensor:
    """KL(N(mean, std²) ‖ N(0, 1)) of each example, nats: (B,)."""
    mean, std = moments
    return 0.5 * (mean.square() + std.square() - 1 - 2 * std.log()).flatten(1).sum(1)
