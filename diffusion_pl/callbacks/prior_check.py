"""Before the first step: does the forward process end where sampling will start?"""

import math

import torch
from lightning.pytorch import LightningModule, Trainer

from ..data import DataModule
from ..lean import LeanCallback
from ..module import DiffusionModule
from ..schedules import Schedule


class PriorCheck(LeanCallback):
    """Stops `fit` if q(x_T | x_0) is too far from the noise that sampling starts from.

    A model never sees pure noise in training if its process keeps some of the data to the end; samples then start from
    a place it does not know.  The mismatch, in nats per dimension, is

        KL(q(x_T | x_0) ‖ N(0, s²)) = ½ [ (α² E x_0² + σ²)/s² − 1 − log(σ²/s²) ],   s² = α² + σ²

    averaged over the training data, at the sampler's first time T.

    Args:
        max_kl: largest mismatch accepted, nats per dimension.
        ignore: go on regardless.
    """

    def __init__(self, max_kl: float = 1e-3, ignore: bool = False) -> None:
        if not max_kl > 0:
            raise ValueError(f"max_kl must be positive, got {max_kl}")
        self.max_kl, self.ignore = max_kl, ignore

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        data = trainer.datamodule
        if self.ignore or not isinstance(pl_module, DiffusionModule) or not isinstance(data, DataModule):
            return
        schedule, sampler = pl_module.schedule, pl_module.sampler
        second_moment, t = data.second_moment(), float(sampler.grid(schedule)[0])
        kl, snr = prior_mismatch(schedule, second_moment, t)
        if not kl <= self.max_kl:  # NaN is refused too
            name = type(schedule).__name__
            start = "" if t == 1 else f", where {type(sampler).__name__}'s grid starts"
            raise ValueError(
                f"{name} does not end in noise: at t={t:g}{start}, the signal-to-noise ratio is still {snr:.2g} for "
                f"these data (root mean square {math.sqrt(second_moment):.3g}), {kl:.2g} nats per dimension from the "
                f"prior that sampling starts from (at most {self.max_kl:g}). To mend it, {schedule.remedy}; "
                "or go on regardless with --prior_check.ignore true"
            )


def prior_mismatch(schedule: Schedule, second_moment: float, t: float = 1.0) -> tuple[float, float]:
    """KL in nats per dimension between q(x_t | x_0) and the prior, and the signal-to-noise ratio there.

    Args:
        schedule: the forward process.
        second_moment: E x_0² per dimension.
        t: where sampling starts.
    """
    alpha, sigma, *_ = (float(v) for v in schedule(torch.tensor(t, dtype=torch.float64)))
    prior = schedule.prior_std(t) ** 2
    signal = alpha**2 * second_moment
    return 0.5 * ((signal + sigma**2) / prior - 1 - math.log(sigma**2 / prior)), signal / sigma**2
