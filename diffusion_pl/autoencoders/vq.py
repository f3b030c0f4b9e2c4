"""VQ: an autoencoder whose latents are entries of a codebook."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .base import Moments, Shape
from .convolutional import Convolutional, Reconstruction


class VQ(Convolutional):
    """Every place of the latent is replaced by its nearest code e_k when it is decoded; a diffusion model is trained on
    what the encoder gives, before that.

        q = e_k,  k = argmin ‖z − e_k‖;        penalty = mean (sg(z) − q)² + β mean (z − sg(q))²

    The decoder gets z + sg(q − z), so the gradient passes straight through; sg: no gradient.

    Reference: van den Oord et al., arXiv 1711.00937, Eq. 3; Rombach et al., arXiv 2112.10752, Sec. 3.1.

    Args:
        shape: of the images, (C, H, W); the command line takes it from the data.
        latent_channels: c, numbers in a code.
        codes: number of codes, at least 2.
        commitment: β.
        nf: channels at the size of the images, a multiple of 8.
        ch_mult: channels at each size, as multiples of nf; L sizes divide height and width by 2^(L−1).
        num_res_blocks: residual blocks at each size.
    """

    def __init__(
        self,
        shape: Shape,
        latent_channels: int = 4,
        codes: int = 512,
        commitment: float = 0.25,
        nf: int = 32,
        ch_mult: Sequence[int] = (1, 2, 2),
        num_res_blocks: int = 1,
    ) -> None:
        if codes < 2:
            raise ValueError(f"VQ: codes must be at least 2, got {codes}")
        super().__init__(shape, latent_channels, nf, ch_mult, num_res_blocks, moments=1)
        self.commitment = commitment
        self.codebook = nn.Parameter(torch.randn(codes, latent_channels))

    def encode(self, x: Tensor) -> Moments:
        z: Tensor = self.encoder(x)
        return Moments(z, torch.zeros_like(z))

    def quantized(self, z: Tensor) -> Tensor:
        """The nearest code at every place. z: (B, c, h, w) -> the same shape."""
        places = z.movedim(1, -1)
        nearest = torch.cdist(places.flatten(0, -2).detach().float(), self.codebook.detach().float()).argmin(1)
        return self.codebook[nearest].reshape(places.shape).movedim(-1, 1).to(z)

    def decode(self, z: Tensor) -> Tensor:
        # z − z is exactly 0, and its gradient is that of z: the gradient passes the choice of the code (Sec. 3.2).
        return super().decode(self.quantized(z) + (z - z.detach()))

    def reconstruct(self, x: Tensor, eps: Tensor) -> Reconstruction:
        z = self.encode(x).mean
        q = self.quantized(z)
        parts = (z.detach() - q).square() + self.commitment * (z - q.detach()).square()
        return Reconstruction(super().decode(z + (q - z).detach()), parts.flatten(1).mean(1))
