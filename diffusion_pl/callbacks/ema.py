"""EMA weights of a run: decays, half-lives, updates."""

from collections.abc import Sequence

from lightning.pytorch import LightningModule, Trainer

from ..training import Average, ConstantDecay, HalfLife, LeanCallback, Trainable


class EMA(LeanCallback):
    """Lets the module keep EMA weights θ̄ ← d θ̄ + (1 − d) θ of all trained parameters, several at once.

    Each EMA has a decay d per step, or a half-life in examples, which means the same for any batch size:
    d = ½^(batch / half-life).

    Warm-up, so that the random start is forgotten: at update n the decay is at most (1 + n)/(10 + n), that of a
    half-life at most ½^(1/(ramp_up n)).  The first EMA, decays before half-lives, replaces the weights in
    validation, test and panels; before its first update nothing is swapped.  A checkpoint's state_dict always holds
    the raw weights, its entry "averages" the EMA weights.

    Reference: see `ConstantDecay` and `HalfLife`.

    Args:
        decays: decay d of each EMA, in [0, 1), such as 0.999; empty: none.
        half_lives: half-lives of further EMAs, in examples, such as 500,000 (EDM's).
        ramp_up: bound on the half-lives, as a fraction of the examples seen so far, positive.
    """

    def __init__(
        self, decays: Sequence[float] = (0.999,), half_lives: Sequence[int] = (), ramp_up: float = 0.05
    ) -> None:
        HalfLife(1, ramp_up)  # raises, also where no half-life is given
        for name, values in (("decays", decays), ("half_lives", half_lives)):
            twice = [value for k, value in enumerate(values) if value in list(values)[:k]]
            if twice:
                raise ValueError(f"EMA {name} must differ from each other, got {twice[0]} twice")
        self.averages: list[Average] = [ConstantDecay(decay) for decay in decays]
        self.averages += [HalfLife(half_life, ramp_up) for half_life in half_lives]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if isinstance(pl_module, Trainable):  # else it only draws samples
            pl_module.averages.track(self.averages)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if isinstance(pl_module, Trainable):
            pl_module.use_raw_weights()
