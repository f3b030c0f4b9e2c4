"""Denoisers D(x_t, t) = (x̂_0, ε̂): networks, wrappers that guide them, closed forms."""

from .base import Denoiser, check_target, check_time
from .closed_form import ExactMap, Gaussian, GaussianMap, GaussianMixture, JointGaussian, empirical
from .guidance import AutoGuided, ClassifierFree, ClassifierGuided, Thresholded, add_score, extrapolate
from .inverse_problems import Coarse, Gray, Masked, Operator, Reconstructing
from .network import LogSNR, NetworkDenoiser, NoiseInput, ScaledTime, StepIndex
from .parameterizations import EDM, Data, Epsilon, Parameterization, Prediction, Score, V, Velocity
from .posterior import Clipped, Magnitude, MomentMatched
from .random_fields import GaussianField, radial

__all__ = [
    "EDM",
    "AutoGuided",
    "ClassifierFree",
    "ClassifierGuided",
    "Clipped",
    "Coarse",
    "Data",
    "Denoiser",
    "Epsilon",
    "ExactMap",
    "Gaussian",
    "GaussianField",
    "GaussianMap",
    "GaussianMixture",
    "Gray",
    "JointGaussian",
    "LogSNR",
    "Magnitude",
    "Masked",
    "MomentMatched",
    "NetworkDenoiser",
    "NoiseInput",
    "Operator",
    "Parameterization",
    "Prediction",
    "Reconstructing",
    "ScaledTime",
    "Score",
    "StepIndex",
    "Thresholded",
    "V",
    "Velocity",
    "add_score",
    "check_target",
    "check_time",
    "empirical",
    "extrapolate",
    "radial",
]
