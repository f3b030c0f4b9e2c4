"""Losses: how a denoiser learns, from timestep distribution, weighting and coupling."""

from .alignment import Alignment
from .base import Loss, Losses
from .bound import BoundLoss
from .couplings import Coupling, MinibatchOT, Reflow
from .denoising import DenoisingLoss
from .flow_map import FlowMapLoss
from .jumps import Jumps
from .learned_variance import VarianceBound
from .pairs import Pairs, PairSampler, ToData, TwoTimes
from .rules import (
    Consistency,
    ContinuousConsistency,
    ImprovedMeanFlow,
    Lagrangian,
    MeanFlow,
    Rule,
    Semigroup,
    Target,
)
from .timesteps import (
    GridTimes,
    LikelihoodTimes,
    LogitNormalTimes,
    LogNormalTimes,
    LossSecondMoment,
    ShiftedTimes,
    StratifiedTimes,
    Times,
    TimeSampler,
    UniformTimes,
)
from .uncertainty import Uncertainty
from .weightings import P2, SNR, ChainELBO, FlowMatching, Likelihood, MinSNR, Plain, SoftMinSNR, Weighting

__all__ = [
    "P2",
    "SNR",
    "Alignment",
    "BoundLoss",
    "ChainELBO",
    "Consistency",
    "ContinuousConsistency",
    "Coupling",
    "DenoisingLoss",
    "FlowMapLoss",
    "FlowMatching",
    "GridTimes",
    "ImprovedMeanFlow",
    "Jumps",
    "Lagrangian",
    "Likelihood",
    "LikelihoodTimes",
    "LogNormalTimes",
    "LogitNormalTimes",
    "Loss",
    "LossSecondMoment",
    "Losses",
    "MeanFlow",
    "MinSNR",
    "MinibatchOT",
    "PairSampler",
    "Pairs",
    "Plain",
    "Reflow",
    "Rule",
    "Semigroup",
    "ShiftedTimes",
    "SoftMinSNR",
    "StratifiedTimes",
    "Target",
    "TimeSampler",
    "Times",
    "ToData",
    "TwoTimes",
    "Uncertainty",
    "UniformTimes",
    "VarianceBound",
    "Weighting",
]
