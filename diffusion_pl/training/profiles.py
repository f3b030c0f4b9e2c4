"""Power-function averages, and how to make one of them from others after training.

    p_{γ,t}(τ) = (γ + 1) τ^γ / t^{γ+1}  on [0, t],     θ̄_{γ,t} = ∫ p_{γ,t}(τ) θ(τ) dτ

The width is given as a fraction of the training: σ = std(p_{γ,t}) / t, which does not depend on t.

Reference: Karras et al., arXiv 2312.02696, Sec. 3 and App. C.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .averages import Average

WIDEST = 1 / math.sqrt(12)  # γ = 0: all steps weigh the same
PREFIX = "std"  # begins the names of power-function averages


def std_of(gamma: float) -> float:
    """σ = √((γ + 1) / ((γ + 2)² (γ + 3))), a fraction of the training: arXiv 2312.02696, Sec. 3.1."""
    return math.sqrt((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3)))


def gamma_of(std: float) -> float:
    """γ ≥ 0 of the profile with this σ: the largest root of (γ + 2)² (γ + 3) = (γ + 1) / σ².

    Reference: arXiv 2312.02696, App. C, Algorithm 2.

    Raises:
        ValueError: σ is not in (0, 1/√12], so there is no such profile.
    """
    if not 0 < std <= WIDEST:
        raise ValueError(f"the width (std) of a power-function EMA must be in (0, {WIDEST:.4f}], got {std}")
    # With u = γ + 2:  u³ + u² − u/σ² + 1/σ² = 0, of three real roots, by the cosine of a third of an angle.
    k = 1 / std**2
    p, q = -k - 1 / 3, 2 / 27 + k / 3 + k
    gamma = 2 * math.sqrt(-p / 3) * math.cos(math.acos(1.5 * q / p * math.sqrt(-3 / p)) / 3) - 1 / 3 - 2
    return max(gamma, 0.0)


class PowerFunction(Average):
    """r = 1 − (1 − 1/t)^{γ+1} at the t-th update: the weight of step i is ∝ i^{γ+1} − (i − 1)^{γ+1}.

    Its memory is the same fraction of the training at any time, so it needs no warm-up.

    Reference: Karras et al., arXiv 2312.02696, Sec. 3.1.

    Args:
        std: σ, width of the profile as a fraction of the training, in (0, 1/√12]; 0.05 and 0.1 in EDM2.
    """

    def __init__(self, std: float) -> None:
        self.gamma, self.std = gamma_of(std), float(std)

    @property
    def name(self) -> str:
        return f"{PREFIX}{self.std}"

    def rate(self, updates: int, examples: int | None) -> float:
        if updates == 0:
            return 1.0
        return -math.expm1((self.gamma + 1) * math.log1p(-1 / (updates + 1)))

    def limit(self, examples: int | None) -> None:
        return None


def std_in(name: str) -> float | None:
    """The σ of an average by its name in checkpoints, such as "std0.1"; None: it is of another kind."""
    try:
        return float(name.removeprefix(PREFIX)) if name.startswith(PREFIX) else None
    except ValueError:
        return None


class Profile(NamedTuple):
    """p_{γ,t}: γ by its σ, and t in steps, at least 1."""

    std: float
    time: int


class Fit(NamedTuple):
    """A profile as a sum of others.

    weights: of each of them, (N,) in float64.
    residual: ‖p − Σ_i w_i p_i‖ / ‖p‖, in the L² norm on [0, ∞).
    """

    weights: Tensor
    residual: float


def inner_products(a: Sequence[Profile], b: Sequence[Profile]) -> Tensor:
    """⟨p_i, p_j⟩ = ∫ p_i p_j dτ of each of a with each of b: (len(a), len(b)), float64.

    Where t_i ≤ t_j it is (γ_i + 1)(γ_j + 1) / (γ_i + γ_j + 1) · (t_i / t_j)^{γ_j} / t_j.

    Reference: arXiv 2312.02696, App. C.
    """
    gamma_a, gamma_b = (torch.tensor([gamma_of(p.std) for p in each], dtype=torch.float64) for each in (a, b))
    time_a, time_b = (torch.tensor([p.time for p in each], dtype=torch.float64) for each in (a, b))
    gamma_a, time_a = gamma_a[:, None], time_a[:, None]
    later = torch.maximum(time_a, time_b)
    ratio = torch.minimum(time_a, time_b) / later
    power = torch.where(time_a <= time_b, gamma_b, gamma_a)
    factor: Tensor = (gamma_a + 1) * (gamma_b + 1) / (gamma_a + gamma_b + 1)
    return factor * ratio**power / later


def fit_profile(target: Profile, given: Sequence[Profile]) -> Fit:
    """The least-squares fit of a profile by others, which all end at its time or before.

    Reference: arXiv 2312.02696, Sec. 3.2 and App. C, Algorithm 3.
    """
    if target in given:
        weights = torch.tensor([float(k == given.index(target)) for k in range(len(given))], dtype=torch.float64)
        return Fit(weights, 0.0)
    norms = inner_products(given, given).diagonal().sqrt()
    norm = inner_products([target], [target]).sqrt()
    # Of unit vectors, which conditions the system best; gelsd, since neighbours are almost the same.
    a = inner_products(given, given) / (norms[:, None] * norms)
    b = inner_products(given, [target]) / (norms[:, None] * norm)
    x = torch.linalg.lstsq(a, b, driver="gelsd").solution
    squared = 1 - 2 * (x * b).sum() + (x * (a @ x)).sum()
    return Fit((x * norm)[:, 0] / norms, float(squared.clamp(min=0).sqrt()))


def nearest_width(target: Profile, given: Sequence[Profile], tolerance: float) -> float | None:
    """The σ nearest to that of a profile for which the residual is at most `tolerance`; None: there is none.

    It is searched in steps of 2 %.
    """
    # The widths that are given come first: they need no fit.
    widths = [p.std for p in given if p.time == target.time]
    widths += [std for k in range(400) if (std := WIDEST * 0.98**k) >= 0.001]
    for std in sorted(widths, key=lambda std: abs(math.log(std / target.std))):
        if fit_profile(Profile(std, target.time), given).residual <= tolerance:
            return std
    return None
