"""Losses: how a denoiser learns, from timestep distribution, weighting and coupling."""

from .base import Loss, Losses
from .couplings import Coupling, MinibatchOT
from .denoising import DenoisingLoss
from .learned_variance import VarianceBound
from .timesteps import (
    GridTimes,
    LikelihoodTimes,
    LogitNormalTimes,
    LogNormalTimes,
    LossSecondMoment,
    StratifiedTimes,
    Times,
    TimeSampler,
    UniformTimes,
)
from .weightings import P2, SNR, ChainELBO, FlowMatching, Likelihood, MinSNR, Plain, SoftMinSNR, Weighting

__all__ = [
    "P2",
    "SNR",
    "ChainELBO",
    "Coupling",
    "DenoisingLoss",
    "FlowMatching",
    "GridTimes",
    "Likelihood",
    "LikelihoodTimes",
    "LogNormalTimes",
    "LogitNormalTimes",
    "Loss",
    "LossSecondMoment",
    "Losses",
    "MinSNR",
    "MinibatchOT",
    "Plain",
    "SoftMinSNR",
    "StratifiedTimes",
    "TimeSampler",
    "Times",
    "UniformTimes",
    "VarianceBound",
    "Weighting",
]
