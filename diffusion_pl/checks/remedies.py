"""The text after "Fix: …", by the class of a part; a subclass has that of its base."""

from collections.abc import Mapping

from ..networks import Embedding, Fourier, Sinusoidal
from ..schedules import (
    VE,
    VP,
    BetaTable,
    Cosine,
    CosineBetas,
    Karras,
    LinearLogSNR,
    Schedule,
    SigmoidAlphaBars,
    SubVP,
)

_NOISIER_END: Mapping[type, str] = {
    VP: "raise beta_max (20 is usual)",
    SubVP: "raise beta_max (20 is usual)",
    VE: "raise sigma_max or scale the data down",
    Karras: "raise sigma_max (80 is usual) or scale the data down",
    Cosine: "lower logsnr_min (-20 is usual)",
    LinearLogSNR: "lower logsnr_min",
    CosineBetas: "raise steps or max_beta",
    SigmoidAlphaBars: "raise steps or max_beta",
    BetaTable: "raise beta_max or steps (keep beta_max * steps near 20), or wrap the table in ZeroTerminalSNR",
    Schedule: "choose a schedule that ends nearer to pure noise",
}
_FASTER_EMBEDDING: Mapping[type, str] = {
    Fourier: "raise scale of the time_embedding, or give model.noise_input with a larger scale",
    Sinusoidal: "give model.noise_input StepIndex for a beta schedule, else ScaledTime with scale 999",
    Embedding: "give model.noise_input with a larger scale",
}


def noisier_end(schedule: Schedule) -> str:
    """How the end of a forward process comes closer to pure noise."""
    return _of(schedule, _NOISIER_END)


def faster_embedding(embedding: Embedding) -> str:
    """How the features of neighbouring noise levels become more different."""
    return _of(embedding, _FASTER_EMBEDDING)


def _of(part: object, remedies: Mapping[type, str]) -> str:
    return next(remedies[cls] for cls in type(part).__mro__ if cls in remedies)
