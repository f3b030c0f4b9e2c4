"""Decoders, the last step of a chain: −log p(x_0) under N(mean, std²), of a density or of quantization levels.

    density   −log N(x_0; mean, std²)
    levels    −log ∫ N(x; mean, std²) dx  over  x_0 ± 1/(L − 1),  the outermost of the L levels in [−1, 1] to infinity

Reference: Ho et al., arXiv 2006.11239, Eq. 13.
"""

import math

import torch
from torch import Tensor


def decoder_nll(x_0: Tensor, mean: Tensor, std: Tensor, levels: int | None = None) -> Tensor:
    """−log p(x_0) in nats, elementwise; the levels' is at least 0 and has no ceiling.

    Args:
        x_0: (B, *); with levels it is on −1 + 2k/(levels − 1).
        mean, std: shapes that broadcast to x_0's.
        levels: L; None: the density.
    """
    if levels is None:
        return 0.5 * math.log(2 * math.pi) + torch.log(std) + 0.5 * ((x_0 - mean) / std).square()
    half = 1 / (levels - 1)
    above, below = ((x_0 + shift - mean) / std for shift in (half, -half))
    # The outermost levels take all that is beyond them.
    above = torch.where(x_0 > 1 - half / 2, torch.full_like(above, math.inf), above)
    below = torch.where(x_0 < -1 + half / 2, torch.full_like(below, -math.inf), below)
    # Φ(b) − Φ(a) = Φ(−a) − Φ(−b): taken where it does not cancel.
    flip = below > 0
    above, below = torch.where(flip, -below, above), torch.where(flip, -above, below)
    # In logarithms: where the mean is far off, both Φ are 0 to all digits and their difference is not.
    upper, lower = torch.special.log_ndtr(above), torch.special.log_ndtr(below)
    nats: Tensor = -upper - torch.log(-torch.expm1(lower - upper))
    return nats
