"""Autoencoders of the package diffusers, as they are."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .base import Autoencoder, Moments

#: How the classes of diffusers encode.
ENCODERS: dict[str, Callable[[Any, Tensor], Moments]] = {
    "AutoencoderKL": lambda model, x: _gaussian(model.encode(x).latent_dist),
    "AutoencoderTiny": lambda model, x: _exact(model.encode(x).latents),
    "AutoencoderDC": lambda model, x: _exact(model.encode(x).latent),
    "VQModel": lambda model, x: _exact(model.encode(x).latents),
}
_BLOCKS = ("block_out_channels", "encoder_block_out_channels")  # names of the channels at each size
_LATENTS = ("vq_embed_dim", "latent_channels")


class Diffusers(Autoencoder):
    """A model of diffusers: AutoencoderKL, AutoencoderTiny, AutoencoderDC or VQModel.

    Its scaling_factor and shift_factor are not used: the latents have statistics of their own.

    Args:
        model: the model.

    Raises:
        ValueError: it is of another class.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        kind = type(model).__name__
        if kind not in ENCODERS:
            raise ValueError(f"autoencoder: {kind} of diffusers is not supported, only {', '.join(ENCODERS)}")
        config = model.config
        self.model, self._encode = model, ENCODERS[kind]
        self.image_channels = config["in_channels"]
        self.latent_channels = next(config[name] for name in _LATENTS if config.get(name))
        self.factor = 2 ** (len(next(config[name] for name in _BLOCKS if config.get(name))) - 1)

    def encode(self, x: Tensor) -> Moments:
        return self._encode(self.model, x)

    def decode(self, z: Tensor) -> Tensor:
        x: Tensor = self.model.decode(z).sample
        return x

    def save(self, folder: Path) -> None:
        """Write the model as diffusers does."""
        self.model.save_pretrained(folder)


def open_diffusers(name: str) -> Diffusers:
    """A model of a folder of `save_pretrained`, or of the hub: ORGANIZATION/NAME or ORGANIZATION/NAME/FOLDER.

    Raises:
        ValueError: there is none, it is of another class, or diffusers is not installed.
    """
    try:
        import diffusers
        from diffusers.utils import logging
    except ImportError:
        raise ValueError(
            f"autoencoder {name}: needs the package diffusers. Fix: pip install 'diffusion_pl[diffusers]'"
        ) from None
    logging.disable_progress_bar()
    parts = name.split("/")
    place: dict[str, Any] = {"pretrained_model_name_or_path": name}
    if len(parts) == 3 and not Path(name).exists():
        place = {"pretrained_model_name_or_path": "/".join(parts[:2]), "subfolder": parts[2]}
    try:
        config: Any = diffusers.AutoencoderKL.load_config(**place)
        kind = config.get("_class_name")
        if kind not in ENCODERS:
            raise ValueError(f"its class is {kind}, expected one of {', '.join(ENCODERS)}")
        model = getattr(diffusers, kind).from_pretrained(
            place.pop("pretrained_model_name_or_path"), use_safetensors=True, low_cpu_mem_usage=False, **place
        )
    except (OSError, ValueError, RuntimeError, TypeError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"autoencoder {name} cannot be opened: {reason}") from error
    return Diffusers(model)


def _gaussian(q: Any) -> Moments:
    return Moments(q.mean, q.std)


def _exact(z: Tensor) -> Moments:
    return Moments(z, torch.zeros_like(z))
