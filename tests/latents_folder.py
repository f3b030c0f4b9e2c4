"""Folders of latents of scikit-learn's digits, for tests."""

from functools import partial
from pathlib import Path
from typing import Any

import torch

from diffusion_pl.autoencoders import KL, Autoencoder, Orthogonal, save_autoencoder
from diffusion_pl.commands.latents import latents
from diffusion_pl.data import DataModule, Digits


def small_kl() -> KL:
    """An autoencoder with a std above 0, that was not trained."""
    torch.manual_seed(0)
    return KL((1, 8, 8), latent_channels=3, nf=8, ch_mult=(1, 2))


def write_latents(
    folder: Path,
    autoencoder: Autoencoder | None = None,
    data: DataModule | None = None,
    *,
    conditional: bool = True,
    **options: Any,
) -> Path:
    """What the command `latents` writes; of digits by patches of 2 x 2 pixels, unless others are given."""
    own = folder.parent / f"{folder.name}-autoencoder"
    own.mkdir(parents=True, exist_ok=True)
    save_autoencoder(autoencoder or Orthogonal((1, 8, 8), 2), own)
    make = partial(Digits, conditional=conditional) if data is None else lambda: data
    latents(make, str(own), folder, accelerator="cpu", **options)
    return folder
