"""diffusion_pl: diffusion models on PyTorch Lightning.

The theory in six lines, where each symbol lives:

    schedules/                       q(x_t | x_0) = N(α x_0, σ² I);  a schedule is ONE function
                                     t ∈ [0,1] ↦ (α, σ, α', σ'),  λ = 2 log(α/σ);
                                     SDE drift f = α'/α,  noise g² = 2σ(σ' − fσ) = −σ²λ'
    samplers/                        ODE velocity  E[dx/dt | x_t] = α' x̂_0 + σ' ε̂,  so  dx = x̂_0 dα + ε̂ dσ
    denoisers/parameterizations.py   network output  F = p x_0 + q ε  →  x̂_0 = (q x_t − σF)/d,  ε̂ = (αF − p x_t)/d,
                                     d = αq − σp
    losses/weightings.py             every loss is  w(t)‖x̂_0 − x_0‖² = w c_out² ‖F − F*‖²,  c_out = −σ/d
    schedules/transitions.py         s < t:  α_ts = α_t/α_s,  σ²_ts = −σ_t² expm1(λ_t − λ_s),
                                     q(x_s | x_t, x_0) = N(α_ts σ_s²/σ_t² x_t + α_s σ²_ts/σ_t² x_0,  σ²_ts σ_s²/σ_t²)

A published method is a row of five choices:

    method              schedule            parameterization  times               weighting        sampler
    DDPM                LinearBetas(1000)   Epsilon           GridTimes           SNR              Ancestral
    DDPM on the bound   LinearBetas(1000)   Epsilon           GridTimes           ChainELBO        Ancestral
    score SDE           VP / SubVP / VE     Epsilon           UniformTimes        SNR, Likelihood  EulerMaruyama
    cosine + v          Cosine              V                 UniformTimes        Plain, MinSNR    DDIM
    EDM                 Karras(.002, 80)    EDM(.5)           LogNormalTimes      Plain            Heun(KarrasGrid(18))
    rectified flow      Rectified           Velocity          Uniform, LogitN.    FlowMatching     DDIM, Heun

The tree, from below; a package imports only from those above it in this list:

    tensors  conditions  ode     shapes, what a model gets besides x_t, Runge–Kutta pairs
    schedules                    noise schedules and their transitions
    denoisers                    (x_t, t) ↦ (x̂_0, ε̂): networks, guidance, inverse problems, closed forms
    samplers  likelihood  losses grids and samplers; log p and its bounds; losses, weightings, timestep distributions
    networks  autoencoders  data  metrics  plots   islands, which import tensors and conditions only
    training                     Lightning modules
    checkpoints  checks          files; what can be known before a run
    runtime                      errors, signals, devices, run folders, logs, provenance
    evaluation  callbacks  interop
    cli  commands
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from .pipeline import Pipeline

__version__ = "0.2.0"


def load(path: "str | Path", weights: str = "ema") -> "Pipeline":
    """What draws samples of a checkpoint: ``diffusion_pl.load("runs/digits/checkpoints/last.ckpt")(16)``.

    Args:
        path: a checkpoint that `fit`, `import` or `DiffusionModule.save` wrote, or the folder of a run: its newest good
            checkpoint.
        weights: "ema" (the first EMA weights; the raw ones where there are none), "raw", "ema:0.999" for one of
            several, or "std:0.15" for power-function EMA weights of this width, made of the run's snapshots.

    Raises:
        FileNotFoundError, ValueError: no such file, damaged, of another package, or without these weights.
    """
    from .checkpoints.loading import load_pipeline  # here, for it imports torch and Lightning

    return load_pipeline(path, weights)[0]
